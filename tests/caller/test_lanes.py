"""One caller, several endpoints: where attempts go, and who is left out for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import anyio
import pytest

from millstream import _clock
from millstream import _errors as errors
from millstream._caller import AsyncCaller, CallerOptions, Permit
from tests.conftest import manual_backends

from .test_caller import assert_quiet, caller_of, rate_limit, server_error

manual = pytest.mark.parametrize("anyio_backend", manual_backends())
LANES = ("a", "b")


class Endpoints:
    """Some endpoints, each of which answers with its name or fails as it is told."""

    def __init__(self, caller: AsyncCaller, **behaviour: Callable[[], Exception] | None) -> None:
        self.caller = caller
        self.behaviour = dict(behaviour)
        self.asked: list[str] = []
        self.takes = 0.0

    async def ask(self, lanes: tuple[str, ...] = LANES) -> str:
        lane = ""

        def begin(permit: Permit) -> None:
            nonlocal lane
            lane = permit.lane

        async def attempt() -> str:
            self.asked.append(lane)
            await anyio.sleep(self.takes)
            fail = self.behaviour.get(lane)
            if fail is not None:
                raise fail()
            return lane

        return await self.caller.call_with_options(CallerOptions(lanes=lanes, begin=begin), attempt)

    async def ask_many(self, number: int, lanes: tuple[str, ...] = LANES) -> Counter[str]:
        """Who answered, and which errors there were."""
        found: Counter[str] = Counter()

        async def one() -> None:
            try:
                found[await self.ask(lanes)] += 1
            except errors.MillstreamError as error:
                found[type(error).__name__] += 1

        async with anyio.create_task_group() as group:
            for _ in range(number):
                group.start_soon(one)
        return found


def unauthorized() -> Exception:
    return errors.AuthenticationError("no", status_code=401)


def missing() -> Exception:
    return errors.NotFoundError("no", status_code=404)


def bad_request() -> Exception:
    return errors.BadRequestError("no", status_code=400)


def no_connection() -> Exception:
    return errors.ConnectError("refused")


def broken() -> Exception:
    return server_error()


@manual
async def test_the_least_loaded_is_taken_and_of_equals_the_first():
    endpoints = Endpoints(caller_of(max_concurrency=8))
    assert await endpoints.ask() == "a"
    endpoints.takes = 1.0
    assert await endpoints.ask_many(6) == {"a": 3, "b": 3}
    assert_quiet(endpoints.caller)


@manual
@pytest.mark.parametrize("fail", [unauthorized, missing])
async def test_a_final_error_of_one_is_answered_by_the_other_and_it_is_left_out(fail):
    endpoints = Endpoints(caller_of(max_concurrency=8), a=fail)
    assert await endpoints.ask() == "b"
    assert await endpoints.ask_many(20) == {"b": 20}
    assert endpoints.asked.count("a") == 1, "and all others leave it out"
    endpoints.behaviour.clear()
    await anyio.sleep(59)
    endpoints.takes = 1.0
    assert await endpoints.ask_many(8) == {"b": 8}
    await anyio.sleep(5)
    assert (await endpoints.ask_many(16))["a"] > 1, "after 60 s one tries, and then it is back"
    assert_quiet(endpoints.caller)


@manual
async def test_an_error_of_the_request_is_not_tried_elsewhere():
    endpoints = Endpoints(caller_of(), a=bad_request)
    with pytest.raises(errors.BadRequestError):
        await endpoints.ask()
    assert endpoints.asked == ["a"]


@manual
async def test_where_all_fail_the_last_error_is_raised_at_once():
    endpoints = Endpoints(caller_of(), a=missing, b=unauthorized)
    start = _clock.monotonic()
    with pytest.raises(errors.AuthenticationError) as caught:
        await endpoints.ask()
    assert caught.value.attempts == 2
    for _ in range(3):
        with pytest.raises(errors.AuthenticationError) as caught:
            await endpoints.ask()
        assert caught.value.attempts == 1, "the other one is left out, and is not waited for"
    assert _clock.monotonic() == start
    assert_quiet(endpoints.caller)


@manual
async def test_where_all_fail_at_one_moment_nobody_waits_for_those_left_out():
    endpoints = Endpoints(caller_of(), a=missing, b=unauthorized)
    endpoints.takes = 1.0
    start = _clock.monotonic()
    found = await endpoints.ask_many(20)
    assert sum(found.values()) == 20
    assert set(found) <= {"AuthenticationError", "NotFoundError"}
    assert _clock.monotonic() - start < 10
    assert_quiet(endpoints.caller)


@manual
@pytest.mark.parametrize("fail", [no_connection, broken])
async def test_one_that_dies_loses_nothing_and_comes_back(fail):
    endpoints = Endpoints(caller_of(max_concurrency=8))
    endpoints.takes = 1.0
    assert await endpoints.ask_many(8) == {"a": 4, "b": 4}
    endpoints.behaviour["a"] = fail
    assert await endpoints.ask_many(60) == {"b": 60}
    asked = endpoints.asked.count("a")
    assert await endpoints.ask_many(60) == {"b": 60}
    assert endpoints.asked.count("a") - asked <= 5, "it is tried now and then, and by one at a time"
    endpoints.behaviour.clear()
    await anyio.sleep(10)  # the longest cool-down
    await endpoints.ask_many(60)
    assert await endpoints.ask_many(8) == {"a": 4, "b": 4}
    assert_quiet(endpoints.caller)


@manual
async def test_one_that_never_was_there_fails_no_call_that_must_wait_for_the_other():
    endpoints = Endpoints(caller_of(max_concurrency=8), a=no_connection, b=lambda: rate_limit(30))
    answers: list[str] = []

    async def ask() -> None:
        answers.append(await endpoints.ask())

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(ask)
        await anyio.sleep(20)
        endpoints.behaviour["b"] = None
    assert answers == ["b"] * 10
    assert_quiet(endpoints.caller)


@manual
async def test_where_none_was_ever_there_that_is_told_soon():
    endpoints = Endpoints(caller_of(), a=no_connection, b=no_connection)
    start = _clock.monotonic()
    with pytest.raises(errors.ConnectError) as caught:
        await endpoints.ask()
    assert caught.value.attempts == 4
    assert {"a", "b"} == set(endpoints.asked)
    assert _clock.monotonic() - start < 10


@manual
async def test_a_refusal_sends_calls_to_the_other_and_nobody_waits():
    endpoints = Endpoints(caller_of(), a=lambda: rate_limit(20))
    start = _clock.monotonic()
    assert await endpoints.ask_many(6) == {"b": 6}
    assert _clock.monotonic() == start
    assert_quiet(endpoints.caller)


@manual
async def test_each_has_a_window_in_the_statistics():
    endpoints = Endpoints(caller_of(max_concurrency=8), a=lambda: rate_limit(20))
    await endpoints.ask()
    windows = endpoints.caller.statistics().windows
    assert set(windows) == {"a", "b"}
    assert (windows["a"].rejected, windows["b"].rejected) == (1, 0)


@manual
async def test_calls_of_one_lane_do_not_wait_for_those_of_another():
    endpoints = Endpoints(caller_of(max_concurrency=8), a=lambda: rate_limit(20))
    async with anyio.create_task_group() as group:
        group.start_soon(endpoints.ask, ("a",))
        await anyio.sleep(1)
        start = _clock.monotonic()
        assert await endpoints.ask(("b",)) == "b"
        assert _clock.monotonic() == start
        endpoints.behaviour.clear()
    assert_quiet(endpoints.caller)
