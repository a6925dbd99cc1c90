"""What a client's answers cost in time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from .answers import ANSWER_TEXT, STREAM_TEXT
from .client import Answers, Client
from .control import tell
from .scenarios import Scenario

_LONGEST_BATCH = 1.0
"""Seconds. A client that would need longer for a batch gets a smaller one, but as many prompts as are in flight."""
_FIRST_TOKENS = 100


class WrongAnswerError(Exception):
    """A client that did not understand the origin: its time counts for nothing."""


def prompts_of(count: int) -> list[str]:
    question = "Why is the sky blue, and why is it red in the evening? This is question number"
    return [f"{question} {1000 + number}." for number in range(count)]


def check(answers: Answers, expected: str, count: int) -> None:
    """Raises: WrongAnswerError."""
    wrong = sum(text != expected for text in answers.texts)
    if wrong or len(answers.texts) != count:
        raise WrongAnswerError(f"{len(answers.texts)} answers to {count} prompts, {wrong} of them wrong")


async def measure_answers(client: Client, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """CPU time an answer, or a token; as many in flight as the scenario says."""
    ask = {"generate": client.generate, "unread": client.unread, "stream": client.stream}[scenario.kind]
    expected = ANSWER_TEXT if scenario.kind == "generate" else STREAM_TEXT
    if scenario.opened:
        check(await client.generate(prompts_of(scenario.opened)), ANSWER_TEXT, scenario.opened)
    began = time.perf_counter()
    check(await ask(prompts_of(scenario.warm_up)), expected, scenario.warm_up)
    each = (time.perf_counter() - began) / scenario.warm_up
    affordable = max(scenario.concurrency, int(_LONGEST_BATCH / each))
    return await _measure(ask, scenario, expected, min(scenario.batch, affordable), seconds)


async def _measure(
    ask: Callable[[Sequence[str]], Coroutine[Any, Any, Answers]],
    scenario: Scenario,
    expected: str,
    batch: int,
    seconds: float,
) -> dict[str, Any]:
    prompts = prompts_of(batch)
    cpu = wall = 0.0
    answered = 0
    latencies: list[float] = []
    gc.collect()
    while not answered or wall < seconds:
        cpu_began, wall_began = time.process_time(), time.perf_counter()
        answers = await ask(prompts)
        cpu += time.process_time() - cpu_began
        wall += time.perf_counter() - wall_began
        check(answers, expected, batch)
        answered += batch
        latencies += answers.seconds
    units = answered * scenario.units_each
    return {
        "figure": cpu / units * 1e6,
        "figure_unit": f"CPU us a {scenario.unit}",
        "count": units,
        "per_second": units / wall,
        "cpu_share": cpu / wall,
        **_percentiles(latencies),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    seconds.sort()
    return {
        "p50_ms": statistics.median(seconds) * 1000,
        "p99_ms": seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1000,
    }


async def measure_first(client: Client, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """From the call to the first token, one stream at a time on a connection that is open."""
    (prompt,) = prompts_of(1)
    waits: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        text = await client.first(prompt, lambda: waits.append(time.perf_counter() - began))
        check(Answers([text], []), STREAM_TEXT, 1)

    for _ in range(_FIRST_TOKENS // 4):
        await one()
    waits.clear()
    gc.collect()
    cpu_began, wall_began = time.process_time(), time.perf_counter()
    while len(waits) < _FIRST_TOKENS or time.perf_counter() - wall_began < seconds:
        await one()
    cpu, wall = time.process_time() - cpu_began, time.perf_counter() - wall_began
    told = _percentiles(waits)
    return {
        "figure": told["p50_ms"],
        "figure_unit": "ms to the first token",
        "count": len(waits),
        "per_second": len(waits) / wall,
        "cpu_share": cpu / wall,
        **told,
    }


async def measure_late(client: Client, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """How near to the ideal rate a client comes when answers take long: as many a latency as are in flight.

    With N in flight, the request that comes N after another takes the other's place. So the time between the two is the
    latency and what the client needs between an answer and the next request. The first N, which come with the opening
    of connections, and the end, when there is nothing left to send, are not in it.
    """
    check(await client.generate(prompts_of(scenario.warm_up)), ANSWER_TEXT, scenario.warm_up)
    await tell(client.port, "arrivals")
    prompts = prompts_of(scenario.batch)
    gc.collect()
    cpu_began, wall_began = time.process_time(), time.perf_counter()
    check(await client.generate(prompts), ANSWER_TEXT, scenario.batch)
    cpu, wall = time.process_time() - cpu_began, time.perf_counter() - wall_began
    told = await tell(client.port, "arrivals")
    arrivals, width = told["arrivals"], scenario.concurrency
    turns = [later - earlier for earlier, later in zip(arrivals[width:], arrivals[2 * width :], strict=False)]
    return {
        "figure": told["seconds"] / statistics.fmean(turns),
        "figure_unit": "of the ideal rate",
        "count": scenario.batch,
        "per_second": scenario.batch / wall,
        "cpu_share": cpu / wall,
        "cpu_us": cpu / scenario.batch * 1e6,
    }
