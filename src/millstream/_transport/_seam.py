"""The seam between what is asked and how it travels: one method, `Transport.send`.

`Route` is what does not change between requests and is prepared once; `Request` is what does. Anything that implements
`Transport` can carry a model's requests: our own pool, an httpx client, a fake in a test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol

from millstream._errors import LocalProtocolError
from millstream._origin import Origin
from millstream._transport._head import Head, Headers

__all__ = [
    "BodyStream",
    "Headers",
    "Origin",
    "Request",
    "Response",
    "Route",
    "Timeouts",
    "Transport",
    "collector_of",
]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]")
_BAD_TARGET = re.compile(rb"[\x00-\x20\x7f]")


class Timeouts(NamedTuple):
    """Seconds for each phase of one request; None: no bound."""

    connect: float | None = 5.0
    write: float | None = 30.0
    read: float | None = None
    """For the head of the answer, and then for each piece of its body."""
    pool: float | None = None
    """For a connection to become free, where the pool has a bound."""


DEFAULT_TIMEOUTS = Timeouts()


class Route:
    """One method, URL and set of headers, encoded once for all requests that go there.

    Raises:
        LocalProtocolError: a header or the target would not be legal HTTP. The message has no header value (a key).
    """

    __slots__ = ("head", "headers", "method", "origin", "target")

    def __init__(self, method: str, origin: Origin, target: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.method = method
        self.origin = origin
        self.target = target
        self.headers: Headers = tuple((_name(name), _value(name, value)) for name, value in headers)
        self.head = _encode_head(method, origin, target, self.headers)

    def __repr__(self) -> str:
        return f"<Route {self.method} {self.origin}{self.target}>"


def _name(name: str) -> bytes:
    raw = name.encode("latin-1", "replace")
    if not _TOKEN.fullmatch(raw):
        raise LocalProtocolError(f"{name!r} is no header name")
    return raw


def _value(name: str, value: str) -> bytes:
    raw = value.encode("latin-1", "backslashreplace").strip(b" \t")
    if _BAD_VALUE.search(raw) or not value.isascii():
        raise LocalProtocolError(f"the value of header {name!r} has a line break or a character that is not ASCII")
    return raw


def _encode_head(method: str, origin: Origin, target: str, headers: Headers) -> bytes:
    start = f"{method} {target} HTTP/1.1".encode("ascii", "backslashreplace")
    if _BAD_TARGET.search(target.encode()) or not target.startswith("/") or not _TOKEN.fullmatch(method.encode()):
        raise LocalProtocolError(f"{method!r} {target!r} is no request line")
    lines = [start]
    if not any(name.lower() == b"host" for name, _ in headers):
        lines.append(b"Host: " + origin.authority.encode("idna" if not origin.host.isascii() else "ascii"))
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n"


class Request:
    """One request: a prepared route and this time's body."""

    __slots__ = ("body", "route", "stream", "timeouts")

    def __init__(
        self, route: Route, body: bytes = b"", *, stream: bool = False, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        self.route = route
        self.body = body
        self.stream = stream
        """Whether the answer's body is wanted piece by piece (`Response.stream`) or whole (`Response.body`)."""
        self.timeouts = timeouts


class BodyStream(Protocol):
    """A body that is still arriving. Whoever has one closes it; closing twice is harmless."""

    async def receive(self, deadline: float = math.inf) -> bytes:
        """The next piece, ``b""`` at the end.

        Args:
            deadline: when to give up, on the event loop's clock; the request's `Timeouts.read` holds as well.

        Raises:
            DeadlineError: nothing came in time (``deadline="read"``).
            ReadError: the connection broke before the body was complete.
            ProtocolError: what came is no legal body.
        """
        ...

    async def aclose(self) -> None:
        """Give the connection back if the body is complete, or is complete within a moment; else close it at once.

        That moment (the bounded drain after ``[DONE]``) is the only thing this waits for.
        """
        ...

    def abort(self) -> None:
        """Close the connection now, without waiting. For clean-up under cancellation; harmless when it is over."""
        ...


def collector_of(stream: BodyStream, mark: bytes) -> Callable[[float], Awaitable[bytes]]:
    """How to read a body whose pieces nobody waits for: as by `BodyStream.receive`, but with fewer wake-ups.

    A piece waits a moment (a quarter of a second) for those that follow, unless the body ends with it, or `mark` is in
    it: that tells whoever knows what the body means that the end is near. A stream that can do so has the method
    ``collect(deadline, mark)``; of others every piece is given as it comes.
    """
    collect: Callable[[float, bytes], Awaitable[bytes]] | None = getattr(stream, "collect", None)
    return stream.receive if collect is None else lambda deadline: collect(deadline, mark)


class Response:
    """One answer. Exactly one of `body` (whole) and `stream` is there, as the request asked."""

    __slots__ = ("_head", "_http_version", "_reason", "body", "status", "stream")

    def __init__(
        self,
        status: int,
        headers: Headers | Head,
        body: bytes = b"",
        stream: BodyStream | None = None,
        reason: bytes = b"",
        http_version: bytes = b"1.1",
    ) -> None:
        self.status = status
        self._head = headers
        self.body = body
        self.stream = stream
        self._reason = reason
        self._http_version = http_version

    @property
    def headers(self) -> Headers:
        """All header lines."""
        return self._head.headers if isinstance(self._head, Head) else self._head

    @property
    def reason(self) -> bytes:
        """The words behind the status, empty without any."""
        return self._head.reason if isinstance(self._head, Head) else self._reason

    @property
    def http_version(self) -> bytes:
        """Such as ``1.1``."""
        return self._head.http_version if isinstance(self._head, Head) else self._http_version

    def header(self, name: bytes) -> str | None:
        """The header of this name (lower case), several lines joined with commas; None without one."""
        if isinstance(self._head, Head):
            value = self._head.value(name)
            return None if value is None else value.decode("latin-1")
        values = [value for key, value in self._head if key == name]
        return b", ".join(values).decode("latin-1") if values else None

    def mentions(self, word: bytes) -> bool:
        """Whether any header's name has `word` (lower case) in it: costs next to nothing where none has."""
        if isinstance(self._head, Head):
            return self._head.mentions(word)
        return any(word in name for name, _ in self._head)


class Transport(Protocol):
    """Carries requests. Implementations raise the errors of `millstream._errors` and nothing else."""

    async def send(self, request: Request) -> Response:
        """Send one request and give its answer: whole, or from the head on where `request.stream` is set.

        A body is decoded (gzip, deflate) and bounded. Redirects are answers like any other.

        Raises:
            ConnectError: no connection; nothing was processed.
            DeadlineError: a phase took too long (``connect``, ``write``, ``read``, ``pool``).
            WriteError, ReadError: the connection broke.
            ProtocolError: the answer is no legal HTTP, or is over a bound.
            ClosedError: the transport was closed.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection; what is under way fails with `ClosedError`. Closing twice is harmless."""
        ...
