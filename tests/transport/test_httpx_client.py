"""httpx below our seam: `HttpxTransport` over mocks, ASGI apps and real sockets."""

from __future__ import annotations

import gzip
import inspect
import ssl
import traceback
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.streams.tls
import httpx
import pytest
import trustme

from millstream import _clock
from millstream._errors import (
    CertificateError,
    ClosedError,
    ConnectError,
    DeadlineError,
    LocalProtocolError,
    MillstreamError,
    MissingExtraError,
    OptionTypeError,
    OptionValueError,
    ProtocolError,
    ReadError,
    WriteError,
)
from millstream._transport import httpx_client
from millstream._transport._seam import Origin, Request, Route, Timeouts
from millstream._transport.httpx_client import HttpxTransport, httpx_transport_for, translate_httpx_error

from ..support.servers import read_request

QUICK = Timeouts(5, 5, 5, 5)
EXAMPLE = Origin("http", "example.test", 80)


def request(origin=EXAMPLE, target="/v1?x=%20y", body=b"", *, method="POST", headers=(), stream=False, timeouts=QUICK):
    return Request(Route(method, origin, target, headers), body, stream=stream, timeouts=timeouts)


@asynccontextmanager
async def serving(handler, tls=None):
    """A server that hands each connection to `handler`; gives its origin."""
    listeners = await anyio.create_tcp_listener(local_host="127.0.0.1")

    async def connection(stream: anyio.abc.SocketStream):
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                await handler(stream)

    listener = (
        listeners
        if tls is None
        else anyio.streams.tls.TLSListener(listeners, ssl_context=tls, standard_compatible=False)
    )
    async with listeners, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, connection)
        port = listeners.extra(anyio.abc.SocketAttribute.local_port)
        yield Origin("http" if tls is None else "https", "127.0.0.1", port)
        tasks.cancel_scope.cancel()


def answering(data: bytes):
    """A handler that answers each request with these bytes and keeps the connection."""

    async def handler(stream):
        while True:
            await read_request(stream)
            await stream.send(data)

    return handler


OK = b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-A: 1\r\nx-a: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def closing(transport):
    try:
        yield transport
    finally:
        await transport.aclose()


def plain():
    return closing(httpx_transport_for(proxy=None, http2=False, verify=True))


class TestWhole:
    async def test_what_is_sent_and_what_comes_back(self):
        seen = []

        async def handler(stream):
            seen.append(await read_request(stream))
            await stream.send(OK)

        async with serving(handler) as origin, plain() as transport:
            answer = await transport.send(request(origin, body=b'{"a":1}', headers=[("X-Key", "k"), ("x-key", "l")]))
        ((head, body),) = seen
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /v1?x=%20y HTTP/1.1"
        assert body == b'{"a":1}'
        assert f"Host: {origin.authority}".encode() in lines
        assert [line for line in lines if line.lower().startswith(b"x-key")] == [b"X-Key: k", b"x-key: l"]
        assert b"Content-Length: 7" in lines
        assert (answer.status, answer.body, answer.reason, answer.http_version) == (200, b"ok", b"Fine", b"1.1")
        assert answer.stream is None
        assert answer.header(b"x-a") == "1, 2"

    async def test_a_mock_and_an_app(self):
        async def app(scope, receive, send):
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            await send({"type": "http.response.start", "status": 201, "headers": [(b"x-path", scope["path"].encode())]})
            await send({"type": "http.response.body", "body": body * 2})

        mock = httpx.MockTransport(lambda asked: httpx.Response(201, content=asked.content * 2))
        for below in (mock, httpx.ASGITransport(app)):
            answer = await HttpxTransport(below, owns=True).send(request(body=b"ab"))
            assert (answer.status, answer.body) == (201, b"abab")

    async def test_a_compressed_body_is_decoded(self):
        packed = gzip.compress(b"text " * 1000)
        data = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
        async with serving(answering(data)) as origin, plain() as transport:
            assert (await transport.send(request(origin))).body == b"text " * 1000

    async def test_a_compression_bomb_ends_at_the_bound(self):
        bomb = gzip.compress(bytes(httpx_client.MAX_BODY_BYTES + 1), 9)
        mock = httpx.MockTransport(
            lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Pieces([bomb]))
        )
        with pytest.raises(ProtocolError, match="over 64 MiB"):
            await HttpxTransport(mock, owns=True).send(request())

    async def test_a_redirect_is_an_answer(self):
        mock = httpx.MockTransport(lambda _: httpx.Response(307, headers={"location": "http://elsewhere.test/"}))
        async with httpx.AsyncClient(transport=mock, follow_redirects=True) as client:
            answer = await HttpxTransport(client, owns=False).send(request())
        assert (answer.status, answer.header(b"location")) == (307, "http://elsewhere.test/")

    async def test_head_has_no_body(self):
        data = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
        async with serving(answering(data)) as origin, plain() as transport:
            for _ in range(2):
                assert (await transport.send(request(origin, method="HEAD"))).body == b""


class Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces, error=None):
        self.pieces, self.error, self.closed = pieces, error, False

    async def __aiter__(self):
        for piece in self.pieces:
            yield piece
        if self.error == "stall":
            await anyio.sleep_forever()
        if self.error:
            raise self.error

    async def aclose(self):
        self.closed = True


class TestClient:
    async def test_the_clients_own_settings_apply_and_ours_win(self):
        seen = []

        def handler(asked):
            seen.append(asked)
            return httpx.Response(200)

        async with httpx.AsyncClient(
            transport=httpx.MockTransport(handler),
            headers={"x-both": "client", "x-client": "yes"},
            auth=("u", "p"),
            timeout=77,
        ) as client:
            await HttpxTransport(client, owns=False).send(
                request(headers=[("X-Both", "ours")], timeouts=Timeouts(1, 2, 3, None))
            )
        (asked,) = seen
        assert (asked.headers["x-both"], asked.headers["x-client"]) == ("ours", "yes")
        assert asked.headers["authorization"].startswith("Basic ")
        assert asked.extensions["timeout"] == {"connect": 1, "write": 2, "read": 3, "pool": None}

    async def test_cookies_of_an_answer_do_not_travel(self):
        seen = []

        def handler(asked):
            seen.append(asked.headers.get("cookie"))
            return httpx.Response(200, headers={"set-cookie": "session=secret"})

        async with httpx.AsyncClient(transport=httpx.MockTransport(handler), cookies={"own": "1"}) as client:
            transport = HttpxTransport(client, owns=False)
            await transport.send(request())
            await transport.send(request())
            await transport.send(request(headers=[("Cookie", "mine=2")]))
        assert seen == ["own=1", "own=1", "mine=2"]

    async def test_closes_only_what_it_owns(self):
        for owns in (True, False):
            async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
                transport = HttpxTransport(client, owns=owns)
                await transport.aclose()
                await transport.aclose()
                assert client.is_closed is owns
                with pytest.raises(ClosedError):
                    await transport.send(request())

    async def test_a_client_closed_by_its_owner(self):
        client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200)))
        transport = HttpxTransport(client, owns=False)
        await client.aclose()
        with pytest.raises(ClosedError):
            await transport.send(request())

    async def test_a_hook_that_raises_for_status(self):
        async def refuse(answer):
            answer.raise_for_status()

        async with httpx.AsyncClient(
            transport=httpx.MockTransport(lambda _: httpx.Response(503)), event_hooks={"response": [refuse]}
        ) as client:
            with pytest.raises(ProtocolError) as caught:
                await HttpxTransport(client, owns=False).send(request())
        assert caught.value.status_code == 503

    def test_a_synchronous_client_is_refused(self):
        with httpx.Client() as client, pytest.raises(OptionTypeError, match=r"AsyncClient.*httpx\.Client"):
            HttpxTransport(client, owns=False)


class TestStream:
    async def test_pieces_and_the_end(self):
        mock = httpx.MockTransport(lambda _: httpx.Response(200, stream=Pieces([b"a", b"", b"b"])))
        answer = await HttpxTransport(mock, owns=True).send(request(stream=True))
        assert answer.body == b""
        assert [await answer.stream.receive() for _ in range(4)] == [b"a", b"b", b"", b""]
        await answer.stream.aclose()
        await answer.stream.aclose()
        answer.stream.abort()

    async def test_a_deadline_ends_the_stream(self):
        body = Pieces([b"a"], "stall")
        mock = httpx.MockTransport(lambda _: httpx.Response(200, stream=body))
        answer = await HttpxTransport(mock, owns=True).send(request(stream=True))
        assert await answer.stream.receive(_clock.monotonic() + 5) == b"a"
        with pytest.raises(DeadlineError) as caught:
            await answer.stream.receive(_clock.monotonic())
        assert caught.value.deadline == "read"
        with pytest.raises(ReadError):  # never a false end
            await answer.stream.receive()
        await answer.stream.aclose()
        assert body.closed

    async def test_the_read_timeout_holds_for_a_body_that_is_no_socket(self):
        mock = httpx.MockTransport(lambda _: httpx.Response(200, stream=Pieces([], "stall")))
        answer = await HttpxTransport(mock, owns=True).send(request(stream=True, timeouts=Timeouts(read=0.01)))
        with pytest.raises(DeadlineError) as caught:
            await answer.stream.receive()
        assert (caught.value.deadline, caught.value.seconds) == ("read", 0.01)
        await answer.stream.aclose()

    async def test_left_at_its_last_event_the_connection_is_used_again(self):
        connections = []

        async def handler(stream):
            connections.append(stream)
            while True:
                await read_request(stream)
                await stream.send(CHUNKED + b"4\r\ndata\r\n")
                await stream.send(b"0\r\n\r\n")

        async with serving(handler) as origin, plain() as transport:
            for _ in range(3):
                answer = await transport.send(request(origin, stream=True))
                assert await answer.stream.receive() == b"data"
                await answer.stream.aclose()
        assert len(connections) == 1

    @pytest.mark.parametrize("way", ["aclose", "abort", "cancel"])
    async def test_a_stream_left_early_closes_its_connection(self, way):
        gone = anyio.Event()

        async def handler(stream):
            await read_request(stream)
            await stream.send(CHUNKED + b"1\r\nx\r\n")
            try:
                await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                gone.set()

        async with serving(handler) as origin, plain() as transport:
            answer = await transport.send(request(origin, stream=True))
            assert await answer.stream.receive() == b"x"
            if way == "aclose":
                await answer.stream.aclose()
            elif way == "abort":
                answer.stream.abort()
            else:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    try:
                        await answer.stream.receive()
                    finally:
                        await answer.stream.aclose()
            with anyio.fail_after(30):
                await gone.wait()
            with pytest.raises(ClosedError):
                await answer.stream.receive()

    async def test_a_stream_that_never_waits_is_left_too(self):
        class Endless(httpx.AsyncByteStream):
            async def __aiter__(self):
                while True:
                    await anyio.lowlevel.checkpoint()
                    yield b"x" * 8192

        mock = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
        answer = await HttpxTransport(mock, owns=True).send(request(stream=True))
        assert await answer.stream.receive()
        await answer.stream.aclose()

    async def test_closing_the_transport_ends_a_stream(self):
        mock = httpx.MockTransport(lambda _: httpx.Response(200, stream=Pieces([b"a"], "stall")))
        transport = HttpxTransport(mock, owns=True)
        answer = await transport.send(request(stream=True))
        await transport.aclose()
        with pytest.raises(ClosedError):
            await answer.stream.receive()
        await answer.stream.aclose()


class TestErrors:
    async def test_nobody_listens(self):
        async with serving(answering(OK)) as origin:
            pass
        async with plain() as transport:
            with pytest.raises(ConnectError) as caught:
                await transport.send(request(origin))
        assert type(caught.value) is ConnectError
        assert isinstance(caught.value.__cause__, httpx.ConnectError)

    async def test_the_server_hangs_up_without_an_answer(self):
        async with serving(read_request) as origin, plain() as transport:
            with pytest.raises(ReadError) as caught:
                await transport.send(request(origin))
        assert not caught.value.started

    @pytest.mark.parametrize("stream", [True, False])
    async def test_the_server_hangs_up_in_the_body(self, stream):
        async def handler(connection):
            await read_request(connection)
            await connection.send(CHUNKED + b"1\r\nx\r\n")

        async with serving(handler) as origin, plain() as transport:
            with pytest.raises(ReadError) as caught:
                answer = await transport.send(request(origin, stream=stream))
                try:
                    assert await answer.stream.receive() == b"x"
                    await answer.stream.receive()
                finally:
                    await answer.stream.aclose()
        assert caught.value.started

    @pytest.mark.parametrize("data", [b"SSH-2.0-server\r\n\r\n", CHUNKED + b"zz\r\n"])
    async def test_what_comes_is_no_http(self, data):
        async with serving(answering(data)) as origin, plain() as transport:
            with pytest.raises(ProtocolError):
                await transport.send(request(origin))

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # trio, of httpx's own generators
    async def test_a_broken_compression(self):
        data = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"
        async with serving(answering(data)) as origin, plain() as transport:
            with pytest.raises(ProtocolError):
                await transport.send(request(origin))

    async def test_nothing_comes_in_time(self):
        async def handler(stream):
            await read_request(stream)
            await anyio.sleep_forever()

        async with serving(handler) as origin, plain() as transport:
            with pytest.raises(DeadlineError) as caught:
                await transport.send(request(origin, timeouts=Timeouts(read=0.01)))
        assert (caught.value.deadline, caught.value.seconds) == ("read", 0.01)

    async def test_a_certificate_that_nobody_signed(self):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        async with serving(answering(OK), context) as origin, plain() as transport:
            with pytest.raises(CertificateError):
                await transport.send(request(origin))

    async def test_a_certificate_that_is_known(self):
        authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        ours = ssl.create_default_context()
        authority.configure_trust(ours)
        transport = httpx_transport_for(proxy=None, http2=False, verify=ours)
        async with serving(answering(OK), context) as origin, closing(transport):
            assert (await transport.send(request(origin))).body == b"ok"

    def test_every_exception_of_httpx_has_a_translation(self):
        theirs = {value for value in vars(httpx).values() if inspect.isclass(value) and issubclass(value, Exception)}
        assert len(theirs) > 20
        covered = tuple(entry for entry, _ in httpx_client._TABLE)
        assert {error.__name__ for error in theirs if not issubclass(error, covered)} == set()

    @pytest.mark.parametrize(
        ("error", "expected", "deadline"),
        [
            (httpx.ConnectTimeout(""), DeadlineError, "connect"),
            (httpx.WriteTimeout(""), DeadlineError, "write"),
            (httpx.ReadTimeout(""), DeadlineError, "read"),
            (httpx.PoolTimeout(""), DeadlineError, "pool"),
            (httpx.ConnectError("x"), ConnectError, None),
            (httpx.ProxyError("407"), ConnectError, None),
            (httpx.WriteError("x"), WriteError, None),
            (httpx.ReadError("x"), ReadError, None),
            (httpx.CloseError("x"), ReadError, None),
            (httpx.RemoteProtocolError("Server disconnected without sending a response."), ReadError, None),
            (httpx.RemoteProtocolError("<StreamReset stream_id:1, error_code:2>"), ReadError, None),
            (httpx.RemoteProtocolError("illegal status line"), ProtocolError, None),
            (httpx.LocalProtocolError("x"), LocalProtocolError, None),
            (httpx.UnsupportedProtocol("x"), LocalProtocolError, None),
            (httpx.InvalidURL("x"), LocalProtocolError, None),
            (httpx.DecodingError("x"), ProtocolError, None),
            (ConnectionResetError("x"), ReadError, None),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("started", [False, True])
    def test_meaning(self, error, expected, deadline, started):
        ours = translate_httpx_error(error, Timeouts(1, 2, 3, 4), started=started)
        assert type(ours) is expected
        if isinstance(ours, DeadlineError):
            assert ours.deadline == deadline
            assert ours.seconds == getattr(Timeouts(1, 2, 3, 4), deadline)
        if isinstance(ours, ReadError):
            assert ours.started is started

    async def test_a_mock_that_raises(self):
        def handler(asked):
            raise httpx.WriteError("broken", request=asked)

        with pytest.raises(WriteError) as caught:
            await HttpxTransport(httpx.MockTransport(handler), owns=True).send(request())
        assert isinstance(caught.value.__cause__, httpx.WriteError)


class TestFactory:
    async def test_a_proxy(self):
        seen = []

        async def handler(stream):
            seen.append((await read_request(stream))[0])
            await stream.send(OK)

        async with serving(handler) as origin:
            transport = httpx_transport_for(proxy=f"http://user:pw@{origin.authority}", http2=False, verify=True)
            async with closing(transport):
                assert (await transport.send(request())).body == b"ok"
                assert "pw" not in repr(transport)
        assert seen[0].startswith(b"POST http://example.test/v1?x=%20y HTTP/1.1\r\n")
        assert b"proxy-authorization: basic" in seen[0].lower()

    @pytest.mark.parametrize("url", ["ftp://user:hunter2@proxy", "user:hunter2@proxy:1", "http://user:hunter2@proxy:x"])
    def test_a_proxy_that_is_none_and_its_password(self, url):
        with pytest.raises(OptionValueError) as caught:
            httpx_transport_for(proxy=url, http2=False, verify=True)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in str(caught.value)

    async def test_a_proxy_that_is_not_there(self):
        async with serving(answering(OK)) as origin:
            pass
        async with closing(
            httpx_transport_for(proxy=f"http://u:hunter2@{origin.authority}", http2=False, verify=True)
        ) as transport:
            with pytest.raises(ConnectError) as caught:
                await transport.send(request())
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("package", "extra", "options"),
        [
            ("h2", "http2", {"http2": True, "proxy": None}),
            ("socksio", "socks", {"http2": False, "proxy": "socks5://p"}),
        ],
    )
    def test_an_extra_that_is_missing(self, package, extra, options, monkeypatch):
        monkeypatch.setitem(httpx_client.sys.modules, package, None)  # what Python itself does for "not there"
        with pytest.raises(MissingExtraError, match=rf'pip install "millstream\[{extra}\]"'):
            httpx_transport_for(**options, verify=True)

    async def test_http2_and_socks_are_made(self):
        for options in ({"http2": True, "proxy": None}, {"http2": False, "proxy": "socks5://127.0.0.1:1"}):
            await httpx_transport_for(**options, verify=True).aclose()


def test_errors_are_ours():
    assert issubclass(type(translate_httpx_error(httpx.HTTPError("x"), QUICK, started=False)), MillstreamError)
