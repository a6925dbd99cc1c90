"""`AsyncCaller`: admit, attempt, classify, release the slot, wait, and again.

It knows nothing of HTTP: it is given a function, and judges the errors that this raises by their class and status.
"""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import anyio
import msgspec

from millstream import _clock
from millstream._admission import Admission, Lanes, Permit, others
from millstream._backoff import NO_CONNECTION, WRONG_ADDRESS, RetryBudget, RetrySchedule, Verdict, classify, retry_after
from millstream._calls import CallerOptions, CallerOutcome, CallerStatistics, CallObserver
from millstream._config import AdaptiveConcurrency, Deadlines, RetryPolicy, check_int
from millstream._control import Window
from millstream._errors import (
    ClosedError,
    DeadlineError,
    MillstreamError,
    OptionTypeError,
    OptionValueError,
    StatusError,
    UsageError,
)
from millstream._fanout import Send, Width, fan_out
from millstream._headers import StatedLimits
from millstream.limiters import Limiter, LocalLimiter

__all__ = ["AsyncCaller", "CallObserver", "CallerOptions", "CallerOutcome", "CallerStatistics", "Lease", "Permit"]

T = TypeVar("T")
ItemT = TypeVar("ItemT")

_LEFT_OUT_SECONDS = 60.0
"""An endpoint that can't serve a request which another one can is asked again after this time."""
_NO_OPTIONS = CallerOptions()
_SHARED = frozenset({"rate", "overload", "loading"})
"""Signals after which everybody waits, and not only the call that was refused."""


class Lease(Generic[T]):
    """A result whose slot is still held, as by a stream that is being read."""

    __slots__ = ("_permit", "attempts", "value", "waited")

    def __init__(self, value: T, permit: Permit, attempts: int, waited: float = 0.0) -> None:
        self.value = value
        self.attempts = attempts
        """Attempts that were made for it, 1 or more."""
        self.waited = waited
        """Seconds that were waited between them."""
        self._permit = permit

    def release(self, tokens_used: int | None = None) -> None:
        """Give the slot back; the second time does nothing. Does not wait, so it is safe under cancellation.

        Args:
            tokens_used: LLM tokens that were used; None: unknown, the estimate stands.
        """
        self._permit.release(tokens_used)

    def fail(self, error: BaseException) -> None:
        """Give the slot back because `error` ended it, or somebody left it."""
        end_failed(self._permit, error, classify(error))


def end_failed(permit: Permit, error: BaseException, verdict: Verdict) -> None:
    """Tell the endpoint's governor what an attempt's end says about the endpoint."""
    # Nothing was processed: no token was used. (The request itself stays counted: the server saw it.)
    tokens = None if verdict.counted else 0
    match verdict.signal:
        case "rate" | "overload" | "loading":
            permit.rejected(verdict.signal, retry_after(error, now=_clock.wall_time()), tokens)
        case "transient" if not verdict.counted or len(permit.lanes) > 1:
            permit.unreachable(tokens)
        case _:
            # An endpoint that fails one request may serve the next, and where there is no other it is asked.
            permit.broken(tokens)


class _Call:
    """One call under way."""

    __slots__ = (
        "attempts", "cause", "counted", "deadline", "failed_at", "lanes", "options", "queue", "retries", "schedule",
        "tried", "waited",
    )  # fmt: skip

    def __init__(self, options: CallerOptions, queue: float | None, schedule: RetrySchedule) -> None:
        self.options = options
        self.queue = queue
        self.schedule = schedule
        self.deadline = math.inf
        self.attempts = 0
        self.waited = 0.0
        self.cause: Exception | None = None
        """Why the last attempt failed, while another is to follow."""
        self.counted = False
        """Whether that other one takes from the retry budget."""
        self.retries = 0
        """How many have taken from it."""
        self.failed_at = 0.0
        self.lanes = options.lanes
        """Where the next attempt may go."""
        self.tried: tuple[str, ...] = ()
        """Where it need not be tried again."""


class AsyncCaller:
    """Makes calls to one endpoint: as many at a time as it serves best, again where that helps, and never for ever.

    A call waits for a slot and for the limits, first come, first served; is attempted; and where the attempt fails by
    something that passes (see the table in `millstream.classify`) gives its slot back, waits, and is the first to
    queue up again. What one attempt learns holds for all: a refusal makes everybody wait, once. One caller can serve
    several models of one endpoint, and several endpoints. It belongs to one event loop at a time, but to none for good.

    Args:
        max_concurrency: attempts (and open streams) at a time: a fixed number, 1 or more; ``"auto"`` (or
            `AdaptiveConcurrency` with its bounds): what the endpoint serves best, found out while it is used. Where an
            endpoint has no room, less for a while.
        max_retries: attempts after the first that may have been paid for; 0: no retry of any kind; None: as
            `retry_policy` says (6).
        requests_per_minute: attempts begun in any 60 s; None: no limit.
        tokens_per_minute: LLM tokens in any 60 s, by estimate before and by usage after; None: no limit.
        limiter: such limits that are shared with others, in place of the last two; whoever brings one closes it.
        retry_policy: waits and bounds; None: the defaults of `RetryPolicy`.
        deadlines: `queue` and `total` bound each call here (the rest are for the function to keep); None: the defaults
            of `Deadlines`, 600 s in total.
        random: gives a number from [0, 1) for the jitter.

    Raises:
        OptionTypeError, OptionValueError: an argument that can't be.
    """

    def __init__(
        self,
        *,
        max_concurrency: int | Literal["auto"] | AdaptiveConcurrency = "auto",
        max_retries: int | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        limiter: Limiter | None = None,
        retry_policy: RetryPolicy | None = None,
        deadlines: Deadlines | None = None,
        random: Callable[[], float] = _clock.random,
    ) -> None:
        policy = _checked("retry_policy", retry_policy, RetryPolicy)
        if max_retries is not None:
            policy = RetryPolicy(**{**msgspec.structs.asdict(policy), "max_retries": max_retries})
        self.retry_policy = policy
        self.deadlines = _checked("deadlines", deadlines, Deadlines)
        self.max_concurrency: int | Literal["auto"]
        """What was asked for; how many may be in flight at the moment is in `statistics`."""
        self.max_concurrency, adaptive = _concurrency(max_concurrency)
        self._random = random
        self._shares_limiter = limiter is not None
        self._limiter = _limiter(limiter, requests_per_minute, tokens_per_minute)

        def make_window() -> Window:
            is_adaptive = self.max_concurrency == "auto"
            return Window(start=adaptive.start, ceiling=adaptive.ceiling, adaptive=is_adaptive, random=random)

        self._admission = Admission(make_window, adaptive.ceiling, self._limiter)
        self._budget = RetryBudget()
        self._watch = _clock.Watch()
        self._reached: set[str] = set()
        """The endpoints that have ever answered."""
        self._refusals: dict[str, StatusError] = {}
        """The last refusal of each endpoint, for those that would have to wait too long because of it."""
        self._backing_off: set[anyio.Event] = set()
        self._attempts = self._retries = self._successes = self._failures = 0

    @property
    def adaptive(self) -> bool:
        """Whether the caller finds out by itself how many to keep in flight."""
        return self.max_concurrency == "auto"

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit of tokens, so that calls do well to tell an estimate."""
        return self._limiter is not None and self._limiter.tokens_per_minute is not None

    @property
    def closed(self) -> bool:
        return self._admission.closed

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """The result of ``await function(*args)``, attempted again where that helps.

        Raises:
            ClosedError: the caller was closed, before or while the call waited.
            DeadlineError: `queue` or `total` was over.
            Exception: the last attempt's error; one of Millstream's has its ``attempts`` and ``waited`` set.
        """
        return await self.call_with_options(_NO_OPTIONS, function, *args)

    async def call_with_options(self, options: CallerOptions, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """As `call`, with options.

        Raises:
            OptionValueError: `CallerOptions.tokens` is more than `tokens_per_minute`.
            ClosedError, DeadlineError, Exception: see `call`.
        """
        lease = await self._call(options, options.signals, function, args)
        used: int | None = None
        try:
            if options.settle is not None:
                used = options.settle(lease.value)
        finally:
            lease.release(used)
        return lease.value

    async def open(self, options: CallerOptions, function: Callable[..., Awaitable[T]], *args: Any) -> Lease[T]:
        """As `call_with_options`, but the slot stays held until the lease is released.

        For a stream: `function` returns when the first piece is there, and the slot is held until the last one. The
        total deadline bounds only what happens in here.

        Raises:
            OptionValueError, ClosedError, DeadlineError, Exception: see `call_with_options`.
        """
        lease = await self._call(options, options.signals, function, args)
        if options.signals:
            lease._permit.first_token()
        return lease

    async def _call(
        self, options: CallerOptions, signals: bool, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> Lease[T]:
        deadlines = self.deadlines if options.deadlines is None else options.deadlines
        bounded = deadlines.total is not None or options.deadline is not None
        call = _Call(options, deadlines.queue, RetrySchedule(self.retry_policy, bounded=bounded))
        try:
            if deadlines.total is None and options.deadline is None:
                lease = await self._attempts_of(call, function, args)
            else:
                lease = await self._attempts_until(call, deadlines.total, function, args)
        except Exception as error:
            self._failures += 1
            if isinstance(error, MillstreamError):
                # What your program asked wrongly was found before anything was sent: that attempt was none.
                error.attempts = call.attempts - (call.attempts > 0 and _is_before_sending(error))
                error.waited = call.waited
            raise
        finally:
            call.cause = None  # its traceback leads back here, and nothing is left to the garbage collector
        self._successes += 1
        self._budget.give_back()
        return lease

    async def _attempts_until(
        self, call: _Call, total: float | None, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> Lease[T]:
        """One bound around everything: one for each attempt and each wait would cost as much each time."""
        loop = _clock.event_loop()
        start = _clock.time_of(loop)
        deadline = math.inf if total is None else start + total
        if call.options.deadline is not None:
            deadline = min(deadline, call.options.deadline)
        call.deadline = deadline
        if deadline > start:
            with suppress(_clock.Expired):
                if deadline == math.inf:
                    return await self._attempts_of(call, function, args)
                return await self._watch.run_until(loop, deadline, self._attempts_of, call, function, args)
        raise DeadlineError(deadline="total", seconds=max(0.0, deadline - start)) from call.cause

    async def _attempts_of(self, call: _Call, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> Lease[T]:
        options, admission = call.options, self._admission
        while True:
            permit = admission.acquire_nowait(call.lanes, options.tokens or 0, signals=options.signals)
            if permit is None:
                permit = await self._queue(call)
            if call.cause is not None:
                call.waited += permit.sent_at - call.failed_at
                if call.counted and not self._take_retry(call):
                    permit.give_back()  # the retries of others have used up the budget meanwhile
                    raise call.cause
            try:
                if options.observer is not None:
                    await self._tell_attempt(options.observer, call)
                if options.begin is not None:
                    options.begin(permit)
            except BaseException:
                permit.give_back()
                raise
            call.attempts += 1
            self._attempts += 1
            self._retries += call.attempts > 1
            try:
                value = await function(*args)
            except Exception as error:
                delay = await self._delay_after(call, permit, error)
                if delay is None:
                    raise
                call.cause = error
            except BaseException:
                permit.broken()
                raise
            else:
                self._reached.add(permit.lane)
                return Lease(value, permit, call.attempts, call.waited)
            if delay > 0:
                await self._back_off(delay)

    async def _queue(self, call: _Call) -> Permit:
        """A permit, in its turn; who was admitted before goes first."""
        admission, options = self._admission, call.options
        self._check_hold(call)
        tokens, front = options.tokens or 0, call.attempts > 0
        if call.queue is None:
            return await admission.acquire(call.lanes, tokens, signals=options.signals, front=front)
        with anyio.CancelScope(deadline=_clock.monotonic() + call.queue):
            return await admission.acquire(call.lanes, tokens, signals=options.signals, front=front)
        raise DeadlineError(deadline="queue", seconds=call.queue) from call.cause

    def _check_hold(self, call: _Call) -> None:
        """Fail now, and with the real reason, rather than wait for what comes too late."""
        if call.cause is not None or not self._refusals:
            return
        now = self._admission.now()
        hold = self._admission.cool_until(call.lanes) - now
        longest = 1.05 * self.retry_policy.max_wait + 0.5  # with the spread over the time that was told
        if hold > longest or (hold > 0 and now + hold >= call.deadline):
            known = next((self._refusals[lane] for lane in call.lanes if lane in self._refusals), None)
            if known is not None:
                refusal = copy.copy(known)
                refusal.retry_after = hold
                raise refusal

    def _take_retry(self, call: _Call) -> bool:
        call.retries += 1
        return self._budget.take()

    async def _delay_after(self, call: _Call, permit: Permit, error: Exception) -> float | None:
        """End a failed attempt. Seconds until the call queues up for another, None for no other."""
        verdict = classify(error)
        if verdict == NO_CONNECTION:
            verdict = verdict if permit.lane in self._reached else WRONG_ADDRESS
        else:
            self._reached.add(permit.lane)
        told = retry_after(error, now=_clock.wall_time())
        elsewhere = self._elsewhere(call, permit, verdict)
        if verdict.elsewhere and elsewhere:
            permit.rejected("loading", _LEFT_OUT_SECONDS)
        else:
            end_failed(permit, error, verdict)
        if verdict.signal in _SHARED:
            self._note_refusal(permit, error)
        delay = self._delay(call, permit, verdict, told, elsewhere)
        if delay is None:
            await self._tell_changes(call)
            return None
        call.counted = verdict.counted and verdict.retry
        call.failed_at = now = self._admission.now()
        shared = max(0.0, self._admission.ready_at(call.lanes) - now)
        await self._tell_changes(call)
        if call.options.observer is not None:
            await call.options.observer.retry(call.attempts, max(delay, shared), error)
        return delay

    def _elsewhere(self, call: _Call, permit: Permit, verdict: Verdict) -> Lanes:
        """The other endpoints that an attempt might do better at, none where there is only one."""
        if len(call.options.lanes) == 1:
            return ()
        if verdict.elsewhere:
            call.tried = (*call.tried, permit.lane)
        return others(call.options.lanes, (*call.tried, permit.lane))

    def _delay(
        self, call: _Call, permit: Permit, verdict: Verdict, told: float | None, elsewhere: Lanes
    ) -> float | None:
        """Seconds that this call waits alone before it queues up again, None where it does not."""
        if self.closed or self.retry_policy.max_retries == 0:
            return None
        if verdict.elsewhere and elsewhere:
            call.lanes = elsewhere
            return 0.0
        counted_out = self._budget.empty or (self._budget.low and call.retries > 0)
        if not verdict.retry or (verdict.counted and counted_out):
            return None
        call.lanes = others(call.options.lanes, call.tried) or call.options.lanes
        now = self._admission.now()
        free_elsewhere = bool(elsewhere) and self._admission.ready_at(elsewhere) <= now
        if free_elsewhere:
            told = None
        delay = call.schedule.next(verdict, told, self._random())
        if delay is None:
            return None
        if free_elsewhere:
            call.lanes, delay = elsewhere, 0.0
        elif verdict.signal in _SHARED:
            delay = 0.0  # everybody waits for the endpoint, and this call is the first of them
        # A wait that would pass the deadline is for nothing: better to fail now, and with the real reason.
        ready = max(now + delay, self._admission.ready_at(call.lanes))
        return None if ready >= call.deadline else delay

    def _note_refusal(self, permit: Permit, error: Exception) -> None:
        if isinstance(error, StatusError):
            self._refusals[permit.lane] = copy.copy(error)  # without its traceback
        if self._limiter is not None and self._shares_limiter:
            now = self._admission.now()
            self._limiter.push_back(max(0.0, permit.window.ready_at(now) - now))

    async def _tell_attempt(self, observer: CallObserver, call: _Call) -> None:
        await self._tell_changes(call)
        await observer.attempt(call.attempts + 1)

    async def _tell_changes(self, call: _Call) -> None:
        """Tell what the windows did to whoever listens next."""
        changes = self._admission.changes
        while changes and call.options.observer is not None:
            await call.options.observer.window(*changes.popleft())

    async def _back_off(self, delay: float) -> None:
        closing = anyio.Event()
        self._backing_off.add(closing)
        try:
            with anyio.move_on_after(delay):
                await closing.wait()
        finally:
            self._backing_off.discard(closing)
    def map(
        self,
        function: Callable[[ItemT], Awaitable[T]],
        items: Iterable[ItemT] | AsyncIterable[ItemT],
        *,
        width: int | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[CallerOutcome[ItemT, T]]]:
        """Call `function` with each of `items`; one outcome each, as they complete.

            async with caller.map(ask, questions) as outcomes:
                async for outcome in outcomes:
                    ...

        The input may be endless: an item is taken only when it is needed. An error of `function` is that item's
        outcome; an error of the input itself is raised by the iteration, after the outcomes of all items before it.
        Leaving the block cancels what is under way.

        Args:
            function: what to call.
            items: any iterable or async iterable. An async generator is closed at the end.
            width: items taken and not yet handed out as outcomes, at the most; None: twice what may be in flight,
                since some wait for a retry while others are on their way.

        Raises:
            OptionTypeError, OptionValueError: a `width` that can't be.
        """
        check_int("width", width, low=1)

        async def work(index: int, item: ItemT, send: Send[CallerOutcome[ItemT, T]]) -> None:
            try:
                result = await self.call(function, item)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's alone
                await send(CallerOutcome(index=index, item=item, error=error))
            else:
                await send(CallerOutcome(index=index, item=item, result=result))

        return fan_out(items, work, width=self.width() if width is None else width)

    def room(self, lanes: Lanes = ("",)) -> int:
        """How many attempts may be in flight now at these endpoints together, 1 or more."""
        return self._admission.room(lanes)

    def on_room(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called when `room` may have grown; gives the function that ends that."""
        self._admission.on_room.add(listener)
        return lambda: self._admission.on_room.discard(listener)

    def width(self, lanes: Lanes = ("",)) -> Width:
        """How many workers keep these endpoints busy: twice what may be in flight."""
        return _CallerWidth(self, lanes)

    def stated(self, limits: StatedLimits, lane: str = "") -> None:
        """The headers of an answer tell how much an endpoint will still take: what follows keeps to that."""
        self._admission.stated(lane, limits)

    def statistics(self) -> CallerStatistics:
        """How things stand now."""
        admission, limiter = self._admission, self._limiter
        now = admission.now()
        windows = admission.windows or {"": admission.window("")}
        return CallerStatistics(
            in_flight=admission.in_flight,
            waiting=admission.waiting,
            backing_off=len(self._backing_off),
            attempts=self._attempts,
            retries=self._retries,
            successes=self._successes,
            failures=self._failures,
            retry_budget=self._budget.level,
            max_concurrency=self.max_concurrency,
            limit=admission.room(tuple(windows)),
            requests_per_minute=None if limiter is None else limiter.requests_per_minute,
            tokens_per_minute=None if limiter is None else limiter.tokens_per_minute,
            windows={lane: window.statistics(now) for lane, window in windows.items()},
        )

    async def aclose(self) -> None:
        """Take no more calls. Those that wait fail with `ClosedError`; attempts under way end by themselves.

        Closing twice is harmless.
        """
        self._admission.close()
        for closing in self._backing_off:
            closing.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class _CallerWidth(Width):
    def __init__(self, caller: AsyncCaller, lanes: Lanes) -> None:
        self._caller = caller
        self._lanes = lanes

    def now(self) -> int:
        return 2 * self._caller.room(self._lanes)

    def on_growth(self, listener: Callable[[], None]) -> Callable[[], None]:
        return self._caller.on_room(listener)


def _concurrency(given: Any) -> tuple[int | Literal["auto"], AdaptiveConcurrency]:
    """What was asked for, and its bounds."""
    if isinstance(given, AdaptiveConcurrency):
        return "auto", given
    if given == "auto":
        return "auto", AdaptiveConcurrency()
    if isinstance(given, str):
        raise OptionValueError(f'max_concurrency is a whole number or "auto", not {given!r}')
    check_int("max_concurrency", given, low=1, optional=False)
    return given, AdaptiveConcurrency(start=given, ceiling=given)


def _limiter(given: Any, requests_per_minute: float | None, tokens_per_minute: float | None) -> Limiter | None:
    if given is None:
        if requests_per_minute is None and tokens_per_minute is None:
            return None
        return LocalLimiter(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    if not isinstance(given, Limiter):
        raise OptionTypeError(f"limiter is a Limiter, not {type(given).__name__}")
    if requests_per_minute is not None or tokens_per_minute is not None:
        raise OptionValueError("requests_per_minute, tokens_per_minute: set them on the limiter that was given")
    return given


def _is_before_sending(error: Exception) -> bool:
    return isinstance(error, UsageError) and not isinstance(error, ClosedError)


StructT = TypeVar("StructT", bound=msgspec.Struct)


def _checked(name: str, value: StructT | None, kind: type[StructT]) -> StructT:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise OptionTypeError(f"{name} is a {kind.__name__}(...), not {type(value).__name__}")
    return value
