"""A fake endpoint and models at it; after each test nothing of theirs is in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from millstream import HuggingFaceInference
from millstream.testing import FakeEndpoint

EVENT_LOOPS = {"asyncio": ("asyncio", {}), "uvloop": ("asyncio", {"use_uvloop": True}), "trio": ("trio", {})}
APIS = ("chat", "completions", "text-generation")


@pytest.fixture(params=EVENT_LOOPS.values(), ids=EVENT_LOOPS.keys())
def anyio_backend(request: pytest.FixtureRequest):
    """As everywhere, but without asyncio's debug mode: it is ten times slower, and here are very many calls."""
    return request.param


@pytest.fixture
async def endpoint() -> AsyncIterator[FakeEndpoint]:
    async with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
async def model(endpoint: FakeEndpoint) -> AsyncIterator[Callable[..., HuggingFaceInference]]:
    """Makes models at `endpoint` and closes them."""
    made: list[HuggingFaceInference] = []

    def make(**options: Any) -> HuggingFaceInference:
        made.append(HuggingFaceInference(**{"endpoint_url": endpoint.url, "max_tokens": 8, **options}))
        return made[-1]

    yield make
    for each in made:
        now = each.caller.statistics()
        assert (now.in_flight, now.waiting, now.backing_off) == (0, 0, 0)
        if each._transport is not None:
            pool = each._transport.statistics()  # type: ignore[attr-defined]
            assert (pool.active, pool.opening, pool.waiting) == (0, 0, 0)
        await each.aclose()


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    return request.param
