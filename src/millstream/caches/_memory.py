"""A cache in the memory of the process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import msgspec

from millstream import _clock
from millstream._config import check_int, check_number
from millstream._results import LLMResult
from millstream.caches._base import BaseCache

__all__ = ["CacheStatistics", "InMemoryCache"]


class CacheStatistics(msgspec.Struct, frozen=True):
    """What a cache has done since it was made."""

    hits: int
    misses: int
    """Lookups that found nothing, or something too old."""
    entries: int
    """Results that it holds now."""
    size: int
    """Bytes of these results, keys and overhead not counted."""
    evictions: int
    """Results given up for want of room (not those that grew too old)."""


class _Entry(NamedTuple):
    data: bytes
    stored: float


class InMemoryCache(BaseCache):
    """Keeps the results used last, up to a number and a size.

    Results are kept as MessagePack and decoded at each hit (some microseconds), so that every caller has its own and
    nobody changes another's. May be shared by models, event loops and threads.

    Args:
        max_entries: results at the most.
        max_bytes: bytes of results at the most; a single result over this is not kept. None: no bound.
        ttl: seconds after which a result is no longer given; None: never.
        clock: seconds, from any start; the default runs steadily and is the same on every event loop.

    Raises:
        OptionTypeError, OptionValueError: a bound that is not positive.
    """

    _shared: ClassVar[InMemoryCache | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        *,
        max_entries: int = 10_000,
        max_bytes: int | None = 256 * 2**20,
        ttl: float | None = None,
        clock: Callable[[], float] = _clock.steady_time,
    ) -> None:
        check_int("max_entries", max_entries, low=1)
        check_int("max_bytes", max_bytes, low=1)
        check_number("ttl", ttl, above=0.0)
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()  # for threads; nothing is awaited while it is held
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._size = self._hits = self._misses = self._evictions = 0

    def __repr__(self) -> str:
        return f"<InMemoryCache of {len(self._entries)} results>"

    @classmethod
    def global_(cls) -> InMemoryCache:
        """The one that all who ask for it share, with the default bounds."""
        with InMemoryCache._shared_lock:
            if InMemoryCache._shared is None:
                InMemoryCache._shared = InMemoryCache()
            return InMemoryCache._shared

    async def lookup(self, key: str) -> LLMResult | None:
        data = self._find(key)
        return None if data is None else LLMResult.from_msgpack(data)

    def _find(self, key: str) -> bytes | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and self._ttl is not None and self._clock() - entry.stored >= self._ttl:
                self._remove(key)
                entry = None
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry.data

    async def update(self, key: str, result: LLMResult) -> None:
        data = result.to_msgpack()
        with self._lock:
            self._remove(key)
            if self._max_bytes is not None and len(data) > self._max_bytes:
                return
            self._entries[key] = _Entry(data, self._clock())
            self._size += len(data)
            while len(self._entries) > self._max_entries or (
                self._max_bytes is not None and self._size > self._max_bytes
            ):
                self._remove(next(iter(self._entries)))
                self._evictions += 1

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= len(entry.data)

    def clear(self) -> None:
        """Forget all results."""
        with self._lock:
            self._entries.clear()
            self._size = 0

    def statistics(self) -> CacheStatistics:
        """What it has done, and holds."""
        with self._lock:
            return CacheStatistics(self._hits, self._misses, len(self._entries), self._size, self._evictions)
