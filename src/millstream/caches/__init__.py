"""Keeping answers: what a cache is, one in memory, and one fetch for identical calls."""

from millstream.caches._base import BaseCache, is_cacheable, lookup_safely, update_safely
from millstream.caches._key import cache_key
from millstream.caches._memory import CacheStatistics, InMemoryCache
from millstream.caches._single_flight import SingleFlight

__all__ = [
    "BaseCache",
    "CacheStatistics",
    "InMemoryCache",
    "SingleFlight",
    "cache_key",
    "is_cacheable",
    "lookup_safely",
    "update_safely",
]
