"""Two thousand tasks against a quota that is used up: few refusals, nearly all of the quota used, a turn for each."""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

import anyio
import pytest

from millstream import AsyncCaller
from millstream.testing._behaviour import Behaviour

from .simulated import Call, Quota, attempts_between, run_manually

TASKS, OPENS, ENDS = 2000, 30, 690
PER_MINUTE = 600


class Variant(NamedTuple):
    algorithm: str
    burst: int | None
    tells: bool


class Outcome(NamedTuple):
    endpoint: Quota
    done: list[int]


@functools.cache
def outcome_of(variant: Variant, backend: str) -> Outcome:
    """Everything is refused for 30 s; from then on 600 a minute are taken."""

    async def main() -> Outcome:
        behaviour = Behaviour(
            requests_per_minute=PER_MINUTE, rate_limit_algorithm=variant.algorithm, rate_burst=variant.burst
        )
        endpoint = Quota(behaviour, opens=OPENS, seed=1, tells=variant.tells)
        caller = AsyncCaller(random=random.Random(1).random)
        done = [0] * TASKS

        async def work(number: int) -> None:
            call = Call(endpoint, signals=True)
            while True:
                await caller.call_with_options(call.options, call)
                done[number] += 1

        with anyio.move_on_after(ENDS):
            async with anyio.create_task_group() as group:
                for number in range(TASKS):
                    group.start_soon(work, number)
        return Outcome(endpoint, done)

    return run_manually(backend, main)


VARIANTS = {
    "window": Variant("fixed-window", None, tells=False),
    "window, told": Variant("fixed-window", None, tells=True),
    "bucket": Variant("leaky-bucket", 10, tells=False),
    "bucket, told": Variant("leaky-bucket", 10, tells=True),
}

each = pytest.mark.parametrize(
    ("variant", "backend"),
    [
        pytest.param(variant, backend, id=f"{name}-{backend}")
        for name, variant in VARIANTS.items()
        for backend in (("asyncio", "trio") if name == "bucket" else ("asyncio",))
    ],
)


@each
def test_while_nothing_is_taken_nearly_nothing_is_sent(variant: Variant, backend: str):
    endpoint, _ = outcome_of(variant, backend)
    assert attempts_between(endpoint, 0, 1) <= 20
    assert attempts_between(endpoint, 1, OPENS) <= 15
    assert OPENS <= min(endpoint.accepted_at) <= OPENS + 5


@each
def test_few_are_refused(variant: Variant, backend: str):
    endpoint, _ = outcome_of(variant, backend)
    refused = sum(count for second, count in endpoint.refusals_at.items() if second >= 1)
    assert refused <= 0.03 * attempts_between(endpoint, 1, ENDS)


@each
def test_the_quota_is_used(variant: Variant, backend: str):
    endpoint, _ = outcome_of(variant, backend)
    recovered = min(endpoint.accepted_at)
    # One minute in which it learns how many it may; from then on .95 of what is allowed, whole windows.
    accepted = sum(count for second, count in endpoint.accepted_at.items() if recovered <= second < recovered + 600)
    assert accepted >= 0.95 * PER_MINUTE * 10


@each
def test_nobody_starves(variant: Variant, backend: str):
    _, done = outcome_of(variant, backend)
    assert min(done) >= 2
    assert sum(done) ** 2 / (TASKS * sum(count * count for count in done)) >= 0.95, "Jain's index"
