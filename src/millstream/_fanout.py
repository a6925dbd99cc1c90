"""Many items through a bounded number of workers: lazy input, results as they come, nothing left behind."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

import anyio
import anyio.lowlevel

from millstream._errors import OptionTypeError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ["Send", "Width", "fan_out", "for_each"]

T = TypeVar("T")
R = TypeVar("R")
Send = Callable[[T], Awaitable[None]]
"""What a worker gives its results to; waits while nobody takes them (that is the back-pressure)."""

_CLEAN_UP_SECONDS = 1.0


class Width(Protocol):
    """How many workers there may be, where that changes."""

    def now(self) -> int:
        """At the most, at this moment; 1 or more."""
        ...

    def on_growth(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called when `now` may have grown; gives the function that ends that."""
        ...


@asynccontextmanager
async def fan_out(
    items: Iterable[Any] | AsyncIterable[Any],
    work: Callable[[int, Any, Send[T]], Awaitable[None]],
    *,
    width: int | Width,
) -> AsyncGenerator[AsyncIterator[T]]:
    """Run ``work(index, item, send)`` for each item, at most `width` at a time, and give what they send.

    An item is taken from the input only when a worker is free, and a worker is free when all that it sent was taken.
    Each worker starts the next one when there was an item for it: few items make few tasks. Where `width` shrinks,
    those that are too many end when they have sent what they have. Leaving the block cancels what is under way. An
    exception of the block is raised as it is, never in a group; one of the input is raised by the iteration, after the
    results of all items before it.

    Args:
        items: any iterable or async iterable; may be endless.
        work: must not raise but for cancellation; it sends its errors.
        width: workers at the most.

    Raises:
        OptionTypeError: `items` can't be iterated, or is one text.
        Exception: what reading `items` raises.
    """
    source = _Source(items)
    send, receive = anyio.create_memory_object_stream[Any](0)
    raised: BaseException | None = None
    try:
        async with anyio.create_task_group() as workers:
            crew = _Crew(workers, source, work, width)
            crew.start(send)
            stop_growing = None if isinstance(width, int) else width.on_growth(crew.grow)
            try:
                yield _Results(receive, source)
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised below, unwrapped
                raised = error
            finally:
                crew.leaving = True
                if stop_growing is not None:
                    stop_growing()
                workers.cancel_scope.cancel()
    finally:
        receive.close()  # not before the workers ended: one that still sends would fail instead of being cancelled
        await source.aclose()
    if raised is not None:
        raise raised


class _Crew:
    """The workers of one `fan_out`."""

    def __init__(
        self,
        group: TaskGroup,
        source: _Source,
        work: Callable[[int, Any, Send[Any]], Awaitable[None]],
        width: int | Width,
    ) -> None:
        self._group = group
        self._source = source
        self._work = work
        self._width = width
        self._running: set[MemoryObjectSendStream[Any]] = set()
        self.leaving = False

    @property
    def _most(self) -> int:
        return self._width if isinstance(self._width, int) else self._width.now()

    def start(self, send: MemoryObjectSendStream[Any]) -> None:
        """One more worker, that sends there."""
        self._running.add(send)
        self._group.start_soon(self._run, send)

    def grow(self) -> None:
        """One more worker, if there may be one."""
        if self._running and len(self._running) < self._most and not self.leaving:
            self.start(next(iter(self._running)).clone())

    async def _run(self, send: MemoryObjectSendStream[Any]) -> None:
        with send:
            try:
                while len(self._running) <= self._most and (taken := await self._source.take()) is not None:
                    self.grow()
                    await self._work(*taken, send.send)
            except BaseException:
                self.leaving = True  # cancelled workers make room: nobody shall use it
                raise
            finally:
                self._running.discard(send)


async def for_each(
    values: Sequence[T],
    work: Callable[[T, Callable[[], None]], Awaitable[R]],
    *,
    width: Width,
) -> tuple[list[R], tuple[int, Exception] | None]:
    """The results of ``work(value, one_more)`` for each value, with as many workers as `width` allows.

    As many workers as may be in flight: one that has ended its call makes the next one without waiting for a turn.
    `one_more` says that a call waits for its retry, so that somebody else can use its place meanwhile. The first error
    cancels the rest; it is given back with its index, None without one (the results are of use only then).
    """
    left = iter(enumerate(values))
    results: list[Any] = [None] * len(values)
    failures: list[tuple[int, Exception]] = []
    running = spare = done = 0

    async def worker(scope: anyio.CancelScope) -> None:
        nonlocal running, done
        with scope:
            for index, value in left:
                if failures:
                    return
                try:
                    results[index] = await work(value, one_more)
                except Exception as error:  # noqa: BLE001 - the first one is given back
                    failures.append((index, error))
                    workers.cancel()
                    return
                done += 1
                if running > width.now() + spare:
                    break
            running -= 1

    def one_more() -> None:
        nonlocal spare
        if spare < width.now():
            spare += 1
            grow()

    def grow() -> None:
        nonlocal running
        while not failures and running < width.now() + spare and done + running < len(values):
            running += 1
            workers.start_soon(worker)

    stop_growing = width.on_growth(grow)
    try:
        async with _open_workers() as workers:
            grow()
    finally:
        stop_growing()
    return results, failures[0] if failures else None


class _Workers(Protocol):
    """Tasks that end before whoever opened this goes on."""

    def start_soon(self, work: Callable[[anyio.CancelScope], Coroutine[Any, Any, None]], /) -> None:
        """One more. It enters the scope that it is given before anything else."""

    def cancel(self) -> None:
        """Cancel all of them, also those that are started later."""


def _open_workers() -> AbstractAsyncContextManager[_Workers]:
    try:
        return _AsyncioWorkers(asyncio.get_running_loop())
    except RuntimeError:
        return _open_anywhere()


@asynccontextmanager
async def _open_anywhere() -> AsyncGenerator[_Workers]:
    async with anyio.create_task_group() as group:
        yield _AnyioWorkers(group)


class _AnyioWorkers:
    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def start_soon(self, work: Callable[[anyio.CancelScope], Coroutine[Any, Any, None]], /) -> None:
        self._group.start_soon(work, anyio.CancelScope())

    def cancel(self) -> None:
        self._group.cancel_scope.cancel()


class _AsyncioWorkers:
    """The same as a task group of anyio, for half of what that makes a task cost (a handle, an event, a name).

    Each task is cancelled by a scope of its own and not by `Task.cancel`, so that shields inside it hold.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._context = contextvars.copy_context()  # else each task makes one of its own, to tell its end in
        self._tasks: dict[asyncio.Task[None], anyio.CancelScope] = {}
        self._errors: list[BaseException] = []
        self._cancelled = False
        self._all_ended: asyncio.Future[None] | None = None

    def start_soon(self, work: Callable[[anyio.CancelScope], Coroutine[Any, Any, None]], /) -> None:
        scope = anyio.CancelScope()
        if self._cancelled:
            scope.cancel()
        task = asyncio.Task(work(scope), loop=self._loop)
        self._tasks[task] = scope
        task.add_done_callback(self._end, context=self._context)

    def cancel(self) -> None:
        self._cancelled = True
        for scope in self._tasks.values():
            scope.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancel()
        if not self._tasks:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope() as waiting:
            while self._tasks:
                self._all_ended = self._loop.create_future()
                try:
                    await self._all_ended
                except asyncio.CancelledError as told:
                    self.cancel()
                    waiting.shield = True  # to be told once is enough; the next one is not of a scope
                    cancelled = told
        try:
            if self._errors:
                raise BaseExceptionGroup("errors of workers", self._errors)
            if cancelled is not None and error is None:
                raise cancelled
        finally:
            del error, cancelled, self._errors  # what they lead to leads back here

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._errors.append(error)
        if error is not None or task.cancelled():
            self.cancel()
        if not self._tasks and self._all_ended is not None and not self._all_ended.done():
            self._all_ended.set_result(None)


class _Results(AsyncIterator[T]):
    """What the workers send. A class, not a generator: one that is left early needs no clean-up of its own."""

    def __init__(self, receive: MemoryObjectReceiveStream[Any], source: _Source) -> None:
        self._receive = receive
        self._source = source

    async def __anext__(self) -> T:
        try:
            return cast("T", await self._receive.receive())
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            pass
        # Cancelled workers end too: that is not the end of the results, and must not look like it.
        await anyio.lowlevel.checkpoint_if_cancelled()
        error, self._source.error = self._source.error, None
        if error is not None:
            raise error
        raise StopAsyncIteration


class _Source:
    """The input, taken from by one worker at a time."""

    def __init__(self, items: Any) -> None:
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable | AsyncIterable):
            raise OptionTypeError(f"the input is a list or any (async) iterable, not {type(items).__name__}")
        self._iterator: Any = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        self._asynchronous = isinstance(items, AsyncIterable)
        self._lock = anyio.Lock()
        self._taken = 0
        self._ended = False
        self.error: Exception | None = None
        """What the input raised, until it is raised to the reader."""

    async def take(self) -> tuple[int, Any] | None:
        """The next item with its position; None at the end, which an error of the input is too."""
        if not self._asynchronous:
            return self._next_item()
        async with self._lock:
            if self._ended:
                return None
            self._ended = True  # stays so if anext() raises or is cancelled: an iterator is not asked again after that
            try:
                item = await anext(self._iterator)
            except StopAsyncIteration:
                return None
            except Exception as error:  # noqa: BLE001 - the user's iterable: whatever it raises belongs to the reader
                self.error = error
                return None
            self._ended = False
            self._taken += 1
            return self._taken - 1, item

    def _next_item(self) -> tuple[int, Any] | None:
        if self._ended:
            return None
        self._ended = True
        try:
            item = next(self._iterator)
        except StopIteration:
            return None
        except Exception as error:  # noqa: BLE001 - as above
            self.error = error
            return None
        self._ended = False
        self._taken += 1
        return self._taken - 1, item

    async def aclose(self) -> None:
        """Let a generator run its ``finally`` now, not when it is collected."""
        if self._asynchronous and hasattr(self._iterator, "aclose"):
            with anyio.move_on_after(_CLEAN_UP_SECONDS, shield=True):
                await self._iterator.aclose()
