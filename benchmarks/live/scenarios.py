"""What is measured: endpoints, widths, seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LATENCY = [0.1, 0.02, 0.0, 0.0004]
"""`Latency`'s fields: the first token after 0.1 s, the next ones 20 ms apart, and 0.4 ms more for each neighbour."""

BATCHING: dict[str, Any] = {"server": "vllm", "latency": LATENCY}
BOUNDED_QUEUE = 8


@dataclass(frozen=True)
class Effort:
    """How long things take, in seconds. What comes first of each run is not counted: see `warm_up`."""

    point: float
    """One width of a sweep."""
    warm_up: float
    """The part of it that fills the endpoint."""
    adaptive: float
    """One adaptive run, and each of its phases where the number of slots changes."""
    steady: float
    """From here on it counts as steady: the window was found."""
    local_point: float
    local_warm_up: float
    local_adaptive: float
    local_steady: float
    rate_window: float
    """Of the quotas; a run takes three of them."""
    slots: tuple[int, ...]
    """Of the embedded server."""
    quick: bool = False


FULL = Effort(
    point=6, warm_up=2.5, adaptive=25, steady=10,
    local_point=8, local_warm_up=3, local_adaptive=45, local_steady=20,
    rate_window=60, slots=(1, 4, 8),
)  # fmt: skip
QUICK = Effort(
    point=3, warm_up=1.5, adaptive=6, steady=3,
    local_point=3, local_warm_up=1, local_adaptive=8, local_steady=4,
    rate_window=6, slots=(4,), quick=True,
)  # fmt: skip

SLOTS = 48
STEPS = (48, 24, 72)
UNBOUNDED_WIDTHS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
BOUNDED_WIDTHS = (32, 48, 64, 96)
STEP_WIDTHS = {24: (16, 24, 32, 48), 72: (48, 72, 96, 144)}
QUICK_WIDTHS = (16, 48, 96)
LOCAL_WIDTHS = {1: (1, 2, 4), 4: (2, 4, 8), 8: (4, 8, 16)}

QUOTA = 600
"""Requests a minute."""
RATE_WIDTH = 16
"""The fixed width beside it: enough for the quota."""
RATE_WORDS = 8
RATE_LATENCY = [0.2, 0.1, 0.0, 0.0]
RATES: dict[str, dict[str, Any]] = {
    "600 a minute, with `Retry-After`": {"rate_limit_headers": "retry-after"},
    "600 a minute, with `RateLimit`": {"rate_limit_headers": "ratelimit"},
    "600 a minute, no header": {"rate_limit_headers": "none"},
    "600 a minute, leaky bucket, no header": {
        "rate_limit_headers": "none",
        "rate_limit_algorithm": "leaky-bucket",
        "rate_burst": 20,
    },
}
WINDOWS = 3
