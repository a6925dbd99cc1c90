"""One prompt's output, piece by piece."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

import anyio

from millstream._assembly import ResultBuilder, chunks_of
from millstream._errors import (
    ClosedError,
    DeadlineError,
    MillstreamError,
    StreamInterruptedError,
    TransportError,
    UsageError,
)
from millstream._results import GenerationChunk, LLMResult

__all__ = ["ChunkSource", "GeneratorSource", "LLMStream", "OpenStream", "ResultSource", "first_chunks", "read_rest"]

_CLEAN_UP_SECONDS = 1.0
_CLOSED = "this stream was closed while it was read"


class ChunkSource(Protocol):
    """Where chunks come from: an answer that is still arriving."""

    async def receive(self) -> Sequence[GenerationChunk]:
        """The next chunks, at least one; none at the end. Raises whatever ended it otherwise."""
        ...

    async def rest(self, first: Sequence[GenerationChunk]) -> LLMResult:
        """The whole result: `first`, which `receive` gave, and everything that follows; nobody reads it in between.

        The source is finished when it returns. Raises what `receive` would raise, or is cancelled: then it was left.
        """
        ...

    def end_at(self, deadline: float, seconds: float) -> None:
        """The call's total deadline, on the event loop's clock: from then on `receive` raises `DeadlineError`."""
        ...

    async def aclose(self) -> None:
        """Finish in good order (a connection may be used again)."""
        ...

    async def leave(self) -> None:
        """Finish before the end: nothing more is read; clean-up takes a second at the most, under cancellation too."""
        ...

    def abort(self) -> None:
        """Finish at once, without waiting. Harmless when it is over."""
        ...


async def read_rest(source: ChunkSource, first: Sequence[GenerationChunk]) -> LLMResult:
    """`ChunkSource.rest` for a source that knows no shorter way than `receive`."""
    builder = ResultBuilder()
    chunks = first
    try:
        while chunks:
            for chunk in chunks:
                builder.add(chunk)
            chunks = await source.receive()
        await source.aclose()
    except BaseException:
        await source.leave()
        raise
    return builder.build()


class ResultSource:
    """A result that is there already, as a source of chunks."""

    def __init__(self, result: LLMResult) -> None:
        self._chunks: Sequence[GenerationChunk] = chunks_of(result)

    async def receive(self) -> Sequence[GenerationChunk]:
        chunks, self._chunks = self._chunks, ()
        return chunks

    async def rest(self, first: Sequence[GenerationChunk]) -> LLMResult:
        return await read_rest(self, first)

    def end_at(self, deadline: float, seconds: float) -> None:
        """Nothing is waited for."""

    async def aclose(self) -> None:
        """Nothing is open."""

    async def leave(self) -> None:
        """Nothing is open."""

    def abort(self) -> None:
        """Nothing is open."""


class GeneratorSource:
    """What a model's own ``_stream`` yields, as a source of chunks."""

    def __init__(self, chunks: AsyncIterator[GenerationChunk]) -> None:
        self._chunks = chunks
        self._end: tuple[float, float] = (math.inf, math.inf)
        self._receiving: anyio.CancelScope | None = None
        self._left = False

    async def receive(self) -> Sequence[GenerationChunk]:
        deadline, seconds = self._end
        with anyio.CancelScope(deadline=deadline) as scope:
            self._receiving = scope
            try:
                async for chunk in self._chunks:
                    return (chunk,)
                return ()
            finally:
                self._receiving = None
        if self._left:
            raise ClosedError(_CLOSED)
        raise DeadlineError(deadline="total", seconds=seconds)

    async def rest(self, first: Sequence[GenerationChunk]) -> LLMResult:
        return await read_rest(self, first)

    def end_at(self, deadline: float, seconds: float) -> None:
        self._end = (deadline, seconds)

    async def aclose(self) -> None:
        """Let the generator run its ``finally``."""
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    async def leave(self) -> None:
        """The same, bounded; a generator that runs in another task is cancelled there."""
        self._left = True
        if self._receiving is not None:
            self._receiving.cancel()
            return
        with anyio.move_on_after(_CLEAN_UP_SECONDS, shield=True):
            await self.aclose()

    def abort(self) -> None:
        """Run the generator's ``finally`` up to where it waits: who has forgotten a stream waits for nothing."""
        if isinstance(self._chunks, AsyncGenerator):
            with suppress(StopIteration):
                self._chunks.aclose().send(None)


class OpenStream(Protocol):
    """A stream whose first chunks are there; made by the model when the first chunk is asked for."""

    source: ChunkSource
    first: Sequence[GenerationChunk]
    attempts: int
    waited: float
    tells_tokens: bool
    """Whether anybody listens to `token`."""

    async def token(self, chunk: GenerationChunk) -> None:
        """Tell that a chunk is handed out."""
        ...

    async def end(self, result: LLMResult) -> LLMResult:
        """Give back the slot and end the run with a result; gives it with what the model adds to it."""
        ...

    async def fail(self, error: BaseException) -> None:
        """Give back the slot and end the run with an error."""
        ...

    def drop(self) -> None:
        """The same for a stream that was left, without waiting."""
        ...


class LLMStream:
    """The chunks of one prompt, as they come: ``async for``, or ``async with`` where it may be left early.

    Nothing is sent before the first chunk is asked for. An attempt that fails before that chunk is tried again like any
    call; after it the error is raised and carries what had arrived (``error.partial``). Leaving ``async with``,
    `aclose`, cancellation and forgetting the stream all close the connection and end the run.
    """

    def __init__(self, start: Callable[[], Awaitable[OpenStream]]) -> None:
        self._start: Callable[[], Awaitable[OpenStream]] | None = start
        self._open: OpenStream | None = None
        self._ready: list[GenerationChunk] = []  # in reverse: the next one is the last
        self._builder = ResultBuilder()
        self._result: LLMResult | None = None
        self._failure: Exception | None = None
        self._busy = False
        self._closed = False
        self._starting: anyio.CancelScope | None = None

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> GenerationChunk:
        ready = self._ready
        if not ready:
            # In this frame, not in one of its own: it is between the event loop and each token.
            stream = self._open
            if stream is None or self._busy:
                ready += reversed(await self._begin())
            else:
                self._busy = True
                try:
                    chunks = await stream.source.receive()
                except BaseException as error:
                    raised = await self._break(stream, error)
                    if raised is error:
                        raise
                    raise raised from error
                finally:
                    self._busy = False
                if self._closed:
                    raise ClosedError(_CLOSED)
                if not chunks:
                    await self._end(stream)
                    raise StopAsyncIteration
                ready += reversed(chunks)
        chunk = ready.pop()
        self._builder.add(chunk)
        stream = self._open
        if stream is not None and stream.tells_tokens:
            await self._tell(stream, chunk)
        return chunk

    @property
    def text(self) -> str:
        """The text of the chunks handed out so far (of the first output, where there are several)."""
        return self._builder.text

    async def result(self) -> LLMResult:
        """The whole result; takes the chunks that are left. Raises what iterating would raise."""
        if self._result is None and self._failure is None:
            async for _ in self:
                pass
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            raise UsageError("this stream was closed before its end, so it has no result; its text so far is .text")
        return self._result

    async def aclose(self) -> None:
        """Close the connection and end the run, if they are not over. Harmless when they are.

        Another task that reads meanwhile gets `ClosedError`.
        """
        self._closed = True
        self._start = None
        self._ready.clear()
        if self._starting is not None:
            self._starting.cancel()
        stream, self._open = self._open, None
        if stream is not None:
            await _leave(stream, GeneratorExit())

    async def _begin(self) -> Sequence[GenerationChunk]:
        """Send the prompt and give the first chunks. Raises: StopAsyncIteration where that was done before."""
        if self._busy:
            raise UsageError("two tasks read one stream at the same time; use llm.stream() once for each")
        start, self._start = self._start, None
        if start is None:
            raise StopAsyncIteration
        self._busy = True
        try:
            stream = self._open = await self._started(start)
        finally:
            self._busy = False
        if self._closed:
            raise ClosedError(_CLOSED)
        if not stream.first:
            await self._end(stream)
            raise StopAsyncIteration
        return stream.first

    async def _started(self, start: Callable[[], Awaitable[OpenStream]]) -> OpenStream:
        with anyio.CancelScope() as scope:
            self._starting = scope
            try:
                stream = await start()
            except Exception as error:
                self._failure = error
                raise
            finally:
                self._starting = None
            if not self._closed:
                return stream
            await _leave(stream, GeneratorExit())
        raise ClosedError(_CLOSED)

    async def _break(self, stream: OpenStream, error: BaseException) -> BaseException:
        """End the stream because of `error`. Gives what is to be raised."""
        self._open = None
        raised = self._with_partial(error, stream)
        self._failure = raised if isinstance(raised, Exception) else None
        await _leave(stream, raised)
        return raised

    def _with_partial(self, error: BaseException, stream: OpenStream) -> BaseException:
        if not isinstance(error, MillstreamError):
            return error
        wrapped = error
        if isinstance(error, TransportError):
            reason = " ".join(map(str, error.args))
            wrapped = StreamInterruptedError(f"the stream broke after {len(self.text)} characters: {reason}")
            wrapped.provider, wrapped.request_id = error.provider, error.request_id
        wrapped.attempts, wrapped.waited = stream.attempts, stream.waited
        wrapped.partial = self.text
        wrapped.partial_result = self._builder.build() if self._builder else None
        return wrapped

    async def _end(self, stream: OpenStream) -> None:
        self._open = None
        try:
            await stream.source.aclose()
            self._result = await stream.end(self._builder.build())
        except BaseException as error:
            self._failure = error if isinstance(error, Exception) else None
            await _leave(stream, error)
            raise

    async def _tell(self, stream: OpenStream, chunk: GenerationChunk) -> None:
        try:
            await stream.token(chunk)
        except BaseException as error:
            self._open = None
            await _leave(stream, error)
            raise

    def __del__(self) -> None:
        stream: OpenStream | None = getattr(self, "_open", None)
        if stream is not None:
            self._open = None
            try:
                stream.source.abort()
            finally:
                stream.drop()


async def _leave(stream: OpenStream, error: BaseException) -> None:
    """End a stream before its end, because of `error`."""
    try:
        await stream.source.leave()
    finally:
        await stream.fail(error)


async def first_chunks(source: ChunkSource) -> Sequence[GenerationChunk]:
    """The first chunks of a source, which is closed if there is an error instead."""
    try:
        return await source.receive()
    except BaseException:
        await source.leave()
        raise
