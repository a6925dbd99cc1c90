"""How requests travel. `Transport` is the seam; `PoolTransport` is our own way through it."""

from millstream._transport._seam import (
    BodyStream,
    Headers,
    Origin,
    Request,
    Response,
    Route,
    Timeouts,
    Transport,
)
from millstream._transport.pool import PoolStatistics, PoolTransport

__all__ = [
    "BodyStream",
    "Headers",
    "Origin",
    "PoolStatistics",
    "PoolTransport",
    "Request",
    "Response",
    "Route",
    "Timeouts",
    "Transport",
]
