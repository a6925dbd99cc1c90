"""A handler that keeps what it is told, for tests."""

from __future__ import annotations

from millstream._events import (
    AttemptEvent,
    CacheHitEvent,
    LLMEndEvent,
    LLMErrorEvent,
    LLMNewTokenEvent,
    LLMStartEvent,
    RateLimitEvent,
    RetryEvent,
    RunEvent,
    TextEvent,
)
from millstream.callbacks._base import BaseCallbackHandler

__all__ = ["RecordingCallbackHandler"]


class RecordingCallbackHandler(BaseCallbackHandler):
    """Keeps every event of the runs themselves (`on_window` tells of the caller that they share).

    Attributes:
        events: all of them, in the order of being told.
    """

    name = "recording"

    def __init__(self) -> None:
        self.events: list[RunEvent] = []

    def runs(self) -> dict[str, list[RunEvent]]:
        """The events of each run, by its id, in the order of the runs' starts."""
        runs: dict[str, list[RunEvent]] = {}
        for event in self.events:
            runs.setdefault(event.run_id, []).append(event)
        return runs

    def kinds(self) -> list[str]:
        """What happened, in order: ``"llm_start"``, ``"llm_new_token"``, ``"llm_end"`` ..."""
        return [str(type(event).__struct_config__.tag) for event in self.events]

    def assert_paired(self) -> None:
        """Raise AssertionError unless every run began with one start and ended with one end or error, nothing after."""
        for run_id, events in self.runs().items():
            starts = [isinstance(event, LLMStartEvent) for event in events]
            ends = [isinstance(event, LLMEndEvent | LLMErrorEvent) for event in events]
            told = ", ".join(type(event).__name__ for event in events)
            if not (starts[0] and sum(starts) == 1):
                raise AssertionError(f"run {run_id} did not begin with its one start: {told}")
            if not (ends[-1] and sum(ends) == 1):
                raise AssertionError(f"run {run_id} did not end with its one end: {told}")

    def on_llm_start(self, event: LLMStartEvent, /) -> None:
        self.events.append(event)

    def on_llm_new_token(self, event: LLMNewTokenEvent, /) -> None:
        self.events.append(event)

    def on_llm_end(self, event: LLMEndEvent, /) -> None:
        self.events.append(event)

    def on_llm_error(self, event: LLMErrorEvent, /) -> None:
        self.events.append(event)

    def on_text(self, event: TextEvent, /) -> None:
        self.events.append(event)

    def on_attempt(self, event: AttemptEvent, /) -> None:
        self.events.append(event)

    def on_retry(self, event: RetryEvent, /) -> None:
        self.events.append(event)

    def on_rate_limit(self, event: RateLimitEvent, /) -> None:
        self.events.append(event)

    def on_cache_hit(self, event: CacheHitEvent, /) -> None:
        self.events.append(event)
