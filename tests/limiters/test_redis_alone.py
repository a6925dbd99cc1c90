"""The parts of the shared limiter that need no server."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._errors import OptionTypeError, OptionValueError, UsageError
from millstream._secret import Secret
from millstream.limiters._redis import RedisLimiter, limiter_key
from millstream.limiters._redis_own import OwnUse, Quota

from ..conftest import EVENT_LOOPS
from .redis_server import needs_server, running_server


def test_a_key_names_endpoint_and_credential_and_tells_neither_key_nor_query():
    key = limiter_key("https://router.huggingface.co/v1/?secret=1", "hf_0123456789")
    assert key == f"https://router.huggingface.co/v1#{Secret('hf_0123456789').fingerprint()}"
    assert "0123456789" not in key
    assert key == limiter_key("https://router.huggingface.co:443/v1", "hf_0123456789")
    assert limiter_key("https://h/") != limiter_key("https://h/", "hf_0123456789")
    with pytest.raises(OptionValueError, match="nonsense"):
        limiter_key("nonsense")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"requests_per_minute": 0}, OptionValueError, "over 0"),
        ({"tokens_per_minute": 0.5}, OptionValueError, "at least 1"),
        ({"lease": 0}, OptionValueError, "at least 1"),
        ({"processes": 0}, OptionValueError, "at least 1"),
        ({"period": 0}, OptionValueError, "at least 0.1"),
        ({"key": ""}, OptionTypeError, "limiter_key"),
    ],
)
def test_options_that_cannot_be(options, error, words):
    with pytest.raises(error, match=words):
        RedisLimiter("redis://localhost", **({"key": "k"} | options))


def test_a_url_that_is_none():
    with pytest.raises(OptionValueError, match="rediss://") as caught:
        RedisLimiter("http://user:password@localhost", key="k")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("anyio_backend", [EVENT_LOOPS["trio"]], ids=["trio"])
async def test_trio_is_told_what_to_use():
    limiter = RedisLimiter("redis://localhost", requests_per_minute=1, key="k")
    assert limiter.acquire_nowait() is None
    limiter.push_back(0.1)
    with pytest.raises(UsageError, match="LocalLimiter"):
        await limiter.wait()
    with pytest.raises(UsageError, match="LocalLimiter"):
        await limiter.acquire()
    await limiter.aclose()


@needs_server
def test_one_object_serves_one_event_loop_after_the_other():
    with running_server() as server:
        limiter = RedisLimiter(server.url, requests_per_minute=3, key="k")

        async def use(*, close: bool) -> None:
            for _ in range(2 if close else 1):
                async with asyncio.timeout(0.5):
                    await limiter.acquire()
            assert not limiter.degraded
            if close:
                await limiter.aclose()
                await limiter.aclose()

        asyncio.run(use(close=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # who does not close it, is told so by the client
            asyncio.run(use(close=False))
            gc.collect()
            with pytest.raises(TimeoutError):  # three are used, whatever the loop
                asyncio.run(use(close=False))
            asyncio.run(limiter.aclose())
            limiter._begin()
            limiter._abandoned.clear()
            gc.collect()


SHARE = Quota(600, 60)
NONE = Quota(None, 60)


def test_limits_within_a_period():
    assert (Quota(600, 60).amount, Quota(600, 60).seconds) == (600, 60)
    assert (Quota(600, 1).amount, Quota(600, 1).seconds) == (10, 1)
    assert (Quota(0.5, 60).amount, Quota(0.5, 60).seconds) == (1, 120)
    assert (Quota(30, 1).amount, Quota(30, 1).seconds) == (1, 2)
    assert Quota(None, 60).amount is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    gaps=st.lists(st.floats(0, 20), min_size=1, max_size=60),
    amount=st.integers(1, 12),
    processes=st.integers(1, 4),
)
def test_alone_a_process_never_uses_more_than_its_share(gaps: list[float], amount: int, processes: int):
    own, now, used = OwnUse(Quota(20, 60), NONE), 0.0, []
    for gap in gaps:
        now += gap
        pause = own.wait(now, amount, 0, processes)
        assert pause <= 60 * 13 * processes
        if pause > 0 and gap < 10:
            continue
        now += pause
        assert own.wait(now + 1e-6, amount, 0, processes) <= 0
        own.add(now, amount, 0, processes, told=False)
        used.append(now)
    share = 20 / processes
    counts = 60 * max(1, amount / share)
    for at in used:
        assert amount * sum(at - counts < each <= at for each in used) <= max(share, amount)
    assert sum(each.amount for each in own.operations()) == amount * len(used)
    assert not own.operations()


def test_of_a_share_only_what_was_free_is_left_when_the_count_is_lost():
    own = OwnUse(SHARE, NONE)
    own.add(0, 100, 0, 2, told=True)
    own.seal(1, (0, 0), 2)
    assert own.wait(1, 1, 0, 2) == pytest.approx(59.2)
    own.seal(1, (300, 0), 2)
    assert own.wait(1, 150, 0, 2) == 0
    assert own.wait(1, 151, 0, 2) > 0
    own.seal(1, None, 2)
    assert own.wait(1, 200, 0, 2) == 0
    assert own.wait(1, 201, 0, 2) > 0


def test_uses_that_follow_closely_do_not_become_one_that_lasts():
    own = OwnUse(SHARE, NONE)
    for number in range(1000):
        own.add(number * 0.06, 1, 0, 1, told=True)
    assert len(own.recount(60)) > 300
    assert own.wait(60, 100, 0, 1) < 35


def test_a_recount_has_all_that_still_counts():
    own = OwnUse(SHARE, NONE)
    own.add(0, 1, 0, 1, told=True)
    own.add(50, 2, 7, 1, told=True)
    own.add(70, 3, 0, 1, told=False)
    assert [(each.target, each.amount) for each in own.recount(80)] == [(50, 2), (70, 3)]
    assert not own.operations()
