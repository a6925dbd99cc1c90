"""The one door through which time and chance enter."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
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
    "LoopClock",
    "Watch",
    "clock_of",
    "event_loop",
    "monotonic",
    "random",
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
        return _trio_token()


def _trio_token() -> Any:
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


def clock_of(loop: Any) -> Callable[[], float]:
    """What tells that time, for who asks often."""
    return loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time


async def sleep(seconds: float) -> None:
    """Wait on the same clock."""
    await anyio.sleep(seconds)


class Expired(Exception):  # noqa: N818 - no failure: says that time is over, to whoever asked for the bound
    """The deadline of `Watch.run_until` came first."""


_ONCE_MORE_SECONDS = 5.0
"""After so long a task is cancelled again that goes on: a scope of anyio before 4.16 that ended in the same moment took
the first for its own. More than any clean-up of ours takes."""

_FEW = 64
"""Dead entries that are not worth a clean-up."""


class Watch:
    """Keeps the deadlines of many tasks with one timer of the event loop.

    A timer for each would cost a third of what a whole call costs (uvloop, Python 3.11), a cancel scope as much again.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # Nothing here is an object for each call that the garbage collector would look at.
        self._entries: list[tuple[float, int]] = []
        """A heap of deadlines and numbers; what is over stays until it is at the top, or there is much of it."""
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        """By their numbers, those that are under way."""
        self._expired: dict[int, int] = {}
        """How many times each of them was cancelled for its deadline; most never."""
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    async def run_until(self, loop: Any, deadline: float, awaitable: Awaitable[T]) -> T:
        """The result of ``await awaitable``, cancelled at `deadline` on the clock of `loop`, the running one.

        Raises:
            Expired: it was cancelled for that; any other cancellation passes through.
        """
        if not isinstance(loop, asyncio.AbstractEventLoop):
            with anyio.CancelScope(deadline=deadline):
                return await awaitable
            raise Expired
        task = asyncio.current_task(loop)
        assert task is not None
        before = task.cancelling()
        number = self._add(loop, deadline, task)
        expired = 0
        try:
            try:
                return await awaitable
            finally:
                self._tasks.pop(number, None)
                if self._expired:
                    expired = self._expired.pop(number, 0)
                    for _ in range(expired):
                        task.uncancel()
        except asyncio.CancelledError:
            if expired and task.cancelling() <= before:
                raise Expired from None
            if expired:  # and somebody else has cancelled it too
                # A scope of anyio that was cancelled in the same moment knows its own cancellation only, and lets this
                # one pass, which may be ours (a task group that waits for its tasks keeps the first it got). It gets
                # its own.
                await anyio.lowlevel.checkpoint_if_cancelled()
            raise

    def _add(self, loop: asyncio.AbstractEventLoop, deadline: float, task: asyncio.Task[Any]) -> int:
        if loop is not self._loop:  # the tasks of another loop are no longer there
            self._loop = loop
            self._entries, self._tasks, self._expired = [], {}, {}
            self._timer, self._armed_for = None, math.inf
        entries, tasks = self._entries, self._tasks
        if len(entries) > 2 * len(tasks) + _FEW:
            entries[:] = [each for each in entries if each[1] in tasks]
            heapq.heapify(entries)
        number = next(self._numbers)
        heapq.heappush(entries, (deadline, number))
        tasks[number] = task
        if deadline < self._armed_for:  # else its timer need not be set: one that rings too early only looks again
            self._arm()
        return number

    def _arm(self) -> None:
        """Have the timer ring at the first deadline. A later one needs no timer of its own."""
        entries = self._entries
        while entries and entries[0][1] not in self._tasks:
            heapq.heappop(entries)
        if not entries or entries[0][0] >= self._armed_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        assert self._loop is not None
        self._armed_for = entries[0][0]
        self._timer = self._loop.call_at(self._armed_for, self._ring)

    def _ring(self) -> None:
        assert self._loop is not None
        # A loop may ring a moment before the time that its clock tells then.
        now = max(self._loop.time(), self._armed_for)
        self._timer, self._armed_for = None, math.inf
        entries = self._entries
        while entries and entries[0][0] <= now:
            _, number = heapq.heappop(entries)
            task = self._tasks.get(number)
            if task is not None:
                self._expired[number] = self._expired.get(number, 0) + 1
                task.cancel()
                heapq.heappush(entries, (now + _ONCE_MORE_SECONDS, number))
        self._arm()


class LoopClock:
    """The clock of whatever event loop is running, for what outlives event loops.

    Args:
        moved: is called when another event loop runs than before, whose clock begins elsewhere: with its time, and the
            seconds that a moment of the old clock is to be put on by.
    """

    def __init__(self, moved: Callable[[float, float], None]) -> None:
        self._moved = moved
        self.loop: Any = None
        """What ran us when `now` was last called, as `event_loop` tells it; None: it was never."""
        self._time: Callable[[], float] = monotonic
        self._origin = 0.0
        self._last = 0.0

    def now(self) -> float:
        """Seconds. Outside of any event loop (in a finaliser), when it was last looked at."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._now_elsewhere()
        if loop is not self.loop:
            self._enter(loop, loop.time)
        self._last = now = self._time()
        return now

    def forget(self) -> None:
        """In a forked process: the event loop has stayed in the other one."""
        self.loop = None

    def _now_elsewhere(self) -> float:
        try:
            loop = _trio_token()
        except RuntimeError:
            return self._last
        if loop is not self.loop:
            self._enter(loop, anyio.current_time)
        self._last = now = self._time()
        return now

    def _enter(self, loop: Any, time: Callable[[], float]) -> None:
        now = time()
        origin = steady_time() - now
        is_other = self.loop is not None
        seconds, self._origin = self._origin - origin, origin
        self.loop, self._time = loop, time
        if is_other:
            self._moved(now, seconds)


steady_time = _time.monotonic
"""Seconds on the machine's steady clock, one for all event loops and threads: for what outlives a loop."""


def wall_time() -> float:
    """Seconds since the epoch: only for HTTP dates and for time stamps that people read."""
    return _time.time()


def random() -> float:
    """Uniform in [0, 1): the default source of jitter."""
    return _random.random()  # noqa: S311 - jitter is no secret


def unique_id() -> str:
    """32 hexadecimal digits that nobody else has: half drawn by chance for this process, half counted."""
    return f"{_process_id}{next(_numbers):016x}"


def _begin_process() -> None:
    """What a process has of its own, a forked one too."""
    global _process_id, _numbers  # noqa: PLW0603 - one process, one name
    _process_id = os.urandom(8).hex()
    _numbers = itertools.count(1)


_process_id = ""
_numbers = itertools.count(1)
_begin_process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_process)
