"""Our pool below httpx: ``httpx.AsyncClient(transport=PooledTransport())``."""

from __future__ import annotations

import ssl

import httpx

from millstream._transport._seam import Transport
from millstream._transport.pooled import IDLE_SECONDS, AnswerStream, Pooled

__all__ = ["PooledTransport"]

DEFAULT_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)


class PooledTransport(httpx.AsyncBaseTransport):
    """Millstream's connection pool as an httpx transport: HTTP/1.1, on asyncio and trio.

    For httpx2, and so for newer versions of openai and huggingface_hub: `millstream.httpx2.PooledTransport`.

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
        self._pooled = Pooled(httpx, verify, limits, pool)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            httpx.TransportError: that which fits. ``__cause__`` is ours.
        """
        status, headers, body, extensions = await self._pooled.send(request)
        stream = _AnswerStream(self._pooled, body, request)
        return httpx.Response(status, headers=headers, stream=stream, extensions=extensions)

    async def aclose(self) -> None:
        """Close all connections, unless the pool was brought."""
        await self._pooled.aclose()


class _AnswerStream(AnswerStream, httpx.AsyncByteStream):
    pass
