"""An outage of a minute under ten thousand tasks: it is not stormed, nobody is lost, and the end of it is no storm either."""

from __future__ import annotations

import functools
import random
from typing import Literal, NamedTuple

import pytest

from millstream import AsyncCaller

from .simulated import Slots, attempts_between, rounds, run_manually

TASKS, ROUNDS = 10_000, 2
BEGINS, ENDS = 20, 80
SLOTS, SECONDS, GATEWAY = 400, 2.0, 2000

Concurrency = Literal["auto"] | int


class Outcome(NamedTuple):
    endpoint: Slots
    caller: AsyncCaller
    done: list[int]
    seconds: float


@functools.cache
def outcome_of(concurrency: Concurrency, backend: str) -> Outcome:
    """400 slots and no queue, 2 s each; behind a gateway that resets what is over 2000 a second."""

    async def main() -> Outcome:
        endpoint = Slots(SLOTS, SECONDS, gateway=GATEWAY, outage=(BEGINS, ENDS), seed=1, latency=0.3)
        caller = AsyncCaller(max_concurrency=concurrency, random=random.Random(1).random)
        done = await rounds(caller, endpoint, TASKS, ROUNDS)
        return Outcome(endpoint, caller, done, endpoint.now)

    return run_manually(backend, main)


each = pytest.mark.parametrize(
    ("concurrency", "backend"), [("auto", "asyncio"), ("auto", "trio"), (SLOTS, "asyncio")], ids=str
)


@each
def test_nobody_is_lost(concurrency: Concurrency, backend: str):
    _, caller, done, seconds = outcome_of(concurrency, backend)
    assert done == [ROUNDS] * TASKS
    now = caller.statistics()
    assert (now.failures, now.in_flight, now.waiting, now.backing_off) == (0, 0, 0, 0)
    assert seconds < 200, "160 s, if no slot were ever empty"


@each
def test_the_outage_is_not_stormed(concurrency: Concurrency, backend: str):
    """With jitter alone it is some ten thousand, all of them for nothing."""
    endpoint = outcome_of(concurrency, backend).endpoint
    assert endpoint.resets == 0
    assert 5 <= attempts_between(endpoint, BEGINS, ENDS) <= 1000
    assert attempts_between(endpoint, BEGINS + 10, ENDS) <= 30, "one at a time, when it is known"
    assert endpoint.attempts <= 1.1 * TASKS * ROUNDS


@pytest.mark.parametrize(
    ("concurrency", "backend"),
    [
        ("auto", "asyncio"),
        (SLOTS, "asyncio"),
    ],
    ids=str,
)
def test_its_end_is_no_storm(concurrency: Concurrency, backend: str):
    endpoint = outcome_of(concurrency, backend).endpoint
    peak = max(count for second, count in endpoint.attempts_at.items() if ENDS <= second < ENDS + 60)
    assert peak <= 1.3 * endpoint.capacity
