from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
import trio

from millstream._errors import OptionTypeError, OptionValueError
from millstream._results import Generation, LLMResult, TokenLogprob, ToolCall, TopLogprob, Usage
from millstream.caches import InMemoryCache


def full_result():
    generation = Generation(
        "text\u2028é",
        generation_info={"seed": 7, "deep": {"list": [1, None, 2.5]}},
        finish_reason="stop",
        raw_finish_reason="eos_token",
        reasoning="because",
        tool_calls=(ToolCall("f", "{}", "id"),),
        logprobs=(TokenLogprob("t", -0.5, 3, top_logprobs=(TopLogprob("u", -1.5, 4),)),),
    )
    return LLMResult(((generation, Generation("b", finish_reason="length")),), {"tokenUsage": {}}, Usage(1, 2, 3, 4))


async def test_a_result_comes_back_whole():
    cache = InMemoryCache()
    assert await cache.lookup("k") is None
    await cache.update("k", full_result())
    assert await cache.lookup("k") == full_result()
    assert await cache.lookup("other") is None
    await cache.aclose()
    await cache.aclose()


async def test_nobody_changes_anothers_result():
    cache = InMemoryCache()
    mine = full_result()
    await cache.update("k", mine)
    mine.generations[0][0].generation_info["seed"] = "mine"
    theirs = await cache.lookup("k")
    theirs.generations[0][0].generation_info["deep"]["list"].clear()
    assert await cache.lookup("k") == full_result()


async def test_what_was_parsed_is_not_kept():
    cache = InMemoryCache()
    generation = msgspec.structs.replace(Generation("{}", finish_reason="stop"), parsed={"a": 1})
    await cache.update("k", LLMResult(((generation,),)))
    assert (await cache.lookup("k")).generations[0][0].parsed is None


async def test_the_one_used_longest_ago_goes_first():
    cache = InMemoryCache(max_entries=2)
    await cache.update("a", LLMResult.of("a"))
    await cache.update("b", LLMResult.of("b"))
    await cache.lookup("a")
    await cache.update("c", LLMResult.of("c"))
    assert [await cache.lookup(key) is not None for key in "abc"] == [True, False, True]
    await cache.update("a", LLMResult.of("again"))
    await cache.update("d", LLMResult.of("d"))
    assert [await cache.lookup(key) is not None for key in "acd"] == [True, False, True]
    assert (await cache.lookup("a")).text == "again"


async def test_size_is_bounded_too():
    size = len(LLMResult.of("x" * 100).to_msgpack())
    cache = InMemoryCache(max_bytes=3 * size)
    for key in "abcd":
        await cache.update(key, LLMResult.of(key * 100))
    assert cache.statistics().size == 3 * size
    assert await cache.lookup("a") is None
    await cache.update("b", LLMResult.of("x" * 1000))  # too large: what it replaces is gone, the others stay
    assert [await cache.lookup(key) is not None for key in "bcd"] == [False, True, True]
    assert cache.statistics().size == 2 * size


async def test_old_results_are_not_given():
    now = 100.0
    cache = InMemoryCache(ttl=10, clock=lambda: now)
    await cache.update("k", LLMResult.of("x"))
    now = 109.9
    assert await cache.lookup("k") is not None
    now = 110.0
    assert await cache.lookup("k") is None
    assert cache.statistics().entries == 0
    await cache.update("k", LLMResult.of("x"))
    now = 119.0
    assert await cache.lookup("k") is not None


async def test_statistics():
    cache = InMemoryCache(max_entries=2)
    for key in "abc":
        await cache.lookup(key)
        await cache.update(key, LLMResult.of("x"))
        await cache.lookup(key)
    told = cache.statistics()
    assert (told.hits, told.misses, told.entries, told.evictions) == (3, 3, 2, 1)
    assert told.size == 2 * len(LLMResult.of("x").to_msgpack())
    cache.clear()
    assert (cache.statistics().entries, cache.statistics().size) == (0, 0)


@pytest.mark.parametrize(
    "wrong", [{"max_entries": 0}, {"max_bytes": 0}, {"ttl": 0}, {"ttl": -1.0}, {"ttl": float("inf")}]
)
def test_bounds_are_positive(wrong):
    with pytest.raises(OptionValueError, match=next(iter(wrong))):
        InMemoryCache(**wrong)


def test_bounds_are_numbers():
    with pytest.raises(OptionTypeError, match="max_entries"):
        InMemoryCache(max_entries="many")


def test_the_global_one_is_one_for_all_loops():
    cache = InMemoryCache.global_()
    assert InMemoryCache.global_() is cache
    try:
        asyncio.run(cache.update("k", LLMResult.of("x")))
        assert trio.run(cache.lookup, "k") == LLMResult.of("x")
    finally:
        cache.clear()


def test_threads_share_it():
    cache = InMemoryCache(max_entries=8, ttl=1e-9)
    failures = []

    async def work():
        for i in range(400):
            await cache.update(str(i % 16), LLMResult.of("x"))
            await cache.lookup(str((i + 1) % 16))

    def run():
        try:
            asyncio.run(work())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    told = cache.statistics()
    assert told.hits + told.misses == 1600
    assert told.size == told.entries * len(LLMResult.of("x").to_msgpack())
