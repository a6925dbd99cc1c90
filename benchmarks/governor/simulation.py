"""Endpoints and their clients in virtual time: events in order, no waiting, the same result for the same seed."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, log
from random import Random
from typing import Any, NamedTuple, Protocol

from millstream._control import RejectKind
from millstream._headers import StatedLimits

LATENCY = 0.05
"""Seconds from sending a request to its arrival; answers come at once (half of it each way would be the same)."""

PATIENCE = 120.0
"""Seconds after which a client no longer waits for a first token."""


class Loop:
    """Runs events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = itertools.count()

    def at(self, time: float, call: Callable[[Any], None], argument: Any = None) -> None:
        heapq.heappush(self._events, (time, next(self._count), call, argument))

    def run(self, until: float) -> None:
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            self.now, _, call, argument = pop(events)
            call(argument)
        self.now = until


class Request:
    __slots__ = ("attempts", "breaks", "client", "ended", "has_token", "prefill", "sent_at", "tokens")

    def __init__(self, client: Client, tokens: int, prefill: float, *, breaks: bool) -> None:
        self.client = client
        self.tokens = tokens
        self.prefill = prefill
        self.breaks = breaks
        self.attempts = 0
        self.sent_at = 0.0
        self.has_token = self.ended = False

    def again(self) -> Request:
        """The next attempt: what is under way at the server is the old one's."""
        copy = Request(self.client, self.tokens, self.prefill, breaks=False)
        copy.attempts = self.attempts
        return copy


# The endpoint


class Refusal(NamedTuple):
    retry_after: float | None
    """None: it tells none."""


class Quota(Protocol):
    """Requests or tokens a minute."""

    per_minute: float
    of_tokens: bool
    factor: float

    def refuse(self, now: float, cost: float) -> Refusal | None:
        """None: accepted, and counted."""

    def stated(self, now: float) -> StatedLimits | None: ...


@dataclass
class FixedWindow:
    """So much in each window of a minute."""

    per_minute: float
    of_tokens: bool = False
    retry_after: bool = True
    headers: bool = False
    lie: float = 1.0
    """What it tells as Retry-After is the truth times this."""
    factor: float = 1.0
    seconds: float = 60.0
    _window: float = -1.0
    _used: float = 0.0

    def refuse(self, now: float, cost: float) -> Refusal | None:
        self._renew(now)
        limit = self.per_minute * self.factor * self.seconds / 60
        cost = cost if self.of_tokens else 1.0
        if self._used + cost > limit:
            return Refusal(((self._window + 1) * self.seconds - now) * self.lie if self.retry_after else None)
        self._used += cost
        return None

    def stated(self, now: float) -> StatedLimits | None:
        if not self.headers:
            return None
        self._renew(now)
        left = max(0.0, self.per_minute * self.factor * self.seconds / 60 - self._used)
        reset = (self._window + 1) * self.seconds - now
        if self.of_tokens:
            return StatedLimits(tokens_remaining=left, tokens_reset=reset)
        return StatedLimits(requests_remaining=int(left), requests_reset=reset)

    def _renew(self, now: float) -> None:
        window = now // self.seconds
        if window != self._window:
            self._window, self._used = window, 0.0


@dataclass
class LeakyBucket:
    """So much flows off steadily; what is over the size of the bucket is refused."""

    per_minute: float
    of_tokens: bool = False
    retry_after: bool = False
    headers: bool = False
    lie: float = 1.0
    factor: float = 1.0
    burst_seconds: float = 2.0
    _level: float = 0.0
    _at: float = 0.0

    def refuse(self, now: float, cost: float) -> Refusal | None:
        rate = self.per_minute * self.factor / 60
        cost = cost if self.of_tokens else 1.0
        self._level = max(0.0, self._level - (now - self._at) * rate)
        self._at = now
        over = self._level + cost - max(cost, rate * self.burst_seconds)
        if over > 0:
            return Refusal(over / rate * self.lie if self.retry_after else None)
        self._level += cost
        return None

    def stated(self, now: float) -> StatedLimits | None:
        return None


@dataclass
class Server:
    """Continuous batching: a slot for each request that is served; a token takes longer the more of them are taken."""

    loop: Loop
    slots: int
    token_seconds: float = 0.025
    """Of a full batch."""
    batch_growth: float = 0.6
    """How much of it comes with the batch: an empty one takes 1 - this."""
    queue: int | None = None
    """Places in the queue; None: no bound."""
    quota: Quota | None = None
    running: int = 0
    accepted: int = 0
    waiting: deque[Request] = field(default_factory=deque[Request])
    _progress: float = 0.0
    _at: float = 0.0
    _ends: list[tuple[float, int, Request]] = field(default_factory=list[tuple[float, int, Request]])
    _count: int = 0
    _due: float = float("inf")

    def arrive(self, request: Request) -> None:
        if request.ended:
            return
        now, client = self.loop.now, request.client
        if self.quota is not None:
            refused = self.quota.refuse(now, request.tokens)
            if refused is not None:
                client.rejected(request, "rate", refused.retry_after, self.quota.stated(now))
                return
        if self.running < self.slots and not self.waiting:
            self._start(request)
        elif self.queue is not None and len(self.waiting) >= self.queue:
            client.rejected(request, "overload", None, None)
            return
        else:
            self.waiting.append(request)
        self.accepted += 1

    def resize(self, slots: float) -> None:
        self._advance()
        self.slots = max(1, round(slots))
        self._admit()
        self._schedule()

    def _start(self, request: Request) -> None:
        self._advance()
        self.running += 1
        self._schedule()
        self.loop.at(self.loop.now + request.prefill * (0.7 + 0.6 * self._load()), self._first, request)

    def _first(self, request: Request) -> None:
        now = self.loop.now
        if request.ended:
            self._leave()
            return
        request.client.first_token(request, None if self.quota is None else self.quota.stated(now))
        self._advance()
        self._count += 1
        length = request.tokens * (0.5 if request.breaks else 1.0)
        heapq.heappush(self._ends, (self._progress + length, self._count, request))
        self._schedule()

    def _finish(self, due: float) -> None:
        if due != self._due:
            return
        self._due = float("inf")
        self._advance()
        while self._ends and self._ends[0][0] <= self._progress + 1e-6:
            request = heapq.heappop(self._ends)[2]
            self.running -= 1
            request.client.ended(request)
        self._admit()
        self._schedule()

    def _leave(self) -> None:
        self._advance()
        self.running -= 1
        self._admit()
        self._schedule()

    def _admit(self) -> None:
        waiting = self.waiting
        while waiting and self.running < self.slots:
            request = waiting.popleft()
            if not request.ended:
                self._start(request)

    def _token_seconds(self) -> float:
        return self.token_seconds * (1 - self.batch_growth + self.batch_growth * self._load())

    def _load(self) -> float:
        return min(1.0, self.running / self.slots)

    def _advance(self) -> None:
        now = self.loop.now
        if now > self._at:
            self._progress += (now - self._at) / self._token_seconds()
            self._at = now

    def _schedule(self) -> None:
        """Whenever the batch changes, so does the time of the next end."""
        if self._ends:
            due = self.loop.now + max(0.0, self._ends[0][0] - self._progress) * self._token_seconds()
            if due != self._due:
                self._due = due
                self.loop.at(due, self._finish, due)


# The clients


class Governor(Protocol):
    """Decides when a client sends. `waiting`: without a first token."""

    def room(self, now: float) -> bool: ...
    def ready_at(self, now: float) -> float: ...
    def sent(self, now: float) -> None: ...
    def first_token(self, now: float, ttft: float) -> None: ...
    def done(self, now: float, waiting: bool, tokens: int) -> None: ...
    def broken(self, now: float, waiting: bool) -> None: ...
    def rejected(
        self, now: float, kind: RejectKind, retry_after: float | None, sent_at: float, waiting: bool, attempt: int
    ) -> float:
        """Seconds until this request may be tried again."""

    def retries(self, now: float) -> None:
        """Those seconds are over."""

    def stated(self, now: float, limits: StatedLimits) -> None: ...


@dataclass
class Work:
    """What the requests of a client are like."""

    tokens: Callable[[Random], float]
    prefill: Callable[[Random], float]
    breaks: float = 0.0
    """The share that breaks in the middle."""
    tail: float = 0.0
    """The share that is held up on its way by 1 to 5 seconds."""
    signals: bool = True


class Client:
    """Has more work than fits; takes up again what was rejected."""

    def __init__(self, loop: Loop, server: Server, governor: Governor, work: Work, seed: str) -> None:
        self.loop, self.server, self.governor, self.work = loop, server, governor, work
        self._random = Random(seed)
        self._network = Random(seed + " network")
        self._again: deque[Request] = deque()
        self._sent: deque[Request] = deque()
        self._wakes_at = float("inf")
        self.attempts = self.refused = self.completed = self.completed_tokens = self.lost = 0
        self.ttfts: list[tuple[float, float]] = []
        self.completed_at: list[int] = []
        """In each second."""

    def start(self, _: None = None) -> None:
        self.fill()

    def fill(self) -> None:
        governor, loop = self.governor, self.loop
        now = loop.now
        while governor.room(now):
            ready = governor.ready_at(now)
            if ready > now:
                if ready < self._wakes_at:
                    self._wakes_at = ready
                    loop.at(ready, self._wake, ready)
                return
            request = self._again.popleft() if self._again else self._new()
            request.sent_at = now
            request.attempts += 1
            self.attempts += 1
            self._sent.append(request)
            governor.sent(now)
            delay = LATENCY
            if self.work.tail and self._network.random() < self.work.tail:
                delay += self._network.uniform(1, 5)
            loop.at(now + delay, self.server.arrive, request)

    def first_token(self, request: Request, limits: StatedLimits | None) -> None:
        now = self.loop.now
        ttft = now - request.sent_at
        request.has_token = True
        self.ttfts.append((now, ttft))
        if self.work.signals:
            self.governor.first_token(now, ttft)
        if limits is not None:
            self.governor.stated(now, limits)
        self._give_up()
        self.fill()

    def ended(self, request: Request) -> None:
        now, waiting = self.loop.now, False
        request.ended = True
        if request.breaks:
            self.governor.broken(now, waiting)
            self._again.append(request.again())
        else:
            self.governor.done(now, waiting, request.tokens)
            self.completed += 1
            self.completed_tokens += request.tokens
            second = int(now)
            while len(self.completed_at) <= second:
                self.completed_at.append(0)
            self.completed_at[second] += 1
        self._give_up()
        self.fill()

    def rejected(
        self, request: Request, kind: RejectKind, retry_after: float | None, limits: StatedLimits | None
    ) -> None:
        now = self.loop.now
        request.ended = True
        self.refused += 1
        if limits is not None:
            self.governor.stated(now, limits)
        delay = self.governor.rejected(now, kind, retry_after, request.sent_at, self.work.signals, request.attempts)
        if delay > 0:
            self.loop.at(now + delay, self._retry, request)
        else:
            self._again.append(request.again())
        self._give_up()
        self.fill()

    def _retry(self, request: Request) -> None:
        self.governor.retries(self.loop.now)
        self._again.append(request.again())
        self.fill()

    def _wake(self, due: float) -> None:
        if due == self._wakes_at:
            self._wakes_at = float("inf")
            self.fill()

    def _new(self) -> Request:
        random, work = self._random, self.work
        return Request(
            self,
            max(1, round(work.tokens(random))),
            work.prefill(random),
            breaks=work.breaks > 0 and random.random() < work.breaks,
        )

    def _give_up(self) -> None:
        """Of the oldest that still wait for their first token, those that wait too long."""
        now, sent = self.loop.now, self._sent
        while sent and (sent[0].ended or sent[0].has_token or now - sent[0].sent_at > PATIENCE):
            request = sent.popleft()
            if not request.ended and not request.has_token:
                request.ended = True
                self.lost += 1
                self.ttfts.append((now, PATIENCE))
                delay = self.governor.rejected(
                    now, "overload", None, request.sent_at, self.work.signals, request.attempts
                )
                self.loop.at(now + max(delay, 1e-9), self._retry, request)


def lognormal(mean: float, spread: float) -> Callable[[Random], float]:
    """A distribution with this mean; `spread` is the standard deviation of its logarithm."""
    mu = log(mean) - spread * spread / 2
    return lambda random: exp(mu + spread * random.gauss(0.0, 1.0))
