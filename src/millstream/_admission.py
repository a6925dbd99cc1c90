"""Who may send now, and where: one queue, first come, first served, over windows and limits together.

Nothing here is bound to an event loop before it waits, so that one object serves several runs, one after the other.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from weakref import WeakSet

import anyio
import anyio.lowlevel
import msgspec

from millstream import _clock
from millstream._control import RejectKind, Window, WindowChange
from millstream._errors import ClosedError
from millstream._headers import StatedLimits
from millstream.limiters import Limiter, Reservation

__all__ = ["Admission", "Lanes", "Permit", "others"]

Lanes = tuple[str, ...]
"""Names of endpoints, any one of which will do."""

_MANY_QUEUES = 8
_SOONER = 1e-3
"""Seconds. Whoever keeps the time is not roused for less."""
_KEPT_CHANGES = 64


class Permit(msgspec.Struct, eq=False):
    """Leave to send one request, and the one that hears how it went. It ends once: whatever comes later does nothing.

    A request that tells when its first token came (`signals`) is counted as waiting until then, and as served after
    it; any other is counted as served at once.
    """

    _admission: Admission
    window: Window
    lanes: Lanes
    """The endpoints that would have done,"""
    lane: str
    """and the one that is meant."""
    sent_at: float
    _reservation: Reservation | None
    _waiting: bool
    _held: bool = True
    served: bool = False
    """Whether its first token came: then the endpoint has worked for it, however it ends."""

    def first_token(self) -> None:
        """Its first token came. The second time does nothing."""
        if self._waiting and self._held:
            self._waiting = False
            self.served = True
            now = self._admission.now()
            self.window.first_token(now, now - self.sent_at)
            self._admission.look(self, now)

    def release(self, tokens_used: int | None = None) -> None:
        """It ended well.

        Args:
            tokens_used: LLM tokens that it used; None: unknown, the estimate stands.
        """
        if self._held:
            now = self._settle(tokens_used)
            self.window.done(now, waiting=self._waiting, tokens=tokens_used, sent_at=self.sent_at)
            self._admission.leave(self, now)

    def broken(self, tokens_used: int | None = None) -> None:
        """It ended otherwise, by something that tells nothing about the endpoint: cancelled, or its own fault."""
        if self._held:
            now = self._settle(tokens_used)
            self.window.broken(now, waiting=self._waiting, sent_at=self.sent_at)
            self._admission.leave(self, now)

    def rejected(self, kind: RejectKind, retry_after: float | None, tokens_used: int | None = 0) -> None:
        """The endpoint refused it, or has no room: everyone waits, not only this one."""
        if self._held:
            now = self._settle(tokens_used)
            self.window.rejected(now, kind, retry_after, sent_at=self.sent_at, waiting=self._waiting)
            self._admission.leave(self, now)

    def unreachable(self, tokens_used: int | None = None) -> None:
        """The endpoint could not be reached, or failed where another may not: some in a row, and it is left alone."""
        if self._held:
            now = self._settle(tokens_used)
            self.window.unreachable(now, waiting=self._waiting, sent_at=self.sent_at)
            self._admission.leave(self, now)

    def give_back(self) -> None:
        """It was not sent after all: everything is given back."""
        if self._held:
            self._held = False
            now = self._admission.now()
            if self._reservation is not None and self._admission.limiter is not None:
                self._admission.limiter.give_back(self._reservation)
            self.window.unsend(now, signals=self._waiting)
            self._admission.leave(self, now)

    def _settle(self, tokens_used: int | None) -> float:
        self._held = False
        admission = self._admission
        if self._reservation is not None and tokens_used is not None and admission.limiter is not None:
            admission.limiter.settle(self._reservation, tokens_used)
        return admission.now()


class _Waiter:
    __slots__ = ("event", "keeps_time", "lanes", "permit", "scope", "signals", "ticket", "tokens", "until")

    def __init__(self, ticket: int, lanes: Lanes, tokens: int, *, signals: bool) -> None:
        self.ticket = ticket
        self.lanes = lanes
        self.tokens = tokens
        self.signals = signals
        self.event = anyio.Event()
        self.permit: Permit | None = None
        self.until = math.inf
        """When to look again; inf: when roused."""
        self.keeps_time = False
        """Whether it sleeps until then, or waits for the limiter, on behalf of the whole queue."""
        self.scope: anyio.CancelScope | None = None
        """Around its wait for the limiter."""


_Queue = OrderedDict[_Waiter, None]
"""Ordered and keyed: whoever is cancelled leaves in constant time, and 10 000 may be cancelled at once."""

_all_admissions: WeakSet[Admission] = WeakSet()


def _forget_permits() -> None:
    """In a forked process: whoever held or awaited a permit has stayed in the other one."""
    for admission in list(_all_admissions):
        admission.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_permits)


class Admission:
    """Gives out permits, first come, first served.

    Whoever frees a place looks at who is first in the queue (`_pump`), and gives it the place in that moment: nobody
    comes in between, and ten thousand who wait are not woken to find out that they must wait on. A permit takes from
    the limits in the moment in which it is given, so whoever waits has used up nothing and has nothing to return.
    Where only time helps (cool-down, pace, limits a minute), the first in the queue keeps it for all others.

    Args:
        make_window: makes the window of a lane that is asked for for the first time.
        ceiling: permits at a time, over all lanes.
        limiter: requests and tokens a minute, over all lanes; None: no limit.
    """

    def __init__(self, make_window: Callable[[], Window], ceiling: int, limiter: Limiter | None = None) -> None:
        self.ceiling = ceiling
        self.limiter = limiter
        self.closed = False
        self.windows: dict[str, Window] = {}
        self.waiting = 0
        """Callers that wait in `acquire`."""
        self.in_flight = 0
        """Permits that are held."""
        self.on_room: set[Callable[[], None]] = set()
        """Called when there may be room for more than before. They must not raise."""
        self.changes: deque[tuple[str, WindowChange, float]] = deque(maxlen=_KEPT_CHANGES)
        """What the windows did and nobody was told yet: in which lane, what, and when (`_clock.steady_time`)."""
        self._make_window = make_window
        self.fresh_window = make_window()
        """What a lane begins with."""
        self._queues: dict[Lanes, _Queue] = {}
        self._tickets = itertools.count()
        self.clock = _clock.LoopClock(self._moved)
        self.now = self.clock.now
        """The event loop's clock; see `LoopClock`."""
        _all_admissions.add(self)

    # -- what a call does -------------------------------------------------------------------------------------------

    def acquire_nowait(
        self, lanes: Lanes = ("",), tokens: int = 0, *, signals: bool = False, now: float | None = None
    ) -> Permit | None:
        """A permit, or None where there is none now, or others wait for it.

        Args:
            lanes, tokens, signals: see `acquire`.
            now: the time; None: it is looked at.

        Raises:
            ClosedError: `close` was called.
            OptionValueError: more tokens than the limit of a minute.
        """
        if self.closed:
            raise _closed()
        if tokens and self.limiter is not None:
            self.limiter.check(tokens)
        # Who waits for the limiter must not be overtaken by anybody; who waits for another lane's window may.
        if self.waiting and (self.limiter is not None or self._queues.get(lanes)):
            return None
        if now is None:
            now = self.now()
        lane = self._free_lane(lanes, now)
        if lane is None:
            return None
        return self._grant(lanes, lane, now, tokens, signals=signals)

    async def acquire(
        self, lanes: Lanes = ("",), tokens: int = 0, *, signals: bool = False, front: bool = False
    ) -> Permit:
        """A permit, after everyone who asked before. Does not suspend where there is one now.

        Args:
            lanes: which endpoints will do.
            tokens: what the request will use, as far as one knows; 0: unknown.
            signals: whether the request will tell when its first token comes.
            front: before everyone else: it was admitted before, and refused.

        Raises:
            ClosedError: `close` was called, before or while this waited.
            OptionValueError: more tokens than the limit of a minute.
        """
        if not front:
            permit = self.acquire_nowait(lanes, tokens, signals=signals)
            if permit is not None:
                return permit
        elif self.closed:
            raise _closed()
        waiter = _Waiter(-1 if front else next(self._tickets), lanes, tokens, signals=signals)
        queue = self._queues.get(lanes)
        if queue is None:
            queue = self._queues[lanes] = OrderedDict()
        queue[waiter] = None
        if front:
            queue.move_to_end(waiter, last=False)
        self.waiting += 1
        try:
            self._pump(self.now())
            permit = waiter.permit or await self._wait(waiter)
        except BaseException:
            if waiter.permit is not None:
                waiter.permit.give_back()
            elif self._queues.get(lanes) is queue and waiter in queue:  # a forked process has queues of its own
                self._leave_queue(queue, waiter)
                if self.waiting and not self.closed:
                    self._pump(self.now())  # it may have kept the time
            raise
        return permit

    async def _wait(self, waiter: _Waiter) -> Permit:
        while True:
            await waiter.event.wait()
            # Granted and cancelled in one moment: asyncio would tell at the next await, when the request is out.
            await anyio.lowlevel.checkpoint_if_cancelled()
            if waiter.permit is not None:
                return waiter.permit
            if self.closed:
                raise _closed()
            waiter.event = anyio.Event()
            permit = await self._keep_time(waiter)
            if permit is not None:
                return permit

    async def _keep_time(self, waiter: _Waiter) -> Permit | None:
        """Wait until the queue should be looked at again, and do so; or until somebody else did."""
        if waiter.until == math.inf and self.limiter is not None:
            with anyio.CancelScope() as waiter.scope:
                await self.limiter.wait(1, waiter.tokens)
            waiter.scope = None
        else:
            # At least a microsecond: rounding may end a sleep too early, and a shorter one would not end at all.
            with anyio.CancelScope(deadline=max(waiter.until, self.now() + 1e-6)):
                await waiter.event.wait()
        waiter.keeps_time = False
        if waiter.permit is None and not self.closed:
            self._pump(self.now())
        return waiter.permit

    # -- what a permit does -----------------------------------------------------------------------------------------

    def look(self, permit: Permit, now: float) -> None:
        """Its window may have changed."""
        if permit.window.change is not None:
            self._note_change(permit.window, permit.lane)
        if self.waiting:
            self._pump(now)

    def leave(self, permit: Permit, now: float) -> None:
        """It ended."""
        if self.windows.get(permit.lane) is permit.window:  # else it is from before a fork: the other process's
            self.in_flight -= 1
            if self.waiting or permit.window.change is not None:
                self.look(permit, now)

    def stated(self, lane: str, limits: StatedLimits) -> None:
        """The headers of an answer of `lane` tell its limits."""
        window, now = self.window(lane), self.now()
        window.stated(now, limits)
        if window.change is not None:
            self._note_change(window, lane)
        if self.waiting:
            self._pump(now)

    def _note_change(self, window: Window, lane: str) -> None:
        if window.change is not None:
            self.changes.append((lane, window.change, _clock.steady_time()))
            window.change = None
        for listener in tuple(self.on_room):
            listener()

    # -- how it stands ----------------------------------------------------------------------------------------------

    def window(self, lane: str) -> Window:
        """The window of a lane."""
        window = self.windows.get(lane)
        if window is None:
            window = self.windows[lane] = self._make_window()
        return window

    def room(self, lanes: Lanes = ("",)) -> int:
        """How many may be in flight now, 1 or more. A lane that was not used yet has room for what it begins with."""
        room = 0
        for lane in lanes:
            room += (self.windows.get(lane) or self.fresh_window).limit
        return self.ceiling if room > self.ceiling else room or 1

    def cool_until(self, lanes: Lanes) -> float:
        """Until when none of `lanes` sends at all; a time on the event loop's clock, perhaps long past."""
        return min(self.window(lane).cool_until for lane in lanes)

    def ready_at(self, lanes: Lanes) -> float:
        """From when on one of `lanes` sends at all, as far as is known; not later than now where it does."""
        now = self.now()
        return min(self.window(lane).ready_at(now) for lane in lanes)

    def _moved(self, now: float, seconds: float) -> None:
        for window in self.windows.values():
            window.shift(seconds)

    def close(self) -> None:
        """Give out no more; everyone who waits gets `ClosedError`. Permits that are held end as ever."""
        self.closed = True
        for queue in self._queues.values():
            for waiter in queue:
                waiter.event.set()
                if waiter.scope is not None:
                    waiter.scope.cancel()

    def forget(self) -> None:
        """Begin anew: whoever held or awaited a permit is gone."""
        self.in_flight = self.waiting = 0
        self.windows.clear()
        self._queues.clear()
        self.clock.forget()

    # -- the queue --------------------------------------------------------------------------------------------------

    def _pump(self, now: float) -> None:
        """Give permits to whoever is first, as long as there are any; where time is all that helps, have it kept."""
        while self.waiting:
            found = self._first(now)
            if found is None:
                return
            first, lane = found
            permit = self._grant(first.lanes, lane, now, first.tokens, signals=first.signals)
            if permit is None:
                if not first.keeps_time or first.until < math.inf:
                    self._have_time_kept(first, math.inf)  # until the limiter says so
                return
            self._leave_queue(self._queues[first.lanes], first)
            first.permit = permit
            first.event.set()
            if first.scope is not None:
                first.scope.cancel()

    def _first(self, now: float) -> tuple[_Waiter, str] | None:
        """Who has waited longest of those whose endpoint has room, and where; time is kept for the others."""
        first: tuple[_Waiter, str] | None = None
        for queue in self._queues.values():
            head = next(iter(queue), None)
            if head is None or (first is not None and head.ticket > first[0].ticket):
                continue
            lane = self._free_lane(head.lanes, now)
            if lane is not None:
                first = head, lane
            elif self.in_flight < self.ceiling:
                until = self._next_look(head.lanes, now)
                if until < (head.until - _SOONER if head.keeps_time else math.inf) and not head.scope:
                    self._have_time_kept(head, until)
        return first

    def _grant(self, lanes: Lanes, lane: str, now: float, tokens: int, *, signals: bool) -> Permit | None:
        reservation = None
        if self.limiter is not None:
            reservation = self.limiter.acquire_nowait(1, tokens)
            if reservation is None:
                return None
        window = self.windows[lane]
        window.send(now, signals=signals)
        self.in_flight += 1
        return Permit(self, window, lanes, lane, now, reservation, signals)

    def _free_lane(self, lanes: Lanes, now: float) -> str | None:
        """The least loaded of `lanes` that has room and is not cooling; of equals the first."""
        if self.in_flight >= self.ceiling:
            return None
        if len(lanes) == 1:
            lane = lanes[0]
            return lane if (self.windows.get(lane) or self.window(lane)).is_free(now) else None
        best: str | None = None
        least = math.inf
        for lane in lanes:
            window = self.windows.get(lane) or self.window(lane)
            load = (window.in_flight + 1) / window.limit
            if load < least and window.is_free(now):
                best, least = lane, load
        return best

    def _next_look(self, lanes: Lanes, now: float) -> float:
        """When one of `lanes` that has room will send again; inf where none has room: then somebody must leave."""
        return min(
            (window.ready_at(now) for window in map(self.window, lanes) if window.in_flight < window.limit),
            default=math.inf,
        )

    @staticmethod
    def _have_time_kept(head: _Waiter, until: float) -> None:
        """Also by one who does already, but until another time."""
        head.keeps_time = True
        head.until = until
        head.event.set()

    def _leave_queue(self, queue: _Queue, waiter: _Waiter) -> None:
        del queue[waiter]
        self.waiting -= 1
        if not queue and len(self._queues) > _MANY_QUEUES:
            del self._queues[waiter.lanes]


def _closed() -> ClosedError:
    return ClosedError("this caller was closed; make a new one")


def others(lanes: Lanes, tried: Collection[str]) -> Lanes:
    """`lanes` without those that were tried."""
    return tuple(lane for lane in lanes if lane not in tried)
