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
import anyio.lowlevel

__all__ = [
    "Expired",
    "event_loop",
    "monotonic",
    "random",
    "run_until",
    "sleep",
    "steady_time",
    "time_of",
    "unique_id",
    "wall_time",
]

T = TypeVar("T")


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


def monotonic() -> float:
    """Seconds on the running event loop's clock: what every deadline and wait is measured on."""
    return time_of(event_loop())


def time_of(loop: Any) -> float:
    """The same, for who has asked `event_loop` already (which costs a system call on Python 3.11)."""
    return loop.time() if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time()


async def sleep(seconds: float) -> None:
    """Wait on the same clock."""
    await anyio.sleep(seconds)


_ONCE_MORE_SECONDS = 5.0
"""After so long a task is cancelled again that goes on: a scope of anyio before 4.16 that ended in the same moment took
the first for its own. More than any clean-up of ours takes."""


class Expired(Exception):  # noqa: N818 - no failure: says that time is over, to whoever asked for the bound
    """The deadline of `run_until` came first."""


async def run_until(loop: Any, deadline: float, function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """The result of ``await function(*args)``, cancelled at `deadline` on the clock of `loop`, the running one.

    Raises:
        Expired: it was cancelled for that; any other cancellation passes through.
    """
    if not isinstance(loop, asyncio.AbstractEventLoop):
        with anyio.CancelScope(deadline=deadline):
            return await function(*args)
        raise Expired
    # What asyncio.timeout does, without its system calls; and a tenth of what a cancel scope costs.
    task = asyncio.current_task(loop)
    assert task is not None
    before = task.cancelling()
    expired = 0
    timer: asyncio.TimerHandle

    def expire() -> None:
        nonlocal expired, timer
        expired += 1
        task.cancel()
        timer = loop.call_later(_ONCE_MORE_SECONDS, expire)

    timer = loop.call_at(deadline, expire)
    try:
        try:
            return await function(*args)
        finally:
            timer.cancel()
            for _ in range(expired):
                task.uncancel()
    except asyncio.CancelledError:
        if expired and task.cancelling() <= before:
            raise Expired from None
        if expired:  # and somebody else has cancelled it too
            # A scope of anyio that was cancelled in the same moment knows its own cancellation only, and lets this one
            # pass, which may be ours (a task group that waits for its tasks keeps the first it got). It gets its own.
            await anyio.lowlevel.checkpoint_if_cancelled()
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
