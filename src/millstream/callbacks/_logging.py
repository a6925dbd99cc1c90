"""Run events as log lines."""

from __future__ import annotations

import logging

from millstream._events import (
    AttemptEvent,
    CacheHitEvent,
    LLMEndEvent,
    LLMErrorEvent,
    LLMStartEvent,
    RateLimitEvent,
    RetryEvent,
    TextEvent,
    WindowEvent,
)
from millstream.callbacks._base import BaseCallbackHandler

__all__ = ["LoggingCallbackHandler"]

_EXCERPT = 200  # characters of a text in one line


class LoggingCallbackHandler(BaseCallbackHandler):
    """Logs runs: ends, errors, retries, rate limits and windows that shrink at INFO, the rest at DEBUG; never tokens.

    Args:
        logger: where to; None: the logger ``millstream.runs``.
        texts: whether prompts, answers and error messages (which may quote them) are logged too: escaped, and cut to
            200 characters.
    """

    name = "logging"

    def __init__(self, logger: logging.Logger | None = None, *, texts: bool = False) -> None:
        self._logger = logger or logging.getLogger("millstream.runs")
        self._texts = texts

    def on_llm_start(self, event: LLMStartEvent, /) -> None:
        self._logger.debug("run %s: start%s", event.run_id, self._quote(event.prompt))

    def on_llm_end(self, event: LLMEndEvent, /) -> None:
        usage = event.result.usage
        tokens = "" if usage is None else f", {usage.input_tokens} tokens in, {usage.output_tokens} out"
        self._logger.info("run %s: end%s%s", event.run_id, tokens, self._quote(event.result.text))

    def on_llm_error(self, event: LLMErrorEvent, /) -> None:
        self._logger.info("run %s: %s%s", event.run_id, event.kind, self._quote(event.message))

    def on_text(self, event: TextEvent, /) -> None:
        self._logger.debug("run %s: text%s", event.run_id, self._quote(event.text))

    def on_attempt(self, event: AttemptEvent, /) -> None:
        self._logger.debug("run %s: attempt %d", event.run_id, event.attempt)

    def on_retry(self, event: RetryEvent, /) -> None:
        kind, _, message = event.reason.partition(": ")
        told = (event.run_id, event.attempt, kind, event.delay, self._quote(message))
        self._logger.info("run %s: attempt %d failed by %s, next in %.2f s%s", *told)

    def on_rate_limit(self, event: RateLimitEvent, /) -> None:
        asked = "" if event.retry_after is None else f", asks to wait {event.retry_after:g} s"
        what = "did not answer in time" if event.status_code is None else f"answered {event.status_code}"
        self._logger.info("run %s: the server %s (%s)%s", event.run_id, what, event.kind, asked)

    def on_window(self, event: WindowEvent, /) -> None:
        lane = f" of {event.lane}" if event.lane else ""
        pace = "" if event.pace is None else f", {event.pace:.2g} a second"
        pause = f", nothing for {event.cool_for:.2f} s" if event.cool_for else ""
        level = logging.DEBUG if event.reason == "room" else logging.INFO
        told = (lane, event.before, event.limit, event.reason, pace, pause)
        self._logger.log(level, "window%s: %d -> %d in flight (%s)%s%s", *told)

    def on_cache_hit(self, event: CacheHitEvent, /) -> None:
        self._logger.debug("run %s: %s", event.run_id, "shared" if event.shared else "cached")

    def _quote(self, text: str) -> str:
        return f": {text[:_EXCERPT]!r}" if self._texts and text else ""
