"""A connection as an `asyncio.Protocol`: bytes go from the event loop straight into the parser.

One exchange costs one write, one future and no task; its deadlines cost no timer, since one timer a connection is
armed lazily: it looks at the deadline that holds when it fires, and is set anew if that has moved.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, cast

from millstream._errors import (
    ClosedError,
    DeadlineError,
    DeadlineName,
    MillstreamError,
    ProtocolError,
    ReadError,
    WriteError,
)
from millstream._transport._connection import (
    COLLECT_SECONDS,
    CONNECT_EXCEPTIONS,
    HIGH_WATER,
    Body,
    Lane,
    StaleConnectionError,
    connect_error,
    reason_of,
)
from millstream._transport._seam import Origin, Request, Response
from millstream._transport.http11 import PIECE_BYTES, ResponseParser, encode_request

__all__ = ["AsyncioConnection", "connect"]

_HAPPY_EYEBALLS_SECONDS = 0.25  # RFC 8305, section 8


async def connect(origin: Origin, lane: Lane, parser: ResponseParser, tls: ssl.SSLContext | None) -> AsyncioConnection:
    """Open a connection on the running asyncio loop.

    Raises:
        ConnectError: there is none; `CertificateError` where the server is not who it should be.
    """
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {}
    if tls is not None:
        options = {"ssl": tls, "server_hostname": origin.host}
    if isinstance(loop, asyncio.BaseEventLoop) and not _is_address(origin.host):  # uvloop has its own order
        options["happy_eyeballs_delay"] = _HAPPY_EYEBALLS_SECONDS
    try:
        _, connection = await loop.create_connection(
            lambda: AsyncioConnection(loop, origin, lane, parser), origin.host, origin.port, **options
        )
    except CONNECT_EXCEPTIONS as error:
        raise connect_error(error, origin) from error
    return connection


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


class AsyncioConnection(asyncio.Protocol):
    """One connection; see `Connection` for what the methods mean."""

    __slots__ = (
        "_awaiting_head",
        "_busy",
        "_deadline",
        "_error",
        "_gathering",
        "_loop",
        "_lost",
        "_mark",
        "_origin",
        "_phase",
        "_read_paused",
        "_read_seconds",
        "_seconds",
        "_streaming",
        "_timer",
        "_timer_at",
        "_transport",
        "_waiter",
        "_write_paused",
        "expires_at",
        "lane",
        "parser",
        "requests",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin, lane: Lane, parser: ResponseParser) -> None:
        self.lane = lane
        self.parser = parser
        self.requests = 0
        self.expires_at = math.inf
        self._loop = loop
        self._origin = origin
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._lost = False
        self._busy = False
        self._awaiting_head = False
        self._streaming = False
        self._mark: bytes | None = None  # whoever waits for the body collects it
        self._gathering = False  # and something is there already
        self._read_paused = False
        self._write_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._deadline = math.inf
        self._phase: DeadlineName = "read"
        self._seconds: float | None = None
        self._read_seconds: float | None = None

    # -- asked by the pool and by streams --------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return not self._lost

    async def exchange(self, request: Request) -> Response:
        transport = self._transport
        assert transport is not None
        parser = self.parser
        self.requests += 1
        parser.start(head_only=request.route.method == "HEAD", bounded=not request.stream)
        self._busy = True
        self._awaiting_head = True
        self._streaming = request.stream
        timeouts = request.timeouts
        self._read_seconds = timeouts.read
        waiter = self._waiter = self._loop.create_future()
        transport.write(encode_request(request))
        if self._write_paused:
            self._phase = "write"
            self._set_deadline(timeouts.write)
        else:
            self._phase = "read"
            if timeouts.read is not None or self._deadline != math.inf:
                self._set_deadline(timeouts.read)
        try:
            await waiter
        except BaseException:
            self.abort()
            raise
        self._waiter = None
        if self._error is not None:
            raise self._error
        if request.stream:
            self._deadline = math.inf
            return self._response(b"", Body(self))
        response = self._response(parser.take(), None)
        self.finish()
        return response

    def _response(self, body: bytes, stream: Body | None) -> Response:
        parser = self.parser
        assert parser.head is not None
        return Response(parser.status, parser.head, body, stream)

    def arrival(self, deadline: float, mark: bytes | None = None) -> Awaitable[None] | None:
        if self.parser.complete or self._error is not None:
            return None
        loop = self._loop
        seconds = self._read_seconds
        if seconds is not None and (own := loop.time() + seconds) <= deadline:
            deadline = own
        else:
            seconds = None
        self._phase = "read"
        self._seconds = seconds
        self._deadline = deadline
        if deadline < self._timer_at:
            self._arm(deadline)
        self._mark = mark
        waiter = self._waiter = loop.create_future()
        return waiter

    def take_body(self) -> bytes:
        self._waiter = self._mark = None
        self._gathering = False
        self._deadline = math.inf
        data = self.parser.take(PIECE_BYTES)
        if self._read_paused:
            self.resume()
        if not data and self._error is not None:
            raise self._error
        return data

    def resume(self) -> None:
        if self._read_paused and self.parser.buffered < HIGH_WATER and self._transport is not None:
            self._read_paused = False
            self._transport.resume_reading()

    def finish(self) -> None:
        parser = self.parser
        self._busy = False
        self._deadline = math.inf
        if (
            not parser.complete
            or not parser.keep_alive
            or parser.excess
            or self._lost
            or self._write_paused
            or self._error is not None
        ):
            self.abort()
        else:
            self.lane.release(self)

    def abort(self, error: MillstreamError | None = None) -> None:
        if self._error is None and (error is not None or not self.parser.complete):
            self._error = error or ClosedError("the connection was closed")
        self._close()
        self.lane.gone(self)

    def _close(self) -> None:
        self._lost = True
        self._deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transport, self._transport = self._transport, None
        if transport is not None:
            _abort(transport, self._loop)
        self._wake()

    # -- called by the event loop ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # With next to no room, "paused" means that some of the request is not out yet. (TLS takes 0 for "always".)
        self._transport.set_write_buffer_limits(high=1)

    def data_received(self, data: bytes) -> None:
        parser = self.parser
        if not self._busy:
            self.abort()  # nothing was asked: a late 408, or worse
            return
        try:
            parser.receive_data(data)
        except ProtocolError as error:
            self.abort(error)
            return
        if parser.complete:
            self._wake()
            return
        if not self._streaming:
            if self._read_seconds is not None:
                self._deadline = self._loop.time() + self._read_seconds
        elif self._mark is not None:
            self._collect(data, self._mark)
        elif parser.head is not None:
            buffered = parser.buffered
            if buffered or self._awaiting_head:
                self._awaiting_head = False
                self._wake()
            if buffered > HIGH_WATER and not self._read_paused and self._transport is not None:
                self._read_paused = True
                self._transport.pause_reading()

    def eof_received(self) -> None:
        if not self._busy:
            self.abort()
        elif not self._lost:
            self._closed_by_peer(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._busy and not self._lost:
            self._closed_by_peer(exc)
        if not isinstance(self._error, StaleConnectionError):
            self.abort()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._busy and self._phase == "write":
            self._phase = "read"
            self._set_deadline(self._read_seconds)

    # -- ours ------------------------------------------------------------------------------------------------------

    def _closed_by_peer(self, cause: Exception | None) -> None:
        parser = self.parser
        if parser.complete:
            self._lost = True
            return
        if not parser.started and self.requests > 1:
            # The lane hears of it from who sent the request: it keeps its place for the fresh connection.
            self._error = StaleConnectionError()
            self._close()
            return
        error = self._broken(cause)
        if error is None:
            self._lost = True
            self._wake()
        else:
            self.abort(error)

    def _broken(self, cause: Exception | None) -> MillstreamError | None:
        """What the end of the connection is to the exchange; None where it is the end of the body."""
        parser = self.parser
        if self._write_paused and not parser.started:
            error: MillstreamError = WriteError(
                f"{self._origin} closed the connection amid the request{reason_of(cause)}"
            )
        elif cause is not None:
            error = ReadError(f"the connection to {self._origin} broke{reason_of(cause)}", started=parser.started)
        else:
            try:
                parser.receive_eof()
            except (ReadError, ProtocolError) as early:
                return early
            return None
        error.__cause__ = cause
        return error

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _collect(self, data: bytes, mark: bytes) -> None:
        """A piece has come that is not waited for: it waits for others, though not for long."""
        if mark in data or self.parser.buffered > HIGH_WATER:
            self._mark = None
            self._wake()
        elif not self._gathering and self.parser.buffered:
            self._gathering = True
            self._set_deadline(COLLECT_SECONDS, self._deadline)

    def _set_deadline(self, seconds: float | None, latest: float = math.inf) -> None:
        """`seconds` from now, or `latest` if that is sooner."""
        deadline = latest
        self._seconds = None
        if seconds is not None:
            own = self._loop.time() + seconds
            if own <= deadline:
                deadline = own
                self._seconds = seconds
        self._deadline = deadline
        if deadline < self._timer_at:
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        if self._deadline == math.inf:
            return
        if self._loop.time() < self._deadline:
            self._timer_at = self._deadline
            self._timer = self._loop.call_at(self._deadline, self._on_timer)
            return
        if self._gathering:
            self._wake()
        else:
            self.abort(DeadlineError(deadline=self._phase, seconds=self._seconds))


def _abort(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        transport.abort()
        return
    with suppress(RuntimeError):  # "Event loop is closed"
        transport.abort()
    # Nobody is left to do what the loop would have done next: without this the socket waits for the garbage
    # collector, which then warns. asyncio has no public way; uvloop has closed it with the loop.
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    finish = getattr(inner, "_call_connection_lost", None)
    if finish is not None:
        finish(None)
