"""`BaseLLM`, which every model of this package is, and `LLM`, which people subclass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

from millstream._caller import AsyncCaller
from millstream._config import (
    AdaptiveConcurrency,
    CallOptions,
    CallOverrides,
    Deadlines,
    check_bool,
    check_mapping,
    check_tags,
    refuse_unknown,
)
from millstream._errors import ClosedError, MillstreamError, OptionTypeError, OptionValueError
from millstream._fanout import Send, Width, fan_out, for_each
from millstream._language_model import BaseLanguageModel, Stop
from millstream._prompts import BasePromptValue, ChatMessage, PromptInput, as_prompt_value
from millstream._results import GenerationChunk, LLMResult, Outcome, StreamEvent
from millstream._runs import Listeners, Run
from millstream._streams import ChunkSource, GeneratorSource, LLMStream, ResultSource
from millstream.caches import BaseCache, InMemoryCache, SingleFlight
from millstream.callbacks import CallbackManager, CallbackManagerForLLMRun, Callbacks
from millstream.limiters import Limiter

__all__ = ["LLM", "BaseLLM", "BaseLLMParams"]


class BaseLLMParams(TypedDict, total=False):
    """What every model takes, as keywords."""

    callbacks: Callbacks
    """Handlers for every run of this model; None: none."""
    verbose: bool
    """Print prompts and answers (False)."""
    tags: Sequence[str] | None
    metadata: Mapping[str, Any] | None
    """Told with every event of this model; None: none."""
    cache: BaseCache | bool | None
    """Where answers are kept: True for the shared `InMemoryCache.global_()`, None for nowhere."""
    caller: AsyncCaller | None
    """The caller to share with other models of the same endpoint; None: one of its own, made of the next five."""
    max_concurrency: int | Literal["auto"] | AdaptiveConcurrency
    """Attempts in flight: a fixed number, or ``"auto"`` (the default): what the endpoint serves best."""
    max_retries: int
    """Retries of an attempt that may have been paid for (6); 0: none of any kind."""
    requests_per_minute: float | None
    tokens_per_minute: float | None
    """Limits over any 60 s, first come, first served; None: no limit."""
    limiter: Limiter | None
    """Such limits shared with others, in place of the last two; whoever brings one closes it."""
    deadlines: Deadlines | None


_CALLER_FIELDS = ("max_concurrency", "max_retries", "requests_per_minute", "tokens_per_minute", "limiter")
_BASE_FIELDS = tuple(BaseLLMParams.__annotations__)


class BaseLLM(BaseLanguageModel):
    """A model that answers one prompt by `_generate`; this class makes calls, batches, streams and events of it.

    Raises:
        UnknownOptionError: a keyword that does not exist; the message names the nearest that does.
        OptionTypeError, OptionValueError: a value that can't be.
    """

    def __init__(self, **params: Unpack[BaseLLMParams]) -> None:
        refuse_unknown(params, _BASE_FIELDS, f"{type(self).__name__} option")
        self.callbacks: Callbacks = params.get("callbacks")
        CallbackManager.configure(self.callbacks)  # raises here what each call would raise
        self.verbose = check_bool("verbose", params.get("verbose", False))
        self.tags = check_tags(params.get("tags"))
        check_mapping("metadata", params.get("metadata"))
        self.metadata = dict(params.get("metadata") or {})
        self.cache = _cache(params.get("cache"))
        self.caller = _caller(params)
        self._owns_caller = params.get("caller") is None
        self.options = CallOptions(deadlines=params.get("deadlines"))
        """What a call uses where it says nothing else."""
        self._flights: SingleFlight[LLMResult] = SingleFlight()
        self._closed = False
        self._is_ready = True
        """Whether `_get_ready` has nothing to do."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what the model holds. Later calls raise `ClosedError`; closing twice is harmless.

        So do calls that wait for a slot, a limit or a retry, unless the caller was brought: others may use it.
        """
        self._closed = True
        if self._owns_caller:
            await self.caller.aclose()

    # -- what a subclass is -----------------------------------------------------------------------------------------

    @abstractmethod
    async def _generate(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> LLMResult:
        """One attempt to answer one prompt: a result with one row. The caller tries again what may be."""

    async def _open_stream(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> ChunkSource:
        """One attempt to stream the answer to one prompt. A model that can't stream gives it in one piece."""
        return ResultSource(await self._generate(prompt, options, run))

    def _generate_at(
        self, lane: str, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> Awaitable[LLMResult]:
        """`_generate` at one of `_lanes`. Only a model with several endpoints needs to know which."""
        return self._generate(prompt, options, run)

    def _open_stream_at(
        self, lane: str, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> Awaitable[ChunkSource]:
        """The same for `_open_stream`."""
        return self._open_stream(prompt, options, run)

    @property
    def _lanes(self) -> tuple[str, ...]:
        """The names of the endpoints that may answer; the caller keeps a window for each."""
        return ("",)

    async def _get_ready(self, options: CallOptions) -> None:
        """Find out what `_lanes` has to know: each call waits for this before its first attempt, until `_is_ready`."""

    @property
    def _can_stream(self) -> bool:
        """Whether `_open_stream` gives the first token when it is there, and not with the last."""
        return False

    @property
    def _streams_on_wire(self) -> bool:
        """Whether whole answers are streamed too, so that the caller learns when the endpoint begins to serve them."""
        return False

    @property
    def _model_type(self) -> str:
        return "base_llm"

    def _invocation_params(self, options: CallOptions) -> dict[str, Any]:
        """Everything that can change the answer to a prompt: the cache's key is made of this."""
        return {**self.serialize(), "options": options}

    def _credential_fingerprint(self) -> str:
        """Keeps the cached answers of different credentials apart; ``""`` for a model that needs none."""
        return ""

    # -- one prompt -------------------------------------------------------------------------------------------------

    async def call(
        self, prompt: PromptInput, stop: Stop = None, *, callbacks: Callbacks = None, **overrides: Unpack[CallOverrides]
    ) -> str:
        """The text for one prompt.

        Args:
            prompt: text, a prompt value, or the messages of one chat.
            stop: texts that end the output, or whole `CallOptions`.
            callbacks: handlers for this call, beside the model's own.
            overrides: fields of `CallOptions`, over the model's.

        Raises:
            MillstreamError: see the tree in `millstream`'s errors.
        """
        value = as_prompt_value(prompt)
        return (await self._run(value, self._options(stop, overrides), self._listeners(callbacks)).answer()).text

    async def __call__(
        self, prompt: PromptInput, stop: Stop = None, *, callbacks: Callbacks = None, **overrides: Unpack[CallOverrides]
    ) -> str:
        """The same as `call`."""
        return await self.call(prompt, stop, callbacks=callbacks, **overrides)

    async def predict(
        self, text: str, stop: Stop = None, *, callbacks: Callbacks = None, **overrides: Unpack[CallOverrides]
    ) -> str:
        """The same as `call`, for text."""
        return await self.call(text, stop, callbacks=callbacks, **overrides)

    async def predict_messages(
        self,
        messages: Sequence[ChatMessage | Mapping[str, Any]],
        stop: Stop = None,
        *,
        callbacks: Callbacks = None,
        **overrides: Unpack[CallOverrides],
    ) -> ChatMessage:
        """The model's next message in a chat; tool calls that it asks for are in the message."""
        value = as_prompt_value(messages)
        result = await self._run(value, self._options(stop, overrides), self._listeners(callbacks)).answer()
        generation = result.generations[0][0]
        calls = tuple(
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in generation.tool_calls
        )
        return ChatMessage("assistant", generation.text, tool_calls=calls)

    def stream(
        self, prompt: PromptInput, stop: Stop = None, *, callbacks: Callbacks = None, **overrides: Unpack[CallOverrides]
    ) -> LLMStream:
        """The output for one prompt, piece by piece: see `LLMStream`. Takes what `call` takes."""
        value = as_prompt_value(prompt)
        options, listeners = self._options(stop, overrides), self._listeners(callbacks)
        return LLMStream(lambda: self._run(value, options, listeners).stream())

    # -- many prompts -----------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompts: Sequence[PromptInput],
        stop: Stop = None,
        *,
        callbacks: Callbacks = None,
        **overrides: Unpack[CallOverrides],
    ) -> LLMResult:
        """The outputs for all prompts, in their order; `max_concurrency` of them are in flight at a time.

        Args:
            prompts: each text, a prompt value, or the messages of one chat. None at all give an empty result.
            stop, callbacks, overrides: as for `call`.

        Raises:
            MillstreamError: the first error, after the rest was cancelled; ``prompt_index`` says which prompt.
                For outcomes one by one, where one error does not sink the others, see `map`.
        """
        values = _prompt_values(prompts)
        options, listeners = self._options(stop, overrides), self._listeners(callbacks)
        if len(values) == 1:
            try:
                return await self._run(values[0], options, listeners).answer()
            except MillstreamError as error:
                error.prompt_index = 0
                raise
        return LLMResult.join(await self._generate_all(values, options, listeners))

    async def generate_prompt(
        self,
        prompts: Sequence[BasePromptValue],
        stop: Stop = None,
        *,
        callbacks: Callbacks = None,
        **overrides: Unpack[CallOverrides],
    ) -> LLMResult:
        """The same as `generate`, for prompt values."""
        return await self.generate(prompts, stop, callbacks=callbacks, **overrides)

    def map(
        self,
        prompts: Iterable[PromptInput] | AsyncIterable[PromptInput],
        stop: Stop = None,
        *,
        callbacks: Callbacks = None,
        **overrides: Unpack[CallOverrides],
    ) -> AbstractAsyncContextManager[AsyncIterator[Outcome]]:
        """Outcomes of any number of prompts, as they complete: ``async with llm.map(prompts) as outcomes``.

        The input is read only as fast as outcomes are taken, so it may be endless. An outcome is a result or an error;
        no error touches the others. Leaving the block cancels what is under way and closes its connections.

        Raises:
            Whatever reading `prompts` raises, after the outcomes of what was read before.
        """
        options, listeners = self._options(stop, overrides), self._listeners(callbacks)

        async def work(index: int, prompt: Any, send: Send[Outcome]) -> None:
            await send(await self._outcome(index, prompt, options, listeners))

        return fan_out(prompts, work, width=_ModelWidth(self))

    def stream_many(
        self,
        prompts: Iterable[PromptInput] | AsyncIterable[PromptInput],
        stop: Stop = None,
        *,
        callbacks: Callbacks = None,
        **overrides: Unpack[CallOverrides],
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """The tokens of many prompts, merged as they come; the last event of each prompt has its outcome.

        Everything else is as for `map`.
        """
        options, listeners = self._options(stop, overrides), self._listeners(callbacks)

        async def work(index: int, prompt: Any, send: Send[StreamEvent]) -> None:
            outcome = await self._stream_into(index, prompt, options, listeners, send)
            await send(StreamEvent(index, prompt, outcome=outcome))

        return fan_out(prompts, work, width=_ModelWidth(self))

    # -- how ----------------------------------------------------------------------------------------------------

    def _options(self, stop: Stop, overrides: CallOverrides) -> CallOptions:
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} was closed")
        return self.options.merged(CallOptions.of(stop, overrides))

    def _listeners(self, callbacks: Callbacks) -> Listeners:
        manager = CallbackManager.configure(
            self.callbacks, callbacks, tags=self.tags, metadata=self.metadata, verbose=self.verbose
        )
        return Listeners(manager, self.serialize)

    def _run(self, prompt: BasePromptValue, options: CallOptions, listeners: Listeners) -> Run:
        return Run(self, prompt, options, listeners.start(prompt))

    async def _generate_all(
        self, values: Sequence[BasePromptValue], options: CallOptions, listeners: Listeners
    ) -> Sequence[LLMResult]:
        await self._get_ready(options)

        def answer(value: BasePromptValue, one_more: Callable[[], None]) -> Awaitable[LLMResult]:
            return Run(self, value, options, listeners.start(value), one_more).answer()

        results, failure = await for_each(values, answer, width=self.caller.places(self._lanes))
        if failure is not None:
            index, error = failure
            if isinstance(error, MillstreamError):
                error.prompt_index = index
            error.add_note(f"This was prompt {index} of {len(values)} (counted from 0).")
            raise error
        return results

    async def _outcome(self, index: int, prompt: Any, options: CallOptions, listeners: Listeners) -> Outcome:
        try:
            result = await self._run(as_prompt_value(prompt), options, listeners).answer()
        except Exception as error:  # noqa: BLE001 - an outcome is a result or an error
            return Outcome(index, prompt, error=error)
        return Outcome(index, prompt, result)

    async def _stream_into(
        self, index: int, prompt: Any, options: CallOptions, listeners: Listeners, send: Send[StreamEvent]
    ) -> Outcome:
        try:
            value = as_prompt_value(prompt)
            async with LLMStream(lambda: self._run(value, options, listeners).stream()) as stream:
                async for chunk in stream:
                    await send(StreamEvent(index, prompt, chunk))
                return Outcome(index, prompt, await stream.result())
        except Exception as error:  # noqa: BLE001 - an outcome is a result or an error
            return Outcome(index, prompt, error=error)


class _ModelWidth(Width):
    """How many workers keep a model's endpoints busy; which those are may turn out with the first call."""

    def __init__(self, model: BaseLLM) -> None:
        self._model = model
        self._lanes = model._lanes
        self._width = model.caller.width(self._lanes)

    def now(self) -> int:
        if self._lanes != self._model._lanes:
            self._lanes = self._model._lanes
            self._width = self._model.caller.width(self._lanes)
        return self._width.now()

    def on_growth(self, listener: Callable[[], None]) -> Callable[[], None]:
        return self._width.on_growth(listener)


class LLM(BaseLLM):
    """The class to subclass for a model of your own: say `_call`, and `_stream` too if it can stream.

        class Parrot(LLM):
            async def _call(self, prompt, options, run):
                return prompt

    Everything else is there then: `generate` with bounded concurrency, `map`, `stream`, limits, cache, events, and
    retries of errors that may pass: `ConnectionError`, `TimeoutError`, Millstream's own, and any that has a
    ``status_code`` or a ``response.status_code``. (httpx's errors without an answer are none of these: raise
    `ConnectError` or `ReadError` from them.)
    """

    @abstractmethod
    async def _call(self, prompt: str, options: CallOptions, run: CallbackManagerForLLMRun | None) -> str:
        """The text for one prompt; `run` tells events, None where nobody listens."""

    def _stream(
        self, prompt: str, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> AsyncIterator[GenerationChunk]:
        """The text piece by piece (an async generator). Without it, a stream is what `_call` gives, in one piece."""
        raise NotImplementedError

    @property
    def _llm_type(self) -> str:
        return type(self).__name__

    @property
    def _can_stream(self) -> bool:
        return type(self)._stream is not LLM._stream

    async def _generate(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> LLMResult:
        text = await self._call(prompt.to_string(), options, run)
        if not isinstance(text, str):
            raise OptionTypeError(f"{type(self).__name__}._call must give text (str), not {type(text).__name__}")
        return LLMResult.of(text)

    async def _open_stream(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> ChunkSource:
        if not self._can_stream:
            return await super()._open_stream(prompt, options, run)
        return GeneratorSource(self._stream(prompt.to_string(), options, run))


def _prompt_values(prompts: Any) -> list[BasePromptValue]:
    if isinstance(prompts, AsyncIterable):
        raise OptionTypeError(f"generate() takes a list of prompts, not {type(prompts).__name__}; map() takes that too")
    if isinstance(prompts, str | bytes | Mapping | BasePromptValue) or not isinstance(prompts, Iterable):
        raise OptionTypeError(
            f"generate() takes a list of prompts, not {type(prompts).__name__}; for one prompt use call()"
        )
    values: list[BasePromptValue] = []
    for index, prompt in enumerate(prompts):
        try:
            values.append(as_prompt_value(prompt))
        except (OptionTypeError, OptionValueError) as error:
            error.prompt_index = index
            error.add_note(f"This was prompt {index} (counted from 0); nothing was sent.")
            raise
    return values


def _cache(cache: Any) -> BaseCache | None:
    if cache is None or cache is False:
        return None
    if cache is True:
        return InMemoryCache.global_()
    if not isinstance(cache, BaseCache):
        raise OptionTypeError(f"cache is a BaseCache, True (the shared one) or None, not {type(cache).__name__}")
    return cache


def _caller(params: BaseLLMParams) -> AsyncCaller:
    own: dict[str, Any] = {name: value for name, value in params.items() if name in _CALLER_FIELDS}
    caller = params.get("caller")
    if caller is None:
        return AsyncCaller(**own)
    if not isinstance(caller, AsyncCaller):
        raise OptionTypeError(f"caller is an AsyncCaller, not {type(caller).__name__}")
    if own:
        raise OptionValueError(f"{', '.join(own)}: these are the caller's, and a caller was given; set them there")
    return caller
