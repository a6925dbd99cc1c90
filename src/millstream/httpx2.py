"""Our pool below httpx2, and so below everything that is made with it (extra ``httpx2``).

    import httpx2
    from millstream.httpx2 import PooledTransport

    client = httpx2.AsyncClient(transport=PooledTransport())

openai, from version 3 on, takes such a client (`base_url` and all other options as ever):

    openai_client = openai.AsyncOpenAI(http_client=openai.DefaultAsyncHttpxClient(transport=PooledTransport()))

huggingface_hub, from version 2 on, takes a function that makes one, and asks it for each `AsyncInferenceClient`:

    huggingface_hub.set_async_client_factory(
        lambda: httpx2.AsyncClient(transport=PooledTransport(), follow_redirects=True, timeout=None)
    )
"""

from __future__ import annotations

import ssl

from millstream._errors import MissingExtraError
from millstream._transport._seam import Transport
from millstream._transport.pooled import IDLE_SECONDS, AnswerStream, Pooled

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtraError('httpx2 is not installed: pip install "millstream[httpx2]"', name="httpx2") from error

__all__ = ["PooledTransport"]

DEFAULT_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)


class PooledTransport(httpx2.AsyncBaseTransport):
    """Millstream's connection pool as an httpx2 transport: HTTP/1.1, on asyncio and trio.

    Everything is as in `millstream.PooledTransport`, which is the same for httpx: what is above works as ever, but
    a request's body is collected before it is sent, gzip and deflate are decoded here, and proxies, HTTP/2, websockets
    and other upgrades are not its business.

    Args:
        verify: True: certificates are checked against ``SSL_CERT_FILE``, ``SSL_CERT_DIR`` or certifi's; a path:
            against those there; False: not at all; or a context of your own, such as `httpx2.create_ssl_context()`
            for those that the system trusts.
        limits: as httpx2's, but for one origin, not for all. The default has no bound on connections, and 15 s for
            idle ones; a `keepalive_expiry` of None: a day.
        pool: the pool to use instead of an own one. It is closed by whoever made it.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | str | bool = True,
        limits: httpx2.Limits = DEFAULT_LIMITS,
        pool: Transport | None = None,
    ) -> None:
        self._pooled = Pooled(httpx2, verify, limits, pool)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request.

        Raises:
            httpx2.TransportError: that which fits. ``__cause__`` is ours.
        """
        status, headers, body, extensions = await self._pooled.send(request)
        stream = _AnswerStream(self._pooled, body, request)
        return httpx2.Response(status, headers=headers, stream=stream, extensions=extensions)

    async def aclose(self) -> None:
        """Close all connections, unless the pool was brought."""
        await self._pooled.aclose()


class _AnswerStream(AnswerStream, httpx2.AsyncByteStream):
    pass
