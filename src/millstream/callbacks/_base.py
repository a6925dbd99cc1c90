"""What a callback handler may listen to."""

from __future__ import annotations

from collections.abc import Awaitable

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

__all__ = ["HOOKS", "BaseCallbackHandler"]

HOOKS = (
    "on_llm_start",
    "on_llm_new_token",
    "on_llm_end",
    "on_llm_error",
    "on_text",
    "on_attempt",
    "on_retry",
    "on_rate_limit",
    "on_window",
    "on_cache_hit",
)


class BaseCallbackHandler:
    """Told what happens in runs. Override what you need, with ``def`` or ``async def``; the rest costs nothing.

    Each run (one prompt) gives `on_llm_start` first and then exactly one of `on_llm_end` and `on_llm_error`, also when
    it is cancelled; nothing comes after that. A plain method is called at once and should be quick; an ``async``
    method is awaited, shielded from cancellation, for at most one second. What a handler raises is logged once and
    does not reach the run. A handler that needs more than its second is cancelled, and until the run's end is told
    nothing else of that run.

    An ``async`` method can't be called where nothing may be awaited: a stream that was dropped without being closed
    and is found by the garbage collector tells its end to plain methods only.
    """

    name: str = "BaseCallbackHandler"
    """What logs call it: the class's name unless the class says otherwise."""

    reported_hooks: frozenset[str] = frozenset()
    """Hooks of this handler whose failure was logged: it is not logged again."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def on_llm_start(self, event: LLMStartEvent, /) -> Awaitable[None] | None:
        """A prompt was accepted; nothing was awaited yet."""

    def on_llm_new_token(self, event: LLMNewTokenEvent, /) -> Awaitable[None] | None:
        """A piece of a stream arrived."""

    def on_llm_end(self, event: LLMEndEvent, /) -> Awaitable[None] | None:
        """The run ended with a result."""

    def on_llm_error(self, event: LLMErrorEvent, /) -> Awaitable[None] | None:
        """The run ended without one; `event.kind` is ``"cancelled"`` where it was cancelled or left early."""

    def on_text(self, event: TextEvent, /) -> Awaitable[None] | None:
        """Something around the model tells a text."""

    def on_attempt(self, event: AttemptEvent, /) -> Awaitable[None] | None:
        """A request is about to be sent."""

    def on_retry(self, event: RetryEvent, /) -> Awaitable[None] | None:
        """An attempt failed; another follows after `event.delay` seconds."""

    def on_rate_limit(self, event: RateLimitEvent, /) -> Awaitable[None] | None:
        """The endpoint limits the rate, has no room or is not there yet, and is waited for."""

    def on_window(self, event: WindowEvent, /) -> Awaitable[None] | None:
        """The caller changed how many requests it keeps in flight, its pace, or waits; it concerns all its runs."""

    def on_cache_hit(self, event: CacheHitEvent, /) -> Awaitable[None] | None:
        """The answer was there already, or an identical prompt in flight fetched it."""
