"""The same test on every kind of connection: asyncio's protocol on two loops, anyio's streams on trio and on asyncio."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from millstream._transport import PoolTransport

from ..conftest import EVENT_LOOPS


@pytest.fixture(params=["asyncio", "uvloop", "trio", "generic"])
def kind(request):
    return request.param


@pytest.fixture
def anyio_backend(kind):
    return EVENT_LOOPS["asyncio" if kind == "generic" else kind]


@pytest.fixture
def pool(kind):
    """A pool for the length of a block, at the end of which nothing may be under way."""

    @asynccontextmanager
    async def make(**options):
        transport = PoolTransport(generic=kind == "generic", **options)
        try:
            yield transport
            assert_quiet(transport)
        finally:
            with anyio.CancelScope(shield=True):
                await transport.aclose()

    return make


def assert_quiet(transport):
    now = transport.statistics()
    assert (now.active, now.opening, now.waiting) == (0, 0, 0)
    assert now.open == now.idle


async def settle(condition):
    """Let the loop run until something that is under way has happened."""
    with anyio.fail_after(2):
        while not condition():
            await anyio.sleep(0.001)
