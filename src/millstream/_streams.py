"""One prompt's output, piece by piece."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import anyio

from millstream._assembly import ResultBuilder, chunks_of
from millstream._errors import DeadlineError, MillstreamError, StreamInterruptedError, TransportError, UsageError
from millstream._results import GenerationChunk, LLMResult

__all__ = ["ChunkSource", "LLMStream", "OpenStream", "ResultSource"]


class ChunkSource(Protocol):
    """Where chunks come from: an answer that is still arriving."""

    async def receive(self) -> Sequence[GenerationChunk]:
        """The next chunks, at least one; none at the end. Raises whatever ended it otherwise."""
        ...

    def end_at(self, deadline: float, seconds: float) -> None:
        """The call's total deadline, on the event loop's clock: from then on `receive` raises `DeadlineError`."""
        ...

    async def aclose(self) -> None:
        """Finish in good order (a connection may be used again)."""
        ...

    def abort(self) -> None:
        """Finish at once, without waiting. Harmless when it is over."""
        ...


class ResultSource:
    """A result that is there already, as a source of chunks."""

    def __init__(self, result: LLMResult) -> None:
        self._chunks: Sequence[GenerationChunk] = chunks_of(result)

    async def receive(self) -> Sequence[GenerationChunk]:
        chunks, self._chunks = self._chunks, ()
        return chunks

    def end_at(self, deadline: float, seconds: float) -> None:
        """Nothing is waited for."""

    async def aclose(self) -> None:
        """Nothing is open."""

    def abort(self) -> None:
        """Nothing is open."""


class GeneratorSource:
    """What a model's own ``_stream`` yields, as a source of chunks."""

    def __init__(self, chunks: AsyncIterator[GenerationChunk]) -> None:
        self._chunks = chunks
        self._end: tuple[float, float] = (math.inf, math.inf)

    async def receive(self) -> Sequence[GenerationChunk]:
        deadline, seconds = self._end
        with anyio.CancelScope(deadline=deadline) as scope:
            async for chunk in self._chunks:
                return (chunk,)
            return ()
        assert scope.cancelled_caught
        raise DeadlineError(deadline="total", seconds=seconds)

    def end_at(self, deadline: float, seconds: float) -> None:
        self._end = (deadline, seconds)

    async def aclose(self) -> None:
        """Let the generator run its ``finally``."""
        if hasattr(self._chunks, "aclose"):
            await self._chunks.aclose()

    def abort(self) -> None:
        """A generator can't be closed without awaiting it: the event loop does, when it is collected."""


class OpenStream(Protocol):
    """A stream whose first chunks are there; made by the model when the first chunk is asked for."""

    source: ChunkSource
    first: Sequence[GenerationChunk]
    attempts: int
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
        self._failure: BaseException | None = None
        self._busy = False

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> GenerationChunk:
        while not self._ready:
            await self._advance()
        chunk = self._ready.pop()
        self._builder.add(chunk)
        if self._open is not None and self._open.tells_tokens:
            await self._tell(self._open, chunk)
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
        """Close the connection and end the run, if they are not over. Harmless when they are."""
        self._start = None
        self._ready.clear()
        stream, self._open = self._open, None
        if stream is not None:
            stream.source.abort()
            await stream.fail(GeneratorExit())

    async def _advance(self) -> None:
        """Have at least one chunk ready. Raises: StopAsyncIteration at the end."""
        if self._busy:
            raise UsageError("two tasks read one stream at the same time; use llm.stream() once for each")
        self._busy = True
        try:
            if self._start is not None:
                start, self._start = self._start, None
                self._open = await start()
                chunks = self._open.first
            elif self._open is not None:
                chunks = await self._receive(self._open)
            else:
                raise StopAsyncIteration
        finally:
            self._busy = False
        if not chunks and self._open is not None:
            await self._end(self._open)
            raise StopAsyncIteration
        self._ready.extend(reversed(chunks))

    async def _receive(self, stream: OpenStream) -> Sequence[GenerationChunk]:
        try:
            return await stream.source.receive()
        except BaseException as error:
            self._open = None
            stream.source.abort()
            raised = self._with_partial(error, stream.attempts)
            await stream.fail(raised)
            self._failure = raised if isinstance(raised, Exception) else None
            if raised is error:
                raise
            raise raised from error

    def _with_partial(self, error: BaseException, attempts: int) -> BaseException:
        if not isinstance(error, MillstreamError):
            return error
        wrapped = error
        if isinstance(error, TransportError):
            wrapped = StreamInterruptedError(f"the stream broke after {len(self.text)} characters: {error}")
        wrapped.attempts = attempts
        wrapped.partial = self.text
        wrapped.partial_result = self._builder.build() if self._builder else None
        return wrapped

    async def _end(self, stream: OpenStream) -> None:
        self._open = None
        try:
            await stream.source.aclose()
            self._result = await stream.end(self._builder.build())
        except BaseException as error:
            stream.source.abort()
            await stream.fail(error)
            raise

    async def _tell(self, stream: OpenStream, chunk: GenerationChunk) -> None:
        try:
            await stream.token(chunk)
        except BaseException as error:
            self._open = None
            stream.source.abort()
            await stream.fail(error)
            raise

    def __del__(self) -> None:
        stream: OpenStream | None = getattr(self, "_open", None)
        if stream is not None:
            self._open = None
            stream.source.abort()
            stream.drop()


async def first_chunks(source: ChunkSource) -> Sequence[GenerationChunk]:
    """The first chunks of a source, which is closed if there is an error instead."""
    try:
        return await source.receive()
    except BaseException:
        source.abort()
        raise
