"""The one door through which time and chance enter."""

from __future__ import annotations

import random as _random
import sys
import time as _time
from typing import Any

import anyio

__all__ = ["event_loop", "monotonic", "random", "sleep", "steady_time", "wall_time"]


def monotonic() -> float:
    """Seconds on the running event loop's clock: what every deadline and wait is measured on."""
    return anyio.current_time()


async def sleep(seconds: float) -> None:
    """Wait on the same clock."""
    await anyio.sleep(seconds)


def steady_time() -> float:
    """Seconds on the machine's steady clock, one for all event loops and threads: for what outlives a loop."""
    return _time.monotonic()


def wall_time() -> float:
    """Seconds since the epoch: only for HTTP dates and for time stamps that people read."""
    return _time.time()


def random() -> float:
    """Uniform in [0, 1): the default source of jitter."""
    return _random.random()  # noqa: S311 - jitter is no secret


def event_loop() -> Any:
    """What is running us: the asyncio loop, or trio's token. Two runs never have the same one.

    Raises:
        RuntimeError: no event loop is running.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            pass
    trio = sys.modules.get("trio")
    if trio is not None:
        return trio.lowlevel.current_trio_token()
    raise RuntimeError("no event loop is running")
