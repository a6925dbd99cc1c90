"""From the handlers of a model and a call to the runs that tell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from millstream import _clock
from millstream._config import check_tags
from millstream._control import RejectKind, WindowChange
from millstream._errors import OptionTypeError
from millstream._events import (
    AttemptEvent,
    CacheHitEvent,
    LLMEndEvent,
    LLMErrorEvent,
    LLMNewTokenEvent,
    LLMStartEvent,
    RateLimitEvent,
    RetryEvent,
    TextEvent,
    WindowEvent,
)
from millstream._results import GenerationChunk, LLMResult, SerializedLLM
from millstream.callbacks._base import BaseCallbackHandler
from millstream.callbacks._console import ConsoleCallbackHandler
from millstream.callbacks._dispatch import (
    Index,
    Late,
    call_late,
    call_now,
    discard_late,
    index_hooks,
    is_cancellation,
)

__all__ = ["CallbackManager", "CallbackManagerForLLMRun", "Callbacks"]


class CallbackManager:
    """A set of handlers, with what is told of every run that starts here.

    Args:
        handlers: who listens; the same object twice counts once.
        tags: words for every run.
        metadata: facts for every run; handlers share it and must not change it.
        parent_run_id: the run that these are a part of, None at the top.

    Raises:
        OptionTypeError: something else than handlers, or tags that are one text.
    """

    __slots__ = ("_handlers", "_index", "metadata", "parent_run_id", "tags")

    def __init__(
        self,
        handlers: Sequence[BaseCallbackHandler] = (),
        *,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        self._handlers: tuple[BaseCallbackHandler, ...] = ()
        self._index: Index = {}
        self._set_handlers(_distinct(_checked(handlers)))
        self.tags = tuple(dict.fromkeys(check_tags(tags)))
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.parent_run_id = parent_run_id

    def __repr__(self) -> str:
        return f"<CallbackManager of {', '.join(handler.name for handler in self._handlers) or 'nobody'}>"

    @property
    def handlers(self) -> tuple[BaseCallbackHandler, ...]:
        """Who listens, in the order of being told (plain methods before ``async`` ones)."""
        return self._handlers

    @property
    def index(self) -> Index:
        """The methods that are called, by hook. For runs; it is replaced and never changed."""
        return self._index

    def _set_handlers(self, handlers: tuple[BaseCallbackHandler, ...]) -> None:
        # Replaced, never changed: a run keeps the index that it started with, so that start and end have one audience.
        self._handlers = handlers
        self._index = index_hooks(handlers)

    def add_handler(self, handler: BaseCallbackHandler) -> None:
        """Tell this one too, from the next run on. Raises: OptionTypeError."""
        self._set_handlers(_distinct((*self._handlers, *_checked([handler]))))

    def remove_handler(self, handler: BaseCallbackHandler) -> None:
        """Tell this one no more, from the next run on; harmless where it is not among them."""
        self._set_handlers(tuple(each for each in self._handlers if each is not handler))

    def copy(self) -> CallbackManager:
        """A manager of the same handlers, to which others can be added."""
        return CallbackManager(self._handlers, tags=self.tags, metadata=self.metadata, parent_run_id=self.parent_run_id)

    def wants(self, hook: str) -> bool:
        """Whether anybody listens to ``hook`` (such as ``"on_llm_new_token"``)."""
        return hook in self._index

    @classmethod
    def configure(
        cls,
        inheritable: Callbacks = None,
        local: Callbacks = None,
        *,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        verbose: bool = False,
        parent_run_id: str | None = None,
    ) -> CallbackManager | None:
        """Merge a model's callbacks with those of one call.

        Args:
            inheritable: the model's. A manager brings its tags, metadata and parent along.
            local: the call's; they come after the model's, their metadata over the model's.
            tags: added to those of both.
            metadata: put over that of both.
            verbose: print prompts and answers too, unless a `ConsoleCallbackHandler` does already.
            parent_run_id: for all runs; None: the call's manager's, else the model's manager's, else none.

        Returns:
            The manager, None where nobody listens to anything.

        Raises:
            OptionTypeError: something else than handlers.
        """
        if not inheritable and not local and not verbose:
            return None
        first, second = _manager_of(inheritable), _manager_of(local)
        handlers = _distinct((*_handlers_of(inheritable), *_handlers_of(local)))
        if verbose and not any(isinstance(handler, ConsoleCallbackHandler) for handler in handlers):
            handlers = (*handlers, ConsoleCallbackHandler())
        merged = cls(
            handlers,
            tags=(*first.tags, *second.tags, *check_tags(tags)),
            metadata={**first.metadata, **second.metadata, **(metadata or {})},
            parent_run_id=parent_run_id or second.parent_run_id or first.parent_run_id,
        )
        return merged if merged.index else None

    def on_llm_start(
        self, llm: SerializedLLM | Callable[[], SerializedLLM], prompts: Sequence[str]
    ) -> list[CallbackManagerForLLMRun]:
        """Start one run for each prompt.

        Plain methods are called before this returns, so that the start is told before anything is awaited; ``async``
        ones when `CallbackManagerForLLMRun.start` is awaited. Every run must be ended, best from a ``try`` that
        follows at once.

        Args:
            llm: the model as `BaseLLM.serialize` tells it, or a function that gives it (called only if it is wanted).
            prompts: the prompts as text.
        """
        if callable(llm):
            llm = llm() if "on_llm_start" in self._index else {}
        runs: list[CallbackManagerForLLMRun] = []
        try:
            runs.extend(self.start_run(llm, prompt) for prompt in prompts)
        except BaseException as error:
            for run in runs:
                run.end_now(error)
            raise
        return runs

    def start_run(self, llm: SerializedLLM | Callable[[], SerializedLLM], prompt: str) -> CallbackManagerForLLMRun:
        """The same for one prompt."""
        run = CallbackManagerForLLMRun(self)
        if "on_llm_start" in self._index:
            try:
                run.begin(llm() if callable(llm) else llm, prompt)
            except BaseException as error:
                run.end_now(error)
                raise
        return run


class CallbackManagerForLLMRun:
    """One run: tells the handlers what happens to one prompt, and that it ended, once.

    Made by `CallbackManager.on_llm_start`. The first of `on_llm_end`, `on_llm_error` and `end_now` ends it; whatever is
    told after that is ignored. None of the methods raises for what a handler does.
    """

    __slots__ = (
        "_ended",
        "_handlers",
        "_index",
        "_late",
        "_overran",
        "metadata",
        "parent_run_id",
        "run_id",
        "tags",
        "wants_tokens",
    )

    def __init__(self, manager: CallbackManager) -> None:
        self.run_id = _clock.unique_id()
        self.parent_run_id = manager.parent_run_id
        self.tags = manager.tags
        self.metadata = manager.metadata
        self._handlers = manager._handlers
        self._index = manager._index
        self._late: list[Late] = []
        self._overran: set[int] | None = None  # nobody yet
        self._ended = False
        self.wants_tokens = "on_llm_new_token" in self._index
        """Whether anybody listens to tokens: ask before making up a chunk for nobody."""

    def __repr__(self) -> str:
        return f"<run {self.run_id}{' (ended)' if self._ended else ''}>"

    @property
    def ended(self) -> bool:
        """Whether the end was told."""
        return self._ended

    def wants(self, hook: str) -> bool:
        """Whether anybody listens to ``hook``."""
        return hook in self._index

    def get_child(self, *, tags: Sequence[str] = ()) -> CallbackManager:
        """A manager of the same handlers whose runs are parts of this one. They should end before it does."""
        return CallbackManager(
            self._handlers,
            tags=(*self.tags, *check_tags(tags)),
            metadata=self.metadata,
            parent_run_id=self.run_id,
        )

    def begin(self, llm: SerializedLLM, prompt: str) -> None:
        """Tell the start to plain methods, and keep it for ``async`` ones. For `CallbackManager.start_run` only."""
        event = LLMStartEvent(
            run_id=self.run_id,
            parent_run_id=self.parent_run_id,
            tags=self.tags,
            metadata=self.metadata,
            time=_clock.steady_time(),
            llm=llm,
            prompt=prompt,
        )
        fatal = call_now(self._index["on_llm_start"], event, self._late)
        if fatal is not None:
            raise fatal

    @property
    def owes(self) -> bool:
        """Whether ``async`` methods are still to hear something: then await `start`."""
        return bool(self._late)

    async def start(self) -> None:
        """Tell the start to ``async`` methods (where this is left out, they hear it before whatever comes next)."""
        if self._late:
            await self._flush(None)

    async def on_llm_new_token(self, chunk: GenerationChunk) -> None:
        """A piece of the stream arrived."""
        if self.wants_tokens and not self._ended:
            event = LLMNewTokenEvent(
                run_id=self.run_id,
                parent_run_id=self.parent_run_id,
                tags=self.tags,
                metadata=self.metadata,
                time=_clock.steady_time(),
                token=chunk.text,
                chunk=chunk,
            )
            await self._tell("on_llm_new_token", event)

    async def on_llm_end(self, result: LLMResult) -> None:
        """The run ended with the result of its prompt."""
        if self._ended:
            return
        self._ended = True
        fatal: BaseException | None = None
        hooks = self._index.get("on_llm_end")
        if hooks is not None:
            event = LLMEndEvent(
                run_id=self.run_id,
                parent_run_id=self.parent_run_id,
                tags=self.tags,
                metadata=self.metadata,
                time=_clock.steady_time(),
                result=result,
            )
            fatal = call_now(hooks, event, self._late)
        if self._late:
            await self._flush(fatal)
        elif fatal is not None:
            raise fatal

    async def on_llm_error(self, error: BaseException) -> None:
        """The run ended by `error`; cancellation is such an end too."""
        if not self._ended:
            self._ended = True
            await self._tell("on_llm_error", self._error_event(error))

    def end_now(self, error: BaseException) -> None:
        """The same where nothing can be awaited (a finaliser): only plain methods hear it, nothing is scheduled."""
        if self._ended:
            return
        self._ended = True
        fatal = call_now(self._index.get("on_llm_error", ()), self._error_event(error), self._late)
        discard_late(self._late)
        if fatal is not None:
            raise fatal

    async def on_text(self, text: str) -> None:
        """Tell a text."""
        if "on_text" in self._index and not self._ended:
            await self._tell("on_text", TextEvent(**self._facts(), text=text))

    async def on_attempt(self, attempt: int) -> None:
        """An attempt, counted from 1, is about to be made."""
        if "on_attempt" in self._index and not self._ended:
            await self._tell("on_attempt", AttemptEvent(**self._facts(), attempt=attempt))

    async def on_retry(self, attempt: int, delay: float, error: BaseException) -> None:
        """Attempt number `attempt` failed by `error`; another follows after `delay` seconds."""
        if "on_retry" in self._index and not self._ended:
            event = RetryEvent(
                **self._facts(),
                attempt=attempt,
                delay=delay,
                reason=f"{type(error).__name__}: {_text_of(error)}",
                status_code=getattr(error, "status_code", None),
            )
            await self._tell("on_retry", event)

    async def on_rate_limit(
        self,
        status_code: int | None,
        retry_after: float | None = None,
        kind: RejectKind = "rate",
    ) -> None:
        """The endpoint takes no request now (`kind` says why); `retry_after`: seconds it asked to wait, None: none."""
        if "on_rate_limit" in self._index and not self._ended:
            event = RateLimitEvent(**self._facts(), status_code=status_code, retry_after=retry_after, kind=kind)
            await self._tell("on_rate_limit", event)

    async def on_window(self, lane: str, change: WindowChange, time: float) -> None:
        """The caller changed what it sends to the endpoint `lane`, at `time` (seconds, ``time.monotonic``)."""
        if "on_window" in self._index and not self._ended:
            facts: dict[str, Any] = {**self._facts(), "time": time, "lane": lane, **msgspec.structs.asdict(change)}
            event = WindowEvent(**facts)
            await self._tell("on_window", event)

    async def on_cache_hit(self, *, shared: bool = False) -> None:
        """The answer was in the cache, or (`shared`) was fetched by another run in flight."""
        if "on_cache_hit" in self._index and not self._ended:
            await self._tell("on_cache_hit", CacheHitEvent(**self._facts(), shared=shared))

    async def _tell(self, hook: str, event: Any) -> None:
        fatal = call_now(self._index.get(hook, ()), event, self._late)
        if self._late:
            await self._flush(fatal)
        elif fatal is not None:
            raise fatal

    async def _flush(self, fatal: BaseException | None) -> None:
        if self._overran is None:
            self._overran = set()
        later = await call_late(self._late, self._overran)
        fatal = fatal or later
        if fatal is not None:
            raise fatal

    def _facts(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "parent_run_id": self.parent_run_id,
            "tags": self.tags,
            "metadata": self.metadata,
            "time": _clock.steady_time(),
        }

    def _error_event(self, error: BaseException) -> LLMErrorEvent | None:
        if "on_llm_error" not in self._index:
            return None
        if is_cancellation(error):
            kind, message = "cancelled", "the run was cancelled or left early"
        else:
            kind, message = type(error).__name__, _text_of(error)
        return LLMErrorEvent(**self._facts(), kind=kind, message=message, error=error)


Callbacks: TypeAlias = Sequence[BaseCallbackHandler] | CallbackManager | None
"""What a ``callbacks`` argument takes."""


def _manager_of(callbacks: Callbacks) -> CallbackManager:
    return callbacks if isinstance(callbacks, CallbackManager) else _NOBODY


def _handlers_of(callbacks: Callbacks) -> tuple[BaseCallbackHandler, ...]:
    return callbacks.handlers if isinstance(callbacks, CallbackManager) else _checked(callbacks or ())


def _checked(handlers: Any) -> tuple[BaseCallbackHandler, ...]:
    if isinstance(handlers, BaseCallbackHandler):
        raise OptionTypeError(f"callbacks is a list of handlers: put {handlers.name} into [ ]")
    if not isinstance(handlers, Sequence) or isinstance(handlers, str | bytes):
        raise OptionTypeError(f"callbacks is a list of handlers or a CallbackManager, not {type(handlers).__name__}")
    for handler in handlers:
        if not isinstance(handler, BaseCallbackHandler):
            what = (
                handler.__name__ + " (the class: make one of it)"
                if isinstance(handler, type)
                else type(handler).__name__
            )
            raise OptionTypeError(f"a handler is an instance of a subclass of BaseCallbackHandler, not {what}")
    return tuple(handlers)


def _distinct(handlers: tuple[BaseCallbackHandler, ...]) -> tuple[BaseCallbackHandler, ...]:
    kept: dict[int, BaseCallbackHandler] = {}  # by identity: a handler may define equality, or have no hash
    for handler in handlers:
        kept.setdefault(id(handler), handler)
    return tuple(kept.values())


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a foreign class may be broken; the run's end must be told all the same
        return ""


_NOBODY = CallbackManager()
