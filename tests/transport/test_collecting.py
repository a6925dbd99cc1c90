"""Bodies whose pieces nobody waits for: all of it, with few wake-ups, and an end that is not missed."""

from __future__ import annotations

import anyio
import pytest

from millstream._clock import monotonic
from millstream._errors import ClosedError, DeadlineError, ReadError
from millstream._transport._connection import COLLECT_SECONDS, HIGH_WATER
from millstream._transport._seam import collector_of

from ..support.servers import STALL, chunked, serve
from .quiet import settle

DONE = b"[DONE]"
TOKEN = b"data: x\n\n"


def spaced(*pieces, then=STALL):
    """A server that sends one piece every two milliseconds, the last of them the end of the body unless it `STALL`s."""

    async def talk(peer):
        while await peer.request():
            await peer.send(chunked(end=b""))
            for piece in pieces:
                await anyio.sleep(0.002)
                await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            if then is not STALL:
                await peer.send(then)
            else:
                await peer.gone()

    return talk


async def opened(transport, server):
    response = await transport.send(server.request(stream=True))
    return response.stream, collector_of(response.stream, DONE)


async def test_many_pieces_are_one_wake_up(pool, kind):
    pieces = [TOKEN] * 20
    async with serve(spaced(*pieces, then=b"0\r\n\r\n")) as server, pool() as transport:
        for _ in range(2):
            _, collect = await opened(transport, server)
            got = []
            while piece := await collect(monotonic() + 5):
                got.append(piece)
            assert b"".join(got) == TOKEN * 20
            assert len(got) == 1 or kind in ("trio", "generic")
            assert transport.statistics().idle == 1
        assert server.connections == 1


async def test_the_mark_ends_the_wait_though_the_body_goes_on(pool):
    async with serve(spaced(TOKEN, TOKEN, DONE)) as server, pool() as transport:
        took = []
        for _ in range(3):
            stream, collect = await opened(transport, server)
            got, before = b"", monotonic()
            while DONE not in got:
                got += await collect(before + 60)
            took.append(monotonic() - before)
            assert got == TOKEN * 2 + DONE
            stream.abort()
        assert min(took) < COLLECT_SECONDS


async def test_what_came_is_given_soon_though_nothing_follows(pool):
    async with serve(spaced(TOKEN, TOKEN)) as server, pool() as transport:
        stream, collect = await opened(transport, server)
        got = b""
        with anyio.fail_after(10):
            while len(got) < 2 * len(TOKEN):
                got += await collect(monotonic() + 60)
            with pytest.raises(DeadlineError) as caught:
                await collect(monotonic() + 0.02)
        assert caught.value.deadline == "read"
        assert transport.statistics().open == 0
        with pytest.raises(ClosedError):
            await stream.receive()


async def test_a_deadline_while_pieces_wait_gives_them_first(pool):
    async with serve(spaced(TOKEN)) as server, pool() as transport:
        _, collect = await opened(transport, server)
        deadline = monotonic() + 0.1
        assert await collect(deadline) == TOKEN
        with pytest.raises(DeadlineError):
            await collect(deadline)


async def test_what_had_come_before_the_connection_broke_is_given_first(pool):
    async def talk(peer):
        await peer.request()
        await peer.send(chunked(end=b""))
        await anyio.sleep(0.002)
        await peer.send(b"3\r\nabc\r\n")

    async with serve(talk) as server, pool() as transport:
        _, collect = await opened(transport, server)
        assert await collect(monotonic() + 5) == b"abc"
        with pytest.raises(ReadError):
            await collect(monotonic() + 5)
        assert transport.statistics().open == 0


async def test_much_is_given_early(pool):
    size = 3 * HIGH_WATER
    async with serve(spaced(*[b"x" * (size // 16)] * 16, then=b"0\r\n\r\n")) as server, pool() as transport:
        _, collect = await opened(transport, server)
        got = []
        while piece := await collect(monotonic() + 5):
            got.append(len(piece))
        assert sum(got) == size
        assert max(got) < 2 * HIGH_WATER


async def test_cancellation_closes_at_once(pool):
    async with serve(spaced(*[TOKEN] * 3)) as server, pool() as transport:
        _, collect = await opened(transport, server)
        with anyio.move_on_after(0.02):
            while True:
                await collect(monotonic() + 60)
        assert transport.statistics().open == 0
        await settle(lambda: server.open == 0)
