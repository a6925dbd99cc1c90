"""What happens in a run, told to callback handlers: one tagged union of frozen structs."""

from __future__ import annotations

import builtins
from typing import Any, Literal

import msgspec

from millstream._results import GenerationChunk, LLMResult, SerializedLLM

__all__ = [
    "AttemptEvent",
    "CacheHitEvent",
    "LLMEndEvent",
    "LLMErrorEvent",
    "LLMNewTokenEvent",
    "LLMStartEvent",
    "RateLimitEvent",
    "RetryEvent",
    "RunEvent",
    "TextEvent",
    "WindowEvent",
]


class RunEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """What every event tells. Each run (one prompt) starts once and ends once, by `LLMEndEvent` or `LLMErrorEvent`."""

    run_id: str
    """Unique for the run: one prompt of one call."""
    parent_run_id: str | None = None
    """The run that this one is a part of, None at the top."""
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    time: float = 0.0
    """When it happened: seconds of the machine's steady clock (`time.monotonic`)."""


class LLMStartEvent(RunEvent, frozen=True, kw_only=True, tag="llm_start"):
    """A prompt was accepted; told before anything is awaited."""

    llm: SerializedLLM
    """The model, as `BaseLLM.serialize` tells it (never a key)."""
    prompt: str


class LLMNewTokenEvent(RunEvent, frozen=True, kw_only=True, tag="llm_new_token"):
    """A streamed piece arrived. Only streamed runs have these."""

    token: str
    chunk: GenerationChunk


class LLMEndEvent(RunEvent, frozen=True, kw_only=True, tag="llm_end"):
    """The run ended with a result (of this one prompt)."""

    result: LLMResult


class LLMErrorEvent(RunEvent, frozen=True, kw_only=True, tag="llm_error"):
    """The run ended without a complete result."""

    kind: str
    """The error's class name, or ``"cancelled"`` for a run that was cancelled or left early."""
    message: str
    error: builtins.BaseException | None = None
    """The error itself; left out where events are written as JSON."""


class AttemptEvent(RunEvent, frozen=True, kw_only=True, tag="attempt"):
    """An attempt is about to be made, counted from 1."""

    attempt: int


class RetryEvent(RunEvent, frozen=True, kw_only=True, tag="retry"):
    """An attempt failed and another will follow after `delay` seconds."""

    attempt: int
    """The attempt that failed."""
    delay: float
    reason: str
    """Class and text of the error."""
    status_code: int | None = None


class RateLimitEvent(RunEvent, frozen=True, kw_only=True, tag="rate_limit"):
    """The endpoint does not take a request now, and is waited for: told before the `RetryEvent` that follows."""

    status_code: int | None
    """None: it did not refuse; it did not answer in time."""
    retry_after: float | None = None
    """Seconds that it asked to wait; None: it named no time."""
    kind: Literal["rate", "overload", "loading"] = "rate"
    """Too many requests; no room; or not there yet (a model being loaded, an endpoint scaled to zero)."""


class WindowEvent(RunEvent, frozen=True, kw_only=True, tag="window"):
    """The caller changed how many requests it keeps in flight at an endpoint, how fast it sends, or when.

    It concerns all runs of the caller, and is told to the next one that has a handler for it.
    """

    lane: str
    """Which endpoint; ``""`` where there is one."""
    before: int
    limit: int
    """In flight at the most: before, and from now on."""
    reason: str
    """``"room"``: none had to queue; ``"queue"``: some had to; ``"overload"``, ``"rate"``, ``"loading"``: it refused;
    ``"unreachable"``, ``"recovered"``: it failed, it answers again; ``"stated"``: its headers tell what is left."""
    pace: float | None = None
    """Requests a second; None: not paced."""
    cool_for: float = 0.0
    """Seconds in which nothing is sent."""


class CacheHitEvent(RunEvent, frozen=True, kw_only=True, tag="cache_hit"):
    """The answer was in the cache, or was fetched by an identical prompt at the same time."""

    shared: bool = False
    """True where another run in flight fetched it."""


class TextEvent(RunEvent, frozen=True, kw_only=True, tag="text"):
    """Any text that a chain or tool around the model wants to tell."""

    text: str
