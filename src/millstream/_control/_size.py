"""How many may be in flight: found by growing until there is a queue, and kept by giving way to it."""

from __future__ import annotations

from math import inf, sqrt

from millstream._control._cohort import SAMPLES
from millstream._control._facts import Reason
from millstream._control._gauge import Gauge

__all__ = ["PERIOD", "Size"]

PERIOD = 1.0
"""Seconds between two judgements: long enough for some first tokens, short against the length of an answer."""

SLACK, MARGIN = 1.1, 0.35
"""So many times the requests that wait at an empty queue, and so many more, may wait: they come in bunches."""

LOW, HIGH, UNSURE = 0.05, 0.2, 0.4
LEAST_LOW, LEAST_HIGH = 0.5, 1.5
"""How much of the queue may be ours, in shares of what waits at an empty queue: so the time to the first token grows by
so much at most, whatever the size of the window and the length of the answers. Below, there is room; above, it is too
much; between the two nothing changes. The more the times differ by themselves (`UNSURE`), the less is sure; few are
counted in requests."""

FEW, FEW_LOW, FEW_HIGH = 16, 0.25, 0.5
FEW_LOW_SHARE, FEW_HIGH_SHARE = 0.2, 0.4
"""In windows below the first, one that waits takes a good part of an answer's time. So there should be none, as far as
the times to the first token tell: less than the second in the mean is room, more than the third a queue; or these
shares of what waits at an empty queue, where that is more."""

HOLD, MAX_HOLD = 4.0, 20.0
"""Seconds that few remain so few after a cut that helped; twice as long each time, up to the last: each attempt at more
costs a queue."""

RARE, LONGEST_HOLD = 200, 45.0
"""At an endpoint that never took more than few, so many requests come between an attempt that made a queue and the next
one, so that hardly any waits for them; but one in so many seconds."""

GROWTH, FAST_GROWTH, STEADY = 0.5, 0.25, 3
"""What a full window without a queue grows by: this times its square root (so that small ones catch up); doubled with
each judgement of the same after the first so many, up to this share of it."""

BOLD = 64
"""From this window on, slow start grows by half, no longer to the double: what is over is rejected, or waits."""

EFFECT = 1.1
"""A step of slow start, which doubles the window, brings at least so many times the first tokens or requests served."""

CUT, BLIND_CUT = 0.85, 0.7
"""What an overload leaves of the window: more where first tokens will tell soon whether it was enough."""

STALE = 30.0
"""Seconds. What was known before a cut is of use to the overload that it began, and not to a later one."""

LEAST_OF_EPISODE = 0.5
"""A queue that does not go away is not ours: someone else fills it, and giving up more would only feed them."""

SHORTER_QUEUE = 0.7
"""First tokens that come in less than this share of the time show that a cut helped: the next may go on from here."""

IN_VAIN = 0.8
"""First tokens that take more than this share of the time as before, long after a cut, are no longer shortened by any:
the endpoint is slower than was known (it is busier, or the prompts are longer), or the queue is of others."""

FULL = 0.95
"""A window that is used to less than this share does not limit: it says nothing about whether more would go."""

PROBE_ROOM, PROBE_SHARE = 0.02, 0.95
"""What may be in flight while the time without load is measured: beside those that are served, one and this share of
the window may wait; or this share of what is in flight without a queue. (Where prompts cost more than answers, nearly
all that are served wait; with fewer the endpoint would be idle, and faster than it ever is.) Of few the one would be a
queue: as many as were served at a time lately."""


class Size:
    """The window as a number.

    Args:
        gauge: what first tokens tell.
        start: the number at the beginning.
        ceiling: never more than this.
        adaptive: False: first tokens change nothing; it begins at the ceiling and returns to it.
    """

    __slots__ = (
        "_adaptive",
        "_came",
        "_ceiling",
        "_clean",
        "_episode",
        "_first_cut",
        "_gauge",
        "_grown_at",
        "_has_failed",
        "_held_until",
        "_hold",
        "_is_shown",
        "_known",
        "_known_at",
        "_peak_before",
        "_size",
        "_slow_start",
        "_start",
        "_step",
        "_told_ceiling",
        "_tried",
        "_was_cut",
        "_was_many",
        "cuts",
        "enough",
        "excess",
        "full",
        "limit",
        "peak",
    )

    def __init__(self, gauge: Gauge, *, start: float, ceiling: int, adaptive: bool) -> None:
        self._gauge = gauge
        self._adaptive = adaptive
        self._ceiling = self._told_ceiling = max(1, ceiling)
        self._start = float(self._ceiling) if not adaptive else max(1.0, start)
        self.limit = 1
        """How many may be in flight, but for a measurement."""
        self.enough = 1.0
        """So many in flight are a full window."""
        self.full = False
        """Was it, since it was judged?"""
        self.peak = 0
        """Most served at a time since the last judgement."""
        self.excess = 0.0
        """How many of ours stand in the server's queue."""
        self.cuts = 0
        self._size = 1.0  # not rounded
        self._peak_before = 0
        self._slow_start = True
        self._step = (0.0, 0, 0.0)  # before the last step of it: the window, the most served, first tokens a second
        self._clean = 0  # judgements in a row that found room
        self._grown_at = -inf
        self._came = 0  # first tokens since then
        self._is_shown = False  # whether it is known what that brought
        self._episode: tuple[float, float] | None = None  # window and median when a queue was first seen
        self._first_cut: tuple[float, float] | None = None  # when, and the median then
        self._was_cut = False  # few were, and no room was seen since
        self._hold = 0.0  # seconds without growth after that
        self._held_until = -inf
        self._tried: float | None = None  # few, from which it grew last
        self._has_failed = False  # whether that made a queue
        self._was_many = False  # whether there was ever room beyond few
        self._known = inf  # how many there were before the first of some overloads: slow start stops there
        self._known_at = 0.0
        self._resize(self._start)

    @property
    def most(self) -> int:
        """What it never exceeds."""
        return min(self._ceiling, self._told_ceiling)

    @property
    def waits_for_answers(self) -> bool:
        """In slow start the answers to a full window are all there is to know: the next step need not wait longer."""
        return self._slow_start and self.full and self._adaptive and self._known == inf

    def begin(self, now: float) -> None:
        """The first request leaves."""
        self._grown_at = now

    def unsignalled(self) -> None:
        """One left that will not tell of its first token: there is nothing to wait for."""
        self._is_shown = True

    def restart(self) -> None:
        """What was learned is as old as a guess."""
        self._resize(min(self._size, self._start))
        self._slow_start, self._episode, self._clean, self.excess = True, None, 0, 0.0
        self._known, self._step = inf, (0.0, 0, 0.0)

    def tell_ceiling(self, requests: int) -> bool:
        """The endpoint takes so many at a time; whether that was not known before."""
        if requests == self._told_ceiling:
            return False
        self._told_ceiling = max(1, requests)
        self._resize(self._size)
        return True

    def while_measured(self, served: int) -> int:
        """How many may be in flight while the time without load is measured."""
        without_queue = PROBE_SHARE * (served + self._gauge.unloaded)
        if self._size >= FEW:
            room = max(served + 1 + PROBE_ROOM * self._size, without_queue)
        else:
            room = max(self.peak, self._peak_before, 0.0 if self._gauge.is_in_doubt else without_queue)
        return max(1, min(self.limit, int(room)))

    def overloaded(self, now: float, in_flight: int, *, again: bool) -> None:
        """Too many at a time; `again`: nothing was answered since the last time."""
        self.cuts += 1
        self._clean = 0
        if again:
            self._slow_start, self._step = True, (0.0, 0, 0.0)
            self._resize(1.0)
            return
        self._slow_start = False
        kept = BLIND_CUT if self._gauge.base is None or not self._adaptive else CUT
        self._resize(kept * min(self._size, in_flight))
        if self._known == inf or self._size > self._known or now > self._known_at + STALE:
            self._known, self._known_at = self._size, now

    def judge(self, now: float, seconds: float, waiting: int, served: int, *, cooling: bool) -> Reason | None:
        """Whether there is room, or a queue, by what came in the `seconds` since the last time; what it changed for."""
        gauge = self._gauge
        fresh = gauge.fresh
        self._came += fresh
        least = min(SAMPLES, self.limit) if self._slow_start or self.limit == 1 else SAMPLES
        is_new = gauge.measure(now, seconds, waiting, learn=self._slow_start, least=least)
        self._is_shown = self._is_shown or is_new
        reason: Reason | None = None
        if not self._adaptive:
            reason = self._judge_many(now, waiting, served, cooling=cooling, is_new=False)
        else:
            is_few = self._size < FEW
            may_queue = self._size < BOLD and self.excess > LEAST_HIGH
            gauge.probe(now, possible=(self.full or may_queue) and not cooling, free=is_few)
            if gauge.base is None:
                if (fresh or served) and not waiting:  # too few for a median, but none waits
                    reason = self._judge_many(now, waiting, served, cooling=cooling, is_new=False)
            elif not (fresh or served):
                pass  # nothing is known yet
            elif is_few:
                reason = self._judge_few(now, waiting, cooling=cooling, is_new=is_new)
            else:
                reason = self._judge_many(now, waiting, served, cooling=cooling, is_new=is_new)
        self._peak_before, self.peak = self.peak, served
        return reason

    def _judge_few(self, now: float, waiting: int, *, cooling: bool, is_new: bool) -> Reason | None:
        if not is_new or self._gauge.is_in_doubt:
            return None
        full, self.full = self.full, False
        if self._gauge.was_wrong:  # as many as were served at a time while that was measured
            self.cuts += 1
            self._slow_start = False
            self._resize(max(self.peak, self._peak_before))
            return "queue"
        self.excess = self._gauge.queue
        share = self._gauge.rate * (self._gauge.base or 0.0)
        if self.excess > max(FEW_HIGH, FEW_HIGH_SHARE * share):
            return self._give_way(now, self._size - max(1.0, self.excess), is_new=True)
        if self.excess >= max(FEW_LOW, FEW_LOW_SHARE * share):
            self._clean = 0
            return None
        self._episode = self._first_cut = None
        if self._was_cut:
            self._hold = min(max(2 * self._hold, HOLD), MAX_HOLD)
            is_rare = self._has_failed and not self._was_many
            rare = min(RARE / max(self._gauge.rate, 1e-9), LONGEST_HOLD) if is_rare else 0.0
            self._held_until, self._was_cut = now + max(self._hold, rare), False
        if self._slow_start and not self._gauge.probes and waiting > share + 1:
            self._gauge.doubt(now)  # more wait than the base explains: it was measured with a whole window at once
        elif full and not cooling and self._is_shown and (self._slow_start or now >= self._held_until):
            return self._take_room(now, 1.0)
        return None

    def _judge_many(self, now: float, waiting: int, served: int, *, cooling: bool, is_new: bool) -> Reason | None:
        gauge = self._gauge
        full, self.full = self.full, False
        unloaded = gauge.unloaded
        if self._adaptive:
            self.excess = waiting - SLACK * unloaded - MARGIN
            if is_new and gauge.is_near_base():
                self.excess = min(self.excess, 0.0)
        low = max(LEAST_LOW, LOW * unloaded)
        noise = UNSURE * (gauge.spread - 1) * unloaded + gauge.deviation**2 * sqrt(unloaded)
        high = max(LEAST_HIGH, HIGH * unloaded + noise)
        middle = (low + high) / 2
        if self.excess > high:
            return self._give_way(now, served + SLACK * unloaded + MARGIN + middle, is_new=is_new)
        if self.excess >= low:
            self._clean = 0
            return None
        self._episode = self._first_cut = None
        self._was_many = self._was_many or not self._slow_start
        # Steps that are large must show before the next, else a queue of ours is taken for the usual wait.
        is_large = self._slow_start or self._size < FEW or (gauge.base or 0.0) > PERIOD
        if full and not cooling and (self._is_shown or not is_large):
            return self._take_room(now, middle - self.excess)
        return None

    def _give_way(self, now: float, target: float, *, is_new: bool) -> Reason | None:
        """We stand in a queue: only so many of us are to."""
        gauge = self._gauge
        if self.limit == 1:
            return None
        is_slow = (gauge.base or 0.0) > PERIOD
        if is_slow and not self._is_shown:
            return None  # what the last cut brought is not known yet
        if self._slow_start and self._size < BOLD:
            gauge.doubt(now)  # it was measured with a whole window at once: too long, where there are few slots
        self._slow_start, self._clean = False, 0
        seen = gauge.median or 0.0
        if self._is_in_vain(now, seen, is_new=is_new):
            return None
        if self._episode is None or seen <= SHORTER_QUEUE * self._episode[1]:
            self._episode = (self._size, seen)
        target = max(target, LEAST_OF_EPISODE * self._episode[0])
        self._has_failed = self._tried is not None
        if self._tried is not None:  # there was no queue with so many, just before
            target, self._tried = max(target, self._tried), None
        if target >= self._size:
            return None
        self.cuts += 1
        self._was_cut = self._size < FEW
        self._resize(target)
        if is_slow:
            self._is_shown = False
            gauge.start_over(now)
        return "queue"

    def _is_in_vain(self, now: float, seen: float, *, is_new: bool) -> bool:
        """Whether cuts shorten nothing: then the time without load is longer than was known, as far as may be."""
        if self._first_cut is None:
            self._first_cut = (now, seen)
        elif now - self._first_cut[0] > 2 * seen + PERIOD:
            if is_new and seen > IN_VAIN * self._first_cut[1] and not self._gauge.is_near_base():
                self._gauge.raise_base(seen)
                self._first_cut = self._episode = None
                return True
            self._first_cut = (now, seen)
        return False

    def _take_room(self, now: float, more: float) -> Reason | None:
        """As many more; and more still where there has been room for a while."""
        before = self.limit
        self._clean += 1
        if self._slow_start and self._adaptive and self._was_in_vain(now):
            return "queue"
        if self._slow_start:
            more = self._size * (1.0 if self._size < BOLD else 0.5)
            if self._adaptive and self._size + more >= self._known:
                self._slow_start = False
                more = self._known - self._size
        else:
            self._tried, self._has_failed = self._size if self._size < FEW else None, False
            more = max(1.0, min(more, GROWTH * sqrt(self._size)))
            if self._clean > 1:
                self._hold = 0.0
            if self._clean > STEADY and self._gauge.base is not None:
                fast = min(more * 2.0 ** min(self._clean - STEADY, 10), FAST_GROWTH * self._size)
                was_too_much = self._size + fast > self._known and now < self._known_at + STALE
                more = more if was_too_much else fast
        self._resize(self._size + max(1.0, more))
        self._grown_at, self._came, self._is_shown = now, 0, False
        if self._adaptive:
            self._gauge.start_over(now)
        return "room" if self.limit != before else None

    def _was_in_vain(self, now: float) -> bool:
        """Whether the last step of slow start brought nothing: it is undone then.

        It made a queue, and what is taken for the time without load was measured in one: an endpoint with few slots
        that reads the first prompts all at once.
        """
        size, served, last_rate = self._step
        peak = max(self.peak, self._peak_before)
        rate = self._came / max(PERIOD, now - self._grown_at)
        if peak >= EFFECT * served or rate >= EFFECT * last_rate or self._size >= BOLD:
            self._step = (self._size, peak, rate)
            return False
        self._slow_start, self._clean = False, 0
        self.cuts += 1
        self._resize(size)
        self._gauge.doubt(now)
        return True

    def _resize(self, size: float) -> None:
        self._size = max(1.0, min(size, self.most))
        self.limit = int(self._size)
        self.enough = FULL * self.limit

    def shift(self, seconds: float) -> None:
        self._grown_at += seconds
        self._held_until += seconds
        self._known_at += seconds
        if self._first_cut is not None:
            self._first_cut = (self._first_cut[0] + seconds, self._first_cut[1])
