"""Hundreds of calls, most of them cancelled at random moments, and then as if nothing had been."""

from __future__ import annotations

import contextlib
import random

import anyio

from millstream import AsyncCaller, HuggingFaceInference, InMemoryCache, MillstreamError
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint, Fault

from ..support.quiet import assert_quiet
from .cutting import by_rounds

TASKS = 20
CANCELS = 30
"""For each task."""


async def test_churn():
    draw = random.Random(7)
    faults = [Fault.status(503), Fault.disconnect(), Fault.disconnect(100), Fault.stall(1), Fault.error_event(1)]
    caller = AsyncCaller(max_concurrency=6, random=lambda: 0.001)
    listener = RecordingCallbackHandler()
    async with (
        FakeEndpoint(reply="one two three", coalesce=False, fault_rate=0.1, faults=faults) as endpoint,
        HuggingFaceInference(
            endpoint_url=endpoint.url, caller=caller, callbacks=[listener], cache=InMemoryCache(max_entries=1)
        ) as llm,
    ):
        cuts: list[bool] = []

        async def task() -> None:
            for _ in range(CANCELS):
                kind = draw.choice(KINDS)
                prompt = f"prompt {draw.randrange(4)}"  # some are the same at the same time

                async def operation(kind=kind, prompt=prompt) -> None:
                    with contextlib.suppress(MillstreamError):
                        await kind(llm, prompt)

                cuts.append(await by_rounds(operation, draw.randrange(1, 25)))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(TASKS):
                    tasks.start_soon(task)
        await assert_quiet(llm, endpoint, sole=True)
        listener.assert_paired()
        assert 250 < sum(cuts) < len(cuts) == TASKS * CANCELS
        assert endpoint.cancelled > 20

        endpoint.fault_rate = 0
        llm.cache = None
        for _ in range(20):
            assert await llm.call("are you well?") == "one two three"
        await assert_quiet(llm, endpoint, sole=True)


async def _call(llm: HuggingFaceInference, prompt: str) -> None:
    await llm.call(prompt)


async def _generate(llm: HuggingFaceInference, prompt: str) -> None:
    await llm.generate([prompt, prompt, "another"])


async def _stream(llm: HuggingFaceInference, prompt: str) -> None:
    async with llm.stream(prompt) as stream:
        async for _ in stream:
            pass


async def _break(llm: HuggingFaceInference, prompt: str) -> None:
    async for _ in llm.stream(prompt):
        break


async def _map(llm: HuggingFaceInference, prompt: str) -> None:
    async with llm.map([prompt, "another"]) as outcomes:
        async for _ in outcomes:
            pass


async def _stream_many(llm: HuggingFaceInference, prompt: str) -> None:
    async with llm.stream_many([prompt, "another"]) as events:
        async for _ in events:
            pass


KINDS = [_call, _generate, _stream, _break, _map, _stream_many]
