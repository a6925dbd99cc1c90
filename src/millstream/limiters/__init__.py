"""Limits of requests and tokens a minute, in this process (`LocalLimiter`) or shared by many (`RedisLimiter`).

caller = AsyncCaller(limiter=RedisLimiter("redis://localhost", requests_per_minute=600, key="team"))

"""

from typing import TYPE_CHECKING, Any

from millstream.limiters._base import Limiter, Reservation
from millstream.limiters._local import LocalLimiter

__all__ = ["Limiter", "LocalLimiter", "RedisLimiter", "Reservation", "limiter_key"]

if TYPE_CHECKING:
    from millstream.limiters._redis import RedisLimiter, limiter_key


def __getattr__(name: str) -> Any:
    if name in ("RedisLimiter", "limiter_key"):  # only for those who share a limit
        from millstream.limiters import _redis  # noqa: PLC0415

        return getattr(_redis, name)
    raise AttributeError(f"module 'millstream.limiters' has no attribute {name!r}")
