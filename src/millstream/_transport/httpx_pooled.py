"""Our pool below httpx: ``httpx.AsyncClient(transport=PooledTransport())``."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import httpx

from millstream import _clock
from millstream._errors import (
    ClosedError,
    ConnectError,
    DeadlineError,
    LocalProtocolError,
    MillstreamError,
    ProtocolError,
    ReadError,
    TransportError,
    WriteError,
)
from millstream._transport._seam import BodyStream, Headers, Origin, Request, Response, Route, Timeouts, Transport
from millstream._transport.pool import PoolTransport

__all__ = ["PooledTransport"]

MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""A request's body goes out as one piece, so it is collected first, and so it needs a bound."""

DEFAULT_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=15.0)

_LAST_PIECES = 4
"""How many pieces that have already arrived are looked through for the end of an answer that is left early."""

_DAY = 86400.0

_CODINGS = ("gzip", "x-gzip", "deflate")  # what the pool decodes itself


class PooledTransport(httpx.AsyncBaseTransport):
    """Millstream's connection pool as an httpx transport: HTTP/1.1, on asyncio and trio.

    What is above it works as ever: methods, streaming, authentication, cookies, redirects, event hooks, timeouts,
    httpx's exceptions. Three things are different from `httpx.AsyncHTTPTransport`:

    - a request's body is collected before it is sent (64 MiB at most) and goes out with a ``Content-Length``;
    - gzip and deflate are decoded here, with a bound on how far they inflate; so such an answer comes without
      ``Content-Encoding`` and ``Content-Length``, and other encodings are not asked for;
    - proxies, HTTP/2 and protocol upgrades are not its business.

    Args:
        verify: True: certificates are checked against ``SSL_CERT_FILE``, ``SSL_CERT_DIR`` or certifi's; a path:
            against those there; False: not at all; or a context of your own.
        limits: as httpx's, but for one origin, not for all. The default has no bound on connections, and 15 s for
            idle ones; a `keepalive_expiry` of None: a day.
        pool: the pool to use instead of an own one. It is closed by whoever made it.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | str | bool = True,
        limits: httpx.Limits = DEFAULT_LIMITS,
        pool: Transport | None = None,
    ) -> None:
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

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            httpx.TransportError: that which fits. ``__cause__`` is ours.
        """
        url = request.url
        if url.scheme not in {"http", "https"}:
            raise httpx.UnsupportedProtocol(f"a URL starts with http:// or https://: {url.scheme!r}", request=request)
        origin = Origin(url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80))
        body = await _collect(request)
        timeouts = _timeouts(request.extensions.get("timeout"))
        try:
            route = Route(request.method, origin, url.raw_path.decode("ascii"), _request_headers(request.headers))
            answer = await self._pool.send(Request(route, body, stream=True, timeouts=timeouts))
        except MillstreamError as error:
            raise _translate(error, request) from error
        assert answer.stream is not None
        return httpx.Response(
            answer.status,
            headers=_answer_headers(answer, request.method),
            stream=_AnswerStream(answer.stream, request),
            extensions={"http_version": b"HTTP/" + answer.http_version, "reason_phrase": answer.reason},
        )

    async def aclose(self) -> None:
        """Close all connections, unless the pool was brought."""
        if self._owns:
            await self._pool.aclose()


class _AnswerStream(httpx.AsyncByteStream):
    def __init__(self, body: BodyStream, request: httpx.Request) -> None:
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
            raise _translate(error, self._request) from error
        except BaseException:
            self._body.abort()
            raise
        if not piece:
            self._ended = True
            await self._body.aclose()
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
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


async def _collect(request: httpx.Request) -> bytes:
    if not isinstance(request.stream, httpx.AsyncByteStream):
        raise httpx.LocalProtocolError("the request's body is a synchronous stream", request=request)
    pieces: list[bytes] = []
    size = 0
    iterator = aiter(request.stream)
    async for piece in iterator:
        size += len(piece)
        if size > MAX_REQUEST_BYTES:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
            raise httpx.LocalProtocolError(
                f"the request's body is over {MAX_REQUEST_BYTES >> 20} MiB, which PooledTransport does not send",
                request=request,
            )
        pieces.append(piece)
    return b"".join(pieces)


def _timeouts(given: dict[str, float | None] | None) -> Timeouts:
    told = given or {}
    return Timeouts(told.get("connect"), told.get("write"), told.get("read"), told.get("pool"))


def _request_headers(headers: httpx.Headers) -> list[tuple[str, str]]:
    kept: list[tuple[str, str]] = []
    for raw_name, raw_value in headers.raw:
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


_TIMEOUTS: dict[str, type[httpx.TimeoutException]] = {
    "connect": httpx.ConnectTimeout,
    "write": httpx.WriteTimeout,
    "read": httpx.ReadTimeout,
    "pool": httpx.PoolTimeout,
}

# In this order, subclasses first. Every error that the seam may raise is in it or below one that is (a test checks).
_TABLE: tuple[tuple[type[MillstreamError], Callable[[Any], type[httpx.TransportError]]], ...] = (
    (DeadlineError, lambda error: _TIMEOUTS.get(error.deadline, httpx.ReadTimeout)),
    (ConnectError, lambda _: httpx.ConnectError),
    (WriteError, lambda _: httpx.WriteError),
    (ReadError, lambda _: httpx.ReadError),
    (LocalProtocolError, lambda _: httpx.LocalProtocolError),
    (ProtocolError, lambda _: httpx.RemoteProtocolError),
    (ClosedError, lambda _: httpx.LocalProtocolError),
    (TransportError, lambda _: httpx.NetworkError),
)


def _translate(error: MillstreamError, request: httpx.Request) -> Exception:
    for ours, theirs in _TABLE:
        if isinstance(error, ours):
            return theirs(error)(str(error), request=request)
    return error
