"""`AsyncCaller`: admit, attempt, classify, release the slot, wait, and again.

It knows nothing of HTTP: it is given a function, and judges the errors that this raises by their class and status.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import anyio
import msgspec

from millstream import _clock
from millstream._admission import Admission, Lanes, Permit
from millstream._backoff import classify
from millstream._calls import CallerOptions, CallerOutcome, CallerStatistics, CallObserver
from millstream._config import AdaptiveConcurrency, Deadlines, RetryPolicy, check_int
from millstream._control import Window
from millstream._errors import (
    ClosedError,
    DeadlineError,
    MillstreamError,
    OptionTypeError,
    OptionValueError,
    UsageError,
)
from millstream._fanout import Send, Width, fan_out
from millstream._headers import StatedLimits
from millstream._retrying import Call, Retrying, end_failed
from millstream.limiters import Limiter, LocalLimiter

__all__ = ["AsyncCaller", "CallObserver", "CallerOptions", "CallerOutcome", "CallerStatistics", "Lease", "Permit"]

T = TypeVar("T")
R = TypeVar("R")
ItemT = TypeVar("ItemT")

_GOES_FIRST = 3
"""A call that was refused is the first to go again, so many times: one that is always refused must not hold up all."""
_NO_OPTIONS = CallerOptions()


class Lease(msgspec.Struct, Generic[T], eq=False):
    """A result whose slot is still held, as by a stream that is being read."""

    value: T
    _permit: Permit
    attempts: int
    """Attempts that were made for it, 1 or more."""
    waited: float = 0.0
    """Seconds that were waited between them."""

    def release(self, tokens_used: int | None = None) -> None:
        """Give the slot back; the second time does nothing. Does not wait, so it is safe under cancellation.

        Args:
            tokens_used: LLM tokens that were used; None: unknown, the estimate stands.
        """
        self._permit.release(tokens_used)

    def fail(self, error: BaseException) -> None:
        """Give the slot back because `error` ended it, or somebody left it."""
        end_failed(self._permit, error, classify(error))


def _settle(call: Call, value: T, permit: Permit) -> T:
    """The value; the slot is given back."""
    used: int | None = None
    try:
        if call.options.settle is not None:
            used = call.options.settle(value)
    finally:
        permit.release(used)
    return value


def _keep(call: Call, value: T, permit: Permit) -> Lease[T]:
    if call.options.signals:
        permit.first_token()
    return Lease(value, permit, call.attempts, call.waited)


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
        self.adaptive = self.max_concurrency == "auto"
        """Whether the caller finds out by itself how many to keep in flight."""
        self._limiter = _limiter(limiter, requests_per_minute, tokens_per_minute)

        def make_window() -> Window:
            return Window(start=adaptive.start, ceiling=adaptive.ceiling, adaptive=self.adaptive, random=random)

        self._admission = Admission(make_window, adaptive.ceiling, self._limiter)
        self._retrying = Retrying(policy, self._admission, limiter, random)
        self._watch = _clock.Watch()
        self._backing_off: set[anyio.Event] = set()
        self._attempts = self._retries = self._successes = self._failures = 0

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit of tokens, so that calls do well to tell an estimate."""
        return self._limiter is not None and self._limiter.tokens_per_minute is not None

    @property
    def closed(self) -> bool:
        return self._admission.closed

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> Coroutine[Any, Any, T]:
        """The result of ``await function(*args)``, attempted again where that helps. Await it.

        Raises:
            ClosedError: the caller was closed, before or while the call waited.
            DeadlineError: `queue` or `total` was over.
            Exception: the last attempt's error; one of Millstream's has its ``attempts`` and ``waited`` set.
        """
        return self._call(_NO_OPTIONS, function, args, _settle)

    def call_with_options(
        self, options: CallerOptions, function: Callable[..., Awaitable[T]], *args: Any
    ) -> Coroutine[Any, Any, T]:
        """As `call`, with options.

        Raises:
            OptionValueError: `CallerOptions.tokens` is more than `tokens_per_minute`.
            ClosedError, DeadlineError, Exception: see `call`.
        """
        return self._call(options, function, args, _settle)

    def open(
        self, options: CallerOptions, function: Callable[..., Awaitable[T]], *args: Any
    ) -> Coroutine[Any, Any, Lease[T]]:
        """As `call_with_options`, but the slot stays held until the lease is released.

        For a stream: `function` returns when the first piece is there, and the slot is held until the last one. The
        total deadline bounds only what happens in here.

        Raises:
            OptionValueError, ClosedError, DeadlineError, Exception: see `call_with_options`.
        """
        return self._call(options, function, args, _keep)

    async def _call(
        self,
        options: CallerOptions,
        function: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        end: Callable[[Call, T, Permit], R],
    ) -> R:
        if not options.lanes:
            raise OptionValueError("lanes names at least one endpoint; the usual one is ''")
        deadlines = self.deadlines if options.deadlines is None else options.deadlines
        call = Call(options, deadlines.queue, options.lanes)
        try:
            try:
                if deadlines.total is None and options.deadline is None:
                    answer = await self._attempts_of(call, None, function, args)
                else:
                    answer = await self._attempts_until(call, deadlines.total, function, args)
            except _clock.Expired:
                answer = None
            if answer is None:
                raise DeadlineError(deadline="total", seconds=call.seconds) from call.cause
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
        self._retrying.budget.give_back()
        return end(call, *answer)

    def _attempts_until(
        self, call: Call, total: float | None, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> Awaitable[tuple[T, Permit]]:
        """One bound around everything: one for each attempt and each wait would cost as much each time.

        Raises:
            Expired: the time is over; also when this is awaited.
        """
        clock = self._admission.clock
        start = clock.now()
        deadline = math.inf if total is None else start + total
        if call.options.deadline is not None and call.options.deadline < deadline:
            deadline = call.options.deadline
        call.deadline, call.seconds = deadline, max(0.0, deadline - start)
        if deadline <= start:
            raise _clock.Expired
        return self._watch.run_until(clock.loop, deadline, self._attempts_of(call, start, function, args))

    async def _attempts_of(
        self, call: Call, now: float | None, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> tuple[T, Permit]:
        """What the last attempt gave, and its slot, which is still held."""
        options, admission = call.options, self._admission
        observer = options.observer
        permit = admission.acquire_nowait(call.lanes, options.tokens or 0, signals=options.signals, now=now)
        while True:
            if permit is None:
                permit = await self._queue(call)
            if observer is not None:
                try:
                    if admission.changes:
                        await self._tell_changes(call)
                    await observer.attempt(call.attempts + 1)
                except BaseException:
                    permit.give_back()
                    raise
            self._count_attempt(call, permit)
            try:
                value = await function(*args)
            except Exception as error:
                delay = await self._delay_after(call, permit, error)
                if delay is None:
                    raise
                call.cause, permit = error, None
            except BaseException:
                permit.broken()
                raise
            else:
                self._retrying.answered(permit.lane)
                return value, permit
            await self._back_off(delay)

    def _count_attempt(self, call: Call, permit: Permit) -> None:
        if call.options.begin is not None:
            call.options.begin(permit)
        call.attempts += 1
        self._attempts += 1
        if call.attempts > 1:
            self._retries += 1

    async def _queue(self, call: Call) -> Permit:
        """A permit, in its turn; who was admitted before goes first."""
        admission, options = self._admission, call.options
        self._retrying.check_hold(call)
        tokens, front = options.tokens or 0, 0 < call.attempts <= _GOES_FIRST
        permit: Permit | None = None
        if call.queue is None:
            permit = await admission.acquire(call.lanes, tokens, signals=options.signals, front=front)
        else:
            with anyio.CancelScope(deadline=_clock.monotonic() + call.queue):
                permit = await admission.acquire(call.lanes, tokens, signals=options.signals, front=front)
        if permit is None:
            raise DeadlineError(deadline="queue", seconds=call.queue) from call.cause
        if call.cause is not None:
            self._retrying.begin(call, permit)
        return permit

    async def _delay_after(self, call: Call, permit: Permit, error: Exception) -> float | None:
        """End a failed attempt. Seconds until the call queues up for another, None for no other."""
        delay = self._retrying.after(call, permit, error)
        await self._tell_changes(call)
        if delay is not None and call.options.observer is not None:
            shared = self._admission.ready_at(call.lanes) - call.failed_at  # what everybody waits
            await call.options.observer.retry(call.attempts, max(delay, shared), error)
        return delay

    async def _tell_changes(self, call: Call) -> None:
        """Tell what the windows did to whoever listens next."""
        changes = self._admission.changes
        observer = call.options.observer
        while changes and observer is not None and observer.hears_windows:
            await observer.window(*changes.popleft())

    async def _back_off(self, delay: float) -> None:
        if delay <= 0:
            return
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

    def places(self, lanes: Lanes = ("",)) -> Width:
        """How many attempts may be in flight at these endpoints together."""
        return _Places(self._admission, lanes, 1)

    def width(self, lanes: Lanes = ("",)) -> Width:
        """How many workers keep these endpoints busy: twice what may be in flight."""
        return _Places(self._admission, lanes, 2)

    def stated(self, limits: StatedLimits, lane: str = "") -> None:
        """The headers of an answer tell how much an endpoint will still take: what follows keeps to that."""
        self._admission.stated(lane, limits)

    def statistics(self) -> CallerStatistics:
        """How things stand now."""
        admission, limiter = self._admission, self._limiter
        now = admission.now()
        windows = admission.windows or {"": admission.fresh_window}
        return CallerStatistics(
            in_flight=admission.in_flight,
            waiting=admission.waiting,
            backing_off=len(self._backing_off),
            attempts=self._attempts,
            retries=self._retries,
            successes=self._successes,
            failures=self._failures,
            retry_budget=self._retrying.budget.level,
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


class _Places(Width):
    def __init__(self, admission: Admission, lanes: Lanes, times: int) -> None:
        self._admission = admission
        self._lanes = lanes
        self._times = times

    def now(self) -> int:
        return self._times * self._admission.room(self._lanes)

    def on_growth(self, listener: Callable[[], None]) -> Callable[[], None]:
        listeners = self._admission.on_room
        listeners.add(listener)
        return lambda: listeners.discard(listener)


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
