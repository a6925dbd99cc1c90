"""What happened at a fake endpoint so far, and waiting for more to happen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import anyio

from millstream.testing._behaviour import FakeRequest
from millstream.testing._engine import Engine, Ticket
from millstream.testing._http import RawRequest

__all__ = ["ClientLeft", "Log"]


class ClientLeft(Exception):  # noqa: N818 - nothing failed
    """The client closed the connection."""


class Log:
    """Counters, each described where `FakeEndpoint` shows it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed: list[anyio.Event] = []
        self._under_way: set[Ticket] = set()
        self.requests: list[FakeRequest] = []
        self._number = 0
        self.connections = 0
        self.open_connections = 0
        self.served = 0
        self.cancelled = 0

    @property
    def in_flight(self) -> int:
        """Generations under way."""
        return len(self._under_way)

    def changed(self) -> None:
        """Wake those who wait for something."""
        waiting, self._changed = self._changed, []
        for event in waiting:
            event.set()

    async def wait_for(self, condition: Callable[[], object]) -> None:
        """Until `condition` is true."""
        while not condition():
            event = anyio.Event()
            self._changed.append(event)
            await event.wait()

    @contextlib.contextmanager
    def connection(self) -> Generator[int]:
        """Count a connection while it is open; its number."""
        self.connections += 1
        self.open_connections += 1
        self.changed()
        try:
            yield self.connections
        finally:
            self.open_connections -= 1
            self.changed()

    def record(self, raw: RawRequest, body: Any, connection: int, *, keep: bool) -> None:
        """Count a request, and keep it or not."""
        self._number += 1
        if keep:
            now = anyio.current_time()
            self.requests.append(
                FakeRequest(self._number, raw.method, raw.target, raw.headers, body, raw.body, now, connection)
            )
        self.changed()

    @contextlib.contextmanager
    def generation(self, ticket: Ticket) -> Generator[None]:
        """Count a generation while it lasts, and give back its slot, however it ends."""
        self._under_way.add(ticket)
        self.changed()
        try:
            yield
        except ClientLeft:
            self.cancelled += ticket in self._under_way
            raise
        finally:
            self._end(ticket)

    def finish(self, ticket: Ticket) -> None:
        """Count it as served, before its last bytes go out.

        Not after: a client that has its answer may look at the counters at once.
        """
        self.served += 1
        self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        if ticket in self._under_way:
            self._under_way.remove(ticket)
            self._engine.leave(ticket)
            self.changed()
