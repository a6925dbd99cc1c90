"""What is simulated: endpoints, their neighbours, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import pi, sin
from random import Random
from statistics import mean
from typing import NamedTuple

from .rivals import RIVALS, Adaptive, Oracle, Switched
from .simulation import Client, FixedWindow, Governor, LeakyBucket, Loop, Quota, Server, Work, lognormal

OURS, ORACLE = "this", "oracle"

STEPS = ((0.0, 1.0), (1 / 3, 0.5), (2 / 3, 1.5))
"""At so much of the time, capacity or quota becomes so many times what it is called."""
STEADY = ((0.0, 1.0),)
DIURNAL = tuple((i / 60, 1 + 0.5 * sin(2 * pi * i / 30)) for i in range(60))
"""Two days, each of half of the time: half to one and a half times as much."""


@dataclass(frozen=True)
class Scenario:
    name: str
    slots: int = 128
    steps: tuple[tuple[float, float], ...] = STEPS
    queue: float | None = None
    """Places, as a share of the slots; None: no bound."""
    quota: Callable[[], Quota] | None = None
    tokens: tuple[float, float] = (200.0, 0.7)
    """Mean length of an answer, and the spread of its logarithm."""
    short: float = 0.0
    """The share of answers that have 5 tokens only."""
    prefill: tuple[float, float] = (0.2, 0.3)
    breaks: float = 0.0
    tail: float = 0.0
    processes: int = 1
    models: tuple[tuple[float, float], ...] = ()
    """Answer lengths of several models on the endpoint, each with a window of its own; goodput is in tokens then."""
    neighbours: float = 0.0
    """Requests in flight of three neighbours together, as a share of the slots; on and off each minute or so."""
    greedy: float = 0.0
    """Those of one that never pauses."""
    signals: bool = True
    seconds: float = 900.0

    def scaled(self, seconds: float, share: float = 1.0) -> Scenario:
        """A shorter one, of fewer slots."""
        return replace(self, seconds=seconds, slots=max(2, round(self.slots * share)))


@dataclass
class Outcome:
    completed: float
    attempts: int
    refused: int
    lost: int
    ttfts: list[float]
    each: list[float]
    """Completed by each process."""
    busy: list[int] = field(default_factory=list[int])
    """Slots taken, in each second."""
    completed_at: list[int] = field(default_factory=list[int])

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.attempts)

    def ttft(self, share: float) -> float:
        ordered = sorted(self.ttfts)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def jain(self) -> float:
        """1: all have the same; 1/n: one has everything."""
        return sum(self.each) ** 2 / (len(self.each) * sum(one * one for one in self.each) or 1)


def run(scenario: Scenario, governor: str, seed: int = 1) -> Outcome:
    """The same seed gives every governor the same work."""
    loop = Loop()
    quota = scenario.quota() if scenario.quota is not None else None
    queue = None if scenario.queue is None else max(1, round(scenario.slots * scenario.queue))
    server = Server(loop, scenario.slots, queue=queue, quota=quota)
    chance = Random(f"{seed} {scenario.name} {governor}")
    neighbours = _neighbours(scenario, loop, server, seed)
    kinds = scenario.models or (scenario.tokens,)
    count = scenario.processes * len(kinds)

    def share(now: float) -> float:
        taken = sum(size for size, is_on in neighbours if is_on(now))
        if scenario.greedy:
            return server.slots / 2  # a fair part
        return (server.slots - taken) / count * 1.01 + 1

    clients: list[Client] = []
    for number in range(count):
        tokens = kinds[number % len(kinds)]
        work = Work(
            tokens=_lengths(tokens, scenario.short),
            prefill=lognormal(*scenario.prefill),
            breaks=scenario.breaks,
            tail=scenario.tail,
            signals=scenario.signals,
        )
        made: Governor
        if governor == OURS:
            made = Adaptive(chance, signals=scenario.signals)
        elif governor == ORACLE:
            cost = mean(max(1, round(work.tokens(Random(i)))) for i in range(4000))
            made = Oracle(chance, server, share, mean_cost=cost, parts=count)
        else:
            made = RIVALS[governor](chance)
        clients.append(Client(loop, server, made, work, f"{seed} {scenario.name} {number}"))
        loop.at(0.01 * number, clients[-1].start)

    for at, factor in scenario.steps[0 if quota is None else len(scenario.steps) :]:
        loop.at(at * scenario.seconds, server.resize, scenario.slots * factor)
    if quota is not None:
        for at, factor in scenario.steps:
            loop.at(at * scenario.seconds, lambda factor: setattr(quota, "factor", factor), factor)
    busy: list[int] = []

    def look(_: None) -> None:
        busy.append(server.running)
        loop.at(loop.now + 1.0, look)

    loop.at(0.0, look)
    loop.run(scenario.seconds)
    each = [float(client.completed_tokens if scenario.models else client.completed) for client in clients]
    return Outcome(
        completed=sum(each),
        attempts=sum(client.attempts for client in clients),
        refused=sum(client.refused for client in clients),
        lost=sum(client.lost for client in clients),
        ttfts=[ttft for client in clients for _, ttft in client.ttfts],
        each=each,
        busy=busy,
        completed_at=_sum_of([client.completed_at for client in clients], int(scenario.seconds)),
    )


def _sum_of(lists: list[list[int]], length: int) -> list[int]:
    return [sum(one[i] for one in lists if i < len(one)) for i in range(length)]


def _lengths(tokens: tuple[float, float], short: float) -> Callable[[Random], float]:
    long = lognormal(*tokens)
    if not short:
        return long
    return lambda random: 5.0 if random.random() < short else long(random)


def _neighbours(
    scenario: Scenario, loop: Loop, server: Server, seed: int
) -> list[tuple[float, Callable[[float], bool]]]:
    chance = Random(f"{seed} {scenario.name} neighbours")
    found: list[tuple[float, Callable[[float], bool]]] = []
    if scenario.greedy:
        found.append((scenario.slots * scenario.greedy, lambda now: True))
    for _ in range(3 if scenario.neighbours else 0):
        changes, now = [0.0], 0.0
        while now < scenario.seconds:
            now += chance.expovariate(1 / 60)
            changes.append(now)
        first = chance.random() < 0.5

        def is_on(now: float, changes: list[float] = changes, first: bool = first) -> bool:
            return (sum(change <= now for change in changes) % 2 == 1) is first

        found.append((scenario.slots * scenario.neighbours / 3, is_on))
        work = Work(tokens=_lengths(scenario.tokens, 0), prefill=lognormal(*scenario.prefill))
        client = Client(loop, server, Switched(chance, found[-1][0], is_on), work, f"{chance.random()}")
        for change in changes:
            loop.at(change + 1e-3, client.start)
    if scenario.greedy:
        work = Work(tokens=_lengths(scenario.tokens, 0), prefill=lognormal(*scenario.prefill))
        client = Client(loop, server, Switched(chance, *found[0]), work, f"{chance.random()}")
        loop.at(0.0, client.start)
    return found


WIDE = 512
"""Slots of an endpoint whose quota is what limits."""

FIRST = (
    Scenario("bounded queue (503)", queue=0.5),
    Scenario("unbounded queue (vLLM)"),
    Scenario("rate limit, window + Retry-After", slots=WIDE, quota=lambda: FixedWindow(600)),
    Scenario("the same with RateLimit headers", slots=WIDE, quota=lambda: FixedWindow(600, headers=True)),
    Scenario("rate limit, leaky bucket, no header", slots=WIDE, quota=lambda: LeakyBucket(600)),
    Scenario("noisy neighbours, bounded", queue=0.5, neighbours=0.75),
    Scenario("greedy neighbour", greedy=1.0),
    Scenario("four independent processes", processes=4),
    Scenario("four processes, one rate limit", slots=WIDE, processes=4, quota=lambda: FixedWindow(600)),
    Scenario(
        "the same with RateLimit headers, four processes",
        slots=WIDE,
        processes=4,
        quota=lambda: FixedWindow(600, headers=True),
    ),
    Scenario("tiny server (4 slots)", slots=4, queue=2.0, steps=STEADY),
    Scenario("big server (1024 slots)", slots=1024, steps=STEADY, seconds=300.0),
    Scenario("long outputs, heavy prefill spread", tokens=(800.0, 1.0), prefill=(1.0, 1.2), queue=2.0),
    Scenario("bimodal outputs (5 or 200)", short=0.5),
    Scenario("2 % of streams break", queue=0.5, breaks=0.02),
)

MORE = (
    Scenario("diurnal capacity", steps=DIURNAL),
    Scenario("two models on one endpoint", models=((50.0, 0.7), (400.0, 0.7))),
    Scenario("token quota, window + Retry-After", slots=WIDE, quota=lambda: FixedWindow(120_000, of_tokens=True)),
    Scenario("token quota with headers", slots=WIDE, quota=lambda: FixedWindow(120_000, of_tokens=True, headers=True)),
    Scenario("Retry-After ten times too short", slots=WIDE, quota=lambda: FixedWindow(600, lie=0.1)),
    Scenario("Retry-After three times too long", slots=WIDE, quota=lambda: FixedWindow(600, lie=3.0)),
    Scenario("5 % of requests held up on their way", tail=0.05),
    Scenario("8 s of hidden reasoning, as many or as few", steps=STEADY, prefill=(8.0, 0.7), tokens=(100.0, 0.7)),
    Scenario("without first tokens, bounded queue", queue=0.5, signals=False),
)


def drawn(count: int, seed: int, seconds: float = 300.0) -> list[Scenario]:
    """Endpoints at random."""
    random = Random(f"draw {seed}")
    return [_draw(random, number, seconds) for number in range(count)]


def _draw(random: Random, number: int, seconds: float) -> Scenario:
    slots = round(4 * 192 ** random.random())
    tokens = 12 * 45 ** random.random()
    steps = random.choice((STEPS, STEADY, DIURNAL, ((0.0, 1.0), (0.5, random.uniform(0.4, 2.5)))))
    quota: Callable[[], Quota] | None = None
    if random.random() < 0.4:
        # Between a tenth of what the slots could do and nearly all of it
        per_minute = max(60.0, 60 * slots / (tokens * 0.02 + 0.3) * random.uniform(0.1, 0.8))
        told, headers, lie = random.random() < 0.6, random.random() < 0.3, random.choice((1.0, 1.0, 1.0, 0.3, 2.0))
        bucket = random.random() < 0.5

        def make() -> Quota:
            if bucket:
                return LeakyBucket(per_minute, retry_after=told, lie=lie)
            return FixedWindow(per_minute, retry_after=told, headers=headers, lie=lie)

        quota = make
        slots *= 2
    return Scenario(
        f"drawn {number}",
        slots=slots,
        steps=steps,
        queue=random.choice((None, None, 0.25, 1.0, 4.0)),
        quota=quota,
        tokens=(tokens, random.uniform(0.2, 1.0)),
        short=random.choice((0.0, 0.0, 0.0, 0.4)),
        prefill=(random.uniform(0.05, 1.0), random.uniform(0.1, 1.0)),
        breaks=random.choice((0.0, 0.0, 0.02)),
        tail=random.choice((0.0, 0.0, 0.0, 0.03)),
        neighbours=random.choice((0.0, 0.0, 0.0, 0.5)) if quota is None else 0.0,
        seconds=seconds,
    )


QUICK_SECONDS, QUICK_DRAWN = 180.0, 12
DRAWN = 60


def table(*, quick: bool) -> list[Scenario]:
    """Those that are named."""
    scenarios = (*FIRST, *MORE)
    return [one.scaled(QUICK_SECONDS) for one in scenarios] if quick else [*scenarios]


def draw(seed: int, *, quick: bool) -> list[Scenario]:
    """Those at random. Not the draws of the seeds 1, 7 and 2027: those have had a part in the tuning."""
    seed += 100_000
    return drawn(QUICK_DRAWN, seed, QUICK_SECONDS) if quick else drawn(DRAWN, seed)


class Job(NamedTuple):
    """What another process needs to know for one run."""

    number: int
    """In `table`, and then in `draw`."""
    governor: str
    seed: int
    quick: bool


class Row(NamedTuple):
    completed: float
    refused: float
    """A share of the attempts."""
    median: float
    """Seconds to the first token;"""
    late: float
    """and at the 99th percentile."""


def simulate(job: Job) -> Row:
    scenario = [*table(quick=job.quick), *draw(job.seed, quick=job.quick)][job.number]
    outcome = run(scenario, job.governor, job.seed)
    return Row(outcome.completed, outcome.refused_share, outcome.ttft(0.5), outcome.ttft(0.99))
