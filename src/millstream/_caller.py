"""`AsyncCaller`: admit, attempt, classify, release the slot, wait, and again.

It knows nothing of HTTP: it is given a function, and judges the errors that this raises by their class and status.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio
import msgspec

from millstream import _clock
from millstream._backoff import NO_CONNECTION, WRONG_ADDRESS, RetryBudget, RetrySchedule, Verdict, classify, retry_after
from millstream._config import Deadlines, RetryPolicy, check_int
from millstream._errors import ClosedError, DeadlineError, MillstreamError, OptionTypeError, UsageError
from millstream._fanout import Send, fan_out
from millstream._limits import Admission, Permit, RequestLimit, Slots, TokenLimit

__all__ = ["AsyncCaller", "CallObserver", "CallerOptions", "CallerOutcome", "CallerStatistics", "Lease"]

T = TypeVar("T")
ItemT = TypeVar("ItemT")


class CallObserver(Protocol):
    """Is told how a call goes. What it raises ends the call."""

    async def attempt(self, number: int, /) -> None:
        """An attempt is about to be made, counted from 1; its slot is held already."""

    async def retry(self, number: int, delay: float, error: Exception, /) -> None:
        """Attempt `number` failed with `error`; after `delay` seconds there will be another."""


class CallerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What can differ from call to call."""

    deadline: float | None = None
    """When the call must be over, on the event loop's clock, besides `Deadlines.total`. None: no other bound."""
    deadlines: Deadlines | None = None
    """`total` and `queue` of this call; None: those of the caller."""
    tokens: int | None = None
    """LLM tokens that the request will use, by estimate; None: unknown. Of use where `AsyncCaller.counts_tokens`."""
    observer: CallObserver | None = None
    settle: Callable[[Any], int | None] | None = None
    """Tells from the function's result how many tokens were used, None for unknown. `open` does not ask it."""


_NO_OPTIONS = CallerOptions()


class CallerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand. Counters are since the caller was made."""

    in_flight: int
    """Slots that are held: attempts being made, and streams being read."""
    waiting: int
    """Calls that wait for a slot or for a limit."""
    backing_off: int
    """Calls that wait for their next attempt; they hold no slot."""
    attempts: int
    retries: int
    """Attempts that were not the first of their call."""
    successes: int
    """Calls that gave a result."""
    failures: int
    """Calls that ended with an error. Cancelled ones are neither."""
    retry_budget: float
    """Counted retries that all calls together may still make, 0 to 100."""
    max_concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None


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


class CallerOutcome(msgspec.Struct, Generic[ItemT, T], frozen=True, kw_only=True):
    """What became of one item of `AsyncCaller.map`: `result`, or `error` where that is not None."""

    index: int
    """Its place in the input, from 0."""
    item: ItemT
    result: T | None = None
    error: Exception | None = None


class _Call:
    """One call under way."""

    __slots__ = ("attempts", "cause", "counted", "deadline", "options", "queue", "schedule", "waited")

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


class AsyncCaller:
    """Makes calls to one endpoint: so many at a time, so many a minute, again where that helps, and never for ever.

    A call waits for a slot and for the limits, first come, first served; is attempted; and where the attempt fails by
    something that passes (see the table in `millstream.classify`) gives its slot back, waits, and queues up again.
    One caller can serve several models of one endpoint. It belongs to one event loop at a time, but to none for good.

    Args:
        max_concurrency: attempts (and open streams) at a time, 1 or more.
        max_retries: attempts after the first that may have been paid for; 0: no retry of any kind; None: as
            `retry_policy` says (6).
        requests_per_minute: attempts begun in any 60 s; None: no limit.
        tokens_per_minute: LLM tokens in any 60 s, by estimate before and by usage after; None: no limit.
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
        max_concurrency: int = 64,
        max_retries: int | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        retry_policy: RetryPolicy | None = None,
        deadlines: Deadlines | None = None,
        random: Callable[[], float] = _clock.random,
    ) -> None:
        policy = _checked("retry_policy", retry_policy, RetryPolicy)
        if max_retries is not None:
            policy = RetryPolicy(**{**msgspec.structs.asdict(policy), "max_retries": max_retries})
        self.retry_policy = policy
        self.deadlines = _checked("deadlines", deadlines, Deadlines)
        self._random = random
        self._requests = None if requests_per_minute is None else RequestLimit(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else TokenLimit(tokens_per_minute)
        self._slots = Slots(max_concurrency)
        self._admission = Admission(self._slots, self._requests, self._tokens)
        self._budget = RetryBudget()
        self._watch = _clock.Watch()
        self._reached = False  # whether the endpoint has ever answered
        self._backing_off: set[anyio.Event] = set()
        self._attempts = self._retries = self._successes = self._failures = 0

    @property
    def max_concurrency(self) -> int:
        return self._slots.limit

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit of tokens, so that calls do well to tell an estimate."""
        return self._tokens is not None

    @property
    def closed(self) -> bool:
        return self._slots.closed

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
        lease = await self.open(options, function, *args)
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
        deadlines = self.deadlines if options.deadlines is None else options.deadlines
        call = _Call(options, deadlines.queue, RetrySchedule(self.retry_policy))
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
        self._reached = True
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
        options = call.options
        while True:
            permit = self._admission.acquire_nowait(options.tokens or 0) or await self._queue(call)
            if call.cause is not None and call.counted and not self._budget.take():
                permit.give_back()  # the retries of others have used up the budget meanwhile
                raise call.cause
            try:
                if options.observer is not None:
                    await options.observer.attempt(call.attempts + 1)
            except BaseException:
                permit.give_back()
                raise
            call.attempts += 1
            self._attempts += 1
            self._retries += call.attempts > 1
            try:
                return Lease(await function(*args), permit, call.attempts, call.waited)
            except Exception as error:
                verdict = classify(error)
                # Nothing was processed: no token was used. (The request itself stays counted: the server saw it.)
                permit.release(None if verdict.counted else 0)
                delay = await self._delay_after(call, error, verdict)
                if delay is None:
                    raise
                call.cause = error
                call.counted = verdict.counted
            except BaseException:
                permit.release()
                raise
            await self._back_off(call, delay)

    async def _queue(self, call: _Call) -> Permit:
        if call.queue is None:
            return await self._admission.acquire(call.options.tokens or 0)
        with anyio.CancelScope(deadline=_clock.monotonic() + call.queue):
            return await self._admission.acquire(call.options.tokens or 0)
        raise DeadlineError(deadline="queue", seconds=call.queue) from call.cause

    async def _delay_after(self, call: _Call, error: Exception, verdict: Verdict) -> float | None:
        """Seconds until the next attempt, None for no other."""
        if verdict == NO_CONNECTION:
            verdict = verdict if self._reached else WRONG_ADDRESS
        else:
            self._reached = True
        if not verdict.retry or (verdict.counted and self._budget.empty) or self.closed:
            return None
        told = retry_after(error, now=_clock.wall_time())
        delay = call.schedule.next(verdict, told, self._random())
        # A wait that would pass the deadline is for nothing: better to fail now, and with the real reason.
        if delay is None or (call.deadline < math.inf and _clock.monotonic() + delay >= call.deadline):
            return None
        if call.options.observer is not None:
            await call.options.observer.retry(call.attempts, delay, error)
        return delay

    async def _back_off(self, call: _Call, delay: float) -> None:
        closing = anyio.Event()
        self._backing_off.add(closing)
        try:
            with anyio.move_on_after(delay):
                await closing.wait()
        finally:
            self._backing_off.discard(closing)
        call.waited += delay

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
            width: items taken and not yet handed out as outcomes, at the most; None: twice `max_concurrency`, since
                some wait for a retry while others are on their way.

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

        return fan_out(items, work, width=2 * self.max_concurrency if width is None else width)

    def statistics(self) -> CallerStatistics:
        """How things stand now."""
        return CallerStatistics(
            in_flight=self._slots.in_flight,
            waiting=self._admission.waiting,
            backing_off=len(self._backing_off),
            attempts=self._attempts,
            retries=self._retries,
            successes=self._successes,
            failures=self._failures,
            retry_budget=self._budget.level,
            max_concurrency=self._slots.limit,
            requests_per_minute=None if self._requests is None else self._requests.per_minute,
            tokens_per_minute=None if self._tokens is None else self._tokens.per_minute,
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


def _is_before_sending(error: Exception) -> bool:
    return isinstance(error, UsageError) and not isinstance(error, ClosedError)


StructT = TypeVar("StructT", bound=msgspec.Struct)


def _checked(name: str, value: StructT | None, kind: type[StructT]) -> StructT:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise OptionTypeError(f"{name} is a {kind.__name__}(...), not {type(value).__name__}")
    return value
