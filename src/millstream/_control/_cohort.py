"""How long the first tokens took of all requests of a time, also of those that still wait."""

from __future__ import annotations

from math import inf, log, sqrt

__all__ = ["SAMPLES", "Cohort", "Told"]

SAMPLES, MAX_SAMPLES = 4, 2048
"""A median of fewer says nothing; of more, nothing new."""

SPREAD_OF_MEDIAN = 1.25
"""The standard error of a median of n is this times the standard deviation, by the square root of n."""

QUARTER = 0.6745
"""Standard deviations from the first quarter to the middle of a normal distribution."""

MAX_DEVIATION = 1.5
"""No times differ more by themselves: where they do, they are of two kinds."""

MOMENT = 1e-6
"""Seconds. When a request was sent is told by what it took until now, and so with an error."""


class Told:
    """What a cohort of `count` tells, once more than half of it have their first token."""

    __slots__ = ("count", "deviation", "fastest", "median", "quarter")

    def __init__(self, count: int, came: list[float]) -> None:
        ordered = sorted(came)
        self.count = count
        self.fastest = ordered[0]
        self.quarter = max(ordered[(count - 1) // 4], MOMENT)
        self.median = max(ordered[(count - 1) // 2], self.quarter)
        """Of all: those that still wait take longer than all that came."""
        self.deviation = min(log(self.median / self.quarter) / QUARTER, MAX_DEVIATION)
        """The standard deviation of the logarithms, as far as the faster half tells it."""

    def error(self, deviation: float) -> float:
        """The standard error of the median, in logarithms, where `deviation` is the standard deviation of those."""
        return SPREAD_OF_MEDIAN * deviation / sqrt(self.count)


class Cohort:
    """The requests that were sent from `since` on, until it was closed.

    The first tokens of any moment are no fair sample: where more was sent just before, or little time has passed, they
    are those of the fastest.
    """

    __slots__ = ("_closed_at", "_samples", "_sent", "since")

    def __init__(self) -> None:
        self.begin(-inf)

    def begin(self, now: float) -> None:
        self.since = now
        self._closed_at: float | None = None
        self._sent = 0
        self._samples: list[float] = []

    def send(self) -> None:
        if self._closed_at is None:
            self._sent += 1

    def lose(self, sent_at: float) -> None:
        """It ended without a first token."""
        if self._sent and self._has(sent_at):
            self._sent -= 1

    def note(self, now: float, seconds: float) -> None:
        """A first token."""
        if len(self._samples) < MAX_SAMPLES and self._has(now - seconds):
            self._samples.append(seconds)

    def tell(self, now: float, least: int) -> Told | None:
        """Closes it, if it has `least`; then what it tells, if more than half of it have their first token."""
        if self._closed_at is None:
            if self._sent < least:
                return None
            self._closed_at = now
        came = len(self._samples)
        count = came if came == MAX_SAMPLES else max(came, self._sent)
        if came < min(least, SAMPLES) or 2 * came <= count:
            return None
        return Told(count, self._samples)

    def waited(self, now: float) -> float:
        """Seconds that those of it that still wait have waited at least."""
        return 0.0 if self._closed_at is None else now - self._closed_at

    def shift(self, seconds: float) -> None:
        self.since += seconds
        if self._closed_at is not None:
            self._closed_at += seconds

    def _has(self, sent_at: float) -> bool:
        return sent_at >= self.since - MOMENT and (self._closed_at is None or sent_at <= self._closed_at)
