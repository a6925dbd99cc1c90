"""A cached answer is that of this very question, it is complete, and it is paid for once."""

from __future__ import annotations

import anyio
import pytest

from millstream import (
    LLM,
    CallOptions,
    ChatMessage,
    Generation,
    InMemoryCache,
    LLMResult,
    MillstreamError,
    ServerError,
)
from millstream.testing import FakeEndpoint, Fault

from .support import MANUAL_CLOCK, impatient, model_at, refusal

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

# Everything that can change the text has a value here; see the test that counts.
OPTIONS = {
    "stop": ["zzz"], "temperature": 0.5, "max_tokens": 7, "top_p": 0.5, "top_k": 5, "frequency_penalty": 0.5,
    "presence_penalty": 0.5, "repetition_penalty": 1.1, "seed": 1, "n": 2, "logprobs": True,
    "response_format": {"type": "object"}, "tools": TOOLS, "tool_choice": "auto", "extra_body": {"min_p": 0.1},
}  # fmt: skip
MODELS = {
    "model": "org/other", "api": "completions", "stop_sequences": ["zzz"], "bill_to": "acme", "provider": "other",
    "api_key": "another-key",
}  # fmt: skip


def test_every_option_is_here():
    """Pain 8: the cache's key forgets a parameter; a new one must be added to these tests."""
    assert {"deadlines", *OPTIONS} == set(CallOptions.__struct_fields__)


async def test_each_option_has_answers_of_its_own(model):
    """Pain 8: the cache answers with another temperature's text."""
    async with FakeEndpoint(server="vllm") as endpoint:
        llm = model(endpoint_url=endpoint.url, api="chat", cache=InMemoryCache())
        for again in (False, True):
            await llm.call("x")
            for name, value in OPTIONS.items():
                before = len(endpoint.requests)
                if name == "stop":
                    await llm.call("x", value)
                else:
                    await llm.call("x", **({"tools": TOOLS} if name == "tool_choice" else {}), **{name: value})
                assert len(endpoint.requests) - before == (not again), name


async def test_each_model_has_answers_of_its_own(model, endpoint):
    """Pain 8: the cache answers with another model's text."""
    given = {"api": "chat", "model": "org/one", "api_key": "a-key", "cache": InMemoryCache()}
    text = await model(**given).call("x")
    for name, value in MODELS.items():
        before = len(endpoint.requests)
        assert await model(**given).call("x") == text
        assert len(endpoint.requests) == before
        await model(**{**given, name: value}).call("x")
        assert len(endpoint.requests) == before + 1, name


async def test_each_endpoint_has_answers_of_its_own(model):
    """Pain 8: the cache answers with another server's text."""
    cache = InMemoryCache()
    async with FakeEndpoint(reply="one") as first, FakeEndpoint(reply="two") as second:
        for _ in range(2):
            assert await model(endpoint_url=first.url, cache=cache).call("x") == "one"
            assert await model(endpoint_url=second.url, cache=cache).call("x") == "two"
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_prompts_that_look_alike(model, endpoint):
    """Pain 8: the cache answers another prompt: a chat whose text is the same, or text that is nearly the same."""
    llm = model(api="chat", cache=InMemoryCache())
    user, system = ChatMessage.user, ChatMessage.system
    prompts = [
        "a", "a ", " a", "A", "a\n", "\u00e4", "a\u0308", [user("a"), user("b")], [user("a\nb")], [system("a"), user("b")],
        [user("b"), system("a")], "Human: a\nHuman: b", "user: a", [ChatMessage("assistant", "a"), user("b")],
    ]  # fmt: skip
    for _ in range(2):
        await llm.generate(prompts)
    assert len(endpoint.requests) == len(prompts)


class Temperamental(LLM):
    """A model of one's own, told apart by what it says identifies it."""

    def __init__(self, mood, **params):
        super().__init__(**params)
        self.mood = mood

    @property
    def _identifying_params(self):
        return {"mood": self.mood}

    async def _call(self, prompt, options, run):
        return f"{prompt} {self.mood} {options.temperature}"


async def test_models_of_ones_own():
    """Pain 8: the key is type and class alone, so all models of one class share their answers."""
    cache = InMemoryCache()
    for _ in range(2):
        assert await Temperamental("good", cache=cache).call("x") == "x good None"
        assert await Temperamental("bad", cache=cache).call("x") == "x bad None"
        assert await Temperamental("bad", cache=cache).call("x", temperature=0.5) == "x bad 0.5"


async def test_identical_prompts_in_flight_are_one_request(model, endpoint, api):
    """Pain 28: identical prompts in flight are paid for several times."""
    llm = model(api=api, cache=InMemoryCache())
    result = await llm.generate(["same"] * 20)
    assert len(set(result.texts)) == 1
    async with llm.map(["other"] * 20) as outcomes:
        assert len({outcome.text async for outcome in outcomes}) == 1
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_who_shares_a_request_shares_its_error_too():
    """Pain 28: twenty callers of one prompt that fails pay for it twenty times."""

    async def fail(number, body):
        await anyio.sleep(1)
        return refusal(500)

    llm, transport = model_at(fail, cache=InMemoryCache(), max_retries=1, max_concurrency=20)
    async with llm.map(["same"] * 20) as outcomes:
        errors = [outcome.error async for outcome in outcomes]
    assert all(isinstance(error, ServerError) and error.attempts == 2 for error in errors)
    assert len({id(error) for error in errors}) == 20
    assert len(transport.began) == 2


async def test_one_that_leaves_does_not_take_the_others_along(model, endpoint):
    """Pain 28: the one who asked first leaves, and the others get nothing, or each pays again."""
    llm = model(api="chat", cache=InMemoryCache())
    endpoint.slots = 0
    answers: list[str] = []

    async def ask() -> None:
        answers.append(await llm.call("same"))

    async with anyio.create_task_group() as others:
        async with anyio.create_task_group() as first:
            first.start_soon(ask)
            await endpoint.wait_for(lambda: endpoint.queued == 1)
            for _ in range(5):
                others.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        await endpoint.wait_for(lambda: endpoint.cancelled == 1)
        endpoint.resize(None)
    assert len(set(answers)) == 1
    assert len(answers) == 5
    assert (len(endpoint.requests), endpoint.served, endpoint.cancelled) == (2, 1, 1)


FAILURES = {
    "status": Fault.status(500),
    "error in a 200": Fault.error_in_200(),
    "half an answer": Fault.truncate(1),
    "garbage": Fault.garbage(1),
    "error in the middle": Fault.error_event(1),
    "connection cut": Fault.disconnect(after_bytes=300),
    "refused": Fault.status(422),
    "no credit": Fault.status(402),
}


@pytest.mark.parametrize("how", ["call", "stream"])
async def test_a_failure_is_not_kept(model, endpoint, api, how):
    """Pain 30: failures are cached."""
    llm = model(api=api, cache=InMemoryCache(), caller=impatient(max_retries=0))

    async def ask(prompt: str) -> str:
        return await llm.call(prompt) if how == "call" else (await llm.stream(prompt).result()).text

    for name, fault in FAILURES.items():
        endpoint.requests.clear()
        endpoint.fail(fault)
        with pytest.raises(MillstreamError):
            await ask(name)
        text = await ask(name)
        assert len(endpoint.requests) == 2, name
        assert await ask(name) == text
        assert len(endpoint.requests) == 2, name


async def test_a_part_is_not_kept(model, endpoint, api):
    """Pain 30: the beginning of a stream that was left is cached as if it were the answer."""
    llm = model(api=api, cache=InMemoryCache())
    async with llm.stream("x") as stream:
        await anext(stream)
    whole = await llm.call("x")
    assert len(whole) > len(stream.text)
    assert len(endpoint.requests) == 2
    assert (await llm.stream("x").result()).text == whole
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("finish", [None, "error", "content_filter", "other", "stop", "length"])
async def test_only_complete_results_are_kept(finish):
    """Pain 30: an answer whose end was not seen, or that was cut by an error, is cached."""
    asked = 0

    class Model(LLM):
        async def _call(self, prompt, options, run):
            raise NotImplementedError

        async def _generate(self, prompt, options, run):
            nonlocal asked
            asked += 1
            return LLMResult(((Generation("text", finish_reason=finish),),))

    llm = Model(cache=InMemoryCache())
    for _ in range(3):
        assert await llm.call("x") == "text"
    assert asked == (1 if finish in ("stop", "length") else 3)
