"""A stream is complete only with its end, and an error is an error wherever it stands."""

from __future__ import annotations

import json

import pytest

from millstream import (
    BadRequestError,
    GenerationError,
    MillstreamError,
    OverloadedError,
    PaymentRequiredError,
    ProtocolError,
    RateLimitError,
    ServerError,
    StatusError,
    StreamInterruptedError,
    TruncatedStreamError,
)
from millstream.testing import Fault
from tests.support.servers import CLOSE, RESET, answer, chunked, serve

from .support import impatient


async def test_a_stream_without_its_end_is_not_complete(model, endpoint, api):
    """Pain 25: a stream that ends without a finish marker is taken as complete."""
    endpoint.fail(Fault.truncate(3))
    endpoint.headers = {"x-request-id": "req-7"}
    stream = model(api=api).stream("x")
    with pytest.raises(TruncatedStreamError) as caught:
        async for _ in stream:
            pass
    error = caught.value
    assert len(error.partial.split()) == 3
    assert error.partial == stream.text == error.partial_result.text
    assert error.partial_result.generations[0][0].finish_reason is None
    assert (error.request_id, error.provider, error.attempts) == ("req-7", "127.0.0.1", 1)
    with pytest.raises(TruncatedStreamError):
        await stream.result()
    assert len(endpoint.requests) == 1


async def test_one_that_ends_before_it_begins_is_tried_again(model, endpoint, api):
    """Pain 25: an empty stream is taken as an empty answer."""
    llm = model(api=api, caller=impatient())
    expected = await llm.call("x")
    endpoint.fail(Fault.truncate(0, times=3))
    assert (await llm.stream("x").result()).text == expected
    endpoint.fail(Fault.truncate(0, times=100))
    with pytest.raises(TruncatedStreamError) as caught:
        await llm.stream("x").result()
    assert caught.value.attempts == 7


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_breaks_is_no_end(model, endpoint, api, reset):
    """Pain 25: a stream that is cut off is taken as complete; or its text so far is lost."""
    llm = model(api=api, max_tokens=100)
    whole = (await llm.stream("x").result()).text
    endpoint.headers = {"x-request-id": "req-7"}
    endpoint.fail(Fault.disconnect(after_bytes=2500, reset=reset))
    with pytest.raises(StreamInterruptedError) as caught:
        await llm.stream("x").result()
    assert caught.value.partial
    assert whole.startswith(caught.value.partial)
    assert caught.value.attempts == 1
    assert (caught.value.request_id, caught.value.provider) == ("req-7", "127.0.0.1")


@pytest.mark.parametrize("how", [CLOSE, RESET])
async def test_no_cut_makes_a_success(model, api, how):
    """Pain 25: wherever an answer is cut, no part of it is ever given as the whole."""
    streamed = STREAMS[api]
    complete = 0
    marker = streamed.index(b"stop")
    for cut in range(0, len(streamed), 13):
        async with serve([streamed[:cut], how]) as server:
            llm = model(endpoint_url=server.url, api=api, max_retries=0)
            try:
                result = await llm.stream("x").result()
            except MillstreamError as error:
                assert getattr(error, "partial", "") in ("", None, "one", "one two")
            else:
                complete += 1
                assert result.text == "one two"
                assert cut > marker, "taken as complete before the end was seen"
            await llm.aclose()
    assert complete < 20


def sse(*events: dict) -> bytes:
    return chunked(
        *[b"data: %b\n\n" % json.dumps(e).encode() for e in events], headers=[b"content-type: text/event-stream"]
    )


def generated(text: str, whole: str | None = None) -> dict:
    details = None if whole is None else {"finish_reason": "stop_sequence", "generated_tokens": 2, "seed": None}
    return {
        "token": {"id": 1, "text": text, "logprob": 0, "special": False},
        "generated_text": whole,
        "details": details,
    }


STREAMS = {
    "chat": sse(
        {"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": " two"}, "finish_reason": "stop"}]},
    ),
    "completions": sse(
        {"choices": [{"index": 0, "text": "one", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": " two", "finish_reason": "stop"}]},
    ),
    "text-generation": sse(generated("one"), generated(" two", "one two")),
}

IN_A_200 = {
    "no status": ({"error": "something broke"}, ServerError, 500, True),
    "its own status": ({"error": {"message": "broken", "code": 502}}, ServerError, 502, True),
    "rate limit": ({"error": {"message": "slow down", "type": "rate_limit_exceeded"}}, RateLimitError, 429, True),
    "overload": ({"error": "Model is overloaded", "error_type": "overloaded"}, OverloadedError, 429, True),
    "validation": ({"error": "Input validation error: x", "error_type": "validation"}, BadRequestError, 422, False),
    "credit": ({"error": {"message": "no credits left", "code": 402}}, PaymentRequiredError, 402, False),
}


async def test_an_error_in_a_200_is_that_error(model, endpoint, api):
    """Pain 26: 200 OK, but the body holds an error, which is taken as an answer or as garbage."""
    llm = model(api=api, caller=impatient())
    expected = await llm.call("x")

    async def stream(prompt: str) -> str:
        return (await llm.stream(prompt).result()).text

    for name, (body, kind, status, passes) in IN_A_200.items():
        for ask in (llm.call, stream):
            endpoint.fail(Fault.error_in_200(body=body))
            if passes:
                assert await ask("x") == expected, name
            else:
                with pytest.raises(kind) as caught:
                    await ask("x")
                assert (caught.value.status_code, caught.value.attempts) == (status, 1)
                assert caught.value.provider == "127.0.0.1"
    assert len(endpoint.requests) == 1 + 2 * (2 * 4 + 2)


async def test_an_error_in_a_stream_is_that_error(model, api):
    """Pain 26: 200 OK, but an event of the stream holds an error: it is left out, or taken as text."""
    whole = STREAMS[api]
    begun = whole[: whole.index(b"\n\n") + 4]
    for body, kind, status, _ in IN_A_200.values():
        event = b"data: %b\n\n" % json.dumps(body).encode()
        async with serve([begun + b"%x\r\n%b\r\n" % (len(event), event) + b"0\r\n\r\n"]) as server:
            llm = model(endpoint_url=server.url, api=api)
            with pytest.raises(kind) as caught:
                await llm.stream("x").result()
            assert (caught.value.status_code, caught.value.provider) == (status, "127.0.0.1")
            assert (caught.value.partial, caught.value.attempts) == ("one", 1)
            assert len(server.requests) == 1
            await llm.aclose()


@pytest.mark.parametrize("server", ["tgi", "vllm", "llamacpp"])
async def test_a_generation_that_fails_in_the_middle(model, endpoint, api, server):
    """Pain 26: the backend runs out of memory in the middle of a stream, and the answer looks complete."""
    endpoint.server = server
    endpoint.apis = ("chat", "completions", "text-generation")
    endpoint.fail(Fault.error_event(2))
    with pytest.raises(StatusError, match="out of memory") as caught:
        await model(api=api).stream("x").result()
    assert isinstance(caught.value, GenerationError if server == "tgi" or api == "text-generation" else StatusError)
    assert len(caught.value.partial.split()) == 2


NO_ANSWERS = [b"", b"null", b"[]", b"{}", b'{"choices": []}', b"<html>busy</html>", b'"text"', b"\xff\xfe"]


async def test_a_200_without_an_answer_is_none(model, api):
    """Pain 26: 200 OK, but what is in it is no answer: taken as an empty one."""
    for body in NO_ANSWERS:
        async with serve([answer(body, b"content-type: application/json")]) as server:
            llm = model(endpoint_url=server.url, api=api, caller=impatient())
            with pytest.raises((ProtocolError, StatusError)) as caught:
                await llm.call("x")
            assert (caught.value.status_code, caught.value.provider) == (200, "127.0.0.1"), body
            assert len(server.requests) == caught.value.attempts == 2
            await llm.aclose()
