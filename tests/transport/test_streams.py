"""Bodies that arrive piece by piece: at once, under back-pressure, to the end, and given up."""

from __future__ import annotations

import anyio
import pytest

from millstream._clock import monotonic
from millstream._errors import ClosedError, DeadlineError, ProtocolError, UsageError
from millstream._transport import Timeouts

from ..support.servers import CLOSE, STALL, answer, chunked, in_turn, serve
from .quiet import settle

DONE = b"data: [DONE]\n\n"


async def read(stream):
    pieces = []
    while piece := await stream.receive():
        pieces.append(piece)
    return b"".join(pieces)


async def test_a_stream_to_its_end_gives_the_connection_back(pool):
    async with serve([chunked(b"abc", b"def")]) as server, pool() as transport:
        for _ in range(3):
            response = await transport.send(server.request(stream=True))
            assert (response.status, response.body) == (200, b"")
            assert await read(response.stream) == b"abcdef"
            assert await response.stream.receive() == b""
            assert transport.statistics().active == 0
            await response.stream.aclose()
            await response.stream.aclose()
            response.stream.abort()
        assert server.connections == 1


async def test_pieces_come_as_they_are_sent(pool):
    async def talk(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(5):
            await said.wait()
            await peer.send(b"1\r\n%d\r\n" % number)
        await peer.send(b"0\r\n\r\n")
        await peer.gone()

    said = anyio.Event()
    async with serve(talk) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        said.set()
        assert await read(response.stream) == b"01234"
        assert transport.statistics().idle == 1


async def test_what_has_arrived_is_given_in_one_piece(pool):
    async with serve([chunked(*[b"data: x\n\n"] * 50)]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        await anyio.sleep(0.05)
        assert await response.stream.receive() == b"data: x\n\n" * 50
        assert await response.stream.receive() == b""


async def test_a_body_that_ends_with_the_connection(pool):
    async with serve([b"HTTP/1.1 200 OK\r\n\r\nabc", b"def", CLOSE]) as server, pool() as transport:
        for _ in range(2):
            response = await transport.send(server.request(stream=True))
            assert await read(response.stream) == b"abcdef"
        assert (await transport.send(server.request())).body == b"abcdef"
        assert server.connections == 3


async def test_an_error_comes_after_what_had_arrived(pool):
    async def go_wrong(peer):
        await peer.request()
        await peer.send(chunked(b"abc", end=b""))
        await here.wait()
        await peer.send(b"3\r\ndef\r\n!!\r\n")
        await peer.gone()

    here = anyio.Event()
    async with serve(go_wrong) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        here.set()
        await anyio.sleep(0.01)
        got = b""
        with pytest.raises(ProtocolError, match="no HTTP"):
            while True:
                got += await response.stream.receive()
        assert got == b"abcdef"


async def test_who_is_slow_slows_the_server(pool):
    sent = 0

    async def flood(peer):
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        piece = b"x" * 65536
        for _ in range(320):
            await peer.stream.send(piece)
            sent += len(piece)

    async with serve(flood) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        before = -1
        while sent != before:
            before = sent
            await anyio.sleep(0.01)
        assert sent < 320 * 65536
        size = 0
        while piece := await response.stream.receive():
            assert len(piece) <= 256 * 1024
            size += len(piece)
        assert size == 320 * 65536


async def test_the_deadline_of_a_piece(pool):
    async with serve([chunked(b"abc", end=b""), STALL]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        assert await response.stream.receive() == b"abc"
        with pytest.raises(DeadlineError) as caught:
            await response.stream.receive(monotonic() + 0.02)
        assert (caught.value.deadline, caught.value.seconds) == ("read", None)
        with pytest.raises(ClosedError):
            await response.stream.receive()


async def test_the_read_timeout_holds_for_each_piece(pool):
    async with serve([chunked(b"abc", end=b""), STALL]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True, timeouts=Timeouts(read=0.25)))
        assert await response.stream.receive() == b"abc"
        await anyio.sleep(0.3)  # nobody waits: no time runs
        with pytest.raises(DeadlineError, match=r"0\.25 s"):
            await response.stream.receive(monotonic() + 60)


async def test_a_later_deadline_holds_after_an_earlier_one(pool):
    async def slow(peer):
        await peer.request()
        await peer.send(chunked(b"a", end=b""))
        await anyio.sleep(0.35)
        await peer.send(b"1\r\nb\r\n0\r\n\r\n")
        await peer.gone()

    async with serve(slow) as server, pool() as transport:
        response = await transport.send(server.request(stream=True, timeouts=Timeouts(read=0.25)))
        assert await response.stream.receive() == b"a"
        response.stream._connection._read_seconds = None
        assert await response.stream.receive(monotonic() + 5) == b"b"
        assert await response.stream.receive() == b""


async def test_two_tasks_at_one_stream(pool):
    async with serve([chunked(b"abc", end=b""), STALL]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        await response.stream.receive()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(response.stream.receive)
            await anyio.sleep(0.005)
            with pytest.raises(UsageError, match="two tasks"):
                await response.stream.receive()
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("late", [False, True])
async def test_the_end_just_behind_done_keeps_the_connection(pool, late):
    async def finish(peer):
        while await peer.request():
            await peer.send(chunked(DONE, end=b""))
            if late:
                await anyio.sleep(0.005)
            await peer.send(b"0\r\n\r\n")

    async with serve(finish) as server, pool() as transport:
        for _ in range(3):
            response = await transport.send(server.request(stream=True))
            assert await response.stream.receive() == DONE
            await response.stream.aclose()
            assert transport.statistics().idle == 1
        assert server.connections == 1


async def test_a_stream_that_goes_on_is_closed(pool):
    async def on_and_on(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.stream.send(b"x" * 30_000)

    async with serve(in_turn([chunked(b"a", end=b""), STALL], on_and_on)) as server, pool() as transport:
        for _ in range(2):
            response = await transport.send(server.request(stream=True))
            assert await response.stream.receive()
            before = monotonic()
            await response.stream.aclose()
            assert monotonic() - before < 1
            assert transport.statistics().open == 0
            with pytest.raises(ClosedError):
                await response.stream.receive()
        await settle(lambda: server.open == 0)


async def test_abort_is_at_once(pool):
    async with serve([chunked(b"a", end=b""), STALL]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        response.stream.abort()
        assert transport.statistics().open == 0
        response.stream.abort()
        await response.stream.aclose()
        await settle(lambda: server.open == 0)


async def test_closing_while_another_task_receives(pool):
    async with serve([chunked(b"a", end=b""), STALL]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        await response.stream.receive()
        async with anyio.create_task_group() as tasks:

            async def receive():
                with pytest.raises(ClosedError):
                    await response.stream.receive()

            tasks.start_soon(receive)
            await anyio.sleep(0.005)
            await response.stream.aclose()
        assert transport.statistics().open == 0


async def test_a_stream_that_is_dropped_closes_its_connection_and_warns(pool):
    async with serve([chunked(b"a", end=b""), STALL]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        with pytest.warns(ResourceWarning, match="never closed"):
            del response  # and its stream, as nothing refers to them in a circle
        assert transport.statistics().open == 0
        await settle(lambda: server.open == 0)


async def test_a_streamed_error_answer(pool):
    async with serve([answer(b"no", status=b"503 Busy")]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        assert (response.status, await read(response.stream)) == (503, b"no")
        assert transport.statistics().idle == 1


async def test_an_empty_stream(pool):
    async with serve([answer(b"")]) as server, pool() as transport:
        response = await transport.send(server.request(stream=True))
        await response.stream.aclose()
        assert transport.statistics().idle == 1


async def test_head(pool):
    async with serve([b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"]) as server, pool() as transport:
        for stream in (False, True):
            response = await transport.send(server.request(b"", method="HEAD", stream=stream))
            assert response.body == b""
            if stream:
                assert await response.stream.receive() == b""
        assert server.connections == 1
