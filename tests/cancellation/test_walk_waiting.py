"""Cancelled while waiting: for a slot, a limit, a retry, or for what another call fetches. Time is a manual clock's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from millstream import LLM, AsyncCaller, GenerationChunk, InMemoryCache, RateLimitError, _clock
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.limiters import LocalLimiter

from ..conftest import manual_backends
from ..support.quiet import assert_quiet, own_tasks
from .cutting import ONLY_ASYNCIO, Way, by_scope, by_task, by_time, on_asyncio, walk

pytestmark = pytest.mark.parametrize("anyio_backend", manual_backends())


def ways() -> tuple[Way, ...]:
    return (by_scope, *ONLY_ASYNCIO) if on_asyncio() else (by_scope,)


class Sleeper(LLM):
    """Takes a second for an answer, and is refused now and then."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.asked = 0
        self.under_way = 0
        self.refusals = 0

    async def _call(self, prompt, options, run):
        self.asked += 1
        self.under_way += 1
        try:
            await anyio.sleep(1)
            if self.refusals:
                self.refusals -= 1
                raise RateLimitError("slower", status_code=429, retry_after=5)
            return f"{prompt}!"
        finally:
            self.under_way -= 1


class Streamer(Sleeper):
    async def _stream(self, prompt, options, run):
        self.under_way += 1
        try:
            for piece in (prompt, "!"):
                await anyio.sleep(1)
                yield GenerationChunk(piece)
        finally:
            self.under_way -= 1


Operation = Callable[[Sleeper], Coroutine[Any, Any, Any]]


async def call(llm: Sleeper) -> None:
    assert await llm.call("x") == "x!"


async def refused(llm: Sleeper) -> None:
    llm.refusals = 2
    assert await llm.call("x") == "x!"


async def generate(llm: Sleeper) -> None:
    assert (await llm.generate(["x", "y", "z"])).texts == ["x!", "y!", "z!"]


async def stream(llm: Sleeper) -> None:
    assert "".join([chunk.text async for chunk in llm.stream("x")]) == "x!"


async def result(llm: Sleeper) -> None:
    assert (await llm.stream("x").result()).text == "x!"


async def map_(llm: Sleeper) -> None:
    async with llm.map(["x", "y", "z"]) as outcomes:
        assert sorted([outcome.text async for outcome in outcomes]) == ["x!", "y!", "z!"]


async def stream_many(llm: Sleeper) -> None:
    async with llm.stream_many(["x", "y", "z"]) as events:
        assert len([event async for event in events if event.outcome is not None]) == 3


OPERATIONS = [call, refused, generate, stream, result, map_, stream_many]


@pytest.mark.parametrize("kind", [Sleeper, Streamer])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_with_limits(operation: Operation, kind: type[Sleeper]):
    listener = RecordingCallbackHandler()
    caller = AsyncCaller(max_concurrency=2, requests_per_minute=2, tokens_per_minute=1000)
    llm = kind(caller=caller, callbacks=[listener])

    async def check() -> None:
        await assert_quiet(llm)
        assert llm.under_way == 0
        listener.assert_paired()
        llm.refusals = 0
        assert await llm.call("and now?") == "and now?!"
        await assert_quiet(llm)
        await anyio.sleep(120)
        assert used(caller) == (0, 0)

    for way in (*ways(), by_time):
        assert await walk(lambda: operation(llm), way, check) >= 1


def used(caller: AsyncCaller) -> tuple[float, float]:
    now, limiter = _clock.monotonic(), caller._limiter
    assert isinstance(limiter, LocalLimiter)
    assert limiter._requests is not None
    assert limiter._tokens is not None
    return limiter._requests.used(now), limiter._tokens.used(now)


@pytest.mark.parametrize("waits", ["for a slot", "for requests", "for tokens"])
async def test_who_is_cancelled_while_waiting_takes_nothing(waits: str):
    limits = {"for a slot": {}, "for requests": {"requests_per_minute": 2}, "for tokens": {"tokens_per_minute": 700}}
    caller = AsyncCaller(max_concurrency=1 if waits == "for a slot" else 9, **limits[waits])
    llm = Sleeper(caller=caller)
    for way in (by_scope, by_task) if on_asyncio() else (by_scope,):
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(llm.call, "before")
            await anyio.wait_all_tasks_blocked()
            assert llm.under_way == (1 if waits == "for a slot" else 2)
            asked = llm.asked
            assert await way(lambda: llm.call("x"), 1)
            assert caller.statistics().waiting == (1 if waits == "for a slot" else 0)
            assert llm.asked == asked
        await assert_quiet(llm)
        await anyio.sleep(120)


async def test_a_slot_granted_to_the_cancelled_goes_to_the_next():
    llm = Sleeper(max_concurrency=1)
    for way in ways():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(llm.call, "first")
            await anyio.wait_all_tasks_blocked()

            async def late() -> None:
                await anyio.sleep(0.1)
                assert await llm.call("last") == "last!"

            tasks.start_soon(late)
            assert await way(lambda: llm.call("second"), 1)
        await assert_quiet(llm)


@pytest.mark.parametrize("first", [True, False])
async def test_one_of_two_who_share_a_fetch(first: bool):
    cache = InMemoryCache()
    listener = RecordingCallbackHandler()
    llm = Sleeper(cache=cache, callbacks=[listener])
    done: list[str] = []

    async def other() -> None:
        done.append(await llm.call("x"))

    async def both(way: Way, at: int) -> bool:
        async with anyio.create_task_group() as tasks:
            if not first:
                tasks.start_soon(other)
                await anyio.wait_all_tasks_blocked()
            else:
                tasks.start_soon(_after_a_moment, other)
            return await way(lambda: llm.call("x"), at)
        raise AssertionError

    for way in ways():
        for at in range(1, 20):
            reached = await both(way, at)
            assert done.pop() == "x!"
            await assert_quiet(llm)
            listener.assert_paired()
            cache.clear()
            if not reached:
                break
        else:
            pytest.fail("never complete")


async def _after_a_moment(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await anyio.sleep(0.5)
    await function()


@pytest.mark.parametrize("operation", [call, generate, stream, result, map_, stream_many])
async def test_with_a_cache(operation: Operation):
    cache = InMemoryCache()
    listener = RecordingCallbackHandler()
    llm = Streamer(cache=cache, callbacks=[listener], max_concurrency=2)

    async def check() -> None:
        await assert_quiet(llm)
        assert llm.under_way == 0
        listener.assert_paired()
        assert (await llm.generate(["x", "x"])).texts == ["x!", "x!"]
        await assert_quiet(llm)
        cache.clear()

    for way in (*ways(), by_time):
        assert await walk(lambda: operation(llm), way, check) >= 1


# -- the caller alone --------------------------------------------------------------------------------------------------


class Work:
    def __init__(self) -> None:
        self.under_way = 0
        self.failures = 1

    async def __call__(self, item: Any) -> Any:
        self.under_way += 1
        try:
            await anyio.sleep(1)
            if self.failures:
                self.failures -= 1
                raise ConnectionError("again")
            return item
        finally:
            self.under_way -= 1


async def test_caller_call():
    work = Work()
    caller = AsyncCaller(max_concurrency=1, requests_per_minute=30)

    async def operation() -> None:
        work.failures = 1
        assert await caller.call(work, 5) == 5

    async def check() -> None:
        await _caller_is_idle(caller, work)
        assert await caller.call(work, 6) == 6

    for way in ways():
        assert await walk(operation, way, check) >= 3


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_caller_map(asynchronous: bool):
    work = Work()
    caller = AsyncCaller(max_concurrency=2, requests_per_minute=1000)
    closed: list[bool] = []

    async def items():
        try:
            for item in range(4):
                await anyio.sleep(0.5)
                yield item
        finally:
            closed.append(True)

    async def operation() -> None:
        work.failures = 1
        async with caller.map(work, items() if asynchronous else range(4)) as outcomes:
            assert sorted([outcome.result async for outcome in outcomes]) == [0, 1, 2, 3]

    async def check() -> None:
        await _caller_is_idle(caller, work)
        assert await caller.call(work, 6) == 6
        closed.clear()

    for way in (*ways(), by_time):
        assert await walk(operation, way, check) >= 1


async def _caller_is_idle(caller: AsyncCaller, work: Work) -> None:
    told = caller.statistics()
    assert (told.in_flight, told.waiting, told.backing_off, work.under_way) == (0, 0, 0, 0)
    assert list(own_tasks()) == []
    work.failures = 0
