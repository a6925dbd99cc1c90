"""How fast requests may leave: a bucket whose rate is learned from rejections, or told by the server."""

from __future__ import annotations

from collections import deque
from math import sqrt

__all__ = ["Pacer"]

MIN_RATE = 1 / 60
"""Requests a second. No quota worth using is below one a minute, and from here a rate still grows."""

BURST = 0.5
"""Seconds of the rate that may leave at once (at least one request): a pause of the loop costs nothing."""

GROWTH, SHARE = 0.03, 0.006
"""By how much the rate grows each second: this times its square root, and this share of it. By the root small shares
grow faster, and processes with one quota come to equal parts (Jain's index .99 in the simulation, .4 with growth in
proportion alone); the share is for rates of hundreds a second."""

CALM = 15.0
"""Seconds of use without a rejection, after which growth speeds up with the square of the time: the quota is higher."""

IN_USE = 0.7
"""A rate that is used to less than this share is not the limit: it says nothing, and does not grow."""

UNKNOWN = 1.0
"""Requests a second that are tried where a rejection came before anything was accepted."""

MAX_CUT = 0.5
"""One rejection leaves at least this share of the rate. A server that understates its Retry-After makes the estimate
of one window nonsense; halving comes to the true rate in a few steps, from nothing it takes minutes."""

FORGET = 60.0
"""Seconds after the end of a told window, after which what the headers said counts no longer: they no longer come."""

KEPT_OF_WINDOW, KEPT = 0.92, 0.9
"""What share of the accepted rate is tried after a rejection: more where Retry-After told when its window ended."""

RECENT, RECENT_USE = 15.0, 10.0
"""Seconds over which accepted requests are counted: for a new rate, and for whether the rate is used."""

MAX_AHEAD = 3600.0
"""No time of this file is further ahead than this (seconds), but where the clock jumped back."""

ROUNDING = 1e-6
"""Parts of a token that are missing through rounding only."""


class Pacer:
    """A token bucket. Its rate is the lower one of the learned and the told; None: no limit is known."""

    __slots__ = (
        "_again",
        "_at",
        "_before",
        "_calm",
        "_epoch",
        "_history",
        "_kept",
        "_learned",
        "_most",
        "_renewed",
        "_renews_at",
        "_taken",
        "_tokens",
        "_told",
        "rate",
    )

    def __init__(self) -> None:
        self.rate: float | None = None
        self._learned: float | None = None
        self._told: float | None = None
        self._renews_at = 0.0  # when the window ends that the headers spoke of
        self._renewed = True  # whether the one request was let out that asks for the state of the next window
        self._tokens = 0.0
        self._at = 0.0  # when `_tokens` were counted; may be ahead: nothing leaves and nothing fills up before
        self._calm = 0.0
        self._taken = 0
        self._epoch = self._before = (0.0, 0)  # when the server's window began, and the one before; accepted till then
        self._again = False  # the window before did not end when it was told to
        self._kept = KEPT
        self._most: float | None = None  # the rate before it
        self._history: deque[tuple[float, int]] = deque(maxlen=int(RECENT) + 2)  # the same, about once a second

    def start(self, now: float, accepted: int) -> None:
        """Of the first request, or of the first one after a long time."""
        self._epoch = (now, accepted)
        self._history.clear()
        self._history.append(self._epoch)

    def ready_at(self, now: float) -> float:
        """When the next one may leave; `now` where it may at once."""
        rate = self.rate
        if rate is None:
            return now
        self._fill(now, rate)
        at = self._at
        if self._tokens >= 1 - ROUNDING:
            return max(now, at)
        ready = max(now, at) + (1 - self._tokens) / rate
        if not self._renewed and ready > self._renews_at:
            return max(now, self._renews_at)
        return ready

    def take(self, now: float) -> None:
        rate = self.rate
        if rate is not None:
            self._fill(now, rate)
            self._taken += 1
            self._tokens -= 1
            if self._tokens < -1:  # who sends although it is not time, does not mortgage the future
                self._tokens = -1.0

    def give_back(self) -> None:
        if self.rate is not None:
            self._taken = max(0, self._taken - 1)  # it may have left before there was a pace
            self._tokens = min(self._tokens + 1, max(1.0, self.rate * BURST))

    def hold_until(self, moment: float) -> None:
        """After a cool-down they leave one by one, not with what has filled up meanwhile."""
        if self.rate is not None and moment > self._at:
            self._tokens = min(self._tokens + (moment - self._at) * self.rate, 1.0)
            self._at = moment

    def rejected(self, now: float, retry_after: float | None, accepted: int, *, again: bool) -> None:
        """Too many in too short a time.

        Args:
            now: the time.
            retry_after: seconds until the window of the server ends, by its own words; None: unknown.
            accepted: requests that were accepted up to now.
            again: nothing was accepted since the last rejection: the same window still, whatever was told.
        """
        if self._told is not None and now < self._renews_at + FORGET:
            return  # the headers know better; the next ones tell that nothing is left
        began, before = self._epoch
        ends_at = now if retry_after is None else now + retry_after
        self._epoch = (ends_at, accepted)
        self._again = again
        self._taken = 0
        if again:
            return
        self._before = (began, before)
        self._kept = KEPT if retry_after is None else KEPT_OF_WINDOW
        old = self._learned
        if retry_after is not None:
            estimate = KEPT_OF_WINDOW * (accepted - before) / max(1.0, ends_at - began)
        else:
            rate = self._recent(now, RECENT, accepted)
            estimate = KEPT * (rate if old is None else min(rate, old))
        if old is not None:
            estimate = max(estimate, MAX_CUT * old)
        elif accepted == before:  # they may be on their way
            estimate, self._again = UNKNOWN, True
        self._most = old
        self._learned = max(MIN_RATE, estimate)
        self._calm = 0.0
        self._set_rate(now)

    def recovered(self, now: float, accepted: int) -> None:
        """One was accepted that left after a rejection: only now it is known how many were before, and until when."""
        learned = self._learned
        if learned is None:
            return
        began, before = self._before
        accepted -= self._taken
        if accepted <= before:  # nothing was accepted before: nothing is known of the rate
            self._learned = None
            self._epoch, self._again = (now, accepted), False
            self._set_rate(now)
            return
        estimate = self._kept * max(1, accepted - before) / max(1.0, now - began)
        if not self._again:
            estimate = max(learned, estimate if self._most is None else min(estimate, self._kept * self._most))
        self._learned = max(MIN_RATE, estimate)
        self._epoch = (now if self._again else self._epoch[0], accepted)
        self._again = False
        self._set_rate(now)

    def told(self, now: float, rate: float, renews_in: float) -> None:
        """By the headers of an answer. 0: nothing remains until the window is renewed."""
        self._renews_at = now + renews_in
        self._renewed = False
        if rate > 0:
            self._told = max(MIN_RATE, rate)
        elif self._told is None:
            self._told = 1.0
        self._set_rate(now)

    def grow(self, now: float, seconds: float, accepted: int) -> None:
        """About once a second.

        Args:
            now: the time.
            seconds: in which nothing was rejected, since the last time.
            accepted: requests that were accepted up to now.
        """
        self._history.append((now, accepted))
        if self._told is not None and now > self._renews_at + FORGET:
            self._told = None
            self._renewed = True
            self._set_rate(now)
        learned = self._learned
        if learned is not None and self._recent(now, RECENT_USE, accepted) >= IN_USE * learned:
            self._calm += seconds
            calm = max(0.0, self._calm - CALM) / CALM
            self._learned = learned + (GROWTH * sqrt(learned) + SHARE * learned) * (1 + calm * calm) * seconds
            self._set_rate(now)

    def shift(self, seconds: float) -> None:
        self._at += seconds
        self._renews_at += seconds
        self._epoch = (self._epoch[0] + seconds, self._epoch[1])
        self._before = (self._before[0] + seconds, self._before[1])
        self._history = deque(((at + seconds, count) for at, count in self._history), self._history.maxlen)

    def _recent(self, now: float, seconds: float, accepted: int) -> float:
        """Accepted requests a second over the last `seconds`."""
        for at, before in self._history:
            if at >= now - seconds - 1:
                return max(0, accepted - before) / max(1.0, min(seconds, now - at))
        return 0.0

    def _fill(self, now: float, rate: float) -> None:
        seconds = now - self._at
        if seconds > 0:
            self._tokens = min(self._tokens + seconds * rate, max(1.0, rate * BURST))
            self._at = now
        elif seconds < -MAX_AHEAD:
            self._at = now
        if not self._renewed and now >= self._renews_at:
            self._renewed = True
            self._tokens = max(self._tokens, 1.0)

    def _set_rate(self, now: float) -> None:
        if self.rate is None:
            self._tokens, self._at = 1.0, max(now, self._at)
        else:
            self._fill(now, self.rate)
        rates = [rate for rate in (self._learned, self._told) if rate is not None]
        self.rate = min(rates, default=None)
        if self.rate is not None:
            self._tokens = min(self._tokens, max(1.0, self.rate * BURST))
