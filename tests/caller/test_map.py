"""`AsyncCaller.map`: lazy, bounded, as completed, and owner of its tasks."""

from __future__ import annotations

import asyncio
import itertools

import anyio
import anyio.lowlevel
import pytest

from millstream import _clock
from millstream import _errors as errors
from millstream._caller import AsyncCaller
from millstream._config import Deadlines
from tests.conftest import manual_backends

from .test_admission import run_manually, settle_down
from .test_caller import assert_quiet, caller_of, server_error

manual = pytest.mark.parametrize("anyio_backend", manual_backends())


async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * number


class Counted:
    """An input that tells how many items were taken."""

    def __init__(self, end: int | None = None) -> None:
        self.taken = 0
        self.end = end

    def __iter__(self):
        for number in itertools.count() if self.end is None else range(self.end):
            self.taken += 1
            yield number


async def slowly(items, *, closed: list | None = None):
    try:
        for item in items:
            await anyio.sleep(1)
            yield item
    finally:
        if closed is not None:
            closed.append(True)


async def collect(caller, function, items, **settings):
    async with caller.map(function, items, **settings) as outcomes:
        return [outcome async for outcome in outcomes]


async def test_every_item_has_exactly_one_outcome():
    outcomes = await collect(AsyncCaller(max_concurrency=4), double, range(100))
    assert sorted((outcome.index, outcome.item, outcome.result, outcome.error) for outcome in outcomes) == [
        (number, number, 2 * number, None) for number in range(100)
    ]


@pytest.mark.parametrize("length", [0, 1, 2])
async def test_short_inputs(length):
    assert len(await collect(AsyncCaller(), double, iter(range(length)))) == length


@manual
async def test_an_async_input():
    outcomes = await collect(caller_of(), double, slowly("abc"))
    assert [outcome.item for outcome in outcomes] == ["a", "b", "c"]


@manual
async def test_outcomes_come_as_they_complete():
    async def wait(seconds: float) -> None:
        await anyio.sleep(seconds)

    outcomes = await collect(caller_of(), wait, [3, 1, 2])
    assert [outcome.index for outcome in outcomes] == [1, 2, 0]


@manual
async def test_an_error_is_the_outcome_of_its_item_alone():
    async def picky(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number

    outcomes = await collect(caller_of(), picky, range(6))
    assert sorted(outcome.item for outcome in outcomes if outcome.error is None) == [0, 2, 4]
    assert all(isinstance(outcome.error, ValueError) for outcome in outcomes if outcome.item % 2)
    assert all(outcome.result is None for outcome in outcomes if outcome.error)


@manual
@pytest.mark.parametrize("width", [None, 1, 3])
async def test_an_endless_input_is_taken_only_as_needed(width):
    caller = caller_of(max_concurrency=2)
    items = Counted()
    most = 4 if width is None else width
    async with caller.map(double, items, width=width) as outcomes:
        await anyio.sleep(10)
        assert items.taken == most, "nobody has fetched an outcome yet"
        for fetched in range(1, 20):
            await anext(outcomes)
            await anyio.sleep(10)
            assert items.taken == most + fetched
    assert_quiet(caller)


@manual
async def test_items_that_wait_for_a_retry_leave_room_for_others():
    caller = caller_of(max_concurrency=1)
    refused = set()

    async def refuse_once(number: int) -> int:
        await anyio.sleep(1)
        if number == 0 and number not in refused:
            refused.add(number)
            raise server_error()
        return number

    start = _clock.monotonic()
    outcomes = await collect(caller, refuse_once, range(10))
    assert [outcome.index for outcome in outcomes] == [1, 0, *range(2, 10)]
    assert _clock.monotonic() - start == 11


@manual
async def test_leaving_early_cancels_what_is_under_way():
    caller = caller_of(max_concurrency=4)
    cancelled = []

    async def wait(number: int) -> int:
        try:
            await anyio.sleep(number)
        except BaseException:
            cancelled.append(number)
            raise
        return number

    start = _clock.monotonic()
    async with caller.map(wait, itertools.count(1)) as outcomes:
        async for outcome in outcomes:
            assert outcome.item == 1
            break
    assert _clock.monotonic() - start == 1
    assert {2, 3, 4} <= set(cancelled)
    assert_quiet(caller)
    assert [outcome async for outcome in outcomes] == []


@manual
async def test_outcomes_that_were_not_fetched_are_gone_with_the_block():
    async with caller_of().map(double, range(10)) as outcomes:
        await anyio.sleep(1)
        await anext(outcomes)
    assert [outcome async for outcome in outcomes] == []


@manual
@pytest.mark.parametrize("kind", [KeyError, SystemExit, KeyboardInterrupt])
async def test_an_error_in_the_block_leaves_it_as_it_is(kind):
    caller = caller_of()
    with pytest.raises(kind, match="mine"):
        async with caller.map(double, itertools.count()) as outcomes:
            await anext(outcomes)
            raise kind("mine")
    assert_quiet(caller)


@manual
async def test_an_outer_deadline_ends_the_block():
    caller = caller_of()
    with anyio.move_on_after(5) as scope:
        async with caller.map(anyio.sleep, [100] * 1000) as outcomes:
            async for _ in outcomes:
                pass
    assert scope.cancelled_caught
    assert_quiet(caller)


def test_a_native_cancellation_ends_the_block():
    async def main():
        caller = caller_of(deadlines=Deadlines(total=None))
        task = asyncio.create_task(collect(caller, anyio.sleep, [100] * 1000))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_quiet(caller)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_manually("asyncio", main)


@manual
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_input_that_raises_does_so_after_the_outcomes_before_it(asynchronous):
    def broken():
        yield from range(5)
        raise LookupError("line 6")

    caller = caller_of()
    seen = []
    async with caller.map(double, slowly(broken()) if asynchronous else broken()) as outcomes:
        with pytest.raises(LookupError, match="line 6"):
            async for outcome in outcomes:
                seen.append(outcome.result)
        assert [outcome async for outcome in outcomes] == []
    assert sorted(seen) == [0, 2, 4, 6, 8]


@manual
async def test_an_async_generator_is_closed_when_the_block_is_left():
    closed = []
    async with caller_of().map(double, slowly(itertools.count(), closed=closed), width=1) as outcomes:
        await anext(outcomes)
        assert closed == []
    assert closed == [True]


@manual
async def test_ten_thousand_items_make_a_flat_number_of_tasks():
    caller = AsyncCaller(max_concurrency=8)
    tasks = set()
    working = 0

    async def work(number: int) -> int:
        nonlocal working
        working += 1
        tasks.add(anyio.get_current_task().id)
        await anyio.lowlevel.checkpoint()
        assert working <= 8
        working -= 1
        return number

    items = Counted(10_000)
    count = 0
    async with caller.map(work, items) as outcomes:
        async for _ in outcomes:
            count += 1
            assert items.taken - count < 16
    assert count == 10_000
    assert len(tasks) <= 16
    assert_quiet(caller)


async def test_few_items_make_few_tasks():
    started = anyio.get_current_task()
    caller = AsyncCaller(max_concurrency=500)
    async with caller.map(anyio.sleep, [0.0, 0.0]) as outcomes:
        await settle_down()
        names = [task for task in anyio.get_running_tasks() if task.parent_id == started.id]
        assert len(names) <= 3
        assert [outcome.error async for outcome in outcomes] == [None, None]


@pytest.mark.parametrize("width", [0, -1, 2.5])
def test_a_width_that_can_not_be(width):
    with pytest.raises(errors.UsageError, match="width"):
        AsyncCaller().map(double, [], width=width)


async def test_a_closed_caller_gives_its_error_as_the_outcome():
    caller = AsyncCaller()
    await caller.aclose()
    outcomes = await collect(caller, double, [1, 2])
    assert [type(outcome.error) for outcome in outcomes] == [errors.ClosedError] * 2


async def test_several_readers_share_the_outcomes():
    seen = []

    async def read(outcomes):
        async for outcome in outcomes:
            seen.append(outcome.item)
            await anyio.lowlevel.checkpoint()

    async with AsyncCaller(max_concurrency=2).map(double, range(50)) as outcomes, anyio.create_task_group() as group:
        group.start_soon(read, outcomes)
        group.start_soon(read, outcomes)
    assert sorted(seen) == list(range(50))
