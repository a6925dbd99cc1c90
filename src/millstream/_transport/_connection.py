"""What the pool and its two kinds of connection have in common: who owes what to whom, and whose errors become ours."""

from __future__ import annotations

import math
import os
import socket
import ssl
import warnings
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

from millstream._clock import monotonic
from millstream._errors import CertificateError, ClosedError, ConnectError, MillstreamError, UsageError
from millstream._transport._seam import Origin, Request, Response
from millstream._transport.http11 import ResponseParser, parse_keep_alive

__all__ = ["Body", "Connection", "Lane", "StaleConnectionError", "connect_error", "idle_seconds"]

HIGH_WATER = 64 * 1024
"""Bytes of a streamed body that wait for `receive` before reading is paused (asyncio's and Node's figure too)."""
COLLECT_SECONDS = 0.25
"""How long what has arrived waits for more, where nobody is in a hurry (`Body.collect`)."""
DRAIN_SECONDS = 0.1
DRAIN_BYTES = 64 * 1024
"""How long, and for how much, `aclose` waits for the end of a body: a new connection costs about as much."""


class StaleConnectionError(Exception):
    """A connection that had been used before broke before any byte of the answer: the request was not processed."""


class Lane(Protocol):
    """The pool's side of a connection. Each of these may be called more than once; only the first counts."""

    def release(self, connection: Connection) -> None:
        """The exchange is over and the connection is fit for the next."""
        ...

    def gone(self, connection: Connection) -> None:
        """The connection is closed."""
        ...


class Connection(Protocol):
    """One connection, for one exchange at a time."""

    lane: Lane
    parser: ResponseParser
    requests: int
    """Exchanges begun."""
    expires_at: float
    """When it is no longer fit to be used again; the pool sets it."""

    @property
    def usable(self) -> bool:
        """Whether, idle, it can take the next request."""
        ...

    async def exchange(self, request: Request) -> Response:
        """Send and receive; whatever goes wrong, the connection is closed when this raises."""
        ...

    def arrival(self, deadline: float, mark: bytes | None = None) -> Awaitable[None] | None:
        """What to wait for until `take_body` has something to tell; None where it has that already.

        With a `mark` that may be more than a piece, as `collector_of` says. Whoever leaves it, or gets an error from
        it, closes the connection.
        """
        ...

    def take_body(self) -> bytes:
        """The next piece of a streamed body, ``b""`` at its end. Raises: what ended it too early."""
        ...

    def resume(self) -> None:
        """Tell that what had arrived of a streamed body was taken."""
        ...

    def finish(self) -> None:
        """The body is over or not wanted: back to the pool if the connection is fit for that, else closed."""
        ...

    def abort(self, error: MillstreamError | None = None) -> None:
        """Close now. Who waits on it gets `error`."""
        ...


class Body:
    """The stream of a response's body: `BodyStream` on any connection."""

    __slots__ = ("_connection", "_ended", "_receiving")

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._ended = False
        self._receiving = False

    async def collect(self, deadline: float, mark: bytes) -> bytes:
        """See `collector_of`."""
        return await self.receive(deadline, mark)

    async def receive(self, deadline: float = math.inf, mark: bytes | None = None) -> bytes:
        connection = self._connection
        if connection is None:
            if self._ended:
                return b""
            raise ClosedError("this stream was closed before its end")
        if self._receiving:
            raise UsageError("two tasks receive from one stream; give it to one of them")
        self._receiving = True
        try:
            if not connection.parser.buffered:
                arrival = connection.arrival(deadline, mark)
                if arrival is not None:
                    await arrival
            data = connection.take_body()
        except BaseException:
            connection.abort()
            self._connection = None
            raise
        finally:
            self._receiving = False
        if not data:
            self._ended = True
            self._connection = None
            connection.finish()
        return data

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._receiving:
            connection.abort()
            return
        try:
            await _drain(connection)
        except MillstreamError:
            return  # the connection is closed; that the end never came is no news to who wants no more of it
        connection.finish()

    def abort(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._connection is not None:
            self.abort()
            _warn("a streamed answer was never closed; use `async with` or aclose()", ResourceWarning, source=self)


async def _drain(connection: Connection) -> None:
    """Read on to the end of the body if it is near; `finish` closes the connection if that was not enough."""
    parser = connection.parser
    left = DRAIN_BYTES - len(parser.take())
    connection.resume()
    deadline: float | None = None
    try:
        while not parser.complete and left > 0:
            if deadline is None:
                deadline = monotonic() + DRAIN_SECONDS
            arrival = connection.arrival(deadline)
            if arrival is not None:
                await arrival
            left -= len(connection.take_body())
    except BaseException:
        connection.abort()
        raise


def idle_seconds(parser: ResponseParser, most: float) -> float:
    """How long the connection of this response may stay idle; 0 or less: not at all."""
    value = parser.header(b"keep-alive")
    if not value:
        return most
    timeout, left = parse_keep_alive(value)
    if left == 0:
        return 0.0
    if timeout is None:
        return most
    # The server's clock began earlier than ours, and the next request needs time to get there.
    return min(most, timeout - min(1.0, timeout / 2))


_CONNECT_ERRORS: tuple[tuple[type[BaseException], type[ConnectError], str], ...] = (
    (ssl.SSLCertVerificationError, CertificateError, "the certificate of {origin} is not accepted: {detail}"),
    (ssl.SSLError, ConnectError, "no TLS connection to {origin}: {detail}"),
    (socket.gaierror, ConnectError, "the host name {host!r} can't be resolved: {detail}"),
    (UnicodeError, ConnectError, "{host!r} is no host name: {detail}"),
    (OSError, ConnectError, "no connection to {origin}: {detail}"),
    (anyio.BrokenResourceError, ConnectError, "{origin} closed the connection during the TLS handshake"),
    (anyio.EndOfStream, ConnectError, "{origin} closed the connection during the TLS handshake"),
)
"""What connecting may raise, and what it is to us: the first line that fits."""

_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
"""What OpenSSL calls plain HTTP where the handshake belongs, by version."""

CONNECT_EXCEPTIONS = tuple(dict.fromkeys(line[0] for line in _CONNECT_ERRORS))


def connect_error(error: BaseException, origin: Origin) -> ConnectError:
    """Our error for one of `CONNECT_EXCEPTIONS`."""
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        told = ConnectError(f"{origin} does not speak TLS; is it http://{origin.authority}?")
        told.permanent = True
        return told
    for foreign, ours, message in _CONNECT_ERRORS:
        if isinstance(error, foreign):
            return ours(message.format(origin=origin, host=origin.host, detail=_detail(error)))
    raise AssertionError(error)


def _detail(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[-1]
    return _told(cause if cause is not None else error)


def reason_of(error: BaseException | None) -> str:
    """`` (...)`` with the system's word for why a connection broke; empty where it gave none."""
    if error is None:
        return ""
    return f" ({_told(error)})"


def _told(error: BaseException) -> str:
    # The system's own word first: asyncio writes "Connect call failed" over it.
    word = getattr(error, "strerror", None)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        word = os.strerror(error.errno)
    return (word or str(error) or type(error).__name__)[:200]
