"""What ``verbose=True`` prints."""

from __future__ import annotations

import sys
from typing import TextIO

from millstream._events import CacheHitEvent, LLMEndEvent, LLMErrorEvent, LLMStartEvent, RetryEvent, TextEvent
from millstream.callbacks._base import BaseCallbackHandler

__all__ = ["ConsoleCallbackHandler", "printable"]

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """`text` with control characters in writing, line breaks and tabs kept: a model can't drive a terminal."""
    return text if text.isprintable() else text.translate(_CONTROLS)


class ConsoleCallbackHandler(BaseCallbackHandler):
    """Prints prompts, answers, errors and retries.

    Control characters of texts are printed in writing (the escape character as backslash, ``x1b``), since a model's
    text could otherwise drive the terminal.

    Args:
        stream: where to; None: `sys.stdout` as it is at that moment.
    """

    name = "console"

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def on_llm_start(self, event: LLMStartEvent, /) -> None:
        self._print(event.run_id, "prompt", event.prompt)

    def on_llm_end(self, event: LLMEndEvent, /) -> None:
        for row in event.result.generations:
            for generation in row:
                self._print(event.run_id, f"answer ({generation.finish_reason or 'no finish reason'})", generation.text)

    def on_llm_error(self, event: LLMErrorEvent, /) -> None:
        self._print(event.run_id, event.kind, event.message)

    def on_retry(self, event: RetryEvent, /) -> None:
        self._print(event.run_id, f"attempt {event.attempt} failed, next in {event.delay:.1f} s", event.reason)

    def on_cache_hit(self, event: CacheHitEvent, /) -> None:
        self._print(event.run_id, "shared" if event.shared else "cached", "")

    def on_text(self, event: TextEvent, /) -> None:
        self._print(event.run_id, "text", event.text)

    def _print(self, run_id: str, what: str, text: str) -> None:
        line = f"[{run_id[:8]}] {what}" + (f": {text}" if text else "")
        print(printable(line), file=self._stream or sys.stdout, flush=True)
