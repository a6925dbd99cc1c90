"""Limits of requests and tokens a minute, in this process or shared by many."""

from millstream.limiters._base import Limiter, Reservation
from millstream.limiters._local import LocalLimiter

__all__ = ["Limiter", "LocalLimiter", "Reservation"]
