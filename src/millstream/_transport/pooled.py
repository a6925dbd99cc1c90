"""What `PooledTransport` is for httpx and for httpx2 alike: our pool, spoken to in the words of either library."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from millstream import _clock
from millstream._errors import (
    ClosedError,
    ConnectError,
    DeadlineError,
    LocalProtocolError,
    MillstreamError,
    OptionTypeError,
    ProtocolError,
    ReadError,
    TransportError,
    WriteError,
)
from millstream._transport._seam import BodyStream, Headers, Origin, Request, Response, Route, Timeouts, Transport
from millstream._transport.pool import PoolTransport

__all__ = ["IDLE_SECONDS", "Answer", "AnswerStream", "Pooled"]

IDLE_SECONDS = 15.0
"""For so long a connection may stay idle where the user says nothing: most servers wait longer."""

MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""A request's body goes out as one piece, so it is collected first, and so it needs a bound."""

_LAST_PIECES = 4
"""How many pieces that have already arrived are looked through for the end of an answer that is left early."""

_DAY = 86400.0

_CODINGS = ("gzip", "x-gzip", "deflate")  # what the pool decodes itself


class _Limits(Protocol):
    max_connections: int | None
    max_keepalive_connections: int | None
    keepalive_expiry: float | None


class _URL(Protocol):
    @property
    def scheme(self) -> str: ...
    @property
    def raw_host(self) -> bytes: ...
    @property
    def port(self) -> int | None: ...
    @property
    def raw_path(self) -> bytes: ...


class _TheirHeaders(Protocol):
    @property
    def raw(self) -> list[tuple[bytes, bytes]]: ...


class _TheirRequest(Protocol):
    """As far as a request of httpx and one of httpx2 are the same."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> _URL: ...
    @property
    def headers(self) -> _TheirHeaders: ...
    @property
    def stream(self) -> object: ...
    @property
    def extensions(self) -> Mapping[str, Any]: ...


class Answer(NamedTuple):
    """What a response of either library is made of."""

    status: int
    headers: Headers
    body: BodyStream
    extensions: dict[str, Any]


class Pooled:
    """Sends the requests of one library through a pool, and raises that library's errors.

    Args:
        library: the module `httpx` or `httpx2`. All that is taken from it is `Request` and its errors, by name.
        verify: as in `PooledTransport`.
        limits: the library's `Limits`.
        pool: a pool that somebody else closes; None: an own one.
    """

    def __init__(
        self, library: ModuleType, verify: ssl.SSLContext | str | bool, limits: _Limits, pool: Transport | None
    ) -> None:
        self._library = library
        self._owns = pool is None
        self._pool: Transport = (
            pool
            if pool is not None
            else PoolTransport(
                max_connections=limits.max_connections,
                max_idle=limits.max_keepalive_connections,
                keepalive_expiry=_DAY if limits.keepalive_expiry is None else limits.keepalive_expiry,
                ssl_context=verify if isinstance(verify, ssl.SSLContext) else None,
                verify=True if isinstance(verify, ssl.SSLContext) else verify,
            )
        )

    async def send(self, request: _TheirRequest) -> Answer:
        """Send one request and give its answer from the head on.

        Raises:
            Exception: one of the library's `TransportError`; ``__cause__`` is ours.
            OptionTypeError: the request is another library's.
        """
        if not isinstance(request, self._library.Request):
            raise OptionTypeError(
                f"this PooledTransport is for {self._library.__name__}, and {type(request).__module__} gave it a "
                "request: httpx's is millstream.PooledTransport, httpx2's is millstream.httpx2.PooledTransport"
            )
        url = request.url
        if url.scheme not in {"http", "https"}:
            raise self._error("UnsupportedProtocol", f"a URL starts with http:// or https://: {url.scheme!r}", request)
        origin = Origin(url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80))
        body = await self._collect(request)
        timeouts = _timeouts(request.extensions.get("timeout"))
        try:
            route = Route(request.method, origin, url.raw_path.decode("ascii"), _request_headers(request.headers.raw))
            answer = await self._pool.send(Request(route, body, stream=True, timeouts=timeouts))
        except MillstreamError as error:
            raise self.translate(error, request) from error
        assert answer.stream is not None
        extensions = {"http_version": b"HTTP/" + answer.http_version, "reason_phrase": answer.reason}
        return Answer(answer.status, _answer_headers(answer, request.method), answer.stream, extensions)

    async def aclose(self) -> None:
        """Close all connections, unless the pool was brought."""
        if self._owns:
            await self._pool.aclose()

    def translate(self, error: MillstreamError, request: _TheirRequest) -> Exception:
        """The library's error of the same meaning; `error` itself where it has none."""
        for ours, theirs in _TABLE:
            if isinstance(error, ours):
                return self._error(theirs(error), str(error), request)
        return error

    def _error(self, name: str, text: str, request: _TheirRequest) -> Exception:
        error: Exception = getattr(self._library, name)(text, request=request)
        return error

    async def _collect(self, request: _TheirRequest) -> bytes:
        if not isinstance(request.stream, AsyncIterable):
            raise self._error("LocalProtocolError", "the request's body is a synchronous stream", request)
        pieces: list[bytes] = []
        size = 0
        iterator: AsyncIterator[bytes] = aiter(request.stream)
        async for piece in iterator:
            size += len(piece)
            if size > MAX_REQUEST_BYTES:
                if isinstance(iterator, AsyncGenerator):
                    await iterator.aclose()
                raise self._error(
                    "LocalProtocolError",
                    f"the request's body is over {MAX_REQUEST_BYTES >> 20} MiB, which PooledTransport does not send",
                    request,
                )
            pieces.append(piece)
        return b"".join(pieces)


class AnswerStream:
    """The body of an answer. A face makes it the `AsyncByteStream` of its library."""

    def __init__(self, pooled: Pooled, body: BodyStream, request: _TheirRequest) -> None:
        self._pooled = pooled
        self._body = body
        self._request = request
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self  # no generator: one that is left early is a matter for the garbage collector

    async def __anext__(self) -> bytes:
        try:
            piece = await self._body.receive()
        except MillstreamError as error:
            self._body.abort()
            raise self._pooled.translate(error, self._request) from error
        except BaseException:
            self._body.abort()
            raise
        if not piece:
            self._ended = True
            await self._body.aclose()
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Give the connection back if the end has arrived, else close it at once."""
        if self._ended:
            return
        self._ended = True
        try:
            # Left at the last event, the end is often here already: then the connection can be used again.
            for _ in range(_LAST_PIECES):
                if not await self._body.receive(_clock.monotonic()):
                    return
        except MillstreamError:
            pass  # more is to come, or it broke: nobody is there to be told
        finally:
            self._body.abort()


def _timeouts(given: Mapping[str, float | None] | None) -> Timeouts:
    told = given or {}
    return Timeouts(told.get("connect"), told.get("write"), told.get("read"), told.get("pool"))


def _request_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    kept: list[tuple[str, str]] = []
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        lower = name.lower()
        if lower in {"content-length", "transfer-encoding"}:
            continue  # the pool frames the body
        if lower == "accept-encoding":
            codings = [coding.strip() for coding in value.split(",")]
            value = ", ".join(c for c in codings if c.partition(";")[0].strip() in {*_CODINGS, "identity"})
            value = value or "identity"
        kept.append((name, value))
    return kept


def _answer_headers(answer: Response, method: str) -> Headers:
    """Without what was true of the encoded body only."""
    if method == "HEAD" or answer.status in {204, 304}:
        return answer.headers
    codings = (answer.header(b"content-encoding") or "").lower().split(",")
    if not any(coding.strip() in _CODINGS for coding in codings):
        return answer.headers
    return tuple(line for line in answer.headers if line[0] not in {b"content-encoding", b"content-length"})


_TIMEOUTS = {"connect": "ConnectTimeout", "write": "WriteTimeout", "read": "ReadTimeout", "pool": "PoolTimeout"}

# In this order, subclasses first. Every error that the seam may raise is in it or below one that is (a test checks).
_TABLE: tuple[tuple[type[MillstreamError], Callable[[Any], str]], ...] = (
    (DeadlineError, lambda error: _TIMEOUTS.get(error.deadline, "ReadTimeout")),
    (ConnectError, lambda _: "ConnectError"),
    (WriteError, lambda _: "WriteError"),
    (ReadError, lambda _: "ReadError"),
    (LocalProtocolError, lambda _: "LocalProtocolError"),
    (ProtocolError, lambda _: "RemoteProtocolError"),
    (ClosedError, lambda _: "LocalProtocolError"),
    (TransportError, lambda _: "NetworkError"),
)
