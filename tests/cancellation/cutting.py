"""Running an operation up to its k-th suspension, and cancelling it there.

A coroutine is driven by an awaitable that hands on whatever it yields, and counts: so the place of the cut is exact, and
the same on every event loop. The tasks that an operation starts are not counted; for these there is a cut after k rounds
of the event loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel

Operation = Callable[[], Coroutine[Any, Any, Any]]


class Cut:
    """Awaits a coroutine, and calls `cancel` when it suspends for the `at`-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, cancel: Callable[[], Any], *, late: bool = False):
        self.coroutine = coroutine
        self.left = at
        self.cancel = cancel
        self.late = late
        """Cancel not when it suspends, but when that for which it waits has come, just before it goes on."""

    @property
    def reached(self) -> bool:
        return self.left <= 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self.coroutine.send(None)  # noqa: E731
        while True:
            try:
                yielded = step()
            except StopIteration as end:
                return end.value
            self.left -= 1
            if self.left == 0:
                self._cancel_at(yielded)
            try:
                sent = yield yielded
            except BaseException as error:
                step = lambda error=error: self.coroutine.throw(error)  # noqa: E731
            else:
                step = lambda sent=sent: self.coroutine.send(sent)  # noqa: E731

    def _cancel_at(self, yielded: Any) -> None:
        if not self.late:
            self.cancel()
        elif yielded is None:
            asyncio.get_running_loop().call_soon(self.cancel)
        else:
            yielded.add_done_callback(lambda _: self.cancel())


async def by_scope(operation: Operation, at: int) -> bool:
    """Cut by an anyio scope; gives whether the cut was reached."""
    with anyio.CancelScope() as scope:
        cut = Cut(operation(), at, scope.cancel)
        await cut
    return cut.reached


async def by_task(operation: Operation, at: int) -> bool:
    """Cut by asyncio's ``task.cancel()``, which must never be swallowed."""
    return await _by_task(operation, at, late=False)


async def by_late_task(operation: Operation, at: int) -> bool:
    """The same in the moment in which the operation would go on."""
    return await _by_task(operation, at, late=True)


async def _by_task(operation: Operation, at: int, *, late: bool) -> bool:
    task: asyncio.Task[None]

    async def run() -> None:
        nonlocal cut
        cut = Cut(operation(), at, lambda: task.cancel(), late=late)
        await cut

    cut: Cut | None = None
    task = asyncio.get_running_loop().create_task(run())
    (done,) = await asyncio.gather(task, return_exceptions=True)
    assert cut is not None
    if cut.reached:
        assert task.cancelled(), f"the cancellation was swallowed: {done!r}"
    elif isinstance(done, BaseException):
        raise done
    return cut.reached


async def by_timeout(operation: Operation, at: int) -> bool:
    """Cut by ``asyncio.timeout``."""
    cut: Cut | None = None
    try:
        async with asyncio.timeout(None) as timeout:
            cut = Cut(operation(), at, lambda: timeout.reschedule(0))
            await cut
    except TimeoutError:
        assert timeout.expired()
    assert cut is not None
    host = asyncio.current_task()
    assert host is not None
    assert host.cancelling() == 0
    return cut.reached


async def by_rounds(operation: Operation, at: int) -> bool:
    """Cut after `at` rounds of the event loop, wherever the operation and its tasks are then."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            ended = False

            async def count() -> None:
                for _ in range(at):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            tasks.start_soon(count)
            await operation()
            ended = not scope.cancel_called
            tasks.cancel_scope.cancel()
    return not ended


async def by_time(operation: Operation, at: int) -> bool:
    """Cut after so many times 0.7 s, on a manual clock."""
    with anyio.move_on_after(at * 0.7) as scope:
        await operation()
    return scope.cancelled_caught


Way = Callable[[Operation, int], Awaitable[bool]]

ONLY_ASYNCIO: tuple[Way, ...] = (by_task, by_late_task, by_timeout)


def on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        assert "trio" in sys.modules
        return False
    return True


async def walk(
    operation: Operation,
    way: Way,
    check: Callable[[], Awaitable[None]],
    *,
    most: int = 200,
    first: int = 1,
    stride: int = 1,
) -> int:
    """Cut at each place in turn and `check` after each, until the operation completes; gives the number of cuts."""
    for at in range(first, most, stride):
        try:
            reached = await way(operation, at)
            await check()
        except BaseException as error:
            error.add_note(f"cut at suspension {at}")
            raise
        if not reached:
            return at - 1
    raise AssertionError(f"not complete after {most} suspensions")
