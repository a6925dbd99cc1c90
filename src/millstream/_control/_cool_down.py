"""Times in which nothing is sent."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["MAX_BACK_OFF", "MAX_COOL", "MAX_RATE_BACK_OFF", "CoolDown"]

BACK_OFF, MAX_BACK_OFF, MAX_DOUBLINGS = 0.5, 10.0, 5
"""Seconds of the first and of the longest cool-down where the server told none; half of it is left to chance."""

MAX_RATE_BACK_OFF = 4.0
"""Seconds, after refusals for a rate that tell no time: a quota's window may begin anew at any moment, and with one
request at a time it costs little to look."""

SPREAD, SPREAD_SHARE = 0.5, 0.05
"""A told time is never cut short; it is lengthened by up to so many seconds, or this share of it: not all at once."""

MAX_COOL = 660.0
"""Seconds. The longest told time (`millstream._headers.MAX_RETRY_AFTER`) with its spread; longer than this is only what
is left where the clock jumped back."""


class CoolDown:
    """Only ever longer, never shorter.

    Args:
        random: from 0 to 1.
    """

    __slots__ = ("_random", "until")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.until = -float("inf")

    def told(self, now: float, seconds: float) -> None:
        """By the server."""
        seconds = min(seconds, MAX_COOL / (1 + SPREAD_SHARE))
        self.until = max(self.until, now + seconds + self._random() * max(SPREAD, SPREAD_SHARE * seconds))

    def back_off(self, now: float, time: int, most: float = MAX_BACK_OFF) -> None:
        """The 1st, 2nd, ... `time` in a row, of nobody's telling; `most` seconds at the longest."""
        longest = min(most, BACK_OFF * 2 ** min(time - 1, MAX_DOUBLINGS))
        self.until = max(self.until, now + longest * (0.5 + 0.5 * self._random()))
