"""Tests with a `pool` run on every kind of connection: asyncio's protocol on two loops, anyio's streams on trio and asyncio."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from millstream._transport import PoolTransport

from ..conftest import EVENT_LOOPS
from .quiet import assert_quiet

KINDS = {**EVENT_LOOPS, "generic": EVENT_LOOPS["asyncio"]}


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    if "kind" in metafunc.fixturenames:  # a mark, since that takes precedence over the parameters of `anyio_backend`
        metafunc.definition.add_marker(pytest.mark.parametrize(("kind", "anyio_backend"), KINDS.items(), ids=KINDS))


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
