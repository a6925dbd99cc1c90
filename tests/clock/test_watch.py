"""Many deadlines with one timer: each task is cancelled at its own time, and only then."""

from __future__ import annotations

import asyncio
import math
import random

import anyio
import pytest

from millstream import _clock

from ..conftest import manual_backends
from ..support.clock import ManualLoop

manual = pytest.mark.parametrize("anyio_backend", manual_backends())


async def outcome(watch, seconds, work):
    loop = _clock.event_loop()
    try:
        return await watch.run_until(loop, _clock.time_of(loop) + seconds, anyio.sleep(work))
    except _clock.Expired:
        return "expired"


@manual
async def test_each_has_its_own_deadline():
    watch, chance = _clock.Watch(), random.Random(5)
    cases = [(chance.uniform(1, 100), chance.uniform(1, 100)) for _ in range(300)]
    began, ended = anyio.current_time(), {}

    async def one(number, seconds, work):
        await anyio.sleep(number % 7)
        ended[number] = (await outcome(watch, seconds, work), anyio.current_time() - began - number % 7)

    async with anyio.create_task_group() as tasks:
        for number, case in enumerate(cases):
            tasks.start_soon(one, number, *case)
    for number, (seconds, work) in enumerate(cases):
        result, at = ended[number]
        assert result == ("expired" if seconds < work else None)
        assert at == pytest.approx(min(seconds, work), abs=1e-6)
    assert (watch._tasks, watch._expired) == ({}, {}), "nothing is kept of what is over"


@manual
async def test_an_earlier_deadline_does_not_wait_for_a_later_one():
    watch = _clock.Watch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outcome, watch, 1000, 2)
        await anyio.sleep(0.5)
        began = anyio.current_time()
        assert await outcome(watch, 1, 500) == "expired"
        assert anyio.current_time() - began == pytest.approx(1)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": ManualLoop})])
async def test_what_is_over_is_not_kept():
    watch = _clock.Watch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outcome, watch, 10, 9)  # stays at the top meanwhile
        await anyio.sleep(0.1)
        for _ in range(1000):
            assert await outcome(watch, 600, 0.001) is None
        assert len(watch._entries) < 200
    assert not watch._tasks


@manual
async def test_other_cancellations_pass_through():
    watch = _clock.Watch()
    with anyio.move_on_after(1) as scope:
        await outcome(watch, 5, 100)
    assert scope.cancelled_caught
    assert await outcome(watch, 5, 1) is None


@manual
async def test_errors_and_timeouts_of_the_function_are_its_own():
    watch = _clock.Watch()

    async def fail():
        raise TimeoutError("mine")

    loop = _clock.event_loop()
    with pytest.raises(TimeoutError, match="mine"):
        await watch.run_until(loop, math.inf, fail())


def test_another_event_loop_begins_anew():
    watch = _clock.Watch()
    for _ in range(3):
        assert asyncio.run(outcome(watch, 0.01, 60)) == "expired"
        assert asyncio.run(outcome(watch, 60, 0)) is None
