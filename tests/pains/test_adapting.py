"""The caller finds out by itself how many requests to keep in flight, and all of it heeds what one request learned."""

from __future__ import annotations

import itertools
import random
import statistics

import anyio
import pytest

from millstream import (
    BaseCallbackHandler,
    DeadlineError,
    Deadlines,
    HuggingFaceInference,
    ModelLoadingError,
    WindowEvent,
)
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint
from tests.conftest import manual_socket_backends

from .support import DONE, MANUAL_CLOCK, chat, event, model_at, refusal, stream_of


class Engine:
    """A server with so many slots and a queue: first tokens after 0.2 to 0.4 s, answers of 1 to 5 s."""

    def __init__(self, slots: int, seed: int) -> None:
        self.slots = slots
        self.finished = 0
        self._places = anyio.Semaphore(slots)
        self._random = random.Random(seed)

    async def __call__(self, number, body):
        assert body["stream"], "without a stream nobody sees when an answer begins"
        await self._places.acquire()
        await anyio.sleep(self._random.uniform(0.2, 0.4))
        return stream_of(event("a"), endless=self._rest())

    def _rest(self):
        yield self._random.uniform(1, 5)
        self._places.release()
        self.finished += 1
        yield event("b", finish="stop")
        yield DONE


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("slots", [6, 20, 100])
async def test_the_concurrency_is_found(slots):
    """Pain 14: "what concurrency should I use?"; by default nobody has to know."""
    engine = Engine(slots, seed=slots)
    llm, transport = model_at(engine)
    began = anyio.current_time()
    limits: list[int] = []
    at_30 = 0
    async with llm.map(itertools.repeat("x")) as outcomes:
        async for outcome in outcomes:
            assert outcome.ok
            at = anyio.current_time() - began
            if at < 30:
                at_30 = engine.finished
            else:
                limits.append(llm.caller.statistics().limit)
            if at > 120:
                break
    statistics_now = llm.caller.statistics()
    # A small window counts in requests: two or three more than the slots are kept, so that none is ever empty.
    assert slots * 0.9 <= statistics.median(limits) <= max(slots * 1.3, slots + 3)
    best = slots / (0.3 + 3) * 90
    assert engine.finished - at_30 >= 0.9 * best, "slots were empty"
    # The statistics tell what it is and what it was found by.
    (window,) = statistics_now.windows.values()
    assert statistics_now.max_concurrency == "auto"
    assert window.limit == statistics_now.limit
    assert window.arrival_rate == pytest.approx(slots / 3.3, rel=0.4)
    assert 0.2 <= window.base <= 0.6
    assert (window.rejected, window.pace) == (0, None)


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_it_says_what_it_does():
    """Pain 14: nobody knows what a client does about concurrency; events tell each change and why."""
    told: list[WindowEvent] = []

    class Listener(BaseCallbackHandler):
        name = "listener"

        def on_window(self, event: WindowEvent, /) -> None:
            told.append(event)

    engine = Engine(30, seed=1)
    llm, _ = model_at(engine, callbacks=[Listener()])
    async with llm.map(itertools.repeat("x")) as outcomes:
        async for _ in outcomes:
            if engine.finished == 300:
                break
    assert {each.reason for each in told} == {"room", "queue"}
    assert told[0].before == 8
    assert all((each.limit > each.before) == (each.reason == "room") for each in told)
    assert {(each.lane, each.pace, each.cool_for) for each in told} == {(told[0].lane, None, 0)}


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("retry_after", [None, "30"])
async def test_after_one_429_all_wait(retry_after):
    """Pain 6: after one 429 every worker retries at once, and that prolongs the block."""
    told = {} if retry_after is None else {"retry_after": retry_after}
    started = anyio.current_time()
    refused: list[float] = []

    async def answer(number, body):
        await anyio.sleep(0.5)
        at = anyio.current_time() - started
        if 10 < at < 40:
            refused.append(at)
            return refusal(429, **told)
        return chat()

    llm, transport = model_at(answer)
    async with llm.map(itertools.repeat("x")) as outcomes:
        async for outcome in outcomes:
            assert outcome.ok
            if anyio.current_time() - started > 60:
                break
    began = [at - started for at in transport.began]
    assert sum(9.5 < at <= refused[0] for at in began) > 10, "many are in flight when it happens"
    per_second = sum(5 <= at < 10 for at in began) / 5
    in_the_block = sum(refused[0] < at < 40 for at in began)
    if retry_after is None:
        assert 3 <= in_the_block <= 0.15 * 30 * per_second
    else:
        assert in_the_block == 0
    # What waited does not leave at one moment, but with the pace that was accepted before.
    first = min(at for at in began if at >= 40)
    for second in range(10):
        assert sum(first + second <= at < first + second + 1 for at in began) <= 1.3 * per_second + 2


@pytest.mark.parametrize("anyio_backend", manual_socket_backends())
@pytest.mark.parametrize("how", ["call", "stream"])
async def test_an_endpoint_scaled_to_zero_is_waited_for(how):
    """Pain 23: an endpoint scaled to zero gives a wrong error; here it is waited for, and an event says so."""
    heard = RecordingCallbackHandler()
    async with FakeEndpoint(scale_up=150, reply="up and well") as endpoint:
        async with HuggingFaceInference(endpoint_url=endpoint.url, callbacks=[heard]) as llm:
            began = anyio.current_time()
            if how == "call":
                assert await llm.call("x") == "up and well"
            else:
                assert (await llm.stream("x").result()).text == "up and well"
            assert 150 <= anyio.current_time() - began <= 165
            # The next one waits for nothing.
            await llm.call("x")
            assert anyio.current_time() - began <= 165
        assert len(endpoint.requests) <= 1 + 20 + 1
    (told, *others) = [each for each in heard.events if type(each).__name__ == "RateLimitEvent"]
    assert (told.kind, told.status_code) == ("loading", 503)
    assert {each.kind for each in others} <= {"loading"}
    assert told.time <= heard.events[-1].time


@pytest.mark.parametrize("anyio_backend", manual_socket_backends())
async def test_an_endpoint_that_never_comes_up():
    """Pain 23: at the deadline the error says what was waited for."""
    async with FakeEndpoint(scale_up=1000) as endpoint:
        async with HuggingFaceInference(endpoint_url=endpoint.url, deadlines=Deadlines(total=90)) as llm:
            began = anyio.current_time()
            with pytest.raises((DeadlineError, ModelLoadingError)) as caught:
                await llm.call("x")
            assert anyio.current_time() - began <= 91
    error = caught.value
    assert error.attempts >= 2
    cause = error if isinstance(error, ModelLoadingError) else error.__cause__
    assert isinstance(cause, ModelLoadingError)
    assert (cause.kind, cause.status_code, cause.provider) == ("scaling", 503, "127.0.0.1")
    if isinstance(error, DeadlineError):
        assert "not finished within 90 s" in str(error)
