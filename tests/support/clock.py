"""A manual clock for asyncio: time stands still while anything can run, and jumps to the next timer when nothing can.

trio has `trio.testing.MockClock(autojump_threshold=...)`; this is the same for asyncio. Waiting for a peer looks like
having nothing to do: with real sockets the clock needs a `grace`, in which whatever was sent arrives.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable
from typing import Any

GRACE = 0.001
"""Real seconds, where both ends of the sockets are in one thread: on loopback what is sent is there at once."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, grace: float) -> None:
        super().__init__()
        self.now = 0.0
        self.grace = grace

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return super().select(0.05)  # other threads may still call in
        if self.grace:
            ready = super().select(self.grace)
            if ready:
                return ready
        self.now += timeout
        return []


class ManualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock jumps.

    Args:
        grace: real seconds in which nothing must have happened on any socket before it does.
    """

    def __init__(self, grace: float = 0.0) -> None:
        self._jumping = _JumpingSelector(grace)
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9
        self.resolve: Callable[[str], str] | None = None
        """Gives the address of a host name, or raises `socket.gaierror`; None: the system does, in a thread."""

    def time(self) -> float:
        return self._jumping.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # Threads end in real time: the runner's bound (from Python 3.12 on) would be jumped over.
        await super().shutdown_default_executor()

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        if self.resolve is None:
            return await super().getaddrinfo(host, port, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (self.resolve(host), port))]
