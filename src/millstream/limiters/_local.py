"""Limits that are counted in this process, exactly: in no 60 s is more used than they say."""

from __future__ import annotations

from collections import deque

import anyio
import msgspec

from millstream import _clock
from millstream._config import check_int, check_number
from millstream._errors import OptionValueError
from millstream.limiters._base import Limiter, Reservation

__all__ = ["LocalLimiter", "RequestLimit", "TokenLimit"]

MINUTE = 60.0


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
        entries = self._entries
        used = self._used if entries and entries[0].ends > now else self.used(now)
        excess = used + amount - self.limit
        if excess <= 0:
            return now
        for entry in entries:
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
        """See `Limiter.check`."""
        check_int("the estimate of a request's tokens", tokens, low=0)
        if tokens > self.per_minute:
            raise OptionValueError(
                f"a request of about {tokens} tokens can never be sent under tokens_per_minute={self.per_minute:g}; "
                "raise the limit, shorten the prompt, or lower max_tokens"
            )


class _Taken(Reservation, msgspec.Struct, eq=False, gc=False):
    requests: Entry | None
    tokens: Entry | None


class LocalLimiter(Limiter):
    """Counts in this process, on the event loop's own clock: asyncio and trio alike.

    It is bound to no event loop: what was used under one still counts under the next.

    Args:
        requests_per_minute: requests begun in any 60 s; None: no limit. Below 1: one in more than a minute.
        tokens_per_minute: LLM tokens in any 60 s; None: no limit.

    Raises:
        OptionTypeError, OptionValueError: a limit that can't be.
    """

    def __init__(self, *, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._requests = None if requests_per_minute is None else RequestLimit(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else TokenLimit(tokens_per_minute)
        self._pushed_back_until = 0.0
        self._turn = anyio.Lock()
        self._changed: anyio.Event | None = None
        self._clock = _clock.LoopClock(self._moved)

    def check(self, tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.check(tokens)

    def acquire_nowait(self, requests: int = 1, tokens: int = 0) -> Reservation | None:
        if tokens:
            self.check(tokens)
        if requests != 1:
            self._check_requests(requests)
        now = self._clock.now()
        if self._ready_at(now, requests, tokens) > now:
            return None
        return _Taken(
            None if self._requests is None else self._requests.take(now, requests),
            None if self._tokens is None else self._tokens.take(now, tokens),
        )

    async def wait(self, requests: int = 1, tokens: int = 0) -> None:
        while (ready := self._ready_at(now := self._clock.now(), requests, tokens)) > now:
            if self._changed is None:
                self._changed = anyio.Event()
            # At least a microsecond: rounding may end a sleep a hair too early, and a shorter one would not end at all.
            with anyio.CancelScope(deadline=max(ready, now + 1e-6)):
                await self._changed.wait()

    async def acquire(self, requests: int = 1, tokens: int = 0) -> Reservation:
        self.check(tokens)
        self._check_requests(requests)
        self._clock.now()  # another event loop has another turn
        async with self._turn:
            while (taken := self.acquire_nowait(requests, tokens)) is None:
                await self.wait(requests, tokens)
            return taken

    def _check_requests(self, requests: int) -> None:
        most = None if self._requests is None else int(self._requests.limit)
        check_int("requests at a time", requests, low=1, high=most, optional=False)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        assert isinstance(reservation, _Taken)
        entry = reservation.tokens
        if self._tokens is not None and entry is not None and tokens != entry.amount:
            self._tokens.settle(entry, tokens, self._clock.now())
            self._wake()

    def give_back(self, reservation: Reservation) -> None:
        assert isinstance(reservation, _Taken)
        now = self._clock.now()
        for limit, entry in ((self._requests, reservation.requests), (self._tokens, reservation.tokens)):
            if limit is not None and entry is not None:
                limit.settle(entry, 0, now)
        self._wake()

    def push_back(self, seconds: float) -> None:
        self._pushed_back_until = max(self._pushed_back_until, self._clock.now() + seconds)

    def _ready_at(self, now: float, requests: int, tokens: int) -> float:
        at_requests = now if self._requests is None else self._requests.ready_at(now, requests)
        at_tokens = now if self._tokens is None else self._tokens.ready_at(now, tokens)
        return max(at_requests, at_tokens, self._pushed_back_until)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _moved(self, now: float, seconds: float) -> None:
        """Another event loop has another clock: what was used before is as old as the machine's clock says."""
        self._changed = None
        self._turn = anyio.Lock()
        self._pushed_back_until += seconds
        for limit in (self._requests, self._tokens):
            if limit is not None:
                limit.shift(now, seconds)
