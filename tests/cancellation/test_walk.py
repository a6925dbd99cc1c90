"""Cancelled at every suspension, in every way: nothing stays in use, every run ends once, and the next call works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from millstream import AsyncCaller, BaseCallbackHandler, HuggingFaceInference
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint, Fault

from ..support.quiet import assert_quiet
from .cutting import ONLY_ASYNCIO, Way, by_rounds, by_scope, on_asyncio, walk


class SlowListener(BaseCallbackHandler):
    """Awaits in every event: more places to be cancelled at."""

    async def on_llm_start(self, event, /):
        await anyio.lowlevel.checkpoint()

    async def on_llm_new_token(self, event, /):
        await anyio.lowlevel.checkpoint()

    async def on_attempt(self, event, /):
        await anyio.lowlevel.checkpoint()

    async def on_retry(self, event, /):
        await anyio.lowlevel.checkpoint()

    async def on_llm_end(self, event, /):
        await anyio.lowlevel.checkpoint()

    async def on_llm_error(self, event, /):
        await anyio.lowlevel.checkpoint()


class Bench:
    """A model at a fake endpoint, and who listens."""

    def __init__(self, endpoint: FakeEndpoint, options: dict[str, Any], *, cold: bool) -> None:
        self.endpoint = endpoint
        self.options = options
        self.cold = cold
        self.listener = RecordingCallbackHandler()
        self.calls = 0
        self.llm = self._make()

    def _make(self) -> HuggingFaceInference:
        return HuggingFaceInference(
            endpoint_url=self.endpoint.url,
            api="chat",
            callbacks=[self.listener, SlowListener()],
            **self.options,
        )

    async def check(self) -> None:
        """After each cut."""
        await assert_quiet(self.llm, self.endpoint, sole=True)
        self.listener.assert_paired()
        assert await self.llm.call("and now?") == "one two"
        await assert_quiet(self.llm, self.endpoint, sole=True)
        self.listener.events.clear()
        if self.cold:
            await self.llm.aclose()
            self.llm = self._make()


@asynccontextmanager
async def bench(*, cold: bool = False, **options: Any) -> AsyncIterator[Bench]:
    async with FakeEndpoint(reply="one two", coalesce=False) as endpoint:
        made = Bench(endpoint, options, cold=cold)
        yield made
        await made.llm.aclose()


Operation = Callable[[Bench], Coroutine[Any, Any, None]]


async def call(bench: Bench) -> None:
    await bench.llm.call("x")


async def generate(bench: Bench) -> None:
    assert len((await bench.llm.generate(["x", "y", "z"])).texts) == 3


async def iterate(bench: Bench) -> None:
    assert "".join([chunk.text async for chunk in bench.llm.stream("x")]) == "one two"


async def result(bench: Bench) -> None:
    await bench.llm.stream("x").result()


async def leave_early(bench: Bench) -> None:
    async with bench.llm.stream("x") as stream:
        async for _ in stream:
            break


async def close(bench: Bench) -> None:
    stream = bench.llm.stream("x")
    await anext(stream)
    await stream.aclose()


async def map_(bench: Bench) -> None:
    async with bench.llm.map(["x", "y", "z"]) as outcomes:
        assert sorted([outcome.index async for outcome in outcomes if outcome.ok]) == [0, 1, 2]


async def stream_many(bench: Bench) -> None:
    async with bench.llm.stream_many(["x", "y"]) as events:
        assert len([event async for event in events if event.outcome is not None]) == 2


async def retried(bench: Bench) -> None:
    bench.endpoint._service._queued.clear()
    bench.endpoint.fail(Fault.status(503), Fault.disconnect())
    await bench.llm.call("x")


async def retried_stream(bench: Bench) -> None:
    bench.endpoint._service._queued.clear()
    bench.endpoint.fail(Fault.status(500))
    await bench.llm.stream("x").result()


ONE_TASK = [call, iterate, result, leave_early, close]
MANY_TASKS = [generate, map_, stream_many]


def ways() -> tuple[Way, ...]:
    return (by_scope, *ONLY_ASYNCIO) if on_asyncio() else (by_scope,)


@pytest.mark.parametrize("operation", [call, iterate, result, leave_early, close])
async def test_one_prompt(operation: Operation):
    async with bench(max_concurrency=1) as made:
        for way in ways():
            assert await walk(lambda: operation(made), way, made.check) > 3


@pytest.mark.parametrize("operation", [call, result])
async def test_one_prompt_whose_connection_is_opened_first(operation: Operation):
    async with bench(cold=True) as made:
        for way in ways():
            assert await walk(lambda: operation(made), way, made.check) >= 5


@pytest.mark.parametrize("operation", [retried, retried_stream])
async def test_a_call_that_is_tried_again(operation: Operation):
    async with bench(caller=AsyncCaller(random=lambda: 0.01, max_concurrency=1)) as made:
        for way in ways():
            assert await walk(lambda: operation(made), way, made.check) > 8


@pytest.mark.parametrize("operation", [generate, map_, stream_many])
async def test_many_prompts(operation: Operation):
    async with bench(max_concurrency=2) as made:
        for way in ways():
            assert await walk(lambda: operation(made), way, made.check) >= 1


@pytest.mark.parametrize("operation", [call, result, generate, map_, stream_many])
async def test_after_any_number_of_rounds(operation: Operation):
    async with bench(max_concurrency=2, cold=operation is call) as made:
        assert await walk(lambda: operation(made), by_rounds, made.check, most=300) > 3
