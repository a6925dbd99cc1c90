"""A deadline of ours and a cancellation from outside that meet: each gets what is its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest

from millstream import AsyncCaller, DeadlineError, Deadlines

from ..conftest import manual_backends
from ..support.clock import ManualLoop


async def clean_up_slowly() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)


async def work() -> None:
    """At its end, 5 s after the beginning, it waits for another second."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clean_up_slowly)
        await anyio.sleep_forever()


@pytest.mark.parametrize("anyio_backend", manual_backends())
@pytest.mark.parametrize("seconds", [4.5, 5, 5.5, 7])
async def test_a_scope_around_a_call_gets_its_cancellation(seconds):
    caller = AsyncCaller(deadlines=Deadlines(total=5), max_retries=0)
    ended = False
    with anyio.move_on_after(seconds) as scope:
        try:
            await caller.call(work)
        except DeadlineError:
            ended = True
    assert ended != scope.cancelled_caught
    assert ended or seconds < 7
    assert caller.statistics().in_flight == 0
    await anyio.sleep(10)


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_a_deadline_holds_for_who_swallows_its_cancellation():
    """As scopes of anyio before 4.16 do, if theirs arrives in the same moment."""

    async def stubborn() -> None:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        await anyio.sleep_forever()

    with anyio.fail_after(60), pytest.raises(DeadlineError, match="not finished within 5 s"):
        await AsyncCaller(deadlines=Deadlines(total=5)).call(stubborn)
    await anyio.sleep(60)


@pytest.mark.parametrize("seconds", [4.5, 5, 5.5])
def test_a_timeout_of_asyncio_gets_its_cancellation(seconds):
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await AsyncCaller(deadlines=Deadlines(total=5)).call(work)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(10)

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("seconds", [4.5, 5, 5.5])
def test_who_cancels_the_task_is_heeded(seconds):
    async def main() -> None:
        task = asyncio.ensure_future(AsyncCaller(deadlines=Deadlines(total=5)).call(work))
        asyncio.get_running_loop().call_later(seconds, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        runner.run(main())
