"""What first tokens tell: how many a second, how soon, and how soon without load."""

from __future__ import annotations

from math import exp, inf

from millstream._control._cohort import SAMPLES, Cohort, Told

__all__ = ["Gauge"]

RATE_SECONDS, RATE_COUNT, MAX_RATE_SECONDS = 3.0, 8, 30.0
"""Over so many seconds the rate of first tokens is smoothed, or over the time of one, or of so many (up to so many
seconds), where that is longer."""

NEAR, NEAR_SECONDS = 1.5, 0.05
"""While half of the first tokens come nearly as fast as without load, those that wait are slow ones, no queue."""

SURE, UNSURE = 2.5, 2.0
"""Standard errors. A median is believed to be lower when it is with so many added (the lowest of many medians of a few
is luck, and where prompts differ much it was a fraction of the true time), and longer when it is without so many."""

SPREAD_STEP, MAX_SPREAD = 0.2, 3.0
"""Little's law speaks of means, and medians are what can be trusted: their ratio is smoothed, and at most this."""

ENOUGH = 40
"""The time without load is learned from so many first tokens in slow start, where the first cohort had fewer."""

DIFFERENT = 0.4
"""From this deviation on, so few say so little that it is learned from so many later ones too, if they agree."""

DOUBT, DOUBT_QUARTER, DOUBT_SAMPLES = 8.0, 3.0, 3
"""Where half of the first ones took so many times as long as the fastest, or so many times as long as a quarter of
them, they may have stood in a queue; so many that are sent with an empty one tell."""

WRONG = 0.7
"""That was so, where they come in less than this share of the time, with one standard error added."""

FIRST_PROBE, PROBE_EVERY = 15.0, 60.0
"""Seconds after which the time without load is measured anew, with an empty queue but a busy endpoint: the first one
was measured at an idle endpoint, and models and neighbours change."""

MAX_RAISE = 1.6
"""Times the least time without load that was ever measured (or as much as that may be wrong): no more is taken for it
because a cut was in vain. Two clients that each took the other's queue for the endpoint's own time would grow without
end."""

PROBE_SAMPLES, PRIOR = 8, 3
"""Requests of such a measurement; for how many the time counts that was known before, where it differs for sure."""

PROBE_SECONDS, MAX_PROBE_SECONDS, MAX_GATHERING = 3.0, 10.0, 60.0
"""After how long at least, and (where a queue is seen, which may be of others) at most, it is given up; longer where so
many requests take longer, up to the last."""

FIRST_PROBE_SECONDS = 12.0
"""As `PROBE_SECONDS`, for the first one in a small window, since it costs nothing there. (Not for more: who has
neighbours would give way to them for good.)"""


def spread_of(deviation: float) -> float:
    """The mean in medians, where the logarithms are spread normally."""
    return min(exp(deviation * deviation / 2), MAX_SPREAD)


class Gauge:
    """The times are those from sending a request to its first token."""

    __slots__ = (
        "_base_at",
        "_cohort",
        "_error",
        "_known",
        "_most",
        "_probe_until",
        "_sent_rate",
        "_sum",
        "_summed",
        "_waited",
        "base",
        "deviation",
        "fresh",
        "is_in_doubt",
        "median",
        "probe_since",
        "probes",
        "rate",
        "spread",
        "was_wrong",
    )

    def __init__(self) -> None:
        self.fresh = 0
        """First tokens since the last judgement."""
        self.rate = 0.0
        """First tokens a second."""
        self.median: float | None = None
        """Of the last cohort, or what it is at least by now; None: not known."""
        self.base: float | None = None
        """The time without load; None: not known yet."""
        self.probe_since: float | None = None
        """Since when the time without load is measured; None: it is not."""
        self.probes = 0
        self.spread = 1.0
        """The mean of the time without load, in medians."""
        self.deviation = 0.0
        """The standard deviation of the logarithm of the times, smoothed."""
        self.is_in_doubt = False
        """Whether the base, perhaps, was measured in a queue."""
        self.was_wrong = False
        """Whether it was, by the last measurement."""
        self._cohort = Cohort()
        self._sum = 0.0  # of all that came since the cohort began, and how many those are
        self._summed = 0
        self._waited = 0
        self._sent_rate = 0.0
        self._base_at = 0.0
        self._most = inf  # no more is taken for the base, but by a measurement
        self._known = 0  # first tokens it is known from
        self._error = 0.0  # of the last median
        self._probe_until = 0.0

    def send(self) -> None:
        self._cohort.send()

    def lose(self, sent_at: float) -> None:
        """It ended without a first token."""
        self._cohort.lose(sent_at)

    def note(self, now: float, seconds: float) -> None:
        """One first token."""
        self.fresh += 1
        self._sum += seconds
        self._summed += 1
        self._cohort.note(now, seconds)

    def start_over(self, now: float) -> None:
        """The next median is of what is sent from now on; a measurement goes on."""
        if self.probe_since is None:
            self._begin(now)

    def measure(self, now: float, seconds: float, waiting: int, *, learn: bool, least: int = SAMPLES) -> bool:
        """Of the `seconds` since the last time, now that so many are `waiting`: whether there is a new median.

        `learn`: as far as is known there is no queue, so the base may be longer than it seemed. `least`: so many tell,
        where there is a base.
        """
        if seconds > 0:
            rate = self.fresh / seconds
            sent = max(0, self.fresh + waiting - self._waited) / seconds
            self._sent_rate += min(1.0, seconds / max(seconds, self.base or 0.0)) * (sent - self._sent_rate)
            self._waited = waiting
            few = min(RATE_COUNT / self.rate, MAX_RATE_SECONDS) if self.rate else 0.0
            smooth = max(RATE_SECONDS, self.base or 0.0, few)
            self.rate = rate if not self.rate else self.rate + min(1.0, seconds / smooth) * (rate - self.rate)
        self.fresh = 0
        self.was_wrong = False
        told = self._cohort.tell(now, self._needed(least))
        if told is None:
            if self.median is not None:
                self.median = max(self.median, self._cohort.waited(now))
            return False
        self.median = told.median
        if self.base is None:
            self._first(now, told)
        elif self.probe_since is not None:
            self._probed(now, told, self.base)
        else:
            self._learn(told, self.base, learn=learn)
        self._begin(now)
        return True

    def _first(self, now: float, told: Told) -> None:
        self.base, self._known, self._most = told.median, told.count, inf
        differs = told.median > min(DOUBT * told.fastest, DOUBT_QUARTER * told.quarter)
        self.is_in_doubt = self.is_in_doubt or differs
        self._base_at = now - PROBE_EVERY + (0.0 if self.is_in_doubt else FIRST_PROBE)
        self._trust(told)

    def _probed(self, now: float, told: Told, base: float) -> None:
        median, count = told.median, told.count
        error = self._error_of(told)
        certain = exp(SURE * error)
        self.was_wrong = self.is_in_doubt and median * exp(error) < WRONG * base
        prior = 0
        if not self.was_wrong:
            prior = max(PRIOR, self._known) if median / certain < base < median * certain else PRIOR
        self.base = base + count / (count + prior) * (median - base)
        self._known = min(count + prior, ENOUGH)
        self._base_at, self.probe_since, self.is_in_doubt = now, None, False
        self.probes += 1
        if prior:
            self._bound(told)
        else:
            self._trust(told)

    def _trust(self, told: Told) -> None:
        """Nothing better is known."""
        self.deviation, self.spread = told.deviation, spread_of(told.deviation)
        self._bound(told)

    def _bound(self, told: Told) -> None:
        self._error = self._error_of(told)
        self._most = min(self._most, (self.base or 0.0) * max(MAX_RAISE, exp(SURE * self._error)))

    def _learn(self, told: Told, base: float, *, learn: bool) -> None:
        median, count = told.median, told.count
        self.deviation += SPREAD_STEP * (told.deviation - self.deviation)
        self._error = self._error_of(told)
        certain = exp(SURE * self._error)
        if median * certain < base:
            self.base = median * certain
        elif (learn or self.deviation > DIFFERENT) and self._known < ENOUGH and median <= base * certain:
            self.base = min(self._most, base + count / (count + self._known) * (median - base))
            self._known += count
        if self.is_near_base() and self._summed:
            spread = self._sum / self._summed / median
            self.spread += SPREAD_STEP * (min(max(spread, 1.0), MAX_SPREAD) - self.spread)

    def _error_of(self, told: Told) -> float:
        return told.error(max(self.deviation, told.deviation))

    def _begin(self, now: float) -> None:
        self._cohort.begin(now)
        self._sum, self._summed = 0.0, 0

    def _needed(self, least: int) -> int:
        if self.probe_since is not None:
            return DOUBT_SAMPLES if self.is_in_doubt else PROBE_SAMPLES
        return SAMPLES if self.base is None else least

    @property
    def queue(self) -> float:
        """How many wait that would not without load, by Little's law; 0: none for sure."""
        base, median = self.base or 0.0, self.median or 0.0
        return self.rate * (median - base) if median > base * exp(UNSURE * self._error) else 0.0

    @property
    def unloaded(self) -> float:
        """How many wait where the server's queue is empty, by Little's law.

        After a pause a smoothed rate of first tokens is too low: then it is that at which they were sent, over as long
        as they wait.
        """
        return max(self.rate, self._sent_rate) * (self.base or 0.0) * self.spread

    def is_near_base(self) -> bool:
        if self.median is None or self.base is None:
            return False
        return self.median <= NEAR * exp(self._error) * self.base + NEAR_SECONDS

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
                self._begin(now)
                least = FIRST_PROBE_SECONDS if free and not self.probes else PROBE_SECONDS
                gathering = min(2 * self._needed(SAMPLES) / self.rate, MAX_GATHERING) if self.rate else 0.0
                needed = max(4 * base, 3 * base * self.spread + gathering)
                self._probe_until = now + max(least, needed, min(MAX_PROBE_SECONDS, 2 * (self.median or 0.0)))
        elif now > self._probe_until:
            self.probe_since, self.is_in_doubt = None, False
            self._base_at = now - PROBE_EVERY / 2

    def doubt(self, now: float) -> None:
        """The base was measured in a queue, perhaps: it is measured anew with the next judgement."""
        self._base_at = min(self._base_at, now - PROBE_EVERY)
        self.is_in_doubt = True

    def put_off(self, now: float) -> None:
        """Of an endpoint that begins anew with one request, the first tokens are those without load anyway."""
        self._base_at = max(self._base_at, now)
        self.probe_since, self.is_in_doubt = None, False

    def raise_base(self, seconds: float) -> None:
        """A time that no cut makes shorter is one without our load."""
        if self.base is not None:
            self.base = max(self.base, min(seconds, self._most))

    def restart(self, now: float) -> None:
        """What was measured is too old."""
        self.rate = 0.0
        self.base = self.median = self.probe_since = None
        self.is_in_doubt = False
        self._begin(now)

    def shift(self, seconds: float) -> None:
        self._cohort.shift(seconds)
        self._base_at += seconds
        self._probe_until += seconds
        if self.probe_since is not None:
            self.probe_since += seconds
