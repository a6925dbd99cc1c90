"""Who may send now: slots (requests in flight) and permits (requests and tokens a minute), first come, first served.

Nothing here is bound to an event loop before it waits, so that one object serves several runs, one after the other.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from typing import Any
from weakref import WeakSet

import anyio
import anyio.lowlevel
import msgspec

from millstream import _clock
from millstream._config import check_int, check_number
from millstream._errors import ClosedError, OptionValueError

__all__ = ["Admission", "Permit", "RequestLimit", "Slot", "Slots", "TokenLimit"]

MINUTE = 60.0


class Slot:
    """One slot, held until it is released."""

    __slots__ = ("_slots",)

    def __init__(self, slots: Slots) -> None:
        self._slots: Slots | None = slots

    def release(self) -> None:
        """Give it back. The second time does nothing: a slot never counts twice."""
        slots = self._slots
        if slots is not None:
            self._slots = None
            slots.hand_on()


class _Waiter:
    __slots__ = ("event", "granted")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.granted = False


_all_slots: WeakSet[Slots] = WeakSet()


def _forget_slots() -> None:
    """In a forked process: whoever held or awaited a slot has stayed in the other one."""
    for slots in list(_all_slots):
        slots.in_flight = 0
        slots._waiters.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_slots)


class Slots:
    """At most `limit` at a time, first come, first served.

    A slot that is released goes straight to the first that waits, so that nobody can come in between.
    """

    __slots__ = ("__weakref__", "_waiters", "closed", "in_flight", "limit")

    def __init__(self, limit: int) -> None:
        check_int("max_concurrency", limit, low=1, optional=False)
        self.limit = limit
        self.in_flight = 0
        self.closed = False
        # Ordered and keyed: whoever is cancelled leaves in constant time, and 10 000 may be cancelled at once.
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()
        _all_slots.add(self)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def acquire_nowait(self) -> Slot | None:
        """A slot, or None where there is none free now.

        Raises:
            ClosedError: `close` was called.
        """
        if self.closed:
            raise _closed()
        if self.in_flight >= self.limit:  # with a slot free nobody waits, see hand_on
            return None
        self.in_flight += 1
        return Slot(self)

    async def acquire(self) -> Slot:
        """A slot, after everyone who asked before. Does not suspend where one is free.

        Raises:
            ClosedError: `close` was called, before or while this waited.
        """
        slot = self.acquire_nowait()
        if slot is not None:
            return slot
        waiter = _Waiter()
        self._waiters[waiter] = None
        try:
            await waiter.event.wait()
            # Granted and cancelled in one moment: asyncio would tell at the next await, when the request is out.
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            if waiter.granted:  # cancelled in the same moment: the next one gets it
                self.hand_on()
            else:
                self._waiters.pop(waiter, None)
            raise
        if not waiter.granted:
            raise _closed()
        return Slot(self)

    def hand_on(self) -> None:
        """One slot is no longer used: the first that waits has it now. Only `Slot.release` calls this from outside."""
        if self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            waiter.granted = True
            waiter.event.set()
        else:
            self.in_flight -= 1

    def close(self) -> None:
        """Give out no more; everyone who waits gets `ClosedError`. Slots that are held are released as ever."""
        self.closed = True
        while self._waiters:
            self._waiters.popitem(last=False)[0].event.set()


def _closed() -> ClosedError:
    return ClosedError("this caller was closed; make a new one")


class Entry(msgspec.Struct, gc=False):  # one for each request of a minute: nothing for the collector to look at
    """What one request used of a limit, and until when that counts."""

    amount: float
    ends: float
    live: bool = True


class _SlidingWindow:
    """Never more than `limit` in any `seconds`, exactly: what was used counts for that long from when it was used.

    A bucket of this size that refills at this rate would allow nearly twice the limit (a full bucket at once, and what
    flows in meanwhile), and half a bucket would halve what a steady user gets. So each use is remembered until it no
    longer counts. Time is an argument.
    """

    __slots__ = ("_entries", "_used", "limit", "seconds")

    def __init__(self, limit: float, seconds: float = MINUTE) -> None:
        self.limit = limit
        self.seconds = seconds
        self._entries: deque[Entry] = deque()
        self._used: float = 0

    def used(self, now: float) -> float:
        """What counts at `now`."""
        entries = self._entries
        while entries and entries[0].ends <= now:
            entry = entries.popleft()
            entry.live = False
            self._used -= entry.amount
        if not entries:
            self._used = 0  # sheds what rounding left, should amounts not be whole
        return self._used

    def ready_at(self, now: float, amount: float) -> float:
        """From when on `amount` may be used, if nobody uses anything before; `now` where it may at once."""
        excess = self.used(now) + amount - self.limit
        if excess <= 0:
            return now
        for entry in self._entries:
            excess -= entry.amount
            if excess <= 0:
                return entry.ends
        return now  # not reached by an amount within the limit, and there is no other

    def take(self, now: float, amount: float) -> Entry:
        """Use `amount` at `now`, allowed or not."""
        entry = Entry(amount, now + self.seconds)
        self._entries.append(entry)
        self._used += amount
        return entry

    def settle(self, entry: Entry, used: float, now: float) -> None:
        """`entry` used not what was reserved, but `used`: less is given back, more counts from `now`."""
        if used > entry.amount:
            self.take(now, used - entry.amount)
        elif entry.live:
            self._used -= entry.amount - used
            entry.amount = used

    def shift(self, now: float, seconds: float) -> None:
        """The clock has another origin: what was used at t was used at t + `seconds`, but not later than `now`."""
        for entry in self._entries:
            entry.ends = min(entry.ends + seconds, now + self.seconds)


class RequestLimit(_SlidingWindow):
    """Requests a minute. In no 60 s are more than `per_minute` begun.

    A fraction below 1 is one request in more than a minute (0.5: one in 120 s); above 1 it is rounded down.
    """

    __slots__ = ("per_minute",)

    def __init__(self, per_minute: float) -> None:
        check_number("requests_per_minute", per_minute, above=0.0)
        self.per_minute = per_minute
        super().__init__(max(1.0, per_minute), MINUTE / min(1.0, per_minute))


class TokenLimit(_SlidingWindow):
    """LLM tokens a minute: reserved by estimate before a request is sent, settled by usage after it.

    What was reserved too much is given back at once. What was used beyond the estimate counts from when it became
    known; it can't be refused any more, but delays whoever comes next.
    """

    __slots__ = ("per_minute",)

    def __init__(self, per_minute: float) -> None:
        check_number("tokens_per_minute", per_minute, low=1.0)
        self.per_minute = per_minute
        super().__init__(per_minute)

    def check(self, tokens: int) -> None:
        """Refuse what could never be sent.

        Raises:
            OptionValueError: a request of so many tokens is more than the limit of a minute, or less than nothing.
        """
        check_int("the estimate of a request's tokens", tokens, low=0)
        if tokens > self.per_minute:
            raise OptionValueError(
                f"a request of about {tokens} tokens can never be sent under tokens_per_minute={self.per_minute:g}; "
                "raise the limit, shorten the prompt, or lower max_tokens"
            )


class Permit:
    """Leave to send one request: a slot, and what the limits reserved for it."""

    __slots__ = ("_admission", "_request", "_reserved", "_slot")

    def __init__(
        self, slot: Slot, admission: Admission, request: Entry | None = None, reserved: Entry | None = None
    ) -> None:
        self._slot: Slot | None = slot
        self._admission = admission
        self._request = request
        self._reserved = reserved

    def release(self, tokens_used: int | None = None) -> None:
        """Give the slot back, and settle the tokens. The second time does nothing.

        Args:
            tokens_used: what the request really used; None: unknown, the estimate stands.
        """
        slot = self._slot
        if slot is None:
            return
        self._slot = None
        if self._reserved is not None and tokens_used is not None:
            self._admission.settle(self._admission.tokens, self._reserved, tokens_used)
        slot.release()

    def give_back(self) -> None:
        """Give everything back: the request was not sent after all. Does nothing after `release`."""
        if self._slot is not None and self._request is not None:
            self._admission.settle(self._admission.requests, self._request, 0)
        self.release(0)


class Admission:
    """Gives out permits, first come, first served over slots and limits together.

    Only the first in the queue looks at the limits, and it takes from them in the moment in which it sends: while it
    waits for them it holds no slot, and while it waits for a slot it has used up nothing. So nobody is overtaken (not
    even a large request by small ones), and nobody who is cancelled has anything to return.
    """

    __slots__ = ("_clock_origin", "_limits_changed", "_loop", "_turn", "_waiting", "requests", "slots", "tokens")

    def __init__(self, slots: Slots, requests: RequestLimit | None = None, tokens: TokenLimit | None = None) -> None:
        self.slots = slots
        self.requests = requests
        self.tokens = tokens
        # Whose turn it is. None without limits: then the queue of the slots is the only one.
        self._turn = None if requests is None and tokens is None else Slots(1)
        self._waiting = 0
        self._limits_changed: anyio.Event | None = None
        self._loop: Any = None
        self._clock_origin = 0.0

    @property
    def waiting(self) -> int:
        """Callers that wait in `acquire`."""
        return self._waiting

    def acquire_nowait(self, tokens: int = 0) -> Permit | None:
        """A permit, or None where there is none now.

        Raises:
            ClosedError: `close` was called.
            OptionValueError: more tokens than the limit of a minute.
        """
        if self._turn is None:
            slot = self.slots.acquire_nowait()
            return None if slot is None else Permit(slot, self)
        if self.tokens is not None:
            self.tokens.check(tokens)
        if self._turn.in_flight:
            return None
        now = self._now()
        if self._ready_at(now, tokens) > now:
            return None
        slot = self.slots.acquire_nowait()
        return None if slot is None else self._take(slot, now, tokens)

    async def acquire(self, tokens: int = 0) -> Permit:
        """A permit, after everyone who asked before. Does not suspend where there is one now.

        Args:
            tokens: what the request will use, as far as one knows; 0: unknown.

        Raises:
            ClosedError: `close` was called, before or while this waited.
            OptionValueError: more tokens than the limit of a minute.
        """
        permit = self.acquire_nowait(tokens)
        if permit is not None:
            return permit
        self._waiting += 1
        try:
            if self._turn is None:
                return Permit(await self.slots.acquire(), self)
            turn = await self._turn.acquire()
            try:
                return await self._first(tokens)
            finally:
                turn.release()
        finally:
            self._waiting -= 1

    async def _first(self, tokens: int) -> Permit:
        while True:
            await self._until_ready(tokens)
            slot = await self.slots.acquire()
            now = self._now()
            if self._ready_at(now, tokens) <= now:
                return self._take(slot, now, tokens)
            slot.release()  # a request that ended meanwhile had used more tokens than estimated

    async def _until_ready(self, tokens: int) -> None:
        while (ready := self._ready_at(now := self._now(), tokens)) > now:
            if self.slots.closed:
                raise _closed()
            self._limits_changed = anyio.Event()
            # At least a microsecond: rounding may end a sleep a hair too early, and a shorter one would not end at all.
            with anyio.CancelScope(deadline=max(ready, now + 1e-6)):
                await self._limits_changed.wait()

    def _ready_at(self, now: float, tokens: int) -> float:
        ready = now
        if self.requests is not None:
            ready = max(ready, self.requests.ready_at(now, 1))
        if self.tokens is not None:
            ready = max(ready, self.tokens.ready_at(now, tokens))
        return ready

    def _take(self, slot: Slot, now: float, tokens: int) -> Permit:
        request = None if self.requests is None else self.requests.take(now, 1)
        reserved = None if self.tokens is None else self.tokens.take(now, tokens)
        return Permit(slot, self, request, reserved)

    def settle(self, limit: RequestLimit | TokenLimit | None, entry: Entry, used: float) -> None:
        """What `entry` reserved of `limit` turned out to be `used`. For `Permit` alone."""
        if limit is not None and used != entry.amount:
            limit.settle(entry, used, self._now())
            self._wake()

    def _wake(self) -> None:
        if self._limits_changed is not None:
            self._limits_changed.set()
            self._limits_changed = None

    def _now(self) -> float:
        loop = _clock.event_loop()
        now = _clock.time_of(loop)
        if loop is not self._loop:
            origin = _clock.steady_time() - now
            if self._loop is not None:
                # Another event loop has another clock: what was used before is as old as the machine's clock says.
                self._limits_changed = None
                for limit in (self.requests, self.tokens):
                    if limit is not None:
                        limit.shift(now, self._clock_origin - origin)
            self._loop = loop
            self._clock_origin = origin
        return now

    def close(self) -> None:
        """Give out no more; everyone who waits gets `ClosedError`."""
        self.slots.close()
        if self._turn is not None:
            self._turn.close()
        self._wake()
