"""One prompt's way: cache, single flight, caller, events. Every run that starts ends exactly once."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import anyio
import msgspec

from millstream import _clock
from millstream._assembly import parse_response
from millstream._backoff import classify, retry_after
from millstream._caller import AsyncCaller, CallerOptions, Lease, Permit
from millstream._config import CallOptions
from millstream._control import WindowChange
from millstream._errors import DeadlineError
from millstream._language_model import estimate_tokens
from millstream._prompts import BasePromptValue
from millstream._results import GenerationChunk, LLMResult, SerializedLLM
from millstream._streams import ChunkSource, ResultSource, first_chunks
from millstream.caches import BaseCache, SingleFlight, cache_key, is_cacheable, lookup_safely, update_safely
from millstream.callbacks import CallbackManager, CallbackManagerForLLMRun

__all__ = ["Listeners", "Run", "RunStream"]

_USUAL_OUTPUT_TOKENS = 256
"""Reserved for an output whose length nobody bounds, until the usage says what it was."""


class Model(Protocol):
    """What a run needs of the model that it belongs to."""

    caller: AsyncCaller
    cache: BaseCache | None
    _flights: SingleFlight[LLMResult]

    @property
    def _lanes(self) -> tuple[str, ...]: ...

    @property
    def _can_stream(self) -> bool: ...

    @property
    def _streams_on_wire(self) -> bool: ...

    @property
    def _is_ready(self) -> bool: ...

    async def _get_ready(self, options: CallOptions) -> None: ...

    def _generate_at(
        self, lane: str, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> Awaitable[LLMResult]: ...

    def _open_stream_at(
        self, lane: str, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> Awaitable[ChunkSource]: ...

    def _invocation_params(self, options: CallOptions) -> dict[str, Any]: ...

    def _credential_fingerprint(self) -> str: ...


class Listeners:
    """Who hears of the runs of one call, and how the model is described to them: found out once for all its prompts."""

    __slots__ = ("_describe", "_described", "_manager")

    def __init__(self, manager: CallbackManager | None, describe: Callable[[], SerializedLLM]) -> None:
        self._manager = manager
        self._describe = describe
        self._described: SerializedLLM | None = None

    def start(self, prompt: BasePromptValue) -> CallbackManagerForLLMRun | None:
        """Tell that a run of `prompt` starts; None where nobody listens."""
        if self._manager is None:
            return None
        return self._manager.start_run(self._described or self._description, prompt.to_string())

    def _description(self) -> SerializedLLM:
        if self._described is None:
            self._described = self._describe()
        return self._described


class Run(msgspec.Struct, eq=False):
    """One prompt of one call, from its start event on. Call `answer` or `stream`, once."""

    _model: Model
    _prompt: BasePromptValue
    _options: CallOptions
    _run: CallbackManagerForLLMRun | None
    _on_back_off: Callable[[], None] | None = None
    _shares: bool = False
    _attempts: int = 0
    _waited: float = 0.0
    _cause: Exception | None = None
    _permit: Permit | None = None

    async def answer(self) -> LLMResult:
        """The whole result. Raises: whatever the model and the caller raise."""
        run, cache = self._run, self._model.cache
        try:
            if run is not None and run.owes:
                await run.start()
            result = await (self._ask() if cache is None else self._find_in(cache))
            if self._options.response_format is not None:
                result = parse_response(result, self._options)
        except BaseException as error:
            if run is not None:
                await run.on_llm_error(error)
            raise
        if run is not None:
            await run.on_llm_end(result)
        return result

    async def stream(self) -> RunStream:
        """The stream, with its first chunks. Raises: whatever the model and the caller raise."""
        try:
            if self._run is not None:
                await self._run.start()
            return await self._open()
        except BaseException as error:
            if self._run is not None:
                await self._run.on_llm_error(error)
            raise

    async def attempt(self, number: int, /) -> None:
        """For the caller: tell that it makes an attempt."""
        self._attempts = number
        if self._run is not None and self._run.wants("on_attempt"):
            await self._run.on_attempt(number)

    async def retry(self, number: int, delay: float, error: Exception, /) -> None:
        """For the caller: tell that it will make another."""
        self._waited += delay
        if self._shares:
            self._cause = error
        if self._on_back_off is not None:
            self._on_back_off()
        if self._run is None:
            return
        kind = classify(error).signal
        if kind in ("rate", "overload", "loading"):
            told = retry_after(error, now=_clock.wall_time())
            await self._run.on_rate_limit(getattr(error, "status_code", None), told, kind)
        await self._run.on_retry(number, delay, error)

    @property
    def hears_windows(self) -> bool:
        """For the caller: whether anybody listens to `window`."""
        return self._run is not None and self._run.wants("on_window")

    async def window(self, lane: str, change: WindowChange, time: float, /) -> None:
        """For the caller: tell what it does about an endpoint's limits."""
        if self._run is not None:
            await self._run.on_window(lane, change, time)

    async def _find_in(self, cache: BaseCache) -> LLMResult:
        key = self._cache_key()
        found = await lookup_safely(cache, key)
        if found is not None:
            await self._tell_hit(shared=False)
            return found

        async def fetch() -> LLMResult:
            result = await self._ask()
            if is_cacheable(result):
                await update_safely(cache, key, result)
            return result

        total = self._total
        ends = math.inf if total is None else _clock.monotonic() + total
        self._shares = True
        try:
            # Each has its own deadline: one that is over hands the fetch to the next, whose deadline may be later.
            with anyio.CancelScope(deadline=ends):
                result, shared = await self._model._flights.run(key, fetch)
                if shared:
                    await self._tell_hit(shared=True)
                return result
            raise self._not_finished(total) from self._cause
        finally:
            self._cause = None  # its traceback leads back here, and nothing is left to the garbage collector

    @property
    def _total(self) -> float | None:
        return (self._options.deadlines or self._model.caller.deadlines).total

    def _not_finished(self, total: float | None) -> DeadlineError:
        error = DeadlineError(deadline="total", seconds=total)
        error.attempts, error.waited = self._attempts, self._waited
        return error

    def _ask(self) -> Awaitable[LLMResult]:
        model = self._model
        if not model._is_ready:
            return self._ask_when_ready()
        is_streamed = model._streams_on_wire
        attempt = self._stream_whole if is_streamed else self._generate
        return model.caller.call_with_options(self._caller_options(signals=is_streamed), attempt)

    async def _ask_when_ready(self) -> LLMResult:
        await self._model._get_ready(self._options)
        return await self._ask()

    def _begin(self, permit: Permit) -> None:
        self._permit = permit

    @property
    def _lane(self) -> str:
        return "" if self._permit is None else self._permit.lane

    def _generate(self) -> Awaitable[LLMResult]:
        return self._model._generate_at(self._lane, self._prompt, self._options, self._run)

    async def _stream_whole(self) -> LLMResult:
        """The whole answer, streamed only because that tells when the endpoint began to serve it."""
        source, first = await self._open_first()
        if self._permit is not None:
            self._permit.first_token()
        return await source.rest(first)

    async def _open(self) -> RunStream:
        model = self._model
        cache, key = model.cache, ""
        if cache is not None:
            key = self._cache_key()
            found = await lookup_safely(cache, key)
            if found is not None:
                await self._tell_hit(shared=False)
                source = ResultSource(found)
                return RunStream(self._options, self._run, source, await source.receive())
        began = _clock.monotonic()
        if not model._is_ready:
            await model._get_ready(self._options)
        lease = await model.caller.open(self._caller_options(signals=model._can_stream), self._open_first)
        source_and_first: tuple[ChunkSource, Sequence[GenerationChunk]] = lease.value
        total = self._total
        if total is not None:
            source_and_first[0].end_at(began + total, total)
        stream = RunStream(self._options, self._run, *source_and_first, lease=lease)
        if cache is not None:
            stream.keep = (cache, key)
        return stream

    async def _open_first(self) -> tuple[ChunkSource, Sequence[GenerationChunk]]:
        source = await self._model._open_stream_at(self._lane, self._prompt, self._options, self._run)
        return source, await first_chunks(source)

    def _cache_key(self) -> str:
        params = self._model._invocation_params(self._options)
        return cache_key(params, self._prompt, namespace=self._model._credential_fingerprint())

    def _caller_options(self, *, signals: bool = False) -> CallerOptions:
        lanes = self._model._lanes
        return CallerOptions(
            deadlines=self._options.deadlines,
            tokens=self._estimate() if self._model.caller.counts_tokens else None,
            settle=_tokens_used,
            observer=self if self._run is not None or self._on_back_off is not None or self._shares else None,
            lanes=lanes,
            begin=self._begin if signals or len(lanes) > 1 else None,  # else nobody asks for the permit
            signals=signals,
        )

    def _estimate(self) -> int:
        options = self._options
        output = (options.max_tokens or _USUAL_OUTPUT_TOKENS) * (options.n or 1)
        return estimate_tokens(self._prompt.to_string()) + output

    async def _tell_hit(self, *, shared: bool) -> None:
        if self._run is not None:
            await self._run.on_cache_hit(shared=shared)


def _tokens_used(result: Any) -> int | None:
    """What an answer cost, for the token limit; None where nobody knows (then the estimate stands)."""
    return result.usage.total_tokens if isinstance(result, LLMResult) and result.usage is not None else None


class RunStream:
    """A stream that has begun, with the slot that it holds and the run that it belongs to."""

    def __init__(
        self,
        options: CallOptions,
        run: CallbackManagerForLLMRun | None,
        source: ChunkSource,
        first: Sequence[GenerationChunk],
        *,
        lease: Lease[Any] | None = None,
    ) -> None:
        self.source = source
        self.first = first
        self.attempts = 0 if lease is None else lease.attempts
        self.waited = 0.0 if lease is None else lease.waited
        self.tells_tokens = run is not None and run.wants_tokens
        self.keep: tuple[BaseCache, str] | None = None
        self._options = options
        self._run = run
        self._lease = lease

    async def token(self, chunk: GenerationChunk) -> None:
        """Tell that a chunk is handed out."""
        if self._run is not None:
            await self._run.on_llm_new_token(chunk)

    async def end(self, result: LLMResult) -> LLMResult:
        """Give back the slot, keep the result where there is a cache, end the run."""
        self._release(_tokens_used(result))
        if self.keep is not None and is_cacheable(result):
            cache, key = self.keep
            await update_safely(cache, key, result)
        if self._options.response_format is not None:
            result = parse_response(result, self._options)
        if self._run is not None:
            await self._run.on_llm_end(result)
        return result

    async def fail(self, error: BaseException) -> None:
        """Give back the slot, end the run with `error`."""
        self._fail(error)
        if self._run is not None:
            await self._run.on_llm_error(error)

    def drop(self) -> None:
        """The same for a stream that nobody reads any more, without waiting."""
        self._fail(GeneratorExit())
        if self._run is not None:
            self._run.end_now(GeneratorExit())

    def _release(self, tokens_used: int | None) -> None:
        if self._lease is not None:
            self._lease.release(tokens_used)
            self._lease = None

    def _fail(self, error: BaseException) -> None:
        if self._lease is not None:
            self._lease.fail(error)
            self._lease = None
