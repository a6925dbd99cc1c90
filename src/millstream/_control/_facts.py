"""What the window of a lane tells of itself."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Reason", "RejectKind", "WindowChange", "WindowStatistics"]

RejectKind = Literal["rate", "overload", "loading"]
Reason = Literal["room", "queue", "overload", "rate", "loading", "unreachable", "recovered", "stated"]


class WindowChange(msgspec.Struct, frozen=True, kw_only=True):
    """What the window did last, and why."""

    before: int
    """How many might be in flight before,"""
    limit: int
    """and now."""
    reason: Reason
    pace: float | None
    """Requests a second; None: they are not paced."""
    cool_for: float
    """Seconds from now in which nothing is sent; 0: none."""


class WindowStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Where the window stands."""

    limit: int
    waiting: int
    """In flight, without a first token."""
    served: int
    """In flight, with one (or of a kind that tells none)."""
    arrival_rate: float
    """First tokens a second."""
    base: float | None
    """Seconds to the first token without load; None: not known yet."""
    excess: float
    """How many of our requests stand in the server's queue, by the last judgement."""
    pace: float | None
    """Requests a second; None: they are not paced."""
    cool_until: float
    """Nothing is sent before; a monotonic time, perhaps long past."""
    cuts: int
    probes: int
    """How often the time without load was measured anew."""
    rejected: int
