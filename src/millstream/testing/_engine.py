"""The generation engine: slots, the queue before them, the time that tokens take. No sockets."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import deque

import anyio

from millstream.testing._behaviour import Behaviour

__all__ = ["Engine", "QueueFullError", "Ticket"]


class QueueFullError(Exception):
    """No slot is free and no place in the queue either."""


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """A place in the queue, then a slot, given back by `Engine.leave`."""

    admitted: anyio.Event | None = None
    """None: it had a slot at once."""
    holds: bool = False
    due: float = -math.inf
    """When the last token was due: lateness of one sleep does not add to the next."""

    async def wait(self) -> None:
        """Until it has a slot."""
        if not self.holds and self.admitted is not None:
            await self.admitted.wait()


class Engine:
    """Generates for at most ``behaviour.slots`` requests at once; the others wait, first come first served."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._queue: deque[Ticket] = deque()
        self._jitter = random.Random(behaviour.seed)  # noqa: S311 - no secret
        self.running = 0
        """Requests that have a slot."""
        self.finished = 0
        """Requests that have given back theirs."""

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def _free(self) -> bool:
        slots = self._behaviour.slots
        return slots is None or self.running < slots

    def enter(self) -> Ticket:
        """Take a slot, or the last place in the queue.

        Raises:
            QueueFullError: there is neither.
        """
        if self._free() and not self._queue:
            self.running += 1
            return Ticket(holds=True)
        limit = self._behaviour.max_queue
        if limit is not None and len(self._queue) >= limit:
            raise QueueFullError
        ticket = Ticket(anyio.Event())
        self._queue.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give back the slot, or the place in the queue."""
        if ticket.holds:
            ticket.holds = False
            self.running -= 1
            self.finished += 1
            self.admit()
        elif ticket in self._queue:
            self._queue.remove(ticket)

    def admit(self) -> None:
        """Give free slots to those who wait; to be called when `slots` was raised."""
        while self._queue and self._free():
            ticket = self._queue.popleft()
            ticket.holds = True
            self.running += 1
            assert ticket.admitted is not None
            ticket.admitted.set()

    async def generate(self, ticket: Ticket, count: int, *, first: bool) -> None:
        """Wait until the next `count` tokens are there; with `first` they begin with the first of all."""
        latency = self._behaviour.latency
        if first:
            ticket.due = anyio.current_time()
            jitter = self._jitter.uniform(0.0, latency.jitter) if latency.jitter else 0.0
            await self._sleep(ticket, latency.first_token + jitter)
            count -= 1
        if not latency.load:
            await self._sleep(ticket, count * latency.inter_token)
            return
        for _ in range(count):  # the batch may change from one token to the next
            await self._sleep(ticket, latency.inter_token + latency.load * (self.running - 1))

    async def _sleep(self, ticket: Ticket, seconds: float) -> None:
        ticket.due += seconds
        left = ticket.due - anyio.current_time()
        if left > 0:
            await anyio.sleep(left)
