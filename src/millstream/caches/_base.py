"""What a cache is, what may stand in it, and how it is asked without ever failing a call."""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod

import anyio

from millstream._results import LLMResult

__all__ = ["BaseCache", "is_cacheable", "lookup_safely", "update_safely"]

_log = logging.getLogger("millstream")

_COMPLETE = frozenset({"stop", "length", "tool_calls"})


class BaseCache(ABC):
    """Keeps the results of single prompts under the keys that `cache_key` makes.

    Whoever can write into a cache writes the answers: one that several programs share is as trusted as they are. A
    result is given back without `Generation.parsed`, which is made of its text anew. An exception of a cache is a miss
    to the call that asked.
    """

    reported: bool = False
    """Whether a failure of this cache was logged: it is logged once, not once a call."""

    @abstractmethod
    async def lookup(self, key: str) -> LLMResult | None:
        """The result that was stored under `key`, one that the caller may keep; None for none."""

    @abstractmethod
    async def update(self, key: str, result: LLMResult) -> None:
        """Store `result`, a complete one, over what was there; what the caller does to it later changes nothing."""

    async def aclose(self) -> None:  # noqa: B027 - most caches hold nothing that must be closed
        """Give back what the cache holds open. Closing twice is harmless."""


def is_cacheable(result: LLMResult) -> bool:
    """Whether this may be given to somebody else later: a complete success.

    It has outputs, and each ended by itself: ``stop``, ``length`` (what `max_tokens` asked for) or ``tool_calls``.
    Not ``error``, not ``content_filter`` (cut by a judgement that may fall otherwise next time), not ``other`` (a
    server's word that we don't know, such as "abort"), and not None (no end was seen: a part of an answer).
    """
    rows = result.generations
    return bool(rows) and all(row and all(each.finish_reason in _COMPLETE for each in row) for row in rows)


PATIENCE_SECONDS = 1.0
"""A cache that takes longer is passed over: waiting for it would cost more than it saves."""


async def lookup_safely(cache: BaseCache, key: str) -> LLMResult | None:
    """Look up; a cache that raises, that takes over a second, or that gives what no complete result is, has missed."""
    result: object = None
    try:
        with anyio.move_on_after(PATIENCE_SECONDS) as scope:
            result = await cache.lookup(key)
        if scope.cancelled_caught:
            _warn(cache, "lookup", f"took over {PATIENCE_SECONDS:g} s")
    except Exception as error:  # noqa: BLE001 - a cache never fails a call
        _warn(cache, "lookup", f"raised {type(error).__name__}")
        return None
    if result is None:
        return None
    if not isinstance(result, LLMResult):
        _warn(cache, "lookup", f"gave {type(result).__name__} instead of LLMResult")
        return None
    return result if is_cacheable(result) else None


async def update_safely(cache: BaseCache, key: str, result: LLMResult) -> bool:
    """Store `result` if it is complete (`is_cacheable`); gives whether it was stored. Raises nothing of the cache's."""
    if not is_cacheable(result):
        return False
    try:
        with anyio.move_on_after(PATIENCE_SECONDS) as scope:
            await cache.update(key, result)
        if scope.cancelled_caught:
            _warn(cache, "update", f"took over {PATIENCE_SECONDS:g} s")
    except Exception as error:  # noqa: BLE001 - a cache never fails a call
        _warn(cache, "update", f"raised {type(error).__name__}")
        return False
    return not scope.cancelled_caught


def _warn(cache: BaseCache, method: str, what: str) -> None:
    # No message of the error: a cache's may quote a prompt or the address of its server.
    if cache.reported:
        return
    with contextlib.suppress(AttributeError, TypeError):  # a frozen dataclass or slots: then it is logged each time
        cache.reported = True
    _log.warning(
        "cache %s: %s %s; it is passed over where it fails, and this is not logged again for it",
        type(cache).__name__,
        method,
        what,
    )
