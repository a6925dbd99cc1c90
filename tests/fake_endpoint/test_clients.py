"""What others' clients make of it: if they are content, the dialects are right."""

from __future__ import annotations

import huggingface_hub
import openai
import pytest

from millstream.testing import FakeEndpoint, Fault

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])
each_server = pytest.mark.parametrize("server", ["tgi", "vllm", "llamacpp"])
MESSAGES = [{"role": "user", "content": "Hi there"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


async def test_hub_text_generation():
    async with (
        FakeEndpoint(reply="Hello big world") as endpoint,
        huggingface_hub.AsyncInferenceClient(endpoint.url) as client,
    ):
        assert await client.text_generation("Hi", return_full_text=False) == "Hello big world"
        whole = await client.text_generation("Hi", details=True, return_full_text=False, max_new_tokens=2)
        assert (whole.details.finish_reason, whole.details.generated_tokens) == ("length", 2)
        assert [token.text for token in whole.details.tokens] == ["Hello", " big"]
        pieces = [piece async for piece in await client.text_generation("Hi", stream=True)]
        assert "".join(pieces) == "Hello big world</s>"  # this client passes special tokens on
        stream = [piece async for piece in await client.text_generation("Hi", stream=True, details=True)]
        assert (stream[-1].details.finish_reason, stream[-1].details.input_length) == ("eos_token", 1)
        with pytest.raises(huggingface_hub.errors.ValidationError, match="temperature"):
            await client.text_generation("Hi", temperature=0)


@each_server
async def test_hub_chat(server):
    async with (
        FakeEndpoint(reply="Hello big world", server=server) as endpoint,
        huggingface_hub.AsyncInferenceClient(endpoint.url) as client,
    ):
        whole = await client.chat_completion(MESSAGES, max_tokens=2)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hello big", "length")
        stream = await client.chat_completion(MESSAGES, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == "Hello big world"


@each_server
async def test_openai_chat_and_completions(server):
    async with (
        FakeEndpoint(reply="Hello big world", server=server, api_key="k", models=["m"]) as endpoint,
        openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="k", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["m"]
        chat = await client.chat.completions.create(model="m", messages=MESSAGES)
        assert chat.choices[0].message.content == "Hello big world"
        options = {"include_usage": True}
        pieces, usage = [], None
        async for chunk in await client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options=options
        ):
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
        assert ("".join(pieces), usage.completion_tokens) == ("Hello big world", 4)
        text = await client.completions.create(model="m", prompt="Hi", max_tokens=2)
        assert (text.choices[0].text, text.choices[0].finish_reason) == ("Hello big", "length")
        stream = await client.completions.create(model="m", prompt="Hi", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello big world"


@each_server
async def test_openai_tools(server):
    reply = {"tool": "weather", "arguments": {"city": "New York"}}
    async with (
        FakeEndpoint(reply=reply, server=server) as endpoint,
        openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="k", max_retries=0) as client,
    ):
        whole = await client.chat.completions.create(model="m", messages=MESSAGES, tools=[TOOL])
        (call,) = whole.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city":"New York"}')
        arguments = ""
        async for chunk in await client.chat.completions.create(
            model="m", messages=MESSAGES, tools=[TOOL], stream=True
        ):
            for part in chunk.choices[0].delta.tool_calls or []:
                arguments += part.function.arguments
        assert arguments == '{"city":"New York"}'


async def test_openai_errors():
    async with (
        FakeEndpoint(server="vllm", models=["m"], requests_per_minute=3) as endpoint,
        openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.chat.completions.create(model="other", messages=MESSAGES)
        endpoint.fail(Fault.error_event(1), Fault.disconnect())
        with pytest.raises(openai.APIError, match="Request failed"):
            async for _ in await client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
                pass
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(model="m", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES)
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
