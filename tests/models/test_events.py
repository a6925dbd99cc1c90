"""Runs and what is told of them: each starts once and ends once."""

from __future__ import annotations

import pytest

from millstream import (
    BaseCallbackHandler,
    HuggingFaceInference,
    LLMEndEvent,
    LLMErrorEvent,
    LLMNewTokenEvent,
    LLMStartEvent,
    RateLimitEvent,
    RetryEvent,
)
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint, Fault

from ..conftest import manual_backends
from ..support.transports import Answer, ScriptedTransport, chat_events


@pytest.fixture
def heard() -> RecordingCallbackHandler:
    return RecordingCallbackHandler()


async def test_a_call(model, endpoint, heard):
    llm = model(callbacks=[heard], max_tokens=3, tags=["a"], metadata={"user": 5})
    text = await llm.call("hello")
    assert heard.kinds() == ["llm_start", "attempt", "llm_end"]
    start, _, end = heard.events
    assert isinstance(start, LLMStartEvent)
    assert (start.prompt, start.tags, start.metadata) == ("hello", ("a",), {"user": 5})
    assert start.llm == llm.serialize()
    assert isinstance(end, LLMEndEvent)
    assert end.result.text == text
    assert end.run_id == start.run_id


async def test_each_prompt_is_a_run(model, endpoint, heard):
    llm = model(max_tokens=3)
    await llm.generate(["a", "b", "c"], callbacks=[heard])
    async with llm.map(["d", 5, "e"], callbacks=[heard]) as outcomes:
        async for _outcome in outcomes:
            pass
    heard.assert_paired()
    assert sorted(event.prompt for event in heard.events if isinstance(event, LLMStartEvent)) == list("abcde")


async def test_tokens_of_a_stream(model, endpoint, heard, api):
    text = "".join([chunk.text async for chunk in model(api=api, max_tokens=4).stream("x", callbacks=[heard])])
    tokens = [event.token for event in heard.events if isinstance(event, LLMNewTokenEvent)]
    assert "".join(tokens) == text
    heard.assert_paired()
    assert heard.kinds()[-1] == "llm_end"


async def test_a_stream_that_fails(model, endpoint, heard):
    endpoint.fail(Fault.error_event(after_events=2))
    with pytest.raises(Exception, match="generation"):
        await model().stream("x", callbacks=[heard]).result()
    heard.assert_paired()
    end = heard.events[-1]
    assert isinstance(end, LLMErrorEvent)
    assert end.kind == "GenerationError"


async def test_a_stream_that_is_left(model, heard):
    async with FakeEndpoint(faults=[Fault.stall(after_events=1)]) as endpoint:
        async with model(endpoint_url=endpoint.url).stream("x", callbacks=[heard]) as stream:
            await anext(stream)
    heard.assert_paired()
    assert heard.events[-1].kind == "cancelled"


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_retries_and_rate_limits(heard):
    full = Answer.json({"error": "Rate limit reached"}, 429, retry_after="7")
    transport = ScriptedTransport(full, ConnectionError("x") and Answer.json({"error": "oops"}, 500), Answer.chat("hi"))
    llm = HuggingFaceInference(endpoint_url="http://llm.invalid", api="chat", transport=transport, callbacks=[heard])
    assert await llm.call("x") == "hi"
    assert heard.kinds() == ["llm_start", "attempt", "rate_limit", "retry", "attempt", "retry", "attempt", "llm_end"]
    limit = next(event for event in heard.events if isinstance(event, RateLimitEvent))
    assert (limit.status_code, limit.retry_after) == (429, 7.0)
    retries = [event for event in heard.events if isinstance(event, RetryEvent)]
    assert [event.status_code for event in retries] == [429, 500]
    assert 7.0 <= retries[0].delay <= 7.5
    assert transport.times[1] - transport.times[0] >= 7.0


async def test_a_handler_that_raises_breaks_nothing(model, endpoint, caplog):
    class Broken(BaseCallbackHandler):
        def on_llm_start(self, event):
            raise RuntimeError("start")

        async def on_llm_end(self, event):
            raise RuntimeError("end")

    heard = RecordingCallbackHandler()
    assert await model(callbacks=[Broken(), heard], max_tokens=3).call("x")
    heard.assert_paired()
    assert len([record for record in caplog.records if record.name.startswith("millstream")]) == 2


async def test_verbose_prints_prompt_and_answer(model, endpoint, capsys):
    text = await model(verbose=True, max_tokens=3).call("a visible prompt")
    out = capsys.readouterr().out
    assert "a visible prompt" in out
    assert text in out


async def test_events_of_a_whole_answer_to_a_stream():
    heard = RecordingCallbackHandler()
    transport = ScriptedTransport(Answer.stream(chat_events("a", "b", end=True), stalls=False))
    llm = HuggingFaceInference(endpoint_url="http://llm.invalid", api="chat", transport=transport)
    await llm.stream("x", callbacks=[heard]).result()
    assert heard.kinds() == ["llm_start", "attempt", "llm_new_token", "llm_new_token", "llm_new_token", "llm_end"]
