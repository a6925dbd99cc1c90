"""Our pool below httpx and below httpx2: `PooledTransport` of either, against real sockets."""

from __future__ import annotations

import gzip
import inspect
import json
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from types import ModuleType
from typing import NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.streams.tls
import httpx
import httpx2
import pytest
import trustme

import millstream.httpx2
from millstream import _errors
from millstream._errors import (
    CertificateError,
    ClosedError,
    ConnectError,
    DeadlineError,
    LocalProtocolError,
    MillstreamError,
    OptionTypeError,
    ProtocolError,
    ReadError,
    TransportError,
    WriteError,
)
from millstream._transport.pool import PoolTransport

from ..support.servers import read_request
from .quiet import assert_quiet


class Face(NamedTuple):
    """One of the two libraries and our transport for it."""

    http: ModuleType
    transport: type


FACES = {
    "httpx": Face(httpx, millstream.PooledTransport),
    "httpx2": Face(httpx2, millstream.httpx2.PooledTransport),
}


@pytest.fixture(params=FACES.values(), ids=FACES)
def face(request):
    return request.param


class Server:
    """Answers by path; notes each connection and request."""

    def __init__(self):
        self.url = ""
        self.connections = 0
        self.requests = []
        self.gone = anyio.Event()
        """Set when a client closes its connection while an answer is under way."""

    async def connection(self, stream):
        self.connections += 1
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                while True:
                    head, body = await read_request(stream)
                    self.requests.append((head, body))
                    await self.answer(stream, head, body)

    async def answer(self, stream, head, body):
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        path = target.partition(b"?")[0]
        if path == b"/silent":
            await anyio.sleep_forever()
        elif path == b"/hangup":
            await stream.aclose()
        elif path == b"/nonsense":
            await stream.send(b"SSH-2.0\r\n\r\n")
        elif path == b"/cut":
            await stream.send(CHUNKED + b"2\r\nab\r\n")
            await stream.aclose()
        elif path == b"/endless":
            await stream.send(CHUNKED + b"2\r\nab\r\n")
            try:
                await stream.receive()
            finally:
                self.gone.set()
        elif path == b"/pieces":
            await stream.send(CHUNKED + b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")
        elif path == b"/gzip":
            packed = gzip.compress(b"text " * 100)
            await stream.send(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
            )
        elif path == b"/redirect":
            await stream.send(b"HTTP/1.1 302 Found\r\nLocation: /there?a=1\r\nContent-Length: 0\r\n\r\n")
        elif path == b"/cookie":
            await stream.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n")
        elif path == b"/v1/chat/completions" and b'"stream":true' in body:
            event = b'data: {"id":"1","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
            text = event % b"Hel" + event % b"lo" + b"data: [DONE]\n\n"
            start = CHUNKED.replace(b"200 OK", b"200 OK\r\nContent-Type: text/event-stream")
            await stream.send(start + b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text))
        elif path == b"/v1/chat/completions":
            text = b'{"id":"1","created":1,"model":"m","choices":[{"index":0,"message":{"content":"Hello"}}]}'
            start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
            await stream.send(start + text)
        elif path == b"/nothing":
            await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            content = json.dumps({"line": head.split(b"\r\n")[0].decode(), "body": body.decode()}).encode()
            data = b"HTTP/1.1 200 Fine\r\nContent-Length: %d\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n" % len(content)
            await stream.send(data + (b"" if method == b"HEAD" else content))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(tls=None):
    server = Server()
    listeners = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listeners.extra(anyio.abc.SocketAttribute.local_port)
    server.url = f"http{'' if tls is None else 's'}://127.0.0.1:{port}"
    listener = (
        listeners
        if tls is None
        else anyio.streams.tls.TLSListener(listeners, ssl_context=tls, standard_compatible=False)
    )
    async with listeners, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.connection)
        yield server
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def both(face, tls=None, **options):
    transport = face.transport(**options)
    async with serving(tls) as server, face.http.AsyncClient(transport=transport, base_url=server.url) as client:
        yield server, client


class TestRequests:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def test_methods(self, face, method):
        async with both(face) as (_, client):
            answer = await client.request(
                method, "/a%20b", params={"q": "é &"}, content=b"body" if "P" in method else None
            )
        assert answer.json()["line"] == f"{method} /a%20b?q=%C3%A9+%26 HTTP/1.1"
        assert answer.json()["body"] == ("body" if "P" in method else "")
        assert (answer.status_code, answer.reason_phrase, answer.http_version) == (200, "Fine", "HTTP/1.1")
        assert answer.headers.get_list("x-two") == ["1", "2"]

    async def test_answers_without_a_body(self, face):
        async with both(face) as (server, client):
            head = await client.head("/")
            assert (head.content, int(head.headers["content-length"]) > 0) == (b"", True)
            assert (await client.get("/nothing")).status_code == 204
            assert (await client.get("/")).status_code == 200
            assert server.connections == 1

    async def test_headers(self, face):
        async with both(face) as (server, client):
            await client.get("/", headers=[("Host", "other.test"), ("X-Case", "1"), ("x-case", "2")])
        lines = server.requests[0][0].split(b"\r\n")
        assert [line for line in lines if line.lower().startswith(b"host:")] == [b"Host: other.test"]
        assert [line for line in lines if line.lower().startswith(b"x-case")] == [b"X-Case: 1", b"x-case: 2"]
        assert b"Accept-Encoding: gzip, deflate" in lines

    @pytest.mark.parametrize(
        ("asked", "sent"), [("br, gzip;q=0.5, zstd", b"gzip;q=0.5"), ("br", b"identity"), ("identity", b"identity")]
    )
    async def test_no_encoding_is_asked_for_that_the_pool_does_not_know(self, face, asked, sent):
        async with both(face) as (server, client):
            await client.get("/", headers={"accept-encoding": asked})
        assert b"accept-encoding: " + sent in server.requests[0][0].lower()

    async def test_a_body_that_arrives_in_pieces(self, face):
        async def pieces():
            yield b"one "
            await anyio.lowlevel.checkpoint()
            yield b"two"

        async with both(face) as (server, client):
            assert (await client.post("/", content=pieces())).json()["body"] == "one two"
            assert "three" in (await client.post("/", files={"f": b"three"})).json()["body"]
        head = server.requests[0][0].lower()
        assert b"content-length: 7" in head
        assert b"transfer-encoding" not in head

    async def test_a_body_over_the_bound(self, face):
        class Endless:
            def __aiter__(self):
                return self

            async def __anext__(self):
                return bytes(1 << 20)

        async with both(face) as (server, client):
            with pytest.raises(face.http.LocalProtocolError, match="over 64 MiB"):
                await client.post("/", content=Endless())
        assert server.connections == 0

    async def test_a_header_that_is_not_ascii(self, face):
        async with both(face) as (_, client):
            with pytest.raises(face.http.LocalProtocolError) as caught:
                await client.get("/", headers={"x": b"\xe9"})
        assert caught.value.request.url.path == "/"

    async def test_other_schemes(self, face):
        async with face.http.AsyncClient(transport=face.transport()) as client:
            with pytest.raises(face.http.UnsupportedProtocol):
                await client.get("ftp://example.test/")


class TestClientAbove:
    async def test_redirects_and_hooks(self, face):
        seen = []

        async def hook(answer):
            seen.append(answer.status_code)

        async with both(face) as (server, client):
            client.event_hooks = {"response": [hook]}
            answer = await client.get("/redirect", follow_redirects=True)
            assert answer.json()["line"] == "GET /there?a=1 HTTP/1.1"
            assert (await client.get("/redirect")).status_code == 302
            assert server.connections == 1
        assert seen == [302, 200, 302]

    async def test_cookies_and_authentication(self, face):
        async with both(face) as (server, client):
            await client.get("/cookie")
            await client.get("/", auth=("user", "pw"))
        assert b"Cookie: a=1; b=2" in server.requests[1][0]
        assert b"Authorization: Basic " in server.requests[1][0]

    async def test_gzip_is_decoded_once(self, face):
        async with both(face) as (_, client):
            answer = await client.get("/gzip")
            assert answer.text == "text " * 100
            assert not {"content-encoding", "content-length"} & set(answer.headers)
            async with client.stream("GET", "/gzip") as answer:
                assert b"".join([piece async for piece in answer.aiter_raw()]) == b"text " * 100

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])  # openai's own limit
    async def test_openai_on_it(self, face):
        openai = pytest.importorskip("openai")
        async with both(face) as (server, client):
            asking = openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", http_client=client, max_retries=0)
            messages = [{"role": "user", "content": "Hi"}]
            whole = await asking.chat.completions.create(model="m", messages=messages)
            assert whole.choices[0].message.content == "Hello"
            pieces = await asking.chat.completions.create(model="m", messages=messages, stream=True)
            assert "".join([piece.choices[0].delta.content async for piece in pieces]) == "Hello"
            assert server.connections == 1


class TestStreams:
    async def test_read_to_the_end_the_connection_is_used_again(self, face):
        async with both(face) as (server, client):
            for _ in range(3):
                async with client.stream("GET", "/pieces") as answer:
                    assert b"".join([piece async for piece in answer.aiter_bytes()]) == b"abcd"
            assert server.connections == 1

    async def test_left_with_its_end_already_here_too(self, face):
        async with both(face) as (server, client):
            for _ in range(3):
                async with client.stream("GET", "/pieces"):
                    pass
            assert server.connections == 1

    async def test_left_early_it_is_closed_at_once(self, face):
        async with both(face) as (server, client):
            async with client.stream("GET", "/endless"):
                pass
            with anyio.fail_after(30):
                await server.gone.wait()
            assert (await client.get("/")).status_code == 200
            assert server.connections == 2

    async def test_cancelled_it_is_closed_at_once(self, face):
        pool = PoolTransport()
        async with both(face, pool=pool) as (server, client):
            with anyio.CancelScope() as scope:
                async with client.stream("GET", "/endless") as answer:
                    async for _ in answer.aiter_bytes():
                        scope.cancel()
            with anyio.fail_after(30):
                await server.gone.wait()
            assert (pool.statistics().open, pool.statistics().opening) == (0, 0)
        await pool.aclose()

    async def test_cancelled_anywhere_nothing_is_left(self, face):
        pool = PoolTransport(max_connections=1)
        async with both(face, pool=pool) as (_, client):

            async def ask(path):
                async with client.stream("POST", path, content=b"body") as answer:
                    async for _ in answer.aiter_bytes():
                        pass

            for path in ("/", "/pieces", "/endless"):
                for steps in range(20):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(ask, path)
                        for _ in range(steps):
                            await anyio.lowlevel.checkpoint()
                        tasks.cancel_scope.cancel()
                    assert_quiet(pool)
                    if path == "/endless":
                        assert pool.statistics().open == 0
            assert (await client.get("/")).status_code == 200  # by the one connection that there may be
        await pool.aclose()

    async def test_cancelled_before_the_head(self, face):
        pool = PoolTransport()
        async with both(face, pool=pool) as (_, client):
            with anyio.move_on_after(0.02):
                await client.get("/silent")
            assert (pool.statistics().open, pool.statistics().opening) == (0, 0)
        await pool.aclose()


class TestErrors:
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_request_of_the_other_library(self, face):
        (other,) = (each for each in FACES.values() if each is not face)
        async with face.transport() as transport:
            with pytest.raises(OptionTypeError, match=f"is for {face.http.__name__}, .* is millstream.httpx2.Pooled"):
                await transport.handle_async_request(other.http.Request("GET", "http://example.test/"))

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_body_that_is_synchronous(self, face):
        request = face.http.Request("POST", "http://example.test/", content=iter([b"a"]))
        async with face.transport() as transport:
            with pytest.raises(face.http.LocalProtocolError, match="synchronous"):
                await transport.handle_async_request(request)

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/hangup", "ReadError"),
            ("/nonsense", "RemoteProtocolError"),
            ("/cut", "ReadError"),
        ],
    )
    async def test_a_server_that_fails(self, face, path, expected):
        async with both(face) as (_, client):
            with pytest.raises(face.http.TransportError) as caught:
                await client.get(path)
        assert type(caught.value) is getattr(face.http, expected)
        assert caught.value.request.url.path == path
        assert isinstance(caught.value.__cause__, MillstreamError)

    async def test_nobody_listens(self, face):
        async with serving() as server:
            pass
        async with face.http.AsyncClient(transport=face.transport()) as client:
            with pytest.raises(face.http.ConnectError):
                await client.get(server.url)

    @pytest.mark.parametrize("path", ["/silent", "/endless"])
    async def test_read_timeout(self, face, path):
        async with both(face) as (_, client):
            with pytest.raises(face.http.ReadTimeout):
                await client.get(path, timeout=face.http.Timeout(5, read=0.02))

    async def test_pool_timeout(self, face):
        async with (
            both(face, limits=face.http.Limits(max_connections=1)) as (_, client),
            client.stream("GET", "/endless"),
        ):
            with pytest.raises(face.http.PoolTimeout):
                await client.get("/", timeout=face.http.Timeout(5, pool=0.02))

    async def test_connect_timeout(self, face):
        with socket.socket() as mute:  # the system takes the connection; nobody answers the TLS handshake
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            async with face.http.AsyncClient(transport=face.transport()) as client:
                with pytest.raises(face.http.ConnectTimeout):
                    await client.get(
                        f"https://127.0.0.1:{mute.getsockname()[1]}/", timeout=face.http.Timeout(5, connect=0.05)
                    )

    async def test_write_timeout(self, face):
        with socket.socket() as deaf:  # the system takes the connection and what its buffers hold; nobody reads
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            async with face.http.AsyncClient(transport=face.transport()) as client:
                with pytest.raises(face.http.WriteTimeout):
                    await client.post(
                        f"http://127.0.0.1:{deaf.getsockname()[1]}/",
                        content=bytes(32 << 20),
                        timeout=face.http.Timeout(5, write=0.05),
                    )

    async def test_certificates(self, face):
        authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        ours = ssl.create_default_context()
        authority.configure_trust(ours)
        async with both(face, context, verify=ours) as (server, client):
            assert (await client.get("/")).status_code == 200
            for verify, ok in ((True, False), (False, True)):
                async with face.http.AsyncClient(transport=face.transport(verify=verify)) as other:
                    if ok:
                        assert (await other.get(server.url)).status_code == 200
                        continue
                    with pytest.raises(face.http.ConnectError) as caught:
                        await other.get(server.url)
                    assert isinstance(caught.value.__cause__, CertificateError)

    async def test_closed(self, face):
        async with both(face) as (server, client):
            transport = face.transport()
            await transport.aclose()
            with pytest.raises(face.http.LocalProtocolError):
                await transport.handle_async_request(client.build_request("GET", "/"))
            assert server.connections == 0

    async def test_a_pool_that_was_brought_is_not_closed(self, face):
        pool = PoolTransport()
        async with both(face, pool=pool) as (_, client):
            assert (await client.get("/")).status_code == 200
            await face.transport(pool=pool).aclose()
            assert (await client.get("/")).status_code == 200
        await pool.aclose()

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_every_error_of_the_seam_has_a_translation(self, face):
        ours = [value for value in vars(_errors).values() if inspect.isclass(value)]
        seam = [
            error for error in ours if issubclass(error, (TransportError, ProtocolError, DeadlineError, ClosedError))
        ]
        assert len(seam) >= 8
        for error in seam:
            theirs = await raised(face, error("why"))
            assert isinstance(theirs, face.http.TransportError), error
            assert theirs.request.url == "http://example.test/"
            assert "why" in str(theirs)

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (DeadlineError(deadline="connect"), "ConnectTimeout"),
            (DeadlineError(deadline="write"), "WriteTimeout"),
            (DeadlineError(deadline="read"), "ReadTimeout"),
            (DeadlineError(deadline="pool"), "PoolTimeout"),
            (CertificateError("x"), "ConnectError"),
            (ConnectError("x"), "ConnectError"),
            (WriteError("x"), "WriteError"),
            (ReadError("x"), "ReadError"),
            (LocalProtocolError("x"), "LocalProtocolError"),
            (ProtocolError("x"), "RemoteProtocolError"),
            (ClosedError("x"), "LocalProtocolError"),
            (TransportError("x"), "NetworkError"),
        ],
        ids=repr,
    )
    async def test_meaning(self, face, error, expected):
        assert type(await raised(face, error)) is getattr(face.http, expected)


async def raised(face, error):
    """What a user gets where the pool raises `error`."""

    class Failing:
        async def send(self, request):
            raise error

    async with face.http.AsyncClient(transport=face.transport(pool=Failing())) as client:
        with pytest.raises(Exception) as caught:
            await client.get("http://example.test/")
    assert caught.value.__cause__ is error
    return caught.value


class TestExtra:
    def test_without_httpx2_one_error_says_what_to_install(self):
        code = "import sys; sys.modules['httpx2'] = None; import millstream.httpx2"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        last = done.stderr.strip().splitlines()[-1]
        assert last == 'millstream._errors.MissingExtraError: httpx2 is not installed: pip install "millstream[httpx2]"'

    def test_that_error_is_an_import_error(self):
        code = "import sys; sys.modules['httpx2'] = None\ntry: import millstream.httpx2\nexcept ImportError as e: print(e.name)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "httpx2\n"
