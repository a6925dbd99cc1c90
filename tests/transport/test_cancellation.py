"""Whenever a request is cancelled, its connection is closed, its place is free, and the next request works."""

from __future__ import annotations

import random

import anyio
import pytest

from millstream._transport import Timeouts

from ..support.servers import answer, chunked, serve
from .quiet import assert_quiet, settle


async def slow(peer):
    """Answers in many steps, so that there is much to be cancelled within."""
    while request := await peer.request():
        raw = chunked(b"abc", b"def") if b"stream" in request else answer(b"abcdef")
        for start in range(0, len(raw), 40):
            await anyio.sleep(0)
            await peer.send(raw[start : start + 40])


async def whole(transport, server):
    assert (await transport.send(server.request())).body == b"abcdef"


async def streamed(transport, server):
    response = await transport.send(server.request(b"stream", stream=True))
    try:
        got = b""
        while piece := await response.stream.receive():
            got += piece
        assert got == b"abcdef"
    finally:
        response.stream.abort()


async def closed(transport, server):
    response = await transport.send(server.request(b"stream", stream=True))
    await response.stream.aclose()


async def cancelled_after(steps, function, *args):
    """Run `function` and cancel it when the event loop has turned `steps` times; True if it was still running."""
    done = False

    async def run():
        nonlocal done
        await function(*args)
        done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            if done:
                break
            await anyio.sleep(0)
        tasks.cancel_scope.cancel()
    return not done


@pytest.mark.parametrize("what", [whole, streamed, closed])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_at_every_step(pool, what, warm):
    async with serve(slow) as server:
        for steps in range(400):
            async with pool() as transport:
                if warm:
                    await whole(transport, server)
                running = await cancelled_after(steps, what, transport, server)
                assert_quiet(transport)
                if running:
                    await whole(transport, server)
                    assert_quiet(transport)
            if not running:
                break
        assert 1 < steps < 399
        await settle(lambda: server.open == 0)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_at_every_step_while_another_has_the_only_connection(pool, warm):
    async with serve(slow) as server:
        for steps in range(400):
            async with pool(max_connections=1) as transport:
                if warm:
                    await whole(transport, server)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(whole, transport, server)
                    await anyio.sleep(0)
                    running = await cancelled_after(steps, whole, transport, server)
                    tasks.start_soon(whole, transport, server)
                assert_quiet(transport)
                assert transport.statistics().open <= 1
            if not running:
                break
        assert 1 < steps < 399


async def test_a_waiter_that_was_granted_and_cancelled_hands_on(pool):
    async with serve(slow) as server, pool(max_connections=1) as transport:
        lane = None
        first, second = anyio.CancelScope(), anyio.CancelScope()
        got = []

        async def waiter(scope, name):
            with scope:
                await whole(transport, server)
                got.append(name)

        async with anyio.create_task_group() as tasks:
            await whole(transport, server)
            lane = transport._pool.lanes[server.origin]
            connection = lane.take()
            for scope, name in ((first, "first"), (second, "second")):
                tasks.start_soon(waiter, scope, name)
                await anyio.sleep(0.002)
            assert transport.statistics().waiting == 2
            first.cancel()
            lane.release(connection)  # granted to the first, which finds out that it is cancelled
        assert got == ["second"]
        assert server.connections == 1


async def test_churn(pool):
    chance = random.Random(20)

    async def sometimes(peer):
        while await peer.request():
            await anyio.sleep(chance.random() * 0.002)
            await peer.send(answer(b"abcdef"))
            if chance.random() < 0.1:
                return

    async with serve(sometimes) as server, pool(max_connections=5) as transport:

        async def user():
            for _ in range(25):
                with anyio.move_on_after(chance.random() * 0.004):
                    await whole(transport, server)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(user)
        assert_quiet(transport)
        assert transport.statistics().open <= 5
        with anyio.fail_after(30):
            for _ in range(10):
                await whole(transport, server)
        await transport.aclose()
        await settle(lambda: server.open == 0)


async def test_cancelling_a_connection_attempt_leaves_nothing(pool):
    async with serve(slow) as server, pool(max_connections=1) as transport:
        for steps in range(6):
            await cancelled_after(steps, whole, transport, server)
            assert transport.statistics().opening == 0
        assert (await transport.send(server.request(timeouts=Timeouts(pool=0.5)))).status == 200
