"""What first tokens tell: how many a second, how soon, and how soon without load."""

from __future__ import annotations

__all__ = ["SAMPLES", "Gauge"]

SAMPLES, MAX_SAMPLES, MAX_PERIODS = 4, 2048, 10
"""A median of fewer says nothing (they are gathered, but over so many judgements at most); of more, nothing new."""

RATE_SECONDS = 3.0
"""Over so many seconds the rate of first tokens is smoothed, or over the time of one where that is longer."""

NEAR, NEAR_SECONDS = 1.5, 0.05
"""While half of the first tokens come nearly as fast as without load, those that wait are slow ones, no queue."""

ENOUGH = 50
"""A lower median of so many first tokens is believed. The lowest of many medians of a few is no base: it is luck, and
where prompts differ much it was half of the true time."""

SPREAD_STEP, MAX_SPREAD = 0.2, 3.0
"""Little's law speaks of means, and medians are what can be trusted: their ratio is smoothed, and at most this."""

FIRST_PROBE, PROBE_EVERY = 15.0, 60.0
"""Seconds after which the time without load is measured anew, with an empty queue but a busy endpoint: the first one
was measured at an idle endpoint, and models and neighbours change."""

MAX_RAISE = 1.6
"""Times the least time without load that was ever measured: no more is taken for it because a cut was in vain. Two
clients that each took the other's queue for the endpoint's own time would grow without end."""

PROBE_SAMPLES, PROBE_SECONDS, MAX_PROBE_SECONDS, PRIOR = 8, 3.0, 10.0, 3
"""First tokens of such a measurement; after how long at least, and (where a queue is seen, which may be of others) at
most, it is given up; and for how many first tokens the time counts that was known before."""

FIRST_PROBE_SECONDS = 12.0
"""The same for the first one in a small window, since it costs nothing there. (Not for more: who has neighbours would
give way to them for good.)"""


def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Gauge:
    """The times are those from sending a request to its first token."""

    __slots__ = (
        "_base_at",
        "_is_in_doubt",
        "_periods",
        "_probe_samples",
        "_probe_until",
        "_probed",
        "_samples",
        "_sent_rate",
        "_waited",
        "base",
        "fresh",
        "median",
        "probe_since",
        "probes",
        "rate",
        "spread",
    )

    def __init__(self) -> None:
        self.fresh = 0
        """First tokens since the last judgement."""
        self.rate = 0.0
        """First tokens a second."""
        self.median: float | None = None
        """Of the last ones; None: too few."""
        self.base: float | None = None
        """The time without load; None: not known yet."""
        self.probe_since: float | None = None
        """Since when the time without load is measured; None: it is not."""
        self.probes = 0
        self.spread = 1.0
        """The mean of the time without load, in medians."""
        self._waited = 0
        self._sent_rate = 0.0
        self._samples: list[float] = []
        self._periods = 0
        self._base_at = 0.0
        self._is_in_doubt = False  # whether there was a queue before there was a base
        self._probed = 0.0  # the least time without load that was measured
        self._probe_until = 0.0
        self._probe_samples: list[float] = []

    def note(self, now: float, seconds: float) -> None:
        """One first token."""
        self.fresh += 1
        samples = self._samples
        if len(samples) < MAX_SAMPLES:
            samples.append(seconds)
        if self.probe_since is not None and now - seconds >= self.probe_since:
            self._probe_samples.append(seconds)

    def measure(self, now: float, seconds: float, waiting: int) -> int:
        """Of the `seconds` since the last time, now that so many are `waiting`. The new median's count, 0: none."""
        if seconds > 0:
            rate = self.fresh / seconds
            sent = max(0, self.fresh + waiting - self._waited) / seconds
            self._sent_rate += min(1.0, seconds / max(seconds, self.base or 0.0)) * (sent - self._sent_rate)
            self._waited = waiting
            smooth = max(RATE_SECONDS, self.base or 0.0)
            self.rate = rate if not self.rate else self.rate + min(1.0, seconds / smooth) * (rate - self.rate)
        self.fresh = 0
        self._periods += 1
        if len(self._samples) >= SAMPLES:
            self.median = median(self._samples)
            if self.base is None:
                self.base = self._probed = self.median
                self._base_at = now - PROBE_EVERY + (0.0 if self._is_in_doubt else FIRST_PROBE)
            elif self.median < self.base:
                self.base += min(1.0, len(self._samples) / ENOUGH) * (self.median - self.base)
            if self.is_near_base():
                spread = sum(self._samples) / len(self._samples) / self.median if self.median else 1.0
                self.spread += SPREAD_STEP * (min(max(spread, 1.0), MAX_SPREAD) - self.spread)
            told = len(self._samples)
        elif self._periods < MAX_PERIODS:
            return 0
        else:
            self.median, told = None, 0
        self._samples.clear()
        self._periods = 0
        return told

    @property
    def unloaded(self) -> float:
        """How many wait where the server's queue is empty, by Little's law.

        After a pause a smoothed rate of first tokens is too low: then it is that at which they were sent, over as long
        as they wait.
        """
        return max(self.rate, self._sent_rate) * (self.base or 0.0) * self.spread

    def is_near_base(self) -> bool:
        return self.median is not None and self.base is not None and self.median <= NEAR * self.base + NEAR_SECONDS

    def probe(self, now: float, *, possible: bool, free: bool) -> None:
        """Begins, ends or gives up the measurement of the time without load, where it is due and `possible`.

        `free`: it costs no goodput, so there is time for a queue to go away before.
        """
        base = self.base
        if base is None:
            return
        if self.probe_since is None:
            if possible and now - self._base_at > PROBE_EVERY:
                self.probe_since = now
                least = FIRST_PROBE_SECONDS if free and not self.probes else PROBE_SECONDS
                self._probe_until = now + max(least, 4 * base, min(MAX_PROBE_SECONDS, 2 * (self.median or 0.0)))
                self._probe_samples = []
        elif len(self._probe_samples) >= PROBE_SAMPLES:
            count = len(self._probe_samples)
            found = median(self._probe_samples)
            # The first one was measured with a whole window at once: too long, where there are few slots.
            prior = 0 if free and found < base and not self.probes else PRIOR
            self.base = base + count / (count + prior) * (found - base)
            self._base_at, self._probed = now, min(self._probed, self.base)
            self.probe_since = None
            self.probes += 1
        elif now > self._probe_until:
            self.probe_since = None
            self._base_at = now - PROBE_EVERY / 2

    def probe_soon(self, now: float) -> None:
        """Not before the next judgement."""
        self._base_at = min(self._base_at, now - PROBE_EVERY)
        self._is_in_doubt = self.base is None

    def put_off(self, now: float) -> None:
        """Of an endpoint that begins anew with one request, the first tokens are those without load anyway."""
        self._base_at = max(self._base_at, now)
        self.probe_since = None

    def raise_base(self, seconds: float) -> None:
        """A time that no cut makes shorter is one without our load."""
        if self.base is not None:
            self.base = max(self.base, min(seconds, MAX_RAISE * self._probed))

    def restart(self) -> None:
        """What was measured is too old."""
        self.rate = 0.0
        self.base = self.median = self.probe_since = None
        self._samples.clear()

    def shift(self, seconds: float) -> None:
        self._base_at += seconds
        self._probe_until += seconds
        if self.probe_since is not None:
            self.probe_since += seconds
