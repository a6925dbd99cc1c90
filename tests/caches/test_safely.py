"""A cache never fails a call, and never gives half an answer."""

from __future__ import annotations

import anyio
import pytest

from millstream._results import Generation, LLMResult
from millstream.caches import BaseCache, InMemoryCache, is_cacheable, lookup_safely, update_safely

from ..conftest import manual_backends


class BrokenCache(BaseCache):
    def __init__(self, error=None, gives=None):
        self.error = error
        self.gives = gives
        self.calls = 0

    async def lookup(self, key):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.gives

    async def update(self, key, result):
        self.calls += 1
        raise self.error


def result_of(*reasons):
    return LLMResult((tuple(Generation("x", finish_reason=reason) for reason in reasons),))


@pytest.mark.parametrize(
    ("result", "complete"),
    [
        (result_of("stop"), True),
        (result_of("length"), True),
        (result_of("tool_calls"), True),
        (result_of("stop", "length"), True),
        (result_of(None), False),
        (result_of("error"), False),
        (result_of("content_filter"), False),
        (result_of("other"), False),
        (result_of("stop", None), False),
        (result_of(), False),
        (LLMResult(()), False),
        (LLMResult((result_of("stop").generations[0], ())), False),
        (LLMResult.of(""), True),
    ],
)
async def test_only_complete_successes_are_kept_and_given(result, complete):
    assert is_cacheable(result) == complete
    cache = InMemoryCache()
    assert await update_safely(cache, "k", result) == complete
    assert cache.statistics().entries == complete
    await cache.update("k", result)  # somebody else put it there
    assert await lookup_safely(cache, "k") == (result if complete else None)


async def test_a_cache_that_raises_has_missed_and_warns_once(caplog):
    cache = BrokenCache(ConnectionError("redis://user:password@host"))
    for _ in range(3):
        assert await lookup_safely(cache, "k") is None
        assert await update_safely(cache, "k", LLMResult.of("x")) is False
    assert cache.calls == 6
    assert [record.getMessage() for record in caplog.records] == [
        (
            "cache BrokenCache: lookup raised ConnectionError; it is passed over where it fails, and this is not logged "
            "again for it"
        )
    ]
    assert await lookup_safely(BrokenCache(ValueError()), "k") is None
    assert len(caplog.records) == 2  # another cache, another warning


async def test_an_update_that_fails_warns_too(caplog):
    assert await update_safely(BrokenCache(OSError()), "k", LLMResult.of("x")) is False
    assert "update raised OSError" in caplog.text


async def test_what_is_no_result_is_a_miss(caplog):
    assert await lookup_safely(BrokenCache(gives="text"), "k") is None
    assert "gave str instead of LLMResult" in caplog.text


async def test_a_result_that_can_not_be_kept_is_not_kept(caplog):
    cache = InMemoryCache()
    result = LLMResult(((Generation("x", {"odd": object()}, "stop"),),))
    assert await update_safely(cache, "k", result) is False
    assert "update raised TypeError" in caplog.text


async def test_interrupts_go_through():
    with pytest.raises(KeyboardInterrupt):
        await lookup_safely(BrokenCache(KeyboardInterrupt()), "k")


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_a_cache_that_hangs_is_passed_over(caplog):
    class Hanging(BaseCache):
        async def lookup(self, key):
            await anyio.sleep_forever()

        async def update(self, key, result):
            await anyio.sleep_forever()

    began = anyio.current_time()
    assert await lookup_safely(Hanging(), "key") is None
    assert not await update_safely(Hanging(), "key", LLMResult.of("x"))
    assert anyio.current_time() - began == pytest.approx(2.0)
    assert "took over 1 s" in caplog.text
