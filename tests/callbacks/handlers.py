"""Handlers that tests share."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel

from millstream.callbacks import BaseCallbackHandler
from millstream.callbacks._base import HOOKS
from millstream.callbacks._recording import RecordingCallbackHandler

LLM = {"_type": "huggingface_hub", "_model": "base_llm", "model": "m"}


class AsyncRecorder(RecordingCallbackHandler):
    """The same recording, by methods that are awaited and suspend."""

    async def _keep(self, event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        self.events.append(event)

    on_llm_start = on_llm_new_token = on_llm_end = on_llm_error = on_text = _keep
    on_attempt = on_retry = on_rate_limit = on_cache_hit = _keep


def kind_of(handler: RecordingCallbackHandler) -> str:
    return " ".join(kind.removeprefix("llm_") for kind in handler.kinds())


def handler_of(function: Any, *hooks: str) -> BaseCallbackHandler:
    """A handler whose `hooks` (default: all) call `function(event)`, which may be async."""
    made = type("Odd", (BaseCallbackHandler,), {})()
    for hook in hooks or HOOKS:
        setattr(made, hook, function)
    return made
