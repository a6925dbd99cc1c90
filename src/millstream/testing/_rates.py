"""The limits of requests and tokens a minute, and what clients are told of them. No sockets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import anyio

from millstream.testing._behaviour import Behaviour

__all__ = ["Rates"]

_ROUNDING = 1e-9
"""Sums of fractions: what is this close to a whole number is that number."""


class _Meter:
    """How much of one limit is used. The limit itself is read each time, since it may change."""

    def __init__(self, behaviour: Behaviour, counted: Literal["requests", "tokens"]) -> None:
        self._behaviour = behaviour
        self.counted = counted
        self._used = 0.0
        self._since = -math.inf  # beginning of the window; of a bucket: when it last leaked

    @property
    def limit(self) -> int | None:
        behaviour = self._behaviour
        return behaviour.requests_per_minute if self.counted == "requests" else behaviour.tokens_per_minute

    @property
    def leaky(self) -> bool:
        return self._behaviour.rate_limit_algorithm == "leaky-bucket"

    def settle(self) -> None:
        """Forget what no longer counts; to be called before anything is asked."""
        now = anyio.current_time()
        if self.leaky:
            leaked = (now - self._since) / self._seconds_of(1)
            self._used, self._since = max(0.0, self._used - leaked), now
        elif now >= self._since + self._behaviour.rate_window:
            self._used, self._since = 0.0, now

    def take(self, amount: float) -> None:
        self._used += amount

    @property
    def left(self) -> float:
        return math.inf if self.limit is None else max(0.0, self._most - self._used)

    @property
    def passes(self) -> bool:
        """Whether one more passes."""
        return self.left >= 1 - _ROUNDING

    @property
    def wait(self) -> float:
        """Seconds until one more passes."""
        if self.passes:
            return 0.0
        return self._seconds_of(self._used + 1 - self._most) if self.leaky else self.whole_in

    @property
    def whole_in(self) -> float:
        """Seconds until nothing is used any more."""
        if self.leaky:
            return self._seconds_of(self._used)
        return self._since + self._behaviour.rate_window - anyio.current_time()

    @property
    def _most(self) -> float:
        """What passes at one moment when nothing is used."""
        burst = self._behaviour.rate_burst
        return burst if burst is not None and self.leaky and self.counted == "requests" else self.limit or 0

    def _seconds_of(self, amount: float) -> float:
        """How long a bucket takes to leak that much."""
        return amount * self._behaviour.rate_window / (self.limit or 1)


class Rates:
    """Who may pass: `admit` each request, then `spend` its tokens, then tell its `headers`."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._requests = _Meter(behaviour, "requests")
        self._tokens = _Meter(behaviour, "tokens")

    def _limited(self) -> list[_Meter]:
        meters = [meter for meter in (self._requests, self._tokens) if meter.limit is not None]
        for meter in meters:
            meter.settle()
        return meters

    def admit(self) -> bool:
        """Whether a request may pass; if so it is counted."""
        passes = all(meter.passes for meter in self._limited())
        if passes:
            self._requests.take(1)
        return passes

    def spend(self, count: Callable[[], int]) -> None:
        """Count the tokens of a request that was admitted; `count` is called only where there is a limit of them."""
        if self._tokens.limit is not None:
            self._tokens.take(count())

    def headers(self, *, passes: bool) -> list[tuple[str, str]]:
        """What the answer tells; `passes`: what `admit` said."""
        style = self._behaviour.rate_limit_headers
        meters = self._limited() if style != "none" else []
        told: list[tuple[str, str]] = []
        # RateLimit tells the requests' wait itself, and nothing of tokens: the draft has no such unit.
        waits = [meter.wait for meter in meters if style != "ratelimit" or meter.counted == "tokens"]
        if not passes and max(waits, default=0.0) > 0:
            told.append(("retry-after", str(math.ceil(max(waits) - _ROUNDING))))
        for meter in meters:
            if style == "x-ratelimit":
                told += _x_ratelimit(meter)
            elif style == "ratelimit" and meter.counted == "requests":
                told += _ratelimit(meter, self._behaviour.rate_window)
        return told


def _ratelimit(meter: _Meter, window: float) -> list[tuple[str, str]]:
    # As the Hub writes the policy, which is no legal structured field.
    name = "leaky bucket" if meter.leaky else "fixed window"
    return [
        ("ratelimit", f'"api";r={_floor(meter.left)};t={math.ceil(meter.whole_in - _ROUNDING)}'),
        ("ratelimit-policy", f'"{name}";"api";q={meter.limit};w={math.ceil(window)}'),
    ]


def _x_ratelimit(meter: _Meter) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{meter.counted}", str(meter.limit)),
        (f"x-ratelimit-remaining-{meter.counted}", str(_floor(meter.left))),
        (f"x-ratelimit-reset-{meter.counted}", _duration(meter.whole_in)),
    ]


def _floor(value: float) -> int:
    return math.floor(value + _ROUNDING)


def _duration(seconds: float) -> str:
    """As Go writes it: ``6m0s``, ``1.5s``, ``120ms``; never less than it is."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown
