"""Who leaves does not go on paying: the connection is closed, and the server stops."""

from __future__ import annotations

import anyio
import pytest

from millstream import BadRequestError
from millstream.testing import FakeEndpoint, Fault


async def left(endpoint: FakeEndpoint, times: int = 1) -> None:
    """Wait until that many clients left before their answer was complete, and nobody is there any more."""
    with anyio.fail_after(30):
        await endpoint.wait_for(lambda: endpoint.cancelled == times and endpoint.in_flight == 0)
        await endpoint.wait_for(lambda: endpoint.open_connections == 0)


@pytest.mark.parametrize("after_events", [None, 2], ids=["silent", "begun"])
async def test_a_cancelled_call_stops_the_server(model, endpoint, api, after_events):
    """Pain 4: the client left, and the model keeps generating and billing."""
    endpoint.fail(Fault.stall(after_events, times=2))
    llm = model(api=api)
    for number, way in enumerate((llm.call, lambda prompt: llm.stream(prompt).result()), start=1):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(way, "x")
            await endpoint.wait_for(lambda: endpoint.in_flight == 1)
            tasks.cancel_scope.cancel()
        await left(endpoint, number)


@pytest.mark.parametrize("how", ["break", "aclose", "forget", "raise"])
async def test_a_stream_that_is_left_stops_the_server(model, endpoint, api, how):
    """Pain 4: the reader of a stream left, and the model keeps generating and billing."""
    endpoint.fail(Fault.stall(2))
    llm = model(api=api)
    stream = llm.stream("x")
    if how == "forget":
        await anext(stream)
        del stream  # no garbage collector is needed
    elif how == "aclose":
        await anext(stream)
        await stream.aclose()
    else:
        with pytest.raises(ZeroDivisionError):
            async with stream:
                async for _ in stream:
                    if how == "break":
                        break
                    raise ZeroDivisionError
            raise ZeroDivisionError
    await left(endpoint)
    assert llm.caller.statistics().in_flight == 0


@pytest.mark.parametrize("ways", ["generate", "map", "stream_many"])
async def test_many_calls_that_are_left_stop_the_server(model, endpoint, ways):
    """Pain 4: a batch was cancelled, and its requests keep generating and billing."""
    endpoint.fail(Fault.stall(1, times=100))
    llm = model(api="chat", max_concurrency=5)
    if ways == "generate":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(llm.generate, ["x"] * 50)
            await endpoint.wait_for(lambda: endpoint.in_flight == 5)
            tasks.cancel_scope.cancel()
    else:
        async with llm.map(["x"] * 50) if ways == "map" else llm.stream_many(["x"] * 50):
            await endpoint.wait_for(lambda: endpoint.in_flight == 5)
    await left(endpoint, 5)
    assert len(endpoint.requests) == 5


async def test_one_failure_of_a_batch_stops_the_rest(model, endpoint):
    """Pain 4: a batch failed, and its other requests keep generating and billing."""
    endpoint.fail(Fault.stall(1, times=4), Fault.status(422))
    llm = model(api="chat", max_concurrency=5)
    with pytest.raises(BadRequestError):
        await llm.generate(["x"] * 50)
    with anyio.fail_after(30):
        await endpoint.wait_for(lambda: endpoint.cancelled >= 4 and endpoint.in_flight == 0)
    assert len(endpoint.requests) <= 6  # the slot of the one that failed may have been taken already


async def test_cancelling_at_every_step_of_a_stream(model, api):
    """Pain 4: tested at every await, from before the connection to the last event."""
    async with FakeEndpoint(coalesce=False) as endpoint:
        complete = cancelled = 0
        for steps in range(200):
            llm = model(endpoint_url=endpoint.url, api=api, max_tokens=3)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cancel_after, steps, scope)
                    await llm.stream("x").result()
                    tasks.cancel_scope.cancel()
                complete += 1
            cancelled += scope.cancelled_caught
            assert llm.caller.statistics().in_flight == 0
            await llm.aclose()
            if complete == 3:
                break
        assert complete == 3
        assert cancelled > 3
        with anyio.fail_after(30):
            await endpoint.wait_for(lambda: endpoint.in_flight == endpoint.open_connections == 0)


async def cancel_after(steps: int, scope: anyio.CancelScope) -> None:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()
