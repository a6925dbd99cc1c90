"""The window of one lane: see `Window`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, sqrt

from millstream._control._cool_down import MAX_BACK_OFF, MAX_COOL, MAX_RATE_BACK_OFF, CoolDown
from millstream._control._facts import Reason, RejectKind, WindowChange, WindowStatistics
from millstream._control._gauge import Gauge
from millstream._control._pacer import Pacer
from millstream._headers import StatedLimits

__all__ = ["Window"]


# These figures, as those of the parts beside, were chosen in the simulation (`python -m benchmarks.governor`), in which
# results hardly change with neighbouring values.

PERIOD = 1.0
"""Seconds between two judgements: long enough for some first tokens, short against the length of an answer."""

BUNCH = 0.03
"""Seconds. A server that begins several answers together sends their first tokens within this time."""

SLACK, MARGIN = 1.1, 0.35
"""So many times the requests that wait at an empty queue, and so many more, may wait: they come in bunches."""

LOW, HIGH, UNSURE = 0.05, 0.2, 1.0
LEAST_LOW, LEAST_HIGH = 0.5, 1.5
"""How much of the queue may be ours, in shares of what waits at an empty queue: so the time to the first token grows by
so much at most, whatever the size of the window and the length of the answers. Below, there is room; above, it is too
much; between the two nothing changes. The more the times differ by themselves (`UNSURE`), the less is sure; few are
counted in requests."""

SMALL, LEAST_SCALE = 24, 0.4
"""For windows below the first, what is counted in requests is less, down to this share of it. Two that wait for one of
48 slots are next to nothing; where there are 4 they wait for half an answer."""

GROWTH, FAST_GROWTH, STEADY = 0.5, 0.25, 3
"""What a full window without a queue grows by: this times its square root (so that small ones catch up); doubled with
each judgement of the same after the first so many, up to this share of it."""

BOLD = 64
"""From this window on, slow start grows by half, no longer to the double: what is over is rejected, or waits."""

CUT, BLIND_CUT = 0.85, 0.7
"""What an overload leaves of the window: more where first tokens will tell soon whether it was enough."""

LEAST_OF_EPISODE = 0.5
"""A queue that does not go away is not ours: someone else fills it, and giving up more would only feed them."""

SHORTER_QUEUE = 0.7
"""First tokens that come in less than this share of the time show that a cut helped: the next may go on from here."""

IN_VAIN = 0.8
"""First tokens that take more than this share of the time as before, long after a cut, are no longer shortened by any:
the endpoint is slower than was known (it is busier, or the prompts are longer), or the queue is of others."""

VETO = 2.0
"""In a small window so many first tokens for each that seems to stand in a queue must tell that it does not: the first
four of eight, which took all four slots at once, say nothing of the others."""

FULL = 0.95
"""A window that is used to less than this share does not limit: it says nothing about whether more would go."""

PROBE_ROOM, PROBE_SHARE = 0.02, 0.95
"""What may be in flight while the time without load is measured: beside those that are served, one and this share of
the window may wait; or this share of what is in flight without a queue. (Where prompts cost more than answers, nearly
all that are served wait; with fewer the endpoint would be idle, and faster than it ever is.) Of a small window the one
would be a queue: as many as were served at a time lately.
"""

MAX_LOADING = 60.0
"""Seconds. A model that loads is asked again after this time, whatever it estimated."""

UNREACHABLE = 5
"""So many attempts in a row that found nobody: one at a time from here."""

ASK_AGAIN = 5.0
"""Seconds. Where headers tell that nothing is left, one is sent after this time: of a window that renews at once that
is too early, once, and the refusal tells how long to wait; of a bucket that fills up drop by drop the reset is when it
is full (OpenAI's), and silence until then would waste it all."""

EFFECT = 1.1
"""A step of slow start, which doubles the window, brings at least so many times the first tokens or requests served."""

STALE = 30.0
"""Seconds. What was known before a cut is of use to the outage that it began, and not to a later one."""

IDLE = 300.0
"""Seconds without a request, after which what was learned is as old as a guess: start again."""

MEAN = 0.05
"""The share of the last answer in the mean of tokens."""


class Window:
    """How many requests may be in flight in one lane (an origin, a model, a credential), and when the next may leave.

    A request that has its first token is being served; one that has none is in prefill, or in the server's queue. By
    Little's law ``first tokens a second * time to first token without load`` of them wait where the queue is empty.
    What waits beyond that is our part of the queue. It is kept short: enough that no freed slot of the server is ever
    idle, and no more, whatever the lengths of the answers.

    Rejections for a rate set the pace of a token bucket; overloads cut the window, once for all that were on their way;
    both begin a cool-down in which nothing is sent. After repeated ones, while a model loads, or where nobody
    answers, one request at a time goes out until an answer comes.

    Args:
        start: requests in flight at the beginning.
        ceiling: never more than this.
        adaptive: False: begins at the ceiling and returns to it; only rejections make it smaller.
        random: from 0 to 1, for the spread of cool-downs.
    """

    __slots__ = (
        "_adaptive",
        "_ceiling",
        "_clean",
        "_cool",
        "_cut_at",
        "_cuts",
        "_due",
        "_ended",
        "_enough",
        "_episode",
        "_excess",
        "_first_cut",
        "_full",
        "_gauge",
        "_grown_at",
        "_judged_at",
        "_known",
        "_known_at",
        "_limit",
        "_lone",
        "_lone_at",
        "_lone_is_out",
        "_mean_tokens",
        "_next",
        "_pacer",
        "_peak",
        "_peak_before",
        "_refused",
        "_rejected",
        "_served",
        "_size",
        "_slow_start",
        "_start",
        "_step",
        "_streak",
        "_told_ceiling",
        "_unanswered",
        "_waiting",
        "change",
    )

    def __init__(
        self, *, start: float = 8, ceiling: int = 1000, adaptive: bool = True, random: Callable[[], float]
    ) -> None:
        self.change: WindowChange | None = None
        """The last one that nobody looked at yet. Whoever tells it sets it to None."""
        self._adaptive = adaptive
        self._ceiling = self._told_ceiling = max(1, ceiling)
        self._start = float(self._ceiling) if not adaptive else max(1.0, start)
        self._waiting = 0
        self._served = 0
        self._ended = 0  # were accepted, and are no longer in flight
        self._rejected = self._cuts = 0

        self._size = self._enough = 1.0  # the window, not rounded; in flight, from which it counts as full
        self._limit = 1
        self._full = False  # was it, since the last judgement?
        self._slow_start = True
        self._step = (0.0, 0, 0.0)  # before the last step of it: the window, the most served, first tokens a second
        self._clean = 0  # judgements in a row that found room
        self._excess = 0.0
        self._episode: tuple[float, float] | None = None  # window and median when a queue was first seen
        self._first_cut: tuple[float, float] | None = None  # when, and the median then
        self._grown_at = -inf  # growth whose effect is not known yet: -inf: none
        self._peak = self._peak_before = 0  # most served at a time: since the last judgement, and before it
        self._judged_at: float | None = None  # None: nothing was sent yet
        self._next = -inf  # no judgement before
        self._due = False  # it only waits for the end of a bunch
        self._gauge = Gauge()

        self._pacer = Pacer()
        self._mean_tokens: float | None = None
        self._cool = CoolDown(random)
        self._cut_at = -inf
        self._streak = 0  # epochs of rejections without a success between
        self._refused = False  # for a rate, and none that left since was accepted
        self._unanswered = 0
        self._known = inf  # how many there were before the first of some cuts: slow start stops there
        self._known_at = 0.0
        self._lone = False  # one at a time, until an answer comes
        self._lone_is_out = False
        self._lone_at = 0.0  # when that one was sent
        self._resize(self._start)

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        if self._lone:  # those that left before may hang: the one that tries does not wait for them
            in_flight = self._waiting + self._served
            most = min(self._ceiling, self._told_ceiling)
            return max(1, min(most, in_flight if self._lone_is_out else in_flight + 1))
        if self._gauge.probe_since is not None:
            if self._size < SMALL:
                return max(1, min(self._limit, max(self._peak, self._peak_before)))
            served = self._served
            room = max(served + 1 + PROBE_ROOM * self._size, PROBE_SHARE * (served + self._gauge.unloaded))
            return max(1, min(self._limit, int(room)))
        return self._limit

    @property
    def cool_until(self) -> float:
        """Nothing is sent before; a monotonic time, perhaps long past."""
        return self._cool.until

    @property
    def in_flight(self) -> int:
        return self._waiting + self._served

    def ready_at(self, now: float) -> float:
        """When the next one may leave, as far as cool-down and pace say; `now` where it may at once."""
        if now >= self._next:
            self._judge(now)
        ready = now if self._pacer.rate is None else self._pacer.ready_at(now)
        cool = self._cool.until
        if cool <= now:
            return ready
        if cool > now + MAX_COOL:  # the clock jumped back
            cool = self._cool.until = now + MAX_COOL
        return max(cool, ready)

    def send(self, now: float, *, signals: bool = True) -> None:
        """One leaves.

        Args:
            now: the time.
            signals: False: nobody will tell when its first token came; it counts as served at once.
        """
        in_flight = self._waiting + self._served + 1
        if self._judged_at is None:
            self._pacer.start(now, self._ended)
            self._judged_at, self._next = now, now + PERIOD
        elif in_flight == 1 and now >= self._next:
            self._judge(now)
        if signals:
            self._waiting += 1
        else:
            self._served += 1
            self._grown_at = -inf  # nothing will tell
        if in_flight >= self._enough:
            self._full = True
        if self._pacer.rate is not None:
            self._pacer.take(now)
        if self._lone:
            self._lone_is_out, self._lone_at = True, now

    def unsend(self, now: float, *, signals: bool) -> None:
        """It did not leave after all."""
        self._leave(now, waiting=signals)
        self._pacer.give_back()

    def first_token(self, now: float, ttft: float) -> None:
        """Of one that waited.

        Args:
            now: the time.
            ttft: seconds since it was sent.
        """
        if self._waiting:
            self._waiting -= 1
            self._served += 1
            if self._served > self._peak:  # noqa: PLR1730 - each first token comes by here
                self._peak = self._served
        if now - ttft >= self._grown_at:
            self._grown_at = -inf
        self._gauge.note(now, ttft)
        if self._refused and now - ttft > self._cut_at:
            self._accepted(now)
        if (self._streak or self._unanswered or self._lone) and now - ttft > self._cut_at:
            self._answered(now)
        if not self._waiting:
            # In slow start the answers to a full window are all there is to know: the next step need not wait.
            if now >= self._next or (self._slow_start and self._full and self._adaptive and self._known == inf):
                self._judge(now)
        elif now >= self._next:
            if self._due:
                self._judge(now)
            else:  # more of the same bunch may come at this moment: who waits is not known yet
                self._due, self._next = True, now + BUNCH

    def done(self, now: float, *, waiting: bool, tokens: int | None = None, sent_at: float = inf) -> None:
        """It ended well.

        Args:
            now: the time.
            waiting: whether its first token was never told.
            tokens: what it used of a quota of tokens; None: not known.
            sent_at: when it was sent; the end of an answer that began before a refusal says nothing about how the
                endpoint is now. (The same below; inf: just now.)
        """
        self._leave(sent_at, waiting=waiting)
        self._ended += 1
        if tokens is not None:
            mean = self._mean_tokens
            self._mean_tokens = float(tokens) if mean is None else mean + MEAN * (tokens - mean)
        if sent_at > self._cut_at and (self._streak or self._unanswered or self._lone):
            self._answered(now)
        if self._refused and self._gauge.base is None:  # nobody tells when it left
            self._accepted(now)
        if now >= self._next:
            self._judge(now)

    def broken(self, now: float, *, waiting: bool, sent_at: float = inf) -> None:
        """It ended otherwise (cancelled, failed): no sign of congestion."""
        self._leave(sent_at, waiting=waiting)
        if not waiting:
            self._ended += 1

    def rejected(
        self, now: float, kind: RejectKind, retry_after: float | None, *, sent_at: float, waiting: bool
    ) -> None:
        """It was not taken.

        Args:
            now: the time.
            kind: ``rate``: too many in too short a time; ``overload``: too many at a time; ``loading``: not ready yet.
            retry_after: seconds that the server asks to wait; None: it does not ask.
            sent_at: when it was sent.
            waiting: whether it was counted so.
        """
        in_flight = self.in_flight
        self._leave(sent_at, waiting=waiting)
        self._rejected += 1
        self._unanswered = 0
        wait = retry_after if retry_after is not None and isfinite(retry_after) and retry_after > 0 else None
        if wait is not None and kind == "loading":
            wait = min(wait, MAX_LOADING)
        if sent_at <= self._cut_at:  # it left before the last cut: no new sign
            if wait is not None:
                self._cool.told(now, wait)
                self._pacer.hold_until(self._cool.until)
            return
        before, again = self._limit, self._streak > 0 or self._refused
        self._cut_at, self._full = now, False
        self._streak += 1
        if kind == "rate":
            self._lone = False
            self._pacer.rejected(now, wait, self._ended + self._served, again=self._refused)
            self._refused = True
        elif kind == "overload":
            self._shrink(in_flight)
        if kind == "loading" or self._streak >= 2:
            self._lone, self._lone_is_out = True, False
        if wait is not None:
            self._cool.told(now, wait)
        if wait is None or again:  # what was told was too short, once
            self._cool.back_off(now, self._streak, MAX_RATE_BACK_OFF if kind == "rate" else MAX_BACK_OFF)
        self._pacer.hold_until(self._cool.until)
        self._changed(now, before, kind)

    def unreachable(self, now: float, *, waiting: bool, sent_at: float = inf) -> None:
        """It found nobody: no connection."""
        self._leave(sent_at, waiting=waiting)
        self._unanswered += 1
        if self._unanswered >= UNREACHABLE:
            self._lone, self._lone_is_out = True, False
            self._cool.back_off(now, self._unanswered - UNREACHABLE + 1)
            self._changed(now, self._limit, "unreachable")

    def stated(self, now: float, limits: StatedLimits) -> None:
        """What the headers of any answer tell: a ceiling, and the pace at which what remains lasts until the reset."""
        before, changed = self._limit, False
        if limits.concurrency is not None and limits.concurrency != self._told_ceiling:
            self._told_ceiling = max(1, limits.concurrency)
            self._resize(self._size)
            changed = self._limit != before
        rate = reset = None
        if limits.requests_remaining is not None and limits.requests_reset is not None:
            reset = limits.requests_reset
            rate = (limits.requests_remaining - self._waiting) / max(0.5, reset)
        mean = self._mean_tokens
        if limits.tokens_remaining is not None and limits.tokens_reset is not None and mean:
            by_tokens = (limits.tokens_remaining / mean - self._waiting) / max(0.5, limits.tokens_reset)
            if rate is None or by_tokens < rate:
                rate, reset = by_tokens, limits.tokens_reset
        if rate is not None and reset is not None:
            changed = changed or self._pacer.rate is None
            self._pacer.told(now, rate, reset)
            if rate <= 0 and now + min(reset, ASK_AGAIN) > self._cool.until:
                self._cool.told(now, min(reset, ASK_AGAIN))
                self._pacer.hold_until(self._cool.until)
                changed = True
        if changed:
            self._changed(now, before, "stated")

    def shift(self, seconds: float) -> None:
        """The clock has another origin: `seconds` are added to all times."""
        self._cool.until += seconds
        self._cut_at += seconds
        self._known_at += seconds
        self._lone_at += seconds
        self._next += seconds
        self._grown_at += seconds
        if self._judged_at is not None:
            self._judged_at += seconds
        if self._first_cut is not None:
            self._first_cut = (self._first_cut[0] + seconds, self._first_cut[1])
        self._gauge.shift(seconds)
        self._pacer.shift(seconds)

    def statistics(self, now: float) -> WindowStatistics:
        return WindowStatistics(
            limit=self.limit,
            waiting=self._waiting,
            served=self._served,
            arrival_rate=self._gauge.rate,
            base=self._gauge.base,
            excess=self._excess,
            pace=self._pacer.rate,
            cool_until=self._cool.until,
            cuts=self._cuts,
            probes=self._gauge.probes,
            rejected=self._rejected,
        )

    def _leave(self, sent_at: float, *, waiting: bool) -> None:
        """One that was counted as waiting or served is no longer in flight."""
        if (waiting and self._waiting) or not self._served:
            self._waiting = max(0, self._waiting - 1)
        else:
            self._served -= 1
        if sent_at >= self._lone_at:
            self._lone_is_out = False

    def _accepted(self, now: float) -> None:
        """The first one since a rejection for a rate."""
        self._refused = False
        self._pacer.recovered(now, self._ended + self._served + self._waiting)

    def _answered(self, now: float) -> None:
        """The endpoint works."""
        self._streak = self._unanswered = 0
        if self._lone:
            self._lone = False
            self._gauge.put_off(now)
            self._changed(now, 1, "recovered")

    def _judge(self, now: float) -> None:
        """About once a second: whether there is room, or a queue."""
        judged_at = self._judged_at
        self._next, self._due = now + PERIOD, False
        if judged_at is None:
            return
        self._judged_at = now
        seconds = now - judged_at
        if seconds > IDLE and not self._waiting + self._served:
            self._resize(min(self._size, self._start))
            self._slow_start, self._episode, self._clean, self._excess = True, None, 0, 0.0
            self._known, self._step = inf, (0.0, 0, 0.0)
            self._gauge.restart()
            self._pacer.start(now, self._ended)
        if seconds <= 0 or seconds > IDLE:  # or the clock jumped
            self._gauge.fresh = 0
            return
        gauge, cooling = self._gauge, now < self._cool.until
        fresh = gauge.fresh
        told = gauge.measure(now, seconds, self._waiting)
        self._pacer.grow(now, 0.0 if cooling else min(seconds, 2 * PERIOD), self._ended + self._served)
        scale = LEAST_SCALE + (1 - LEAST_SCALE) * min(1.0, self._size / SMALL)
        if self._adaptive:
            queued = self._size < BOLD and self._excess > LEAST_HIGH
            gauge.probe(now, possible=(self._full or queued) and not cooling, free=self._size < SMALL)
            if not fresh and not self._served:
                return  # nothing is known yet
            self._excess = self._waiting - SLACK * gauge.unloaded - MARGIN * scale
            enough = max(1.0, VETO * self._excess) if self._size < SMALL else 1.0
            if told >= enough and gauge.is_near_base():
                self._excess = min(self._excess, 0.0)
        unloaded = gauge.unloaded
        low = max(LEAST_LOW * scale, LOW * unloaded)
        high = max(LEAST_HIGH * scale, (HIGH + UNSURE * (gauge.spread - 1)) * unloaded)
        if self._excess > high:
            self._give_way(now, MARGIN * scale + (low + high) / 2, told=told > 0 and self._adaptive)
        elif self._excess < low:
            self._episode = self._first_cut = None
            # Steps that are large must show before the next, else a queue of ours is taken for the usual wait.
            is_large = self._slow_start or self._size < SMALL or (gauge.base or 0.0) > PERIOD
            shown = not is_large or self._grown_at == -inf
            if self._full and not cooling and shown:
                self._take_room(now, (low + high) / 2, fresh / seconds)
        else:
            self._clean = 0
        self._full = False
        self._peak_before, self._peak = self._peak, self._served

    def _give_way(self, now: float, queue: float, *, told: bool) -> None:
        """We stand in a queue: only so many of us are to."""
        gauge, before = self._gauge, self._limit
        if self._slow_start and self._size < BOLD:
            gauge.probe_soon(now)  # it was measured with a whole window at once: too long, where there are few slots
        self._slow_start, self._clean = False, 0
        seen = gauge.median or 0.0
        if self._first_cut is None:
            self._first_cut = (now, seen)
        elif now - self._first_cut[0] > 2 * seen + PERIOD:
            if told and seen > IN_VAIN * self._first_cut[1] and not gauge.is_near_base():
                gauge.raise_base(seen)
                self._first_cut = self._episode = None
                return
            self._first_cut = (now, seen)
        if self._episode is None or seen <= SHORTER_QUEUE * self._episode[1]:
            self._episode = (self._size, seen)
        least = LEAST_OF_EPISODE * self._episode[0]
        if self._size > least:
            target = self._served + SLACK * gauge.unloaded + queue
            if target < self._size:
                self._cuts += 1
                self._resize(max(least, target))
                self._changed(now, before, "queue")

    def _take_room(self, now: float, queue: float, rate: float) -> None:
        """As many more as would make the queue that long; more where there has been room for a while."""
        before = self._limit
        self._clean += 1
        if self._slow_start and self._adaptive and self._base_is_wrong(now, rate):
            return
        if self._slow_start:
            more = self._size * (1.0 if self._size < BOLD else 0.5)
            if self._adaptive and self._size + more >= self._known:
                self._slow_start = False
                more = self._known - self._size
        else:
            more = max(1.0, min(queue - self._excess, GROWTH * sqrt(self._size)))
            if self._clean > STEADY and self._gauge.base is not None:
                more = min(more * 2.0 ** min(self._clean - STEADY, 10), FAST_GROWTH * self._size)
        self._resize(self._size + max(1.0, more))
        self._grown_at = now
        if self._limit != before and (self.change is None or self.change.reason == "room"):
            self._changed(now, before, "room")

    def _base_is_wrong(self, now: float, rate: float) -> bool:
        """Whether the last step of slow start brought nothing: it is undone then.

        It made a queue, and what is taken for the time without load was measured in one: an endpoint with few slots
        that reads the first prompts all at once.
        """
        size, served, last_rate = self._step
        peak = max(self._peak, self._peak_before)
        if peak < EFFECT * served and rate < EFFECT * last_rate and self._size < BOLD:
            before = self._limit
            self._slow_start, self._clean = False, 0
            self._cuts += 1
            self._resize(size)
            self._gauge.probe_soon(now)
            self._changed(now, before, "queue")
            return True
        self._step = (self._size, peak, rate)
        return False

    def _shrink(self, in_flight: int) -> None:
        """Too many at a time."""
        self._cuts += 1
        self._clean = 0
        if self._streak >= 2:
            self._slow_start, self._step = True, (0.0, 0, 0.0)
            self._resize(1.0)
        else:
            self._slow_start = False
            kept = BLIND_CUT if self._gauge.base is None or not self._adaptive else CUT
            self._resize(kept * min(self._size, in_flight))
            if self._known == inf or self._size > self._known or self._cut_at > self._known_at + STALE:
                self._known, self._known_at = self._size, self._cut_at

    def _resize(self, size: float) -> None:
        self._size = max(1.0, min(size, self._ceiling, self._told_ceiling))
        self._limit = int(self._size)
        self._enough = FULL * self._limit

    def _changed(self, now: float, before: int, reason: Reason) -> None:
        self.change = WindowChange(
            before=before,
            limit=self.limit if self._lone else self._limit,  # a measurement is no change
            reason=reason,
            pace=self._pacer.rate,
            cool_for=max(0.0, self._cool.until - now),
        )
