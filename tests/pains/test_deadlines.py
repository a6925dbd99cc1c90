"""Nothing is waited for without a bound, and the error says which bound it was."""

from __future__ import annotations

import itertools

import anyio
import pytest

from millstream import LLM, AsyncCaller, DeadlineError, Deadlines, GenerationChunk, InMemoryCache, OverloadedError
from millstream.testing import FakeEndpoint, Fault

from .support import MANUAL_CLOCK, event, impatient, model_at, refusal, stream_of


@pytest.mark.parametrize("after_events", [None, 0], ids=["before the head", "after the head"])
async def test_a_stream_without_a_first_token(model, endpoint, api, after_events):
    """Pain 9: a stream hangs for ever."""
    endpoint.fail(Fault.stall(after_events))
    llm = model(api=api, max_retries=0, deadlines=Deadlines(first_token=0.02))
    with (
        anyio.fail_after(10),
        pytest.raises(DeadlineError, match=r"no first token within 0\.02 s \(deadline 'first_token'\)") as caught,
    ):
        async for _ in llm.stream("x"):
            pass
    assert (caught.value.deadline, caught.value.seconds) == ("first_token", 0.02)
    await endpoint.wait_for(lambda: endpoint.cancelled == 1)
    assert await model(api=api).stream("x").result()


async def test_a_stream_that_falls_silent(model, endpoint):
    """Pain 9: a stream hangs for ever, after some tokens."""
    endpoint.fail(Fault.stall(3))
    stream = model(api="chat", deadlines=Deadlines(idle=0.15)).stream("x")
    with anyio.fail_after(10), pytest.raises(DeadlineError, match="no further token within 0.15 s") as caught:
        async for _ in stream:
            pass
    assert caught.value.deadline == "idle"
    assert len(caught.value.partial.split()) == 3
    assert caught.value.partial == stream.text == caught.value.partial_result.text
    await endpoint.wait_for(lambda: endpoint.cancelled == 1)


@pytest.mark.parametrize("how", ["call", "stream", "slow stream"])
async def test_a_call_has_a_total(model, endpoint, how):
    """Pain 9: no deadline holds for all attempts together."""
    endpoint.fail(Fault.stall(2 if how == "slow stream" else None, times=100))
    llm = model(api="chat", deadlines=Deadlines(total=0.03))
    with (
        anyio.fail_after(10),
        pytest.raises(DeadlineError, match=r"not finished within 0\.03 s \(deadline 'total'\)") as caught,
    ):
        await (llm.call("x") if how == "call" else llm.stream("x").result())
    assert caught.value.deadline == "total"
    await endpoint.wait_for(lambda: endpoint.in_flight == 0)


async def test_a_stream_that_is_too_late_is_tried_again(model, endpoint):
    """Pain 9: a stream hangs for ever, though another attempt would answer."""
    llm = model(api="chat", caller=impatient(), deadlines=Deadlines(first_token=0.3))
    expected = await llm.call("x")
    endpoint.fail(Fault.stall())
    assert (await llm.stream("x").result()).text == expected


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_the_usual_deadlines():
    """Pain 9: by default a stream may hang for ever; without a word about it there are 120, 60 and 600 s."""
    silence = itertools.repeat(3600.0)
    cases = [
        ([], "first_token", 120),
        ([event("a"), 59.0, event("b")], "idle", 60),
        ([event("a"), *[50.0, event("b")] * 20], "total", 600),
    ]
    for pieces, deadline, seconds in cases:

        async def answer(number, body, pieces=pieces):
            return stream_of(*pieces, endless=silence)

        llm, transport = model_at(answer, max_retries=0)
        with anyio.fail_after(10_000), pytest.raises(DeadlineError) as caught:
            await llm.stream("x").result()
        assert (caught.value.deadline, caught.value.seconds) == (deadline, seconds)


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize(
    ("deadlines", "pieces", "deadline", "seconds"),
    [
        (Deadlines(first_token=5, idle=30), [29.0, event("b")], "idle", 30),
        (Deadlines(first_token=5, idle=None), [500.0, event("b")], "total", 600),
        (Deadlines(first_token=None, idle=30), [29.0, event("b")], "idle", 30),
    ],
    ids=["a shorter one for the first", "none between", "none for the first"],
)
async def test_the_first_token_and_the_others_have_deadlines_of_their_own(deadlines, pieces, deadline, seconds):
    """Pain 9: deadlines are not the ones that were set."""

    async def answer(number, body):
        await anyio.sleep(4)
        return stream_of(event("a"), *pieces, endless=itertools.repeat(3600.0))

    llm, _ = model_at(answer, deadlines=deadlines)
    stream = llm.stream("x")
    with pytest.raises(DeadlineError) as caught:
        await stream.result()
    assert (caught.value.deadline, caught.value.seconds) == (deadline, seconds)
    assert stream.text == "ab"


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("cache", [None, InMemoryCache()], ids=["no cache", "cache"])
@pytest.mark.parametrize("how", ["call", "stream"])
async def test_the_total_of_a_caller_that_was_brought(how, cache):
    """Pain 9: a total that was set on the caller holds for streams too, to their end."""

    async def answer(number, body):
        if not body.get("stream"):
            await anyio.sleep_forever()
        return stream_of(event("a"), endless=itertools.cycle([1.0, event("b")]))

    llm, _ = model_at(answer, cache=cache, caller=AsyncCaller(deadlines=Deadlines(total=10)))
    with anyio.fail_after(60), pytest.raises(DeadlineError, match="not finished within 10 s"):
        await (llm.call("x") if how == "call" else llm.stream("x").result())


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("cache", [None, InMemoryCache()], ids=["no cache", "cache"])
async def test_what_was_tried_until_the_total_is_told(cache):
    """Pain 9: an error that says "timeout", and not what happened until then."""

    async def answer(number, body):
        if number > 0:
            await anyio.sleep_forever()
        return refusal(503)

    llm, _ = model_at(answer, cache=cache, deadlines=Deadlines(total=20))
    with pytest.raises(DeadlineError, match="not finished within 20 s") as caught:
        await llm.call("x")
    assert caught.value.attempts == 2
    assert isinstance(caught.value.__cause__, OverloadedError)


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("idle", [1, 30, None])
async def test_the_first_token_is_waited_for_as_long_as_was_said(idle):
    """Pain 9: the same for an answer that never begins."""

    async def answer(number, body):
        await anyio.sleep_forever()

    llm, _ = model_at(answer, max_retries=0, deadlines=Deadlines(first_token=5, idle=idle))
    began = anyio.current_time()
    with pytest.raises(DeadlineError, match="no first token within 5 s"):
        await llm.stream("x").result()
    assert anyio.current_time() - began == 5


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("kept_up_by", [b": still here\n\n", event(""), event()], ids=["comments", "empty", "nothing"])
async def test_signs_of_life_are_no_tokens(kept_up_by):
    """Pain 9: a stream that only sends comments, or deltas without text, hangs for ever."""

    async def answer(number, body):
        return stream_of(event("a"), endless=itertools.cycle([1.0, kept_up_by]))

    llm, transport = model_at(answer, deadlines=Deadlines(idle=30))
    with anyio.fail_after(10_000), pytest.raises(DeadlineError) as caught:
        await llm.stream("x").result()
    assert caught.value.deadline == "idle"
    assert caught.value.partial == "a"


async def test_a_slow_reader_is_not_the_servers_fault(model):
    """Pain 9: deadlines are the server's; who reads slowly finds what has come meanwhile, and no error."""
    async with FakeEndpoint(coalesce=False, reply="word " * 20) as endpoint:
        llm = model(endpoint_url=endpoint.url, api="chat", max_tokens=20, deadlines=Deadlines(idle=0.2))
        stream = llm.stream("x")
        async for _ in stream:
            if len(stream.text) < 5:
                await anyio.sleep(0.25)
        assert stream.text.split() == ["word"] * 20


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_a_model_of_ones_own_has_the_total_too():
    """Pain 9: a stream hangs for ever, in a model that knows nothing of deadlines."""

    class Hanging(LLM):
        async def _call(self, prompt, options, run):
            await anyio.sleep_forever()

        async def _stream(self, prompt, options, run):
            yield GenerationChunk("a")
            await anyio.sleep_forever()

    llm = Hanging(deadlines=Deadlines(total=10))
    for attempt in (llm.call("x"), llm.stream("x").result()):
        began = anyio.current_time()
        with anyio.fail_after(10_000), pytest.raises(DeadlineError, match="total"):
            await attempt
        assert anyio.current_time() - began == 10
