"""One prompt, piece by piece."""

from __future__ import annotations

import anyio
import pytest

from millstream import (
    DeadlineError,
    Deadlines,
    GenerationError,
    HuggingFaceInference,
    MillstreamError,
    ProtocolError,
    ReadError,
    StatusError,
    StreamInterruptedError,
    TruncatedStreamError,
    UsageError,
)
from millstream.testing import FakeEndpoint, Fault

from ..conftest import manual_backends
from ..support.transports import Answer, ScriptedTransport, chat_events


async def test_chunks_join_to_what_a_call_gives(model, endpoint, api):
    llm = model(api=api, max_tokens=8)
    pieces = [chunk.text async for chunk in llm.stream("Tell me a story")]
    assert len(pieces) > 1
    assert "".join(pieces) == await llm.call("Tell me a story")


async def test_the_result_of_a_stream_is_that_of_a_call(model, endpoint, api):
    llm = model(api=api, max_tokens=8)
    streamed = await llm.stream("Tell me a story").result()
    whole = await llm.generate(["Tell me a story"])
    assert streamed.text == whole.text
    assert streamed.usage.output_tokens == whole.usage.output_tokens == 8
    assert streamed.generations[0][0].finish_reason == whole.generations[0][0].finish_reason == "length"


async def test_usage_comes_with_the_last_chunk(model, endpoint, api):
    chunks = [chunk async for chunk in model(api=api, max_tokens=4).stream("x")]
    assert [chunk.usage for chunk in chunks if chunk.usage is not None][-1].output_tokens == 4
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]


async def test_connections_are_reused(model, endpoint, api):
    llm = model(api=api, max_tokens=3)
    for _ in range(10):
        async for _chunk in llm.stream("x"):
            pass
    assert endpoint.connections == 1


async def test_leaving_early_closes_the_connection(model):
    async with FakeEndpoint(reply="word " * 50, coalesce=False) as endpoint:
        llm = model(endpoint_url=endpoint.url, api="chat")
        async with llm.stream("x") as stream:
            async for _chunk in stream:
                break
        assert llm.caller.statistics().in_flight == 0
        assert stream.text == "word"
        with pytest.raises(UsageError, match="closed before its end"):
            await stream.result()
        assert [chunk async for chunk in stream] == []


async def test_nothing_is_sent_before_it_is_asked_for(model, endpoint):
    stream = model().stream("x")
    async with stream:
        pass
    assert endpoint.requests == []
    assert [chunk async for chunk in stream] == []


async def test_a_failure_before_the_first_chunk_is_tried_again(model, endpoint, api):
    endpoint.fail(Fault.status(503, headers={"retry-after": "0"}), Fault.disconnect(after_bytes=0))
    llm = model(api=api, max_tokens=3)
    assert (await llm.stream("x").result()).text == await llm.call("x")


async def test_an_error_event_first_is_that_error_and_tried_again(model, endpoint, api):
    endpoint.fail(Fault.error_event(after_events=0))
    llm = model(api=api, max_tokens=3)
    assert (await llm.stream("x").result()).text


async def _fails(llm, expected):
    stream = llm.stream("x")
    pieces = []
    with pytest.raises(expected) as caught:
        async for chunk in stream:
            pieces.append(chunk.text)
    assert caught.value.partial == "".join(pieces) == stream.text
    assert caught.value.partial_result.text == stream.text
    assert caught.value.attempts == 1
    with pytest.raises(expected):
        await stream.result()
    return caught.value


async def test_an_error_event_midway_is_that_error_with_the_partial_text(model, endpoint, api):
    endpoint.fail(Fault.error_event(after_events=2))
    error = await _fails(model(api=api), StatusError)
    assert isinstance(error, GenerationError)
    assert error.partial
    assert error.provider == "127.0.0.1"


async def test_a_stream_without_its_end_is_an_error(model, endpoint, api):
    endpoint.fail(Fault.truncate(after_events=2))
    error = await _fails(model(api=api), TruncatedStreamError)
    assert error.partial


async def test_a_broken_connection_midway(model, endpoint, api):
    endpoint.fail(Fault.disconnect(after_bytes=700))
    error = await _fails(model(api=api, max_tokens=100), StreamInterruptedError)
    assert isinstance(error.__cause__, ReadError)


async def test_garbage_midway(model, endpoint, api):
    endpoint.fail(Fault.garbage(after_events=2))
    await _fails(model(api=api), ProtocolError)


async def test_a_server_that_does_not_stream_answers_whole(model):
    transport = ScriptedTransport(Answer.json({"choices": [{"index": 0, "message": {"content": "all at once"},
                                                            "finish_reason": "stop"}]}))  # fmt: skip
    llm = HuggingFaceInference(endpoint_url="http://llm.invalid", api="chat", transport=transport)
    assert [chunk.text async for chunk in llm.stream("x")] == ["all at once"]


EVENTS = b"".join(chat_events("all ", "at once", end=True))


@pytest.mark.parametrize("kind", ["text/event-stream; charset=utf-8", "application/json", "text/plain", ""])
@pytest.mark.parametrize("start", [b"", b": hello\r\n\r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_events_are_read_whatever_the_server_calls_them_and_whoever_asked(kind, start, streamed):
    answer = Answer(200, {"content-type": kind} if kind else {}, [start + EVENTS], 0.0, stalls=False)
    llm = HuggingFaceInference(
        endpoint_url="http://llm.invalid", api="chat", transport=ScriptedTransport(answer), max_retries=0
    )
    assert (await llm.stream("x").result()).text == "all at once" if streamed else await llm.call("x") == "all at once"


async def test_events_without_their_end_are_no_whole_answer():
    answer = Answer(200, {"content-type": "application/json"}, chat_events("all "), 0.0, stalls=False)
    llm = HuggingFaceInference(
        endpoint_url="http://llm.invalid", api="chat", transport=ScriptedTransport(answer), max_retries=0
    )
    with pytest.raises(TruncatedStreamError):
        await llm.call("x")


async def test_two_tasks_can_not_read_one_stream(model):
    async with FakeEndpoint(faults=[Fault.stall(after_events=1)]) as endpoint:
        llm = model(endpoint_url=endpoint.url, api="chat")
        async with llm.stream("x") as stream, anyio.create_task_group() as tasks:
            await anext(stream)

            async def read() -> None:
                with pytest.raises(UsageError, match="two tasks"):
                    while True:
                        await anext(stream)
                tasks.cancel_scope.cancel()

            tasks.start_soon(read)
            async for _chunk in stream:
                pass


@pytest.mark.parametrize("anyio_backend", manual_backends())
@pytest.mark.parametrize(
    ("script", "deadline", "text"),
    [
        ([], "first_token", ""),
        ([b": ping\n\n"] * 30, "first_token", ""),
        ([*chat_events("one", " two"), *[b": ping\n\n"] * 30], "idle", "one two"),
        (chat_events(*["tick"] * 200), "total", "tick" * 19),
    ],
    ids=["silence", "only comments", "stops midway", "never ends"],
)
async def test_deadlines(script, deadline, text):
    """Comments are no progress; each deadline says its name and length; what came before it is kept."""
    seconds = {"first_token": 30.0, "idle": 20.0, "total": 97.0}
    transport = ScriptedTransport(*[Answer.stream(script, every=5.0)] * 4)
    llm = HuggingFaceInference(
        endpoint_url="http://llm.invalid",
        api="chat",
        transport=transport,
        max_retries=0,
        deadlines=Deadlines(**seconds),
    )
    stream = llm.stream("x")
    with pytest.raises(DeadlineError, match=deadline) as caught:
        async for _chunk in stream:
            pass
    assert caught.value.deadline == deadline
    assert caught.value.seconds == seconds[deadline]
    assert stream.text == text
    assert llm.caller.statistics().in_flight == 0
    assert transport.open_bodies == 0


async def test_an_uncaught_error_of_the_block_is_raised_as_it_is(model, endpoint):
    with pytest.raises(ZeroDivisionError):
        async with model(max_tokens=5).stream("x") as stream:
            async for _chunk in stream:
                raise ZeroDivisionError
    await endpoint.wait_for(lambda: endpoint.in_flight == 0)


async def test_ours_is_the_root(model, endpoint):
    endpoint.fail(Fault.status(401))
    with pytest.raises(MillstreamError):
        await model().stream("x").result()
