"""A cache under a model: what is kept, for whom, and that identical prompts share one request."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from millstream import BaseCache, CacheHitEvent, Deadlines, GenerationError, HuggingFaceInference, InMemoryCache
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint, Fault

from ..conftest import manual_backends
from ..support.transports import Answer, ScriptedTransport


async def test_an_answer_is_asked_for_once(model, endpoint, api):
    llm = model(api=api, cache=InMemoryCache(), max_tokens=3)
    heard = RecordingCallbackHandler()
    first = await llm.generate(["x"])
    assert await llm.generate(["x"], callbacks=[heard]) == first
    assert await llm.stream("x", callbacks=[heard]).result() == first
    assert len(endpoint.requests) == 1
    assert sum(isinstance(event, CacheHitEvent) for event in heard.events) == 2
    heard.assert_paired()


async def test_a_stream_fills_the_cache(model, endpoint):
    llm = model(cache=InMemoryCache(), max_tokens=3)
    text = (await llm.stream("x").result()).text
    assert await llm.call("x") == text
    assert len(endpoint.requests) == 1


async def test_identical_prompts_in_flight_share_one_request(model):
    async with FakeEndpoint(reply="one", faults=[Fault.slow(0.01)]) as endpoint:
        heard = RecordingCallbackHandler()
        llm = model(endpoint_url=endpoint.url, cache=InMemoryCache(), callbacks=[heard], max_concurrency=4)
        assert (await llm.generate(["same"] * 8)).texts == ["one"] * 8
        assert len(endpoint.requests) == 1
        heard.assert_paired()


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.5}, {"max_tokens": 4}, {"seed": 1}, {"stop_sequences": ["x"]}, {"top_p": 0.5},
        {"model": "another"}, {"api": "completions"}, {"extra_body": {"a": 1}}, {"tool_choice": "none"},
        {"api_key": "hf_somebody_else"},
    ],
    ids=repr,
)  # fmt: skip
async def test_nothing_that_can_change_the_text_shares_an_answer(model, endpoint, other):
    cache = InMemoryCache()
    base = {"cache": cache, "api": "chat", "max_tokens": 3, "model": "m"}
    await model(**base).call("x")
    await model(**{**base, **other}).call("x")
    assert len(endpoint.requests) == 2


async def test_failures_are_not_kept(model, endpoint):
    llm = model(cache=InMemoryCache(), max_retries=0, max_tokens=3)
    endpoint.fail(Fault.status(424), Fault.truncate(after_events=1), Fault.error_event(after_events=1))
    with pytest.raises(GenerationError):
        await llm.call("x")
    for _ in range(2):
        with pytest.raises(Exception):
            await llm.stream("x").result()
    assert await llm.call("x")
    assert len(endpoint.requests) == 4


async def test_a_broken_cache_fails_no_call(model, endpoint, caplog):
    class Broken(BaseCache):
        async def lookup(self, key):
            raise OSError("no disk")

        async def update(self, key, result):
            raise OSError("no disk")

    llm = model(cache=Broken(), max_tokens=3)
    assert await llm.call("x")
    assert await llm.call("x")
    assert "no disk" in caplog.text or "Broken" in caplog.text


async def test_true_is_the_shared_one(model, endpoint):
    InMemoryCache.global_().clear()
    await model(cache=True, max_tokens=3).call("x")
    await model(cache=True, max_tokens=3).call("x")
    InMemoryCache.global_().clear()
    assert len(endpoint.requests) == 1


class City(msgspec.Struct):
    name: str


async def test_what_is_parsed_is_parsed_from_the_cache_too(model):
    async with FakeEndpoint(server="vllm", reply='{"name": "Paris"}') as endpoint:
        llm = model(endpoint_url=endpoint.url, api="chat", response_format=City, cache=InMemoryCache())
        for _ in range(2):
            result = await llm.generate(["Where?"])
            assert result.generations[0][0].parsed == City("Paris")
        assert (await llm.stream("Where?").result()).generations[0][0].parsed == City("Paris")
        assert len(endpoint.requests) == 1


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_each_of_those_that_share_has_its_own_deadline():
    """The first one's deadline ends the first one only: the next takes over."""
    transport = ScriptedTransport(Answer.chat("late", after=30))
    llm = HuggingFaceInference(
        endpoint_url="http://llm.invalid", api="chat", transport=transport, cache=InMemoryCache()
    )
    answers = []

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await llm.call("x", deadlines=Deadlines(total=10))

    async def patient() -> None:
        await anyio.sleep(1)
        answers.append(await llm.call("x", deadlines=Deadlines(total=10_000)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(impatient)
        tasks.start_soon(patient)
    assert answers == ["late"]
    assert llm.caller.statistics().in_flight == 0
