"""The one door through which time and chance enter."""

from __future__ import annotations

import asyncio
import os
import random as _random
import sys
import time as _time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

__all__ = [
    "Expired",
    "event_loop",
    "monotonic",
    "random",
    "run_until",
    "sleep",
    "steady_time",
    "unique_id",
    "wall_time",
]

T = TypeVar("T")


def monotonic() -> float:
    """Seconds on the running event loop's clock: what every deadline and wait is measured on."""
    try:
        return asyncio.get_running_loop().time()  # a tenth of the cost of asking anyio, which asks what is running
    except RuntimeError:
        return anyio.current_time()


async def sleep(seconds: float) -> None:
    """Wait on the same clock."""
    await anyio.sleep(seconds)


class Expired(Exception):  # noqa: N818 - no failure: says that time is over, to whoever asked for the bound
    """The deadline of `run_until` came first."""


async def run_until(deadline: float, function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """The result of ``await function(*args)``, which is cancelled at `deadline` on the event loop's clock.

    Raises:
        Expired: it was cancelled for that; any other cancellation passes through.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with anyio.CancelScope(deadline=deadline):
            return await function(*args)
        raise Expired from None
    try:
        # A fifth of what a cancel scope costs, which is much for a call that takes 60 us in all.
        async with asyncio.timeout_at(deadline) as timeout:
            return await function(*args)
    except TimeoutError:
        if timeout.expired():
            raise Expired from None
        raise


def steady_time() -> float:
    """Seconds on the machine's steady clock, one for all event loops and threads: for what outlives a loop."""
    return _time.monotonic()


def wall_time() -> float:
    """Seconds since the epoch: only for HTTP dates and for time stamps that people read."""
    return _time.time()


def random() -> float:
    """Uniform in [0, 1): the default source of jitter."""
    return _random.random()  # noqa: S311 - jitter is no secret


def unique_id() -> str:
    """32 hexadecimal digits that nobody else has, in a forked process neither."""
    return os.urandom(16).hex()


def event_loop() -> Any:
    """What is running us: the asyncio loop, or trio's token. Two runs never have the same one.

    Raises:
        RuntimeError: no event loop is running.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    trio = sys.modules.get("trio")
    if trio is not None:
        return trio.lowlevel.current_trio_token()
    raise RuntimeError("no event loop is running")
