"""Limits of requests and tokens a minute, on a clock that jumps."""

from __future__ import annotations

import anyio
import pytest

from millstream._headers import retry_after, stated_limits
from millstream.testing._behaviour import Behaviour
from millstream.testing._rates import Rates
from tests.conftest import manual_backends

pytestmark = pytest.mark.parametrize("anyio_backend", manual_backends())


def take(rates: Rates, tokens: int = 0):
    """Whether a request passes, and what its answer tells."""
    passes = rates.admit()
    if passes:
        rates.spend(lambda: tokens)
    return passes, rates.headers(passes=passes)


def passing(rates: Rates, tokens: int = 0) -> int:
    """How many pass at this moment."""
    for count in range(1000):
        if not take(rates, tokens)[0]:
            return count
    raise AssertionError("there is no limit")


async def test_no_limit_and_no_headers():
    rates = Rates(Behaviour(rate_limit_headers="x-ratelimit"))
    assert take(rates, 1000) == (True, [])


async def test_the_next_window_opens():
    rates = Rates(Behaviour(requests_per_minute=2))
    assert [take(rates)[0] for _ in range(3)] == [True, True, False]
    await anyio.sleep(45)
    assert take(rates) == (False, [("retry-after", "15")])
    await anyio.sleep(15)
    assert take(rates) == (True, [])


async def test_ratelimit_tells_what_is_left():
    rates = Rates(Behaviour(requests_per_minute=2, rate_limit_headers="ratelimit"))
    policy = ("ratelimit-policy", '"fixed window";"api";q=2;w=60')
    assert take(rates) == (True, [("ratelimit", '"api";r=1;t=60'), policy])
    take(rates)
    await anyio.sleep(5)
    assert take(rates) == (False, [("ratelimit", '"api";r=0;t=55'), policy])


async def test_no_headers_when_none_are_wanted():
    rates = Rates(Behaviour(requests_per_minute=1, rate_limit_headers="none"))
    assert [take(rates) for _ in range(2)] == [(True, []), (False, [])]


async def test_a_bucket_leaks_evenly():
    rates = Rates(Behaviour(requests_per_minute=60, rate_limit_algorithm="leaky-bucket"))
    assert passing(rates) == 60
    assert take(rates) == (False, [("retry-after", "1")])
    for _ in range(20):
        await anyio.sleep(1)
        assert passing(rates) == 1
    await anyio.sleep(0.5)
    assert passing(rates) == 0
    await anyio.sleep(10.5)
    assert passing(rates) == 11
    await anyio.sleep(1000)
    assert passing(rates) == 60


async def test_a_small_bucket():
    rates = Rates(Behaviour(requests_per_minute=60, rate_limit_algorithm="leaky-bucket", rate_burst=2))
    assert passing(rates) == 2
    await anyio.sleep(0.9)
    assert passing(rates) == 0
    await anyio.sleep(0.1)
    assert passing(rates) == 1


async def test_a_bucket_tells_when_it_is_empty_again():
    rates = Rates(
        Behaviour(requests_per_minute=30, rate_limit_algorithm="leaky-bucket", rate_limit_headers="x-ratelimit")
    )
    take(rates)
    assert take(rates) == (
        True,
        [
            ("x-ratelimit-limit-requests", "30"),
            ("x-ratelimit-remaining-requests", "28"),
            ("x-ratelimit-reset-requests", "4s"),
        ],
    )
    await anyio.sleep(1.88)
    assert dict(rates.headers(passes=True))["x-ratelimit-remaining-requests"] == "28"
    assert dict(rates.headers(passes=True))["x-ratelimit-reset-requests"] == "2.12s"
    await anyio.sleep(2)
    assert dict(rates.headers(passes=True))["x-ratelimit-reset-requests"] == "120ms"


@pytest.mark.parametrize("algorithm", ["fixed-window", "leaky-bucket"])
async def test_tokens_run_out(algorithm):
    rates = Rates(Behaviour(tokens_per_minute=100, rate_limit_algorithm=algorithm))
    assert passing(rates, 40) == 3  # the third goes over
    passes, told = take(rates)
    wait = float(dict(told)["retry-after"])
    assert (passes, wait) == (False, 60 if algorithm == "fixed-window" else 13)
    await anyio.sleep(wait - 1)
    assert not take(rates)[0]
    await anyio.sleep(1)
    assert take(rates)[0]


async def test_both_limits_in_the_words_of_openai():
    rates = Rates(
        Behaviour(requests_per_minute=2, tokens_per_minute=50, rate_window=90, rate_limit_headers="x-ratelimit")
    )
    take(rates, 20)
    await anyio.sleep(2.5)
    passes, told = take(rates, 45)
    assert (passes, dict(told)) == (
        True,
        {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m27.5s",
            "x-ratelimit-limit-tokens": "50",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "1m27.5s",
        },
    )
    passes, told = take(rates)
    assert (passes, dict(told)["retry-after"]) == (False, "88")


async def test_ratelimit_is_of_requests_alone():
    rates = Rates(Behaviour(requests_per_minute=5, tokens_per_minute=50, rate_limit_headers="ratelimit"))
    passes, told = take(rates, 60)
    assert (passes, dict(told)["ratelimit"]) == (True, '"api";r=4;t=60')
    passes, told = take(rates)
    assert (passes, dict(told)["ratelimit"], dict(told)["retry-after"]) == (False, '"api";r=4;t=60', "60")


@pytest.mark.parametrize("algorithm", ["fixed-window", "leaky-bucket"])
@pytest.mark.parametrize("style", ["ratelimit", "x-ratelimit"])
async def test_the_client_reads_what_is_told(style, algorithm):
    rates = Rates(
        Behaviour(
            requests_per_minute=5,
            tokens_per_minute=7000,
            rate_window=4000,
            rate_limit_headers=style,
            rate_limit_algorithm=algorithm,
        )
    )
    _, told = take(rates, 3500)
    limits = stated_limits([(name.encode(), value.encode()) for name, value in told])
    assert limits is not None
    assert limits.requests_remaining == 4
    assert limits.requests_reset == (4000 if algorithm == "fixed-window" else 800)
    if style == "x-ratelimit":
        assert limits.tokens_remaining == 3500
        assert limits.tokens_reset == (4000 if algorithm == "fixed-window" else 2000)
    passing(rates)
    lines = {name.encode(): value for name, value in rates.headers(passes=False)}
    assert retry_after(lines.get, now=0.0) == 600.0  # it is longer, and no wait is told to be


async def test_limits_may_change_while_it_runs():
    behaviour = Behaviour(requests_per_minute=2)
    rates = Rates(behaviour)
    assert passing(rates) == 2
    behaviour.requests_per_minute = 5
    assert passing(rates) == 3
    behaviour.requests_per_minute = None
    assert take(rates) == (True, [])
    behaviour.requests_per_minute = 0
    assert not take(rates)[0]
