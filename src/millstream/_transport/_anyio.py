"""A connection over an anyio byte stream: for trio, and for asyncio where it is asked for. Slower, else the same."""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import Awaitable
from contextlib import suppress
from typing import cast

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from millstream._clock import monotonic
from millstream._errors import (
    ClosedError,
    DeadlineError,
    MillstreamError,
    ReadError,
    WriteError,
)
from millstream._transport._connection import (
    CONNECT_EXCEPTIONS,
    Body,
    Lane,
    StaleConnectionError,
    connect_error,
    reason_of,
)
from millstream._transport._seam import Origin, Request, Response
from millstream._transport.http11 import PIECE_BYTES, ResponseParser, encode_request

__all__ = ["AnyioConnection", "connect"]

_READ_BYTES = 64 * 1024
_SENT_AT_ONCE = 64 * 1024
"""A request up to this size fits the system's buffers: it is sent whole before the answer is looked at."""
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError, ssl.SSLError)


async def connect(origin: Origin, lane: Lane, parser: ResponseParser, tls: ssl.SSLContext | None) -> AnyioConnection:
    """Open a connection.

    Raises:
        ConnectError: there is none; `CertificateError` where the server is not who it should be.
    """
    try:
        if tls is None:
            stream: ByteStream = await anyio.connect_tcp(origin.host, origin.port)
        else:
            stream = await anyio.connect_tcp(
                origin.host,
                origin.port,
                tls=True,
                ssl_context=tls,
                tls_hostname=origin.host,
                tls_standard_compatible=False,  # HTTP tells where a body ends; servers rarely say goodbye
            )
    except CONNECT_EXCEPTIONS as error:
        raise connect_error(error, origin) from error
    return AnyioConnection(stream, origin, lane, parser)


class AnyioConnection:
    """One connection; see `Connection` for what the methods mean."""

    def __init__(self, stream: ByteStream, origin: Origin, lane: Lane, parser: ResponseParser) -> None:
        self.lane = lane
        self.parser = parser
        self.requests = 0
        self.expires_at = math.inf
        self._stream = stream
        self._socket: socket.socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - no Django here
        self._origin = origin
        self._closed = False
        self._sent = False
        self._send_failure: Exception | None = None
        self._reading: anyio.CancelScope | None = None
        self._error: MillstreamError | None = None
        self._read_seconds: float | None = None

    @property
    def usable(self) -> bool:
        # Nobody reads from an idle connection: that there is something to read can only be its end, or garbage.
        # (On a fresh one it may be TLS session tickets.)
        return not self._closed and (self.requests == 0 or not _is_readable(self._socket))

    async def exchange(self, request: Request) -> Response:
        parser = self.parser
        self.requests += 1
        self._sent = False
        self._send_failure = None
        self._read_seconds = request.timeouts.read
        parser.start(head_only=request.route.method == "HEAD", bounded=not request.stream)
        try:
            if len(request.body) <= _SENT_AT_ONCE:
                await self._send(request)
                await self._receive_answer(whole=not request.stream)
            else:
                await self._send_and_receive(request)
        except StaleConnectionError:
            raise  # the pool keeps its place for a fresh one
        except BaseException:
            self.abort()
            raise
        if request.stream:
            return self._response(b"", Body(self))
        response = self._response(parser.take(), None)
        self.finish()
        return response

    def _response(self, body: bytes, stream: Body | None) -> Response:
        parser = self.parser
        assert parser.head is not None
        return Response(parser.status, parser.head, body, stream)

    def arrival(self, deadline: float, mark: bytes | None = None) -> Awaitable[None] | None:
        return None if self.parser.complete else self._receive_piece(deadline)

    async def _receive_piece(self, deadline: float) -> None:
        parser = self.parser
        try:
            while not parser.buffered and not parser.complete:
                if self._error is not None:
                    raise self._error
                await self._receive_more(deadline)
        except MillstreamError as error:
            self.abort(error)
            if not parser.buffered:
                raise  # else it waits its turn

    def take_body(self) -> bytes:
        return self.parser.take(PIECE_BYTES)

    def resume(self) -> None:
        """Nothing is read ahead."""

    def finish(self) -> None:
        parser = self.parser
        if self._closed or not self._sent or not parser.complete or not parser.keep_alive or parser.excess:
            self.abort()
        else:
            self.lane.release(self)

    def abort(self, error: MillstreamError | None = None) -> None:
        if not self._closed:
            self._closed = True
            self._error = error
            _close_now(self._stream, self._socket)
        self.lane.gone(self)

    # -- ours ------------------------------------------------------------------------------------------------------

    async def _send_and_receive(self, request: Request) -> None:
        """Both at a time: a server may answer a large request (413) without having read all of it."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                nonlocal failure
                try:
                    await self._send(request)
                except DeadlineError as error:
                    failure = error
                    tasks.cancel_scope.cancel()

            tasks.start_soon(send)
            try:
                await self._receive_answer(whole=not request.stream)
            except (MillstreamError, StaleConnectionError) as error:
                failure = error  # raised below, outside of the task group, which would wrap it
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _send(self, request: Request) -> None:
        """A connection that breaks is no error yet: the answer may have come all the same. `_ended` tells."""
        seconds = request.timeouts.write
        try:
            with anyio.move_on_after(seconds) as scope:
                # What is sent has a key in it, and is no local variable: tools that print tracebacks show those.
                await self._stream.send(encode_request(request))
                self._sent = True
        except _BROKEN as error:
            self._send_failure = error
        else:
            if scope.cancelled_caught:
                raise DeadlineError(deadline="write", seconds=seconds)
        if self._reading is not None and self._read_seconds is not None:
            self._reading.deadline = monotonic() + self._read_seconds

    async def _receive_answer(self, *, whole: bool) -> None:
        parser = self.parser
        until = math.inf  # for a head there is one bound, however slowly its bytes come
        while not (parser.complete or (parser.head_complete and not whole)):
            if until == math.inf and not whole and self._read_seconds is not None and self._is_reading:
                until = monotonic() + self._read_seconds
            await self._receive_more(until, self._read_seconds)

    @property
    def _is_reading(self) -> bool:
        """Whether all is sent, and the read timeout has begun."""
        return self._sent or self._send_failure is not None

    async def _receive_more(self, deadline: float, told: float | None = None) -> None:
        """Wait for bytes, until `deadline` and no longer than the read timeout (which begins when all is sent).

        `told`: the seconds that an error names where `deadline` comes first.
        """
        seconds = self._read_seconds if self._is_reading else None
        own = math.inf if seconds is None else monotonic() + seconds
        data = b""
        try:
            with anyio.CancelScope(deadline=min(own, deadline)) as scope:
                self._reading = scope
                data = await self._stream.receive(_READ_BYTES)
        except anyio.EndOfStream:
            self._ended(None)
            return
        except _BROKEN as error:
            self._ended(error)
            return
        finally:
            self._reading = None
        if scope.cancelled_caught:
            raise DeadlineError(deadline="read", seconds=self._read_seconds if own <= deadline else told)
        self.parser.receive_data(data)

    def _ended(self, cause: Exception | None) -> None:
        """The connection is over: the end of the body, or an error."""
        parser = self.parser
        if self._closed:
            raise self._error or ClosedError("the connection was closed")
        if not parser.started and self.requests > 1:
            raise StaleConnectionError from cause
        cause = cause and (cast("Exception | None", cause.__cause__) or cause)
        if not parser.started and (self._send_failure is not None or not self._sent):
            cause = self._send_failure or cause
            raise WriteError(f"{self._origin} closed the connection amid the request{reason_of(cause)}") from cause
        if cause is not None:
            broke = f"the connection to {self._origin} broke{reason_of(cause)}"
            raise ReadError(broke, started=parser.started) from cause
        parser.receive_eof()


def _is_readable(sock: socket.socket) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()  # select.select can't take descriptors over 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _close_now(stream: ByteStream, raw: object) -> None:
    """Close a stream without waiting for anything."""
    if isinstance(raw, socket.socket):  # trio: the socket is ours to close
        with suppress(RuntimeError):  # no loop is running any more: nobody to notify
            anyio.notify_closing(raw)
        raw.close()
        return
    while isinstance(stream, TLSStream):
        stream = cast("ByteStream", stream.transport_stream)
    # asyncio: the socket belongs to its transport, which the stream's `aclose` aborts before it waits for the loop.
    closing = stream.aclose()
    with suppress(StopIteration, RuntimeError):
        closing.send(None)
    closing.close()
