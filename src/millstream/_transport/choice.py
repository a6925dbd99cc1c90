"""Which transport carries a model's requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream._errors import OptionTypeError
from millstream._secret import Secret
from millstream._transport._seam import Transport
from millstream._transport.pool import PoolTransport

if TYPE_CHECKING:
    import httpx

__all__ = ["choose_transport", "is_transport"]


def is_transport(brought: Any) -> bool:
    """Whether `brought` can carry requests: one of ours by its one method, or something of httpx's."""
    return any(callable(getattr(brought, name, None)) for name in ("send", "handle_async_request", "build_request"))


def choose_transport(
    *,
    transport: Transport | httpx.AsyncBaseTransport | None = None,
    http_client: httpx.AsyncClient | None = None,
    proxy: Secret | None = None,
    http2: bool = False,
    verify: bool | str = True,
) -> Transport:
    """What the user brought; httpx's own for a proxy or HTTP/2; else our pool. httpx is imported only if it is used.

    Raises:
        OptionTypeError: `transport` is neither one of ours nor one of httpx's.
        OptionValueError: no URL of a proxy.
        MissingExtraError: HTTP/2 or SOCKS needs an extra that is not installed.
    """
    brought: Any = transport if http_client is None else http_client
    if brought is not None:
        is_httpx = hasattr(brought, "handle_async_request") or hasattr(brought, "build_request")
        if not is_httpx and callable(getattr(brought, "send", None)):
            return brought  # type: ignore[no-any-return] # ours, by its one method
        if not is_httpx:
            raise OptionTypeError(
                f"transport is a Transport or an httpx.AsyncBaseTransport, not {type(brought).__name__}"
            )
        from millstream._transport.httpx_client import HttpxTransport  # noqa: PLC0415 - httpx is slow to import

        return HttpxTransport(brought, owns=False)
    if proxy is not None or http2:
        from millstream._transport.httpx_client import httpx_transport_for  # noqa: PLC0415 - httpx is slow to import

        return httpx_transport_for(proxy=proxy, http2=http2, verify=verify)
    return PoolTransport(verify=verify)
