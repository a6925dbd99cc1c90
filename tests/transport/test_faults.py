"""What a server, a network or a clock can do to a request, on real sockets; each is one error, and leaves nothing behind."""

from __future__ import annotations

import gzip
import socket
import threading

import anyio
import pytest

from millstream._errors import ConnectError, DeadlineError, ProtocolError, ReadError, TransportError, WriteError
from millstream._transport import Origin, Request, Route, Timeouts

from ..support.servers import CLOSE, RESET, STALL, answer, chunked, in_turn, serve, unused_port

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"


async def test_nobody_listens(pool):
    async with pool() as transport:
        port = unused_port()
        with pytest.raises(ConnectError, match=f"127.0.0.1:{port}"):
            await transport.send(Request(Route("POST", Origin("http", "127.0.0.1", port), "/")))


async def test_the_name_does_not_resolve(pool):
    async with pool() as transport:
        with pytest.raises(ConnectError, match=r"nonexistent\.invalid"):
            await transport.send(Request(Route("POST", Origin("http", "nonexistent.invalid", 80), "/")))


async def test_a_name_that_no_resolver_takes(pool):
    async with pool() as transport:
        with pytest.raises(ConnectError):
            await transport.send(Request(Route("POST", Origin("http", "a" * 70 + ".test", 80), "/")))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("steps", "error", "started"),
    [
        ([CLOSE], ReadError, False),
        ([RESET], ReadError, False),
        ([b"HTTP/1.1 2", CLOSE], ReadError, True),
        ([b"HTTP/1.1 200 OK\r\nserv", RESET], ReadError, True),
        ([HEAD, CLOSE], ReadError, True),
        ([HEAD + b"12345", CLOSE], ReadError, True),
        ([chunked(b"abc", end=b""), CLOSE], ReadError, True),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], ProtocolError, None),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"], ProtocolError, None),
        ([chunked(b"abc", end=b"zz\r\n")], ProtocolError, None),
        ([answer(b"abcdefghij" * 2, b"content-encoding: gzip")], ProtocolError, None),
        ([answer(gzip.compress(b"\0" * 10_000_000), b"content-encoding: gzip")], ProtocolError, None),
    ],
)  # fmt: skip
async def test_answers_that_are_none(pool, steps, error, started, stream):
    async with serve(steps) as server, pool() as transport:
        with pytest.raises(error) as caught:
            response = await transport.send(server.request(stream=stream))
            while await response.stream.receive():
                pass
        if started is not None:
            assert caught.value.started is started
        assert transport.statistics().open == 0
        assert server.connections == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_reset_and_close_at_every_byte(pool, stream):
    raw = answer(b"abc")

    async def cut(peer):
        await peer.request()
        await peer.send(raw[: peer.number % len(raw)])
        if peer.number < len(raw):
            await peer.close()
        else:
            await anyio.sleep(0)
            await peer.reset()

    async with serve(cut) as server, pool() as transport:
        for _ in range(2 * len(raw) - 1):
            with pytest.raises(ReadError):
                response = await transport.send(server.request(stream=stream))
                while await response.stream.receive():
                    pass
        assert server.connections == 2 * len(raw) - 1
        assert transport.statistics().open == 0


async def test_a_reused_connection_that_breaks_within_the_answer_is_not_sent_again(pool):
    async def second_is_cut(peer):
        await peer.request()
        await peer.send(answer())
        await peer.request()
        await peer.send(HEAD + b"123")

    async with serve(second_is_cut) as server, pool() as transport:
        await transport.send(server.request())
        with pytest.raises(ReadError) as caught:
            await transport.send(server.request())
        assert caught.value.started
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_a_fresh_connection_that_breaks_after_a_stale_one_is_an_error(pool):
    async def answer_once(peer):
        await peer.request()
        await peer.send(answer())
        await peer.request()

    async with serve(in_turn(answer_once, [RESET])) as server, pool() as transport:
        await transport.send(server.request())
        with pytest.raises(ReadError):
            await transport.send(server.request())
        assert server.connections == 2


@pytest.mark.parametrize(
    ("steps", "stream"),
    [([STALL], False), ([STALL], True), ([b"HTTP/1.1 200", STALL], True), ([HEAD, STALL], False), ([HEAD + b"1", STALL], False)],
)  # fmt: skip
async def test_an_answer_that_does_not_come(pool, steps, stream):
    async with serve(steps) as server, pool() as transport:
        with pytest.raises(DeadlineError, match=r"0\.02 s") as caught:
            await transport.send(server.request(stream=stream, timeouts=Timeouts(read=0.02)))
        assert (caught.value.deadline, caught.value.seconds) == ("read", 0.02)
        assert transport.statistics().open == 0


async def test_each_piece_of_a_whole_body_moves_the_read_deadline(pool):
    async def slow(peer):
        await peer.request()
        await peer.send(HEAD)
        for _ in range(10):
            await anyio.sleep(0.06)
            await peer.send(b"x")

    async with serve(slow) as server, pool() as transport:
        response = await transport.send(server.request(timeouts=Timeouts(read=0.5)))
        assert response.body == b"x" * 10


async def test_a_request_that_is_not_taken(pool):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connections are made by the system; nobody reads from them
        route = Route("POST", Origin("http", "127.0.0.1", deaf.getsockname()[1]), "/")
        async with pool() as transport:
            with pytest.raises(DeadlineError) as caught:
                await transport.send(Request(route, b"x" * 20_000_000, timeouts=Timeouts(write=0.03)))
        assert (caught.value.deadline, caught.value.seconds) == ("write", 0.03)


async def test_the_read_deadline_begins_when_the_request_is_sent(pool):
    size = 12_000_000

    def read_late():
        connection, _ = deaf.accept()
        with connection:
            threading.Event().wait(0.6)
            left = size
            while left > 0 and (data := connection.recv(1_000_000)):
                left -= len(data)
            connection.sendall(answer())

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        thread = threading.Thread(target=read_late)
        thread.start()
        async with pool() as transport:
            route = Route("POST", Origin("http", "127.0.0.1", deaf.getsockname()[1]), "/")
            assert (await transport.send(Request(route, b"x" * size, timeouts=Timeouts(read=0.5)))).status == 200
        thread.join()


async def test_no_connection_in_time(pool):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        others = []
        for _ in range(4):  # whoever comes when the backlog is full gets no answer at all
            others.append(socket.socket())
            others[-1].setblocking(False)
            others[-1].connect_ex(("127.0.0.1", port))
        async with pool() as transport:
            with pytest.raises(DeadlineError) as caught:
                request = Request(
                    Route("POST", Origin("http", "127.0.0.1", port), "/"), timeouts=Timeouts(connect=0.03)
                )
                await transport.send(request)
            assert (caught.value.deadline, caught.value.seconds) == ("connect", 0.03)
        for other in others:
            other.close()


async def test_an_answer_before_the_request_was_taken(pool):
    async def refuse(peer):
        await peer.send(answer(b"too large", status=b"413 Content Too Large"))
        await peer.gone()

    async def refuse_at_once(peer):
        await peer.stream.receive()
        await refuse(peer)

    async with serve(refuse_at_once) as server, pool() as transport:
        response = await transport.send(server.request(b"x" * 5_000_000))
        assert (response.status, response.body) == (413, b"too large")

    async def refuse_and_stall(peer):
        await peer.stream.receive()
        await peer.send(answer(b"too large", status=b"413 Content Too Large"))
        await anyio.sleep_forever()

    async with serve(refuse_and_stall) as server, pool() as transport:
        response = await transport.send(server.request(b"x" * 20_000_000))
        assert response.status == 413
        assert transport.statistics().open == 0


async def test_a_connection_that_breaks_amid_the_request(pool):
    async def cut(peer):
        await peer.stream.receive()
        await peer.reset()

    async with serve(cut) as server, pool() as transport:
        with pytest.raises(WriteError):
            await transport.send(server.request(b"x" * 20_000_000))


async def test_every_error_has_its_cause_and_names_no_header(pool):
    async with serve([RESET]) as server, pool() as transport:
        route = Route("POST", server.origin, "/", [("authorization", "Bearer hf_CANARY")])
        with pytest.raises(TransportError) as caught:
            await transport.send(Request(route, b"{}"))
        assert isinstance(caught.value.__cause__, Exception)
        assert "CANARY" not in repr(caught.value) + str(caught.value.__cause__)
