"""Endpoints without sockets, as many requests as a storm has: what they refuse, and when."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import trio.testing

from millstream import AsyncCaller, Deadlines, OverloadedError, RateLimitError, ReadError
from millstream._admission import Permit
from millstream._caller import CallerOptions
from millstream.testing._behaviour import Behaviour
from millstream.testing._rates import Rates
from tests.support.clock import ManualLoop

T = TypeVar("T")
FOREVER = Deadlines(total=None)


class Call:
    """One call's function: it is told its permit, and tells the first token."""

    def __init__(self, endpoint: Endpoint, *, signals: bool) -> None:
        self.options = CallerOptions(deadlines=FOREVER, signals=signals, begin=self._begin)
        self._endpoint = endpoint
        self._signals = signals
        self._permit: Permit | None = None

    def _begin(self, permit: Permit) -> None:
        self._permit = permit

    def first_token(self) -> None:
        if self._signals and self._permit is not None:
            self._permit.first_token()

    async def __call__(self) -> None:
        await self._endpoint.answer(self.first_token)


class Endpoint:
    """Counts attempts and refusals by second; `answer` is the request."""

    def __init__(self) -> None:
        self.start = anyio.current_time()
        self.attempts = self.refusals = self.served = 0
        self.attempts_at: Counter[int] = Counter()
        self.refusals_at: Counter[int] = Counter()
        self.served_at: Counter[int] = Counter()

    @property
    def now(self) -> float:
        return anyio.current_time() - self.start

    def note_attempt(self) -> None:
        self.attempts += 1
        self.attempts_at[int(self.now)] += 1

    def note_refusal(self) -> None:
        self.refusals += 1
        self.refusals_at[int(self.now)] += 1

    def note_served(self) -> None:
        self.served += 1
        self.served_at[int(self.now)] += 1

    async def answer(self, first_token: Callable[[], None]) -> None:
        raise NotImplementedError


class Slots(Endpoint):
    """So many slots and no queue (503 beyond), behind a gateway that resets what is beyond its own rate."""

    def __init__(
        self, slots: int, seconds: float, *, gateway: int, outage: tuple[float, float], seed: int, latency: float = 0.05
    ) -> None:
        super().__init__()
        self.slots = slots
        self.busy = 0
        self.resets = 0
        self._seconds = seconds
        self._gateway = gateway
        self._outage = outage
        self._latency = latency
        self._random = random.Random(seed)

    @property
    def capacity(self) -> float:
        """Requests a second."""
        return self.slots / self._seconds

    async def answer(self, first_token: Callable[[], None]) -> None:
        self.note_attempt()
        began, ends = self._outage
        if self.attempts_at[int(self.now)] > self._gateway:
            self.resets += 1
            await anyio.sleep(1.0)
            raise ReadError("reset")
        if began <= self.now < ends or self.busy >= self.slots:
            await anyio.sleep(self._latency)
            self.note_refusal()
            raise OverloadedError("no room", status_code=503)
        self.busy += 1
        try:
            await anyio.sleep(self._latency)
            first_token()
            await anyio.sleep(self._seconds * self._random.uniform(0.5, 1.5) - self._latency)
        finally:
            self.busy -= 1
        self.note_served()


def attempts_between(endpoint: Endpoint, begin: float, end: float) -> int:
    return sum(count for second, count in endpoint.attempts_at.items() if begin <= second < end)


def run_manually(backend: str, function: Callable[[], Awaitable[T]]) -> T:
    """On a clock that jumps."""
    clocks = {"asyncio": {"loop_factory": ManualLoop}, "trio": {"clock": trio.testing.MockClock(autojump_threshold=0)}}
    return anyio.run(function, backend=backend, backend_options=clocks[backend])


async def rounds(caller: AsyncCaller, endpoint: Endpoint, tasks: int, rounds: int) -> list[int]:
    """Each task makes so many calls, one after the other; how many came back to each."""
    done = [0] * tasks

    async def work(number: int) -> None:
        call = Call(endpoint, signals=caller.adaptive)
        for _ in range(rounds):
            await caller.call_with_options(call.options, call)
            done[number] += 1

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(work, number)
    return done


class Quota(Endpoint):
    """Takes so many requests a minute, but none before `opens`; with ``Retry-After`` or without."""

    def __init__(self, behaviour: Behaviour, *, opens: float, seed: int, tells: bool) -> None:
        super().__init__()
        self.opens = opens
        self.accepted_at: Counter[int] = Counter()
        self._rates = Rates(behaviour)
        self._tells = tells
        self._random = random.Random(seed)

    async def answer(self, first_token: Callable[[], None]) -> None:
        self.note_attempt()
        now = self.now
        accepted = now >= self.opens and self._rates.admit()
        told = None
        if not accepted and self._tells:
            told = math.ceil(self.opens - now) if now < self.opens else self._wait()
        await anyio.sleep(self._random.uniform(0.05, 0.15))
        if not accepted:
            self.note_refusal()
            raise RateLimitError("slower", status_code=429, retry_after=told)
        self.accepted_at[int(now)] += 1
        first_token()
        await anyio.sleep(self._random.uniform(0.5, 1.5))
        self.note_served()

    def _wait(self) -> float:
        (told,) = (value for name, value in self._rates.headers(passes=False) if name == "retry-after")
        return float(told)
