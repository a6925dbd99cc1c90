"""The model without an endpoint."""

from __future__ import annotations

import pytest

from millstream.testing import FakeLLM, Latency
from tests.conftest import manual_backends


async def test_replies():
    assert await FakeLLM("Hello world").call("Hi") == "Hello world"
    assert await FakeLLM(str.upper).call("Hi") == "HI"
    llm = FakeLLM(["one", "two"])
    assert [await llm.call("x") for _ in range(3)] == ["one", "two", "one"]
    assert llm.prompts == ["x"] * 3
    assert await FakeLLM().call("x") == await FakeLLM().call("x") != await FakeLLM().call("y")


async def test_limits_and_usage():
    result = await FakeLLM("one two three").generate(["a b"], max_tokens=2)
    generation = result.generations[0][0]
    assert (generation.text, generation.finish_reason) == ("one two", "length")
    assert (result.usage.input_tokens, result.usage.output_tokens) == (2, 2)
    assert await FakeLLM("one two three").call("x", stop=["two"]) == "one "


async def test_stream():
    stream = FakeLLM("one two three").stream("x", stop=["three"])
    async with stream:
        pieces = [chunk.text async for chunk in stream if chunk.text]
    assert pieces == ["one", " two", " "]


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_errors_and_time():
    llm = FakeLLM("Yes", errors=[ConnectionError("no"), None, None, ValueError("mine")], latency=Latency(1.0, 0.5))
    assert await llm.call("x") == "Yes"
    assert await llm.call("x") == "Yes"
    with pytest.raises(ValueError, match="mine"):
        await llm.call("x")
    assert await llm.call("x") == "Yes"
    assert len(llm.prompts) == 5
