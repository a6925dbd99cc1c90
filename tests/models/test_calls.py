"""One prompt and lists of prompts, in each dialect."""

from __future__ import annotations

import anyio
import pytest

from millstream import (
    BadRequestError,
    ChatMessage,
    ChatPromptValue,
    LLMResult,
    OptionTypeError,
    OptionValueError,
    StringPromptValue,
)
from millstream.testing import FakeEndpoint, Fault, Latency


async def test_a_call_gives_text(model, endpoint, api):
    llm = model(api=api, max_tokens=5)
    text = await llm.call("Why is the sky blue?")
    assert len(text.split()) == 5
    assert text == await llm("Why is the sky blue?") == await llm.predict("Why is the sky blue?")


async def test_generate_keeps_the_order(model, api):
    async with FakeEndpoint(reply=lambda prompt: f"answer to {prompt.strip()}") as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, max_concurrency=3)
        prompts = [f"question {number}" for number in range(20)]
        result = await llm.generate(prompts)
        assert result.texts == [f"answer to {prompt}" for prompt in prompts]
        assert result.usage is not None
        assert result.usage.output_tokens == sum(len(text.split()) + 1 for text in result.texts)  # and the end
        assert result.llm_output["tokenUsage"]["completionTokens"] == result.usage.output_tokens


async def test_no_prompts_no_request(model, endpoint):
    assert await model().generate([]) == LLMResult(())
    assert endpoint.requests == []


async def test_a_result_tells_all(model, api):
    async with FakeEndpoint(reply="one two three") as endpoint:
        result = await model(endpoint_url=endpoint.url, api=api).generate(["count"])
    (generation,) = result.generations[0]
    assert generation.text == "one two three"
    assert generation.finish_reason == "stop"
    assert generation.raw_finish_reason
    assert result.usage.output_tokens == 4  # the end is a token too


@pytest.mark.parametrize("several_api", ["chat", "completions"])
async def test_several_outputs(model, several_api):
    async with FakeEndpoint(server="vllm") as endpoint:
        llm = model(endpoint_url=endpoint.url, api=several_api, temperature=1.0, max_tokens=4)
        result = await llm.generate(["a", "b"], n=3)
        assert [len(row) for row in result.generations] == [3, 3]
        streamed = await llm.stream("a", n=3).result()
        assert [g.text for g in streamed.generations[0]] == [g.text for g in result.generations[0]]


async def test_options_of_a_call_are_put_over_the_models(model, endpoint):
    llm = model(api="completions", max_tokens=3, temperature=0.5, extra_body={"a": 1})
    await llm.call("x", ["\n"], max_tokens=7, extra_body={"b": 2})
    body = endpoint.requests[-1].body
    assert (body["max_tokens"], body["temperature"], body["stop"], body["a"], body["b"]) == (7, 0.5, ["\n"], 1, 2)
    assert (llm.max_tokens, llm.temperature, llm.top_p) == (3, 0.5, None)


async def test_the_stop_text_is_never_in_the_text(model, api):
    async with FakeEndpoint(reply="one two three four") as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, stop_sequences=[" three"])
        result = await llm.generate(["count", "again"])
        assert result.texts == ["one two", "one two"]
        assert result.generations[0][0].finish_reason == "stop"


async def test_messages_and_prompt_values(model, endpoint):
    llm = model(api="chat", max_tokens=3)
    messages = [ChatMessage.system("Be brief."), {"role": "user", "content": "Hi"}]
    reply = await llm.predict_messages(messages)
    assert reply.role == "assistant"
    assert reply.content
    assert endpoint.requests[-1].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    values = [StringPromptValue("a"), ChatPromptValue((ChatMessage.user("b"),))]
    assert len((await llm.generate_prompt(values)).texts) == 2


async def test_tool_calls(model):
    call = {"tool": "get_weather", "arguments": {"city": "Paris"}}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    async with FakeEndpoint(reply=[call]) as endpoint:
        llm = model(endpoint_url=endpoint.url, api="chat")
        result = await llm.generate(["Weather?"], tools=tools)
        (generation,) = result.generations[0]
        assert generation.finish_reason == "tool_calls"
        assert generation.tool_calls[0].name == "get_weather"
        streamed = await llm.stream("Weather?", tools=tools).result()
        assert streamed.generations[0][0].tool_calls[0].arguments == generation.tool_calls[0].arguments
        message = await llm.predict_messages([{"role": "user", "content": "Weather?"}], tools=tools)
        assert message.tool_calls[0]["function"]["name"] == "get_weather"


async def test_the_first_error_is_raised_with_its_prompt(model, endpoint):
    llm = model(api="chat", max_concurrency=1, max_retries=0)
    endpoint.fail(Fault.status(200, times=1, body={"choices": []}), Fault.status(422))
    with pytest.raises(Exception) as caught:
        await llm.generate(["a", "b", "c"])
    assert caught.value.prompt_index == 0
    assert "prompt 0 of 3" in caught.value.__notes__[0]
    with pytest.raises(BadRequestError) as caught:
        await llm.generate(["a"])
    assert caught.value.prompt_index == 0
    await endpoint.wait_for(lambda: endpoint.in_flight == 0)


async def test_a_refused_request_is_one_typed_error(model, endpoint, api):
    endpoint.fail(Fault.status(422, body={"error": "Input validation error: no", "error_type": "validation"}))
    with pytest.raises(BadRequestError, match="Input validation error: no") as caught:
        await model(api=api).call("x")
    error = caught.value
    assert (error.status_code, error.attempts, error.provider) == (422, 1, "127.0.0.1")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_concurrency_is_bounded_and_used(model, concurrency):
    async with FakeEndpoint(latency=Latency(first_token=0.001), slots=100) as endpoint:
        llm = model(endpoint_url=endpoint.url, max_concurrency=concurrency)
        await llm.generate(["x"] * 30)
        assert endpoint.connections == concurrency


@pytest.mark.parametrize("prompts", ["a bare text", b"bytes", 5, None, StringPromptValue("x")])
async def test_generate_wants_a_list(model, endpoint, prompts):
    with pytest.raises(OptionTypeError, match=r"call\(\)"):
        await model().generate(prompts)
    assert endpoint.requests == []


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", [1, 2], [{"content": "no role"}], {"role": "user"}])
async def test_a_prompt_that_is_no_prompt(model, endpoint, prompt):
    llm = model()
    with pytest.raises(OptionTypeError):
        await llm.call(prompt)
    with pytest.raises(OptionTypeError) as caught:
        await llm.generate(["fine", prompt])
    assert caught.value.prompt_index == 1
    assert endpoint.requests == []


async def test_a_message_that_says_nothing(model, endpoint):
    for message in ({"role": "user"}, {"role": "user", "contents": "a slip"}, {"role": "assistant", "content": None}):
        with pytest.raises(OptionValueError, match=f"message of role '{message['role']}' has no content"):
            await model().call([message])
    assert endpoint.requests == []


async def test_several_prompts_that_are_no_list(model, endpoint):
    async def prompts():
        yield "x"

    with pytest.raises(OptionTypeError, match=r"async_generator.*map\(\)"):
        await model().generate(prompts())
    with pytest.raises(OptionTypeError, match="list of prompts, not dict"):
        await model().generate({"first": "x"})
    assert endpoint.requests == []


async def test_text_that_is_no_text(model, endpoint):
    with pytest.raises(OptionValueError, match="UTF-8"):
        await model().call("lone surrogate \ud800")
    with pytest.raises(OptionValueError, match="at least one message"):
        await model().call([])
    assert endpoint.requests == []


async def test_two_models_share_a_caller(model, endpoint):
    first = model(max_concurrency=2)
    second = model(caller=first.caller)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.generate, ["a"] * 5)
        tasks.start_soon(second.generate, ["b"] * 5)
    assert first.caller.statistics().successes == 10
