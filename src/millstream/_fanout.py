"""Many items through a bounded number of workers: lazy input, results as they come, nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sized
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from millstream._errors import OptionTypeError

__all__ = ["Send", "fan_out"]

T = TypeVar("T")
Send = Callable[[T], Awaitable[None]]
"""What a worker gives its results to; waits while nobody takes them (that is the back-pressure)."""

_CLEAN_UP_SECONDS = 1.0


class _InputError:
    """The input itself failed: told to the reader after everything that was taken from it before."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


@asynccontextmanager
async def fan_out(
    items: Iterable[Any] | AsyncIterable[Any],
    work: Callable[[int, Any, Send[T]], Awaitable[None]],
    *,
    width: int,
) -> AsyncIterator[AsyncIterator[T]]:
    """Run ``work(index, item, send)`` for each item, at most `width` at a time, and give what they send.

    An item is taken from the input only when a worker is free, and a worker is free when all that it sent was taken.
    Leaving the block cancels what is under way. An exception of the block is raised as it is, never in a group.

    Args:
        items: any iterable or async iterable; may be endless.
        work: must not raise but for cancellation; it sends its errors.
        width: workers at the most.

    Raises:
        OptionTypeError: `items` can't be iterated, or is one text.

    """
    source = _Source(items)
    send, receive = anyio.create_memory_object_stream[Any](0)
    raised: Exception | None = None
    try:
        async with anyio.create_task_group() as workers:
            for _ in range(min(width, len(items)) if isinstance(items, Sized) else width):
                workers.start_soon(_worker, source, work, send.clone())
            send.close()
            try:
                yield _Results(receive)
            except Exception as error:  # noqa: BLE001 - raised outside of the task group, which would wrap it
                raised = error
            finally:
                receive.close()
                workers.cancel_scope.cancel()
    finally:
        await source.aclose()
    if raised is not None:
        raise raised


async def _worker(source: _Source, work: Callable[[int, Any, Send[Any]], Awaitable[None]], send: Any) -> None:
    with send:
        while True:
            try:
                index, item = await source.take()
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001 - the user's iterable: whatever it raises belongs to the reader
                await send.send(_InputError(error))
                return
            await work(index, item, send.send)


class _Results(AsyncIterator[T]):
    """What the workers send. A class, not a generator: one that is left early needs no clean-up of its own."""

    def __init__(self, receive: MemoryObjectReceiveStream[Any]) -> None:
        self._receive = receive

    async def __anext__(self) -> T:
        try:
            result: Any = await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise StopAsyncIteration from None
        if isinstance(result, _InputError):
            raise result.error
        return cast("T", result)


class _Source:
    """The input, taken from by one worker at a time."""

    def __init__(self, items: Any) -> None:
        if isinstance(items, str | bytes) or not isinstance(items, Iterable | AsyncIterable):
            raise OptionTypeError(f"prompts are a list or any (async) iterable of prompts, not {type(items).__name__}")
        self._iterator: Any = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        self._asynchronous = isinstance(items, AsyncIterable)
        self._lock = anyio.Lock()
        self._taken = 0
        self._ended = False

    async def take(self) -> tuple[int, Any]:
        """The next item and its position. Raises: StopAsyncIteration at the end, or what the iterable raises, once."""
        if not self._asynchronous:
            return self._next_item()
        async with self._lock:
            if self._ended:
                raise StopAsyncIteration
            self._ended = True  # stays so if anext() raises or is cancelled: an iterator is not asked again after that
            item = await anext(self._iterator)
            self._ended = False
            self._taken += 1
            return self._taken - 1, item

    def _next_item(self) -> tuple[int, Any]:
        if self._ended:
            raise StopAsyncIteration
        self._ended = True
        try:
            item = next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None
        self._ended = False
        self._taken += 1
        return self._taken - 1, item

    async def aclose(self) -> None:
        """Let a generator run its ``finally`` now, not when it is collected."""
        if self._asynchronous and hasattr(self._iterator, "aclose"):
            with anyio.move_on_after(_CLEAN_UP_SECONDS, shield=True):
                await self._iterator.aclose()
        elif hasattr(self._iterator, "close"):
            self._iterator.close()
