"""``millstream local`` and ``millstream sim``: an endpoint on this machine until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from millstream.testing import FakeEndpoint, Latency

__all__ = ["local", "sim"]


async def local(*, port: int, slots: int) -> int:
    """Serve the embedded model. Raises: MissingExtraError; OptionValueError for a port that is taken."""
    from millstream.local import local_server  # noqa: PLC0415 - an extra

    server = await anyio.to_thread.run_sync(lambda: local_server(port=port, slots=slots))
    try:
        _announce(server.url)
        await anyio.sleep_forever()
    finally:
        server.close()
    return 0


async def sim(
    *,
    host: str,
    port: int,
    models: Sequence[str],
    server: str,
    first_token: float,
    inter_token: float,
    slots: int | None,
    max_queue: int | None,
    requests_per_minute: int | None,
    seed: int,
) -> int:
    """Serve the simulated endpoint. Raises: OSError for a port that is taken."""
    endpoint = FakeEndpoint(
        host=host,
        port=port,
        models=list(models) or None,
        server=server,  # type: ignore[arg-type]
        latency=Latency(first_token=first_token, inter_token=inter_token),
        slots=slots,
        max_queue=max_queue,
        requests_per_minute=requests_per_minute,
        seed=seed,
    )
    async with endpoint:
        _announce(endpoint.url)
        await anyio.sleep_forever()
    return 0


def _announce(url: str) -> None:
    print(f"Serving at {url} (Ctrl-C stops)", flush=True)
    print(f"Try: millstream generate --endpoint {url} 'Why is the sky blue?'", flush=True)
