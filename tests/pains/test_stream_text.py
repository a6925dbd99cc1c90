"""What comes through a stream is the text, the whole text, and nothing but the text; with what it cost."""

from __future__ import annotations

import json

import pytest

from millstream._transport._seam import Response
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint
from tests.support.servers import chunked, serve

from .support import MANUAL_CLOCK, MemoryStream, model_at

ODD = {
    "U+2028": "\u2028", "U+2029": "\u2029", "U+0085": "\x85", "VT": "\x0b", "FF": "\x0c", "FS": "\x1c", "GS": "\x1d",
    "RS": "\x1e", "NUL": "\0", "CRLF": "\r\n", "CR": "\r", "NBSP": "\xa0", "BOM": "\ufeff", "emoji": "\U0001f600",
    "data:": "\n\ndata: [DONE]\n\n",
}  # fmt: skip


async def test_any_character_can_be_in_a_token(model, api):
    """Pain 15: U+2028 or U+0085 inside a token kills the stream."""
    async with FakeEndpoint() as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, max_tokens=None)
        for name, odd in ODD.items():
            endpoint.reply = text = f"one{odd}two th{odd}ree {odd}four"
            assert (await llm.stream("x").result()).text == text == await llm.call("x"), name


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_events_are_bytes_wherever_they_are_cut():
    """Pain 15: a stream is decoded before it is parsed; here it comes byte by byte, raw characters in it."""
    text = "".join(ODD.values())
    events = [{"choices": [{"index": 0, "delta": {"content": c}, "finish_reason": None}]} for c in text]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    raw = b"".join(b"data: %b\n\n" % json.dumps(e, ensure_ascii=False).encode() for e in events) + b"data: [DONE]\n\n"

    async def answer(number, body):
        step = number + 1
        pieces = [raw[i : i + step] for i in range(0, len(raw), step)]
        return Response(200, ((b"content-type", b"text/event-stream"),), stream=MemoryStream(pieces))

    llm, transport = model_at(answer)
    for _ in range(5):
        assert (await llm.stream("x").result()).text == text


@pytest.mark.parametrize("server", ["tgi", "vllm", "llamacpp"])
async def test_streams_tell_their_tokens(model, api, server):
    """Pain 18: streamed calls report zero tokens."""
    if api == "text-generation" and server != "tgi":
        pytest.skip("TGI's own dialect")
    async with FakeEndpoint(server=server, reply="one two three") as endpoint:
        heard = RecordingCallbackHandler()
        llm = model(endpoint_url=endpoint.url, api=api, callbacks=[heard], max_tokens=None)
        whole = await llm.generate(["count to three"])
        stream = llm.stream("count to three")
        told = [chunk.usage async for chunk in stream if chunk.usage is not None]
        result = await stream.result()
    assert result.usage == told[-1]
    assert result.usage.output_tokens == whole.usage.output_tokens == 4  # the end is one
    assert result.usage.input_tokens == whole.usage.input_tokens == 3
    assert result.llm_output["tokenUsage"]["completionTokens"] == 4
    assert heard.events[-1].result.usage == result.usage


async def test_tokens_of_many_streams(model, api):
    """Pain 18: a batch of streams reports zero tokens; each outcome has its own."""
    async with FakeEndpoint(reply=lambda prompt: " ".join(["word"] * int(prompt))) as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, max_tokens=None)
        async with llm.stream_many(str(number) for number in range(1, 9)) as events:
            outcomes = [event.outcome async for event in events if event.outcome is not None]
    for outcome in outcomes:
        assert outcome.result.usage.output_tokens == int(outcome.prompt) + 1


async def test_the_end_token_is_no_text(model, api):
    """Pain 21: `</s>` leaks into streamed text."""
    async with FakeEndpoint(reply="one two three") as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, max_tokens=None)
        stream = llm.stream("x")
        pieces = [chunk.text async for chunk in stream]
        assert "".join(pieces) == stream.text == "one two three"
        assert (await stream.result()).generations[0][0].finish_reason == "stop"
        assert await llm.call("x") == "one two three"


async def test_the_end_token_is_told_on_request(model):
    """Pain 21: special tokens are dropped from the text, and are told with the tokens for those who want to know."""
    async with FakeEndpoint(reply="one two three") as endpoint:
        llm = model(endpoint_url=endpoint.url, api="text-generation", max_tokens=None, logprobs=True)
        for result in (await llm.stream("x").result(), await llm.generate(["x"])):
            (generation,) = result.generations[0]
            assert generation.text == "one two three"
            tokens = [(token.token, token.special) for token in generation.logprobs]
            assert tokens == [("one", False), (" two", False), (" three", False), ("</s>", True)]


SPECIAL = {
    "at the end": (["one", " two", "</s>"], "one two"),
    "in the middle": (["one", "<|im_end|>", " two"], "one two"),
    "alone": (["<|endoftext|>"], ""),
}


@pytest.mark.parametrize("finish", ["eos_token", "length"])
@pytest.mark.parametrize("logprobs", [False, True])
async def test_special_tokens_of_a_raw_server(model, finish, logprobs):
    """Pain 21: `</s>` leaks into streamed text, wherever it stands and however the stream ended."""
    for tokens, text in SPECIAL.values():
        events = []
        for index, token in enumerate(tokens, start=1):
            told = {"id": index, "text": token, "logprob": -0.1, "special": token.startswith("<")}
            events.append({"index": index, "token": told, "generated_text": None, "details": None})
        details = {"finish_reason": finish, "generated_tokens": len(tokens), "seed": None, "input_length": 1}
        events[-1] |= {"generated_text": text, "details": details}
        body = [b"data:%b\n\n" % json.dumps(event).encode() for event in events]
        async with serve([chunked(*body, headers=[b"content-type: text/event-stream"])]) as server:
            llm = model(endpoint_url=server.url, api="text-generation", logprobs=logprobs)
            assert (await llm.stream("x").result()).text == text
            await llm.aclose()
