"""The window of one lane: see `Window`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite

from millstream._control._cool_down import MAX_BACK_OFF, MAX_COOL, MAX_RATE_BACK_OFF, CoolDown
from millstream._control._facts import Reason, RejectKind, WindowChange, WindowStatistics
from millstream._control._gauge import Gauge
from millstream._control._pacer import Pacer
from millstream._control._size import PERIOD, Size
from millstream._headers import StatedLimits

__all__ = ["Window"]


# These figures, as those of the parts beside, were chosen in the simulation (`python -m benchmarks.governor`), in which
# results hardly change with neighbouring values.

BUNCH = 0.03
"""Seconds. A server that begins several answers together sends their first tokens within this time."""

MAX_LOADING = 60.0
"""Seconds. A model that loads is asked again after this time, whatever it estimated."""

UNREACHABLE = 5
"""So many attempts in a row that found nobody: one at a time from here."""

ASK_AGAIN = 5.0
"""Seconds. Where headers tell that nothing is left, one is sent after this time: of a window that renews at once that
is too early, once, and the refusal tells how long to wait; of a bucket that fills up drop by drop the reset is when it
is full (OpenAI's), and silence until then would waste it all."""

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
        "_cool",
        "_cut_at",
        "_due",
        "_ended",
        "_gauge",
        "_judged_at",
        "_lone",
        "_lone_at",
        "_lone_is_out",
        "_mean_tokens",
        "_next",
        "_pacer",
        "_refused",
        "_rejected",
        "_served",
        "_size",
        "_streak",
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
        self._gauge = Gauge()
        self._size = Size(self._gauge, start=start, ceiling=ceiling, adaptive=adaptive)
        self._waiting = 0
        self._served = 0
        self._ended = 0  # were accepted, and are no longer in flight
        self._rejected = 0
        self._judged_at: float | None = None  # None: nothing was sent yet
        self._next = -inf  # no judgement before
        self._due = False  # it only waits for the end of a bunch

        self._pacer = Pacer()
        self._mean_tokens: float | None = None
        self._cool = CoolDown(random)
        self._cut_at = -inf
        self._streak = 0  # epochs of rejections without a success between
        self._refused = False  # for a rate, and none that left since was accepted
        self._unanswered = 0
        self._lone = False  # one at a time, until an answer comes
        self._lone_is_out = False
        self._lone_at = 0.0  # when that one was sent

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        if self._lone:  # those that left before may hang: the one that tries does not wait for them
            in_flight = self._waiting + self._served
            return max(1, min(self._size.most, in_flight if self._lone_is_out else in_flight + 1))
        if self._gauge.probe_since is not None:
            return self._size.while_measured(self._served)
        return self._size.limit

    @property
    def cool_until(self) -> float:
        """Nothing is sent before; a monotonic time, perhaps long past."""
        return self._cool.until

    @property
    def in_flight(self) -> int:
        return self._waiting + self._served

    def is_free(self, now: float) -> bool:
        """Whether one may leave now: there is room, and `ready_at` is not later."""
        limit = self._size.limit if not self._lone and self._gauge.probe_since is None else self.limit
        if self._waiting + self._served >= limit:
            return False
        if now < self._next and self._cool.until <= now and self._pacer.rate is None:
            return True
        return self.ready_at(now) <= now

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
            self._size.begin(now)
        elif in_flight == 1 and now >= self._next:
            self._judge(now)
        if signals:
            self._waiting += 1
            self._gauge.send()
        else:
            self._served += 1
            self._size.unsignalled()
        if in_flight >= self._size.enough:
            self._size.full = True
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
            if self._served > self._size.peak:  # noqa: PLR1730 - each first token comes by here
                self._size.peak = self._served
        self._gauge.note(now, ttft)
        if self._refused and now - ttft > self._cut_at:
            self._accepted(now)
        if (self._streak or self._unanswered or self._lone) and now - ttft > self._cut_at:
            self._answered(now)
        if not self._waiting:
            # In slow start the answers to a full window are all there is to know: the next step need not wait.
            if now >= self._next or self._size.waits_for_answers:
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
        before, again = self._size.limit, self._streak > 0 or self._refused
        self._cut_at, self._size.full = now, False
        self._streak += 1
        if kind == "rate":
            self._lone = False
            self._pacer.rejected(now, wait, self._ended + self._served, again=self._refused)
            self._refused = True
        elif kind == "overload":
            self._size.overloaded(now, in_flight, again=self._streak >= 2)
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
            self._changed(now, self._size.limit, "unreachable")

    def stated(self, now: float, limits: StatedLimits) -> None:
        """What the headers of any answer tell: a ceiling, and the pace at which what remains lasts until the reset."""
        before, changed = self._size.limit, False
        if limits.concurrency is not None and self._size.tell_ceiling(limits.concurrency):
            changed = self._size.limit != before
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
        self._lone_at += seconds
        self._next += seconds
        if self._judged_at is not None:
            self._judged_at += seconds
        self._size.shift(seconds)
        self._gauge.shift(seconds)
        self._pacer.shift(seconds)

    def statistics(self, now: float) -> WindowStatistics:
        return WindowStatistics(
            limit=self.limit,
            waiting=self._waiting,
            served=self._served,
            arrival_rate=self._gauge.rate,
            base=self._gauge.base,
            excess=self._size.excess,
            pace=self._pacer.rate,
            cool_until=self._cool.until,
            cuts=self._size.cuts,
            probes=self._gauge.probes,
            rejected=self._rejected,
        )

    def _leave(self, sent_at: float, *, waiting: bool) -> None:
        """One that was counted as waiting or served is no longer in flight."""
        if (waiting and self._waiting) or not self._served:
            self._waiting = max(0, self._waiting - 1)
            self._gauge.lose(sent_at)
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
            self._size.restart()
            self._gauge.restart(now)
            self._pacer.start(now, self._ended)
        if seconds <= 0 or seconds > IDLE:  # or the clock jumped
            self._gauge.fresh = 0
            return
        cooling = now < self._cool.until
        self._pacer.grow(now, 0.0 if cooling else min(seconds, 2 * PERIOD), self._ended + self._served)
        before = self._size.limit
        reason = self._size.judge(now, seconds, self._waiting, self._served, cooling=cooling)
        if reason == "queue" or (reason == "room" and (self.change is None or self.change.reason == "room")):
            self._changed(now, before, reason)

    def _changed(self, now: float, before: int, reason: Reason) -> None:
        self.change = WindowChange(
            before=before,
            limit=self.limit if self._lone else self._size.limit,  # a measurement is no change
            reason=reason,
            pace=self._pacer.rate,
            cool_for=max(0.0, self._cool.until - now),
        )
