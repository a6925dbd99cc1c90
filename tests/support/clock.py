"""A manual clock for asyncio: time stands still while anything can run, and jumps to the next timer when nothing can.

trio has `trio.testing.MockClock(autojump_threshold=0)`; this is the same for asyncio. Not for tests with real sockets:
waiting for a peer looks like having nothing to do.
"""

from __future__ import annotations

import asyncio
import selectors


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return super().select(0.05)  # other threads may still call in
        self.now += timeout
        return []


class ManualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock jumps."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now
