"""httpx below our seam: whatever carries a user's httpx requests (proxies, HTTP/2, mocks, ASGI apps) carries ours."""

from __future__ import annotations

import importlib.util
import math
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpx

from millstream import _clock
from millstream._errors import (
    CertificateError,
    ClosedError,
    ConnectError,
    DeadlineError,
    LocalProtocolError,
    MillstreamError,
    MissingExtraError,
    OptionTypeError,
    OptionValueError,
    ProtocolError,
    ReadError,
    WriteError,
)
from millstream._secret import Secret
from millstream._transport._seam import Request, Response, Route, Timeouts
from millstream._transport._tls import create_context

__all__ = ["HttpxTransport", "httpx_transport_for", "translate_httpx_error"]

MAX_BODY_BYTES = 64 * 1024 * 1024
"""A whole body, decoded. No answer to a prompt comes near it; a compression bomb does."""

CLOSE_SECONDS = 1.0
"""How long closing may take under cancellation. Closing a socket takes microseconds, TLS's goodbye may block."""

DRAIN_SECONDS = 0.1
DRAIN_BYTES = 64 * 1024
"""What `aclose` waits for and reads at most, so that a stream left at its last event gives its connection back."""

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


class HttpxTransport:
    """Sends our requests through an httpx client or transport.

    Args:
        client_or_transport: an `httpx.AsyncClient` or any `httpx.AsyncBaseTransport`. A client's own headers, base
            parameters, authentication, proxies and event hooks apply, since whoever brought it wanted them; its
            cookies are those that it had when it was brought (none of one answer goes out with the next request),
            its timeouts give way to the request's, and it follows no redirect.
        owns: whether `aclose` closes it too.

    Raises:
        OptionTypeError: it is neither; the synchronous `httpx.Client` among them.
    """

    def __init__(self, client_or_transport: httpx.AsyncClient | httpx.AsyncBaseTransport, *, owns: bool) -> None:
        if not isinstance(client_or_transport, (httpx.AsyncClient, httpx.AsyncBaseTransport)):
            raise OptionTypeError(
                "an httpx.AsyncClient or an httpx.AsyncBaseTransport is needed, "
                f"not {type(client_or_transport).__module__}.{type(client_or_transport).__name__}"
            )
        self._below = client_or_transport
        self._owns = owns
        self._closed = False
        brought = client_or_transport.cookies if isinstance(client_or_transport, httpx.AsyncClient) else None
        self._cookies = httpx.Cookies(brought)

    def __repr__(self) -> str:
        return f"<HttpxTransport {type(self._below).__name__}{' closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called here, or the brought client was closed by its owner."""
        return self._closed or (isinstance(self._below, httpx.AsyncClient) and self._below.is_closed)

    async def send(self, request: Request) -> Response:
        """See `Transport.send`. ``Timeouts`` are obeyed as far as what is below does (mocks and ASGI apps do not)."""
        if self.closed:
            raise ClosedError("the transport was closed")
        timeouts = request.timeouts
        try:
            answer = await self._send(request)
        except _FOREIGN as error:
            raise self.translate(error, timeouts, started=False) from error
        body = _Body(self, answer, timeouts)
        content = b"" if request.stream else await body.read_whole()
        return Response(
            answer.status_code,
            tuple((name.lower(), value) for name, value in answer.headers.raw),
            content,
            body if request.stream else None,
            _as_bytes(answer.extensions.get("reason_phrase", b"")),
            _as_bytes(answer.extensions.get("http_version", b"HTTP/1.1")).removeprefix(b"HTTP/"),
        )

    async def aclose(self) -> None:
        """Refuse further requests; what is below is closed only where it is owned."""
        if self._closed:
            return
        self._closed = True
        if self._owns:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._below.aclose()

    def translate(self, error: Exception, timeouts: Timeouts, *, started: bool) -> MillstreamError:
        """Our error for one that was raised below."""
        if self.closed:
            return ClosedError("the transport was closed during the request")
        return translate_httpx_error(error, timeouts, started=started)

    async def _send(self, request: Request) -> httpx.Response:
        route = request.route
        url = f"{route.origin}{route.target}"
        extensions = {"timeout": request.timeouts._asdict()}
        if not isinstance(self._below, httpx.AsyncClient):
            made = httpx.Request(route.method, url, headers=_texts(route), content=request.body, extensions=extensions)
            answer = await self._below.handle_async_request(made)
            answer.request = made
            return answer
        made = self._below.build_request(
            route.method, url, headers=_texts(route), content=request.body, extensions=extensions
        )
        if not any(name.lower() == b"cookie" for name, _ in route.headers):
            # The client collects cookies from answers; those of one user's answer must not travel with another's.
            made.headers.pop("cookie", None)
            self._cookies.set_cookie_header(made)
        return await self._below.send(made, stream=True, follow_redirects=False)


def _texts(route: Route) -> list[tuple[str, str]]:
    # Not a local variable of whoever sends: tools that print tracebacks show those, and a key is among these.
    return [(name.decode("ascii"), value.decode("ascii")) for name, value in route.headers]


class _Body:
    """An httpx response as a `BodyStream`."""

    def __init__(self, owner: HttpxTransport, answer: httpx.Response, timeouts: Timeouts) -> None:
        self._owner = owner
        self._answer = answer
        self._timeouts = timeouts
        self._pieces: AsyncIterator[bytes] = answer.aiter_bytes()
        self._ended = False  # by its end or by an error: the iterator has nothing left to give
        self._complete = False
        self._closing = False

    async def read_whole(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await self.receive():
                size += len(piece)
                if size > MAX_BODY_BYTES:
                    raise ProtocolError(
                        f"the answer's body is over {MAX_BODY_BYTES >> 20} MiB", status_code=self._answer.status_code
                    )
                pieces.append(piece)
        finally:
            self._closing = True
            await self._close()
        return b"".join(pieces)

    async def receive(self, deadline: float = math.inf) -> bytes:
        if self._owner.closed or self._closing:
            raise ClosedError("the transport was closed" if self._owner.closed else "the stream was closed")
        if self._complete:
            return b""
        if self._ended:
            raise ReadError("the stream has failed before", started=True)
        read = self._timeouts.read
        # httpx bounds each read of a socket, but not a body that comes from somewhere else.
        limit = deadline if read is None else min(deadline, _clock.monotonic() + read)
        if limit == math.inf:
            return await self._next()
        with anyio.CancelScope(deadline=limit):
            return await self._next()
        raise DeadlineError(deadline="read", seconds=read if limit < deadline else None)

    async def _next(self) -> bytes:
        ended, self._ended = self._ended, True  # an iterator that was cancelled or has raised would only say "end"
        try:
            async for piece in self._pieces:
                if piece:
                    self._ended = ended
                    return piece
        except _FOREIGN as error:
            raise self._owner.translate(error, self._timeouts, started=True) from error
        self._complete = True
        return b""

    async def aclose(self) -> None:
        if self._closing:
            return
        try:
            if not self._ended:
                await self._drain()
        finally:
            self._closing = True
            await self._close()

    async def _drain(self) -> None:
        left = DRAIN_BYTES
        with anyio.move_on_after(DRAIN_SECONDS):
            while left > 0:
                try:
                    piece = await self._next()
                except MillstreamError:
                    return
                if not piece:
                    return
                left -= len(piece)

    async def _close(self) -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            try:
                await self._unwind()
                await self._answer.aclose()
            except _FOREIGN:
                pass  # it is closed as far as it can be, and whoever closes has nothing to do about it

    async def _unwind(self) -> None:
        """End httpx's chain of generators by a cancellation at their innermost wait.

        Closing the outermost would leave the inner ones to the garbage collector, of which trio warns.
        """
        if self._ended:
            return
        self._ended = True
        with anyio.CancelScope(shield=True) as scope:
            scope.cancel()
            for _ in range(100):  # those that never wait are read to the end, or left after this many
                try:
                    await anext(self._pieces)
                except StopAsyncIteration:
                    return

    def abort(self) -> None:
        if self._closing:
            return
        self._closing = True
        _run_detached(self._close)


Translation = Callable[[str, Timeouts, bool], MillstreamError]

# In this order, subclasses first. Every exception of httpx is in it or below one that is (a test enumerates).
_TABLE: tuple[tuple[type[Exception], Translation], ...] = (
    (httpx.ConnectTimeout, lambda _, t, __: DeadlineError(deadline="connect", seconds=t.connect)),
    (httpx.ReadTimeout, lambda _, t, __: DeadlineError(deadline="read", seconds=t.read)),
    (httpx.WriteTimeout, lambda _, t, __: DeadlineError(deadline="write", seconds=t.write)),
    (httpx.PoolTimeout, lambda _, t, __: DeadlineError(deadline="pool", seconds=t.pool)),
    (httpx.TimeoutException, lambda _, __, ___: DeadlineError(deadline="read")),
    (httpx.ConnectError, lambda text, _, __: ConnectError(f"no connection: {text}")),
    (httpx.ProxyError, lambda text, _, __: ConnectError(f"the proxy refused: {text}")),
    (httpx.WriteError, lambda text, _, __: WriteError(f"the connection broke while sending: {text}")),
    (httpx.NetworkError, lambda text, _, started: ReadError(f"the connection broke: {text}", started=started)),
    (httpx.LocalProtocolError, lambda text, _, __: LocalProtocolError(text)),
    (httpx.UnsupportedProtocol, lambda text, _, __: LocalProtocolError(text)),
    (httpx.InvalidURL, lambda text, _, __: LocalProtocolError(text)),
    (httpx.CookieConflict, lambda text, _, __: LocalProtocolError(text)),
    (httpx.RequestNotRead, lambda text, _, __: LocalProtocolError(text)),
    (httpx.StreamError, lambda text, _, started: ReadError(text, started=started)),
    (httpx.HTTPStatusError, lambda text, _, __: ProtocolError(text)),
    (httpx.HTTPError, lambda text, _, __: ProtocolError(f"the answer can't be understood: {text}")),
    (OSError, lambda text, _, started: ReadError(f"the connection broke: {text}", started=started)),
)
_FOREIGN = tuple(theirs for theirs, _ in _TABLE)

_BROKEN = ("server disconnected", "peer closed connection", "<streamreset", "<connectionterminated", "connectionterm")
"""How the text of a `RemoteProtocolError` begins where the server hung up instead of speaking wrongly."""


def translate_httpx_error(error: Exception, timeouts: Timeouts, *, started: bool) -> MillstreamError:
    """Our error of the same meaning; ``raise ... from error`` is up to whoever calls.

    Args:
        error: one of httpx's, or an `OSError` that came through unchanged.
        timeouts: what the request was sent with, for the message.
        started: whether the head of the answer had arrived.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError) and _is_about_a_certificate(error):
        return CertificateError(f"the server's certificate is not accepted: {text}")
    if isinstance(error, httpx.RemoteProtocolError) and text.lower().startswith(_BROKEN):
        return ReadError(f"the connection broke: {text}", started=started)
    if isinstance(error, httpx.HTTPStatusError):
        # Only an event hook raises it. The message names the URL, but no header.
        return ProtocolError(f"an event hook refused the answer: {text}", status_code=error.response.status_code)
    for theirs, translation in _TABLE:
        if isinstance(error, theirs):
            return translation(text, timeouts, started)
    return ProtocolError(text)


def _is_about_a_certificate(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        yield at
        seen.add(id(at))
        at = at.__cause__ or at.__context__


def httpx_transport_for(
    *, proxy: Secret | str | None, http2: bool, verify: bool | str | ssl.SSLContext
) -> HttpxTransport:
    """An httpx transport of our own, for what our pool does not speak.

    Args:
        proxy: ``http://``, ``https://``, ``socks5://`` or ``socks5h://``, with ``user:password@`` where it needs them;
            None: go there directly. Never shown in a message.
        http2: offer HTTP/2 to https servers.
        verify: as in `PoolTransport`, or a context.

    Raises:
        MissingExtraError: HTTP/2 or SOCKS was asked for and its package is not installed.
        OptionValueError: the proxy's URL is none.
    """
    if http2 and importlib.util.find_spec("h2") is None:
        raise MissingExtraError('HTTP/2 needs an extra: pip install "millstream[http2]"', name="h2")
    if proxy is not None:
        proxy = Secret(proxy, "the proxy's URL")  # tools that print tracebacks show local variables too
        scheme = proxy.reveal().partition("://")[0].lower() if "://" in proxy.reveal() else ""
        if scheme not in _PROXY_SCHEMES:
            raise OptionValueError(f"a proxy's URL starts with one of {', '.join(f'{s}://' for s in _PROXY_SCHEMES)}")
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise MissingExtraError('a SOCKS proxy needs an extra: pip install "millstream[socks]"', name="socksio")
    try:
        below = httpx.AsyncHTTPTransport(
            verify=verify if isinstance(verify, ssl.SSLContext) else create_context(verify),
            http2=http2,
            proxy=proxy.reveal() if proxy is not None else None,
            # How much is in flight is decided above; idle ones are dropped before most servers would.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=15.0),
        )
    except (ValueError, httpx.InvalidURL):
        raise OptionValueError("the proxy's URL is no URL") from None  # its text may hold a password
    return HttpxTransport(below, owns=True)


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("ascii", "replace")


_detached: set[Any] = set()


def _run_detached(function: Callable[[], Awaitable[None]]) -> None:
    """Run it on this event loop without waiting for it: httpx can be closed in no other way than by awaiting."""
    asyncio = sys.modules.get("asyncio")
    try:
        task: Any = asyncio.get_running_loop().create_task(function()) if asyncio else None
    except RuntimeError:
        task = None
    if task is not None:
        _detached.add(task)
        task.add_done_callback(_detached.discard)
        return
    trio = sys.modules.get("trio")
    if trio is not None:
        trio.lowlevel.spawn_system_task(function)
