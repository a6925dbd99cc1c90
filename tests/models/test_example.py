"""The example that the public surface was designed by, as it stands there."""

from __future__ import annotations

import pytest

from millstream import HuggingFaceInference
from millstream.testing import FakeEndpoint


async def example() -> list[str]:
    seen: list[str] = []
    prompts = ["One, two,", "Red, green,"]
    async with HuggingFaceInference(model="HuggingFaceTB/SmolLM3-3B", temperature=0.7, max_tokens=24) as llm:
        text = await llm.call("Why is the sky blue?")  # str
        result = await llm.generate(prompts, stop=["\n"])  # LLMResult, order of prompts kept
        async for chunk in llm.stream("Tell me a story"):  # GenerationChunk
            seen.append(chunk.text)
        async with llm.map(prompts) as outcomes:  # as completed, one outcome an item, lazy input
            async for outcome in outcomes:
                seen.append(outcome.text)
        async with llm.stream_many(prompts) as events:  # the tokens of many prompts, merged as they come
            async for event in events:
                seen.append(event.outcome.text if event.outcome is not None else event.chunk.text)
    assert isinstance(text, str)
    assert len(result.generations) == 2
    return [text, *result.texts, *seen]


async def test_on_the_fake(monkeypatch: pytest.MonkeyPatch):
    async with FakeEndpoint() as endpoint:
        monkeypatch.setenv("MILLSTREAM_ENDPOINT_URL", endpoint.url)
        assert len("".join(await example())) > 100


@pytest.mark.local_model
async def test_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MILLSTREAM_ENDPOINT_URL", "local")
    assert "".join(await example())
