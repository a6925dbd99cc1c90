"""The connections of a client, kept for the next request.

For each origin there is a stack of idle connections (the last used is the first to be used again, so that the others
may grow old and go) and, where their number is bounded, a queue of those who wait (first come, first served). Every
step is O(1) and needs no background task. A connection is either idle, active or being opened, and leaves that state in
one place (`_Lane`): whatever is cancelled when, none is lost.
"""

from __future__ import annotations

import os
import ssl
import weakref
from collections import OrderedDict
from typing import Any

import anyio
import msgspec

from millstream._clock import event_loop, monotonic
from millstream._config import check_int, check_number
from millstream._errors import ClosedError, DeadlineError, MillstreamError, ReadError
from millstream._transport import _asyncio
from millstream._transport._connection import Connection, StaleConnectionError, idle_seconds
from millstream._transport._seam import Origin, Request, Response, Timeouts
from millstream._transport._tls import create_context
from millstream._transport.http11 import MAX_BODY_BYTES, MAX_HEADER_BYTES, ResponseParser

__all__ = ["PoolStatistics", "PoolTransport"]


class PoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a `PoolTransport` has and has done."""

    open: int
    """Connections, idle and active."""
    idle: int
    """Of these, the ones that wait for a request."""
    active: int
    """Of these, the ones with a request or a stream under way."""
    opening: int
    """Connections being opened."""
    waiting: int
    """Requests that wait for a connection."""
    opened_total: int
    """Connections opened since the beginning."""
    requests_total: int
    """Requests that got a connection since the beginning."""
    resent_total: int
    """Of these, the ones sent once more because the server had closed the idle connection they were given."""


class PoolTransport:
    """Our own way to a server: HTTP/1.1 over connections that are kept open, on asyncio, uvloop and trio.

    It opens its first connection with the first request, and belongs to the event loop of that; used from another one
    (a second `asyncio.run`), or in a forked child, it begins anew. Closing it ends what is under way.

    Args:
        max_connections: to one origin at most, those being opened included; further requests wait. None: no bound.
        keepalive_expiry: seconds that a connection may stay idle. Servers that tell a shorter time (``Keep-Alive``)
            are heeded.
        max_idle: idle connections to one origin at most, the oldest are closed. None: no bound but `keepalive_expiry`.
        ssl_context: for https, instead of one made from `verify`. None: that one.
        verify: True: certificates are checked against ``SSL_CERT_FILE``, ``SSL_CERT_DIR`` or certifi's; a path:
            against those there; False: not at all.
        max_header_bytes: all header lines of an answer together.
        max_body_bytes: a body that is not streamed, decoded.
        generic: whether to use anyio's streams on asyncio too, as it does on trio. Slower, and the same otherwise.

    Raises:
        OptionTypeError, OptionValueError: a figure that is not possible.
    """

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        keepalive_expiry: float = 15.0,
        max_idle: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        verify: bool | str = True,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_body_bytes: int = MAX_BODY_BYTES,
        generic: bool = False,
    ) -> None:
        check_int("max_connections", max_connections, low=1)
        check_number("keepalive_expiry", keepalive_expiry, low=0.0)
        check_int("max_idle", max_idle, low=0)
        check_int("max_header_bytes", max_header_bytes, low=1)
        check_int("max_body_bytes", max_body_bytes, low=1)
        self.max_connections = max_connections
        self.keepalive_expiry = keepalive_expiry
        self.max_idle = max_idle
        self.generic = generic
        self.opened_total = 0
        self._requests_total = 0
        self._resent_total = 0
        self._ssl_context = ssl_context
        self._verify = verify
        self._max_header_bytes = max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._closed = False
        self._pool: _Pool | None = None
        _transports.add(self)

    async def send(self, request: Request) -> Response:
        """Send one request; see `Transport.send`."""
        pool = self._pool
        if pool is None or pool.loop is not event_loop():
            pool = self._enter()
        origin = request.route.origin
        lane = pool.lanes.get(origin) or pool.lane(origin)
        connection = lane.take() or await lane.obtain(request.timeouts)
        self._requests_total += 1
        try:
            return await connection.exchange(request)
        except StaleConnectionError:
            self._resent_total += 1
        fresh = await lane.replace(connection, request.timeouts)
        return await fresh.exchange(request)

    async def aclose(self) -> None:
        """Close every connection; what is under way fails with `ClosedError`. Closing twice is harmless."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if pool.loop is not event_loop():
            pool.discard(_CLOSED)
            return
        pool.close()
        await anyio.lowlevel.cancel_shielded_checkpoint()  # in which the event loop closes the sockets

    def statistics(self) -> PoolStatistics:
        """What there is at this moment."""
        lanes = list(self._pool.lanes.values()) if self._pool is not None else []
        idle = sum(len(lane.idle) for lane in lanes)
        active = sum(len(lane.active) for lane in lanes)
        return PoolStatistics(
            open=idle + active,
            idle=idle,
            active=active,
            opening=sum(lane.opening for lane in lanes),
            waiting=sum(len(lane.waiters) for lane in lanes),
            opened_total=self.opened_total,
            requests_total=self._requests_total,
            resent_total=self._resent_total,
        )

    def parser(self) -> ResponseParser:
        """For a new connection."""
        return ResponseParser(self._max_header_bytes, self._max_body_bytes)

    def ssl_context(self) -> ssl.SSLContext:
        """For a new connection to an https origin; made when the first one is."""
        if self._ssl_context is None:
            self._ssl_context = create_context(self._verify)
        return self._ssl_context

    def _enter(self) -> _Pool:
        if self._closed:
            raise ClosedError("this transport was closed; make a new one")
        loop = event_loop()
        if self._pool is not None:
            self._pool.discard(_ELSEWHERE)
        self._pool = _Pool(self, loop)
        return self._pool

    def forget(self) -> None:
        """In a forked child: leave the parent's connections alone. Closing one would end it for the parent too."""
        if self._pool is not None:
            _of_the_parent.append(self._pool)
            self._pool = None


_CLOSED = "the transport was closed"
_ELSEWHERE = "the transport went on in another event loop, which ended what it did in this one; make one for each"


class _Pool:
    """What belongs to one event loop."""

    def __init__(self, transport: PoolTransport, loop: Any) -> None:
        self.transport = transport
        self.loop = loop
        self.lanes: dict[Origin, _Lane] = {}
        self.scopes: set[anyio.CancelScope] = set()
        """Of connections that are being opened."""
        self.closed = ""
        """Why it is closed; empty while it is not."""
        self.asyncio = hasattr(loop, "call_soon") and not transport.generic
        self.now = loop.time if self.asyncio else monotonic

    def lane(self, origin: Origin) -> _Lane:
        lane = self.lanes[origin] = _Lane(self, origin)
        return lane

    async def connect(self, lane: _Lane) -> Connection:
        origin, parser = lane.origin, self.transport.parser()
        tls = self.transport.ssl_context() if origin.scheme == "https" else None
        if self.asyncio:
            return await _asyncio.connect(origin, lane, parser, tls)
        from millstream._transport import _anyio  # noqa: PLC0415 - anyio's streams are slow to import

        return await _anyio.connect(origin, lane, parser, tls)

    def close(self) -> None:
        self.closed = _CLOSED
        for scope in self.scopes:
            scope.cancel()
        for lane in self.lanes.values():
            lane.close()

    def discard(self, why: str) -> None:
        """Close from outside of the event loop, which may be over."""
        self.closed = why
        for lane in self.lanes.values():
            connections = [*lane.idle, *lane.active]
            for connection in connections:
                if hasattr(self.loop, "call_soon_threadsafe") and not self.loop.is_closed():
                    self.loop.call_soon_threadsafe(connection.abort, ClosedError(why))
                else:
                    connection.abort(ClosedError(why))


class _Waiter:
    """One who waits for a connection. Granted without one, it is for him to open it."""

    __slots__ = ("connection", "event", "granted")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.granted = False
        self.connection: Connection | None = None

    def grant(self, connection: Connection | None) -> None:
        self.granted = True
        self.connection = connection
        self.event.set()


class _Lane:
    """The connections to one origin.

    While anybody waits nothing is idle, and no room is free: whatever becomes free is handed to the first of them.
    """

    __slots__ = ("active", "idle", "opening", "origin", "pool", "waiters")

    def __init__(self, pool: _Pool, origin: Origin) -> None:
        self.pool = pool
        self.origin = origin
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        self.active: set[Connection] = set()
        self.opening = 0
        self.waiters: OrderedDict[_Waiter, None] = OrderedDict()

    # -- for who sends ---------------------------------------------------------------------------------------------

    def take(self) -> Connection | None:
        """An idle connection; None without one."""
        idle = self.idle
        if not idle:
            return None
        now = self.pool.now()
        self._reap(now)
        while idle:
            connection = idle.popitem()[0]
            if connection.expires_at > now and connection.usable:
                self.active.add(connection)
                return connection
            connection.abort()
        return None

    async def obtain(self, timeouts: Timeouts) -> Connection:
        """A new connection, or one that becomes free."""
        first = False
        while not self._has_room():
            connection = await self._wait(timeouts.pool, first=first)
            if connection is None:
                return await self._open(timeouts)
            if connection.usable:
                return connection
            connection.abort()  # the server closed it between the grant and now
            first = True
        self.opening += 1
        return await self._open(timeouts)

    async def replace(self, stale: Connection, timeouts: Timeouts) -> Connection:
        """A new connection in the place of one that turned out to be stale."""
        if stale not in self.active:
            raise ClosedError(self.pool.closed or _CLOSED)
        self.active.discard(stale)
        self.opening += 1
        stale.abort()
        return await self._open(timeouts)

    # -- for connections -------------------------------------------------------------------------------------------

    def release(self, connection: Connection) -> None:
        if connection not in self.active:
            return
        pool = self.pool
        transport = pool.transport
        seconds = idle_seconds(connection.parser, transport.keepalive_expiry)
        if pool.closed or seconds <= 0:
            connection.abort()
            return
        if self.waiters:
            self.waiters.popitem(last=False)[0].grant(connection)
            return
        now = pool.now()
        self.active.discard(connection)
        self._reap(now)
        connection.expires_at = now + seconds
        self.idle[connection] = None
        if transport.max_idle is not None and len(self.idle) > transport.max_idle:
            self.idle.popitem(last=False)[0].abort()

    def gone(self, connection: Connection) -> None:
        if connection in self.active:
            self.active.discard(connection)
            self._vacate()
        else:
            self.idle.pop(connection, None)

    # -- ours ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        for connection in [*self.idle, *self.active]:
            connection.abort(ClosedError(_CLOSED))
        while self.waiters:
            self.waiters.popitem(last=False)[0].event.set()

    def _reap(self, now: float) -> None:
        idle = self.idle
        while idle:
            oldest = next(iter(idle))
            if oldest.expires_at > now:
                return
            del idle[oldest]
            oldest.abort()

    def _has_room(self) -> bool:
        most = self.pool.transport.max_connections
        return most is None or len(self.active) + len(self.idle) + self.opening < most

    def _vacate(self) -> None:
        """Something became free: who waits longest may open a connection."""
        if self.waiters and not self.pool.closed and self._has_room():
            self.opening += 1
            self.waiters.popitem(last=False)[0].grant(None)

    async def _wait(self, seconds: float | None, *, first: bool) -> Connection | None:
        """A connection, or None where there is room for a new one (which counts as being opened from then on)."""
        waiter = _Waiter()
        self.waiters[waiter] = None
        if first:
            self.waiters.move_to_end(waiter, last=False)
        try:
            with anyio.move_on_after(seconds):
                await waiter.event.wait()
        except BaseException:
            self._withdraw(waiter)
            raise
        if not waiter.granted:
            self.waiters.pop(waiter, None)
            if self.pool.closed:
                raise ClosedError(self.pool.closed)
            raise DeadlineError(deadline="pool", seconds=seconds)
        return waiter.connection

    def _withdraw(self, waiter: _Waiter) -> None:
        if not waiter.granted:
            self.waiters.pop(waiter, None)
        elif waiter.connection is None:
            self.opening -= 1
            self._vacate()
        else:
            self.release(waiter.connection)

    async def _open(self, timeouts: Timeouts) -> Connection:
        """Open the connection that is already counted in `opening`."""
        pool = self.pool
        connection: Connection | None = None
        scope = anyio.move_on_after(timeouts.connect)
        pool.scopes.add(scope)
        try:
            with scope:
                connection = await pool.connect(self)
        finally:
            pool.scopes.discard(scope)
            self.opening -= 1
            if connection is None:
                self._vacate()
            else:
                self.active.add(connection)
                pool.transport.opened_total += 1
        error: MillstreamError | None = None
        if pool.closed:
            error = ClosedError(pool.closed)
        elif connection is None:
            error = DeadlineError(deadline="connect", seconds=timeouts.connect)
        elif not connection.usable:
            error = ReadError("the server closed the connection before the answer")
        if connection is not None and error is None:
            return connection
        if connection is not None:
            connection.abort()
        assert error is not None
        raise error


_transports: weakref.WeakSet[PoolTransport] = weakref.WeakSet()
_of_the_parent: list[_Pool] = []  # kept: to collect them would unregister the parent's sockets


def _forget_all() -> None:
    for transport in list(_transports):
        transport.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
