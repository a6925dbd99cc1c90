"""Governors: the one of this package, an oracle, and what else is in use, each written from its published rules."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from millstream._control import RejectKind, Window
from millstream._headers import StatedLimits

from .simulation import Server


class Adaptive:
    """The window of this package."""

    def __init__(self, random: Random, *, signals: bool = True, start: float = 8, ceiling: int = 2000) -> None:
        self.window = Window(start=start, ceiling=ceiling, random=random.random)
        self._signals = signals
        self.ready_at = self.window.ready_at
        self.first_token = self.window.first_token
        self.stated = self.window.stated

    def room(self, now: float) -> bool:
        return self.window.in_flight < self.window.limit

    def sent(self, now: float) -> None:
        self.window.send(now, signals=self._signals)

    def done(self, now: float, waiting: bool, tokens: int) -> None:
        self.window.done(now, waiting=waiting, tokens=tokens)

    def broken(self, now: float, waiting: bool) -> None:
        self.window.broken(now, waiting=waiting)

    def rejected(
        self, now: float, kind: RejectKind, retry_after: float | None, sent_at: float, waiting: bool, attempt: int
    ) -> float:
        self.window.rejected(now, kind, retry_after, sent_at=sent_at, waiting=waiting)
        return 0.0

    def retries(self, now: float) -> None:
        pass


class Counting:
    """What the others have in common: slots, and a back-off of each request by itself (full jitter)."""

    holds_slot = False
    longest_back_off = 8.0

    def __init__(self, random: Random) -> None:
        self.random = random
        self.in_flight = 0

    def limit(self, now: float) -> float:
        raise NotImplementedError

    def room(self, now: float) -> bool:
        return self.in_flight < int(self.limit(now))

    def ready_at(self, now: float) -> float:
        return now

    def sent(self, now: float) -> None:
        self.in_flight += 1

    def first_token(self, now: float, ttft: float) -> None:
        pass

    def done(self, now: float, waiting: bool, tokens: int) -> None:
        self.in_flight -= 1

    def broken(self, now: float, waiting: bool) -> None:
        self.in_flight -= 1

    def rejected(
        self, now: float, kind: RejectKind, retry_after: float | None, sent_at: float, waiting: bool, attempt: int
    ) -> float:
        if not self.holds_slot:
            self.in_flight -= 1
        if retry_after is not None:
            return retry_after + self.random.random() * 0.5
        return self.random.random() * min(self.longest_back_off, 0.5 * 2 ** min(attempt - 1, 10))

    def retries(self, now: float) -> None:
        if self.holds_slot:
            self.in_flight -= 1

    def stated(self, now: float, limits: StatedLimits) -> None:
        pass


class Oracle(Counting):
    """Knows what the endpoint can do at each moment, and does no more."""

    def __init__(
        self, random: Random, server: Server, share: Callable[[float], float], *, mean_cost: float, parts: int
    ) -> None:
        super().__init__(random)
        self._server, self._share, self._mean_cost, self._parts = server, share, mean_cost, parts
        self._next = 0.0

    def limit(self, now: float) -> float:
        return max(1.0, self._share(now))

    def ready_at(self, now: float) -> float:
        return max(now, self._next)

    def sent(self, now: float) -> None:
        super().sent(now)
        quota = self._server.quota
        if quota is not None:
            rate = quota.per_minute * quota.factor / 60 / self._parts / (self._mean_cost if quota.of_tokens else 1.0)
            self._next = max(now - 1.0, self._next) + 1 / rate


class Fixed(Counting):
    """A semaphore. Who is rejected waits inside it, as in a loop of retries around the call."""

    holds_slot = True

    def __init__(self, random: Random, size: float) -> None:
        super().__init__(random)
        self.size = size

    def limit(self, now: float) -> float:
        return self.size


class Switched(Fixed):
    """A neighbour: on and off."""

    def __init__(self, random: Random, size: float, is_on: Callable[[float], bool]) -> None:
        super().__init__(random, size)
        self._is_on = is_on

    def limit(self, now: float) -> float:
        return self.size if self._is_on(now) else 0


class Aimd(Counting):
    """Additive increase, multiplicative decrease, as `AIMDLimit` of Netflix' concurrency-limits: losses only."""

    def __init__(self, random: Random, *, most: float = 2000) -> None:
        super().__init__(random)
        self._limit, self._most = 20.0, most

    def limit(self, now: float) -> float:
        return self._limit

    def done(self, now: float, waiting: bool, tokens: int) -> None:
        if self.in_flight * 2 >= self._limit:
            self._limit = min(self._most, self._limit + 1)
        super().done(now, waiting, tokens)

    def rejected(
        self, now: float, kind: RejectKind, retry_after: float | None, sent_at: float, waiting: bool, attempt: int
    ) -> float:
        self._limit = max(1.0, self._limit * 0.9)
        return super().rejected(now, kind, retry_after, sent_at, waiting, attempt)


class Gradient2(Counting):
    """`Gradient2Limit` of Netflix' concurrency-limits, on the time to the first token.

    It looks at no losses. Who is rejected waits inside its slot, else it would be nothing but a storm of rejections.
    """

    holds_slot = True

    def __init__(self, random: Random, *, most: float = 2000, tolerance: float = 1.5, queue: float = 4) -> None:
        super().__init__(random)
        self._limit, self._most, self._tolerance, self._queue = 20.0, most, tolerance, queue
        self._long, self._samples = 0.0, 0

    def limit(self, now: float) -> float:
        return self._limit

    def first_token(self, now: float, ttft: float) -> None:
        self._samples += 1
        share = 1 / self._samples if self._samples <= 10 else 2 / 601
        self._long += share * (ttft - self._long)
        if self._long / ttft > 2:
            self._long *= 0.95
        if self.in_flight < self._limit / 2:
            return
        gradient = max(0.5, min(1.0, self._tolerance * self._long / ttft))
        wanted = self._limit * gradient + self._queue
        self._limit = max(1.0, min(self._most, 0.8 * self._limit + 0.2 * wanted))


class AwsAdaptive(Counting):
    """The adaptive retry mode of the AWS SDKs: a token bucket whose rate is cut by rejections and grows as a cubic."""

    longest_back_off = 20.0

    def __init__(self, random: Random, *, most: int = 512) -> None:
        super().__init__(random)
        self._most = most
        self._enabled = False
        self._has_heads = False  # whether the head of an answer is seen, which is the success, or only its end
        self._capacity = self._fill_rate = self._tokens = 0.0
        self._filled_at = self._throttled_at = 0.0
        self._max_rate = self._time_window = 0.0
        self._measured = 0.0
        self._bucket, self._count = 0.0, 0

    def limit(self, now: float) -> float:
        return self._most

    def ready_at(self, now: float) -> float:
        if not self._enabled:
            return now
        self._refill(now)
        return now if self._tokens >= 1 - 1e-6 else now + (1 - self._tokens) / self._fill_rate

    def sent(self, now: float) -> None:
        super().sent(now)
        if self._enabled:
            self._tokens -= 1

    def first_token(self, now: float, ttft: float) -> None:
        self._has_heads = True
        self._succeeded(now)

    def done(self, now: float, waiting: bool, tokens: int) -> None:
        super().done(now, waiting, tokens)
        if not self._has_heads:
            self._succeeded(now)

    def _succeeded(self, now: float) -> None:
        self._measure(now)
        since = now - self._throttled_at
        self._set_rate(now, min(0.4 * (since - self._time_window) ** 3 + self._max_rate, 2 * self._measured))

    def rejected(
        self, now: float, kind: RejectKind, retry_after: float | None, sent_at: float, waiting: bool, attempt: int
    ) -> float:
        self._measure(now)
        rate = min(self._measured, self._fill_rate) if self._enabled else self._measured
        self._max_rate, self._throttled_at = rate, now
        self._time_window = (rate * 0.3 / 0.4) ** (1 / 3)
        self._enabled = True
        self._set_rate(now, rate * 0.7)
        return super().rejected(now, kind, retry_after, sent_at, waiting, attempt)

    def _measure(self, now: float) -> None:
        bucket = int(now * 2) / 2
        self._count += 1
        if bucket > self._bucket:
            rate = self._count / (bucket - self._bucket)
            self._measured = 0.8 * rate + 0.2 * self._measured
            self._count, self._bucket = 0, bucket

    def _set_rate(self, now: float, rate: float) -> None:
        self._refill(now)
        self._fill_rate = max(rate, 0.5)
        self._capacity = max(rate, 1.0)
        self._tokens = min(self._tokens, self._capacity)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._fill_rate)
        self._filled_at = now


RIVALS: dict[str, Callable[[Random], Counting]] = {
    "fixed 16": lambda random: Fixed(random, 16),
    "fixed 128": lambda random: Fixed(random, 128),
    "fixed 512": lambda random: Fixed(random, 512),
    "AIMD (Netflix)": Aimd,
    "Gradient2 on TTFT": Gradient2,
    "AWS adaptive": AwsAdaptive,
}
