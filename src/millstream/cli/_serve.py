"""``millstream local`` and ``millstream sim``: an endpoint on this machine until Ctrl-C."""

from __future__ import annotations

from typing import Any

import anyio

from millstream import MillstreamError
from millstream.testing import FakeEndpoint

__all__ = ["local", "sim"]


async def local(*, port: int, slots: int) -> int:
    """Serve the embedded model. Raises: MissingExtraError; OptionValueError for a port that is taken."""
    from millstream.local import local_server  # noqa: PLC0415 - an extra

    server = await anyio.to_thread.run_sync(lambda: local_server(port=port, slots=slots))
    try:
        _announce(server.model, server.url)
        await anyio.sleep_forever()
    finally:
        server.close()
    return 0


async def sim(endpoint: FakeEndpoint) -> int:
    """Serve the simulated endpoint. Raises: MillstreamError for an address that can't be listened on."""
    listening = False
    try:
        async with endpoint:
            listening = True
            _announce(f"a simulated {endpoint.server}", endpoint.url)
            await anyio.sleep_forever()
    except OSError as error:
        if listening:
            raise
        raise MillstreamError(f"can't listen on {endpoint.host} port {endpoint.port}: {_reason(error)}") from error
    return 0


def _reason(error: OSError) -> Any:
    return error.strerror or error


def _announce(what: str, url: str) -> None:
    print(f"Serving {what} at {url} (Ctrl-C stops)", flush=True)
    print(f"Try: millstream generate --endpoint {url} 'Why is the sky blue?'", flush=True)
