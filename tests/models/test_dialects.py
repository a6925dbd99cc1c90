"""Which dialect a server speaks is found out by asking the real question; `api` and the URL say it."""

from __future__ import annotations

import pytest

from millstream import (
    BadRequestError,
    HuggingFaceInference,
    ModelNotFoundError,
    NotFoundError,
    OptionValueError,
    ProtocolError,
)
from millstream.testing import FakeEndpoint, Fault

from ..support.transports import Answer, ScriptedTransport

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "text-generation": "/"}


SPOKEN = [("tgi", name) for name in PATHS] + [(s, n) for s in ("vllm", "llamacpp") for n in ("chat", "completions")]


@pytest.mark.parametrize(("server", "only"), SPOKEN)
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_dialect_is_found_and_remembered(model, server, only, streamed):
    async with FakeEndpoint(server=server, apis=(only,)) as endpoint:
        llm = model(endpoint_url=endpoint.url, max_tokens=3)
        for _ in range(2):
            assert (await llm.stream("x").result()).text if streamed else await llm.call("x")
        asked = [request.path for request in endpoint.requests]
        before = list(PATHS.values())[: list(PATHS).index(only)]
        assert asked == [*before, PATHS[only], PATHS[only]]


async def test_a_base_model_without_a_chat_template_is_completed(model):
    async with FakeEndpoint(chat_template=False) as endpoint:
        llm = model(endpoint_url=endpoint.url, max_tokens=3)
        assert await llm.call("x")
        assert [request.path for request in endpoint.requests] == [PATHS["chat"], PATHS["completions"]]


async def test_a_dialect_that_is_said_is_not_looked_for(model):
    async with FakeEndpoint(apis=("completions",)) as endpoint:
        with pytest.raises(NotFoundError):
            await model(endpoint_url=endpoint.url, api="chat").call("x")
        assert len(endpoint.requests) == 1
        assert await model(endpoint_url=f"{endpoint.url}/v1/completions").call("x")


async def test_a_server_that_speaks_no_dialect(model):
    async with FakeEndpoint(apis=()) as endpoint:
        with pytest.raises(NotFoundError, match=r"tried chat .*completions .*text-generation .*endpoint_url") as caught:
            await model(endpoint_url=endpoint.url).call("x")
        assert caught.value.attempts == 1
        assert len(endpoint.requests) == 3


async def test_a_web_page_is_no_dialect(model, endpoint, api):
    endpoint.fail(Fault.html(200, times=9))
    with pytest.raises(ProtocolError) as caught:
        await model(api=api, max_retries=0).call("x")
    assert caught.value.status_code == 200
    assert "html" in caught.value.body


async def test_other_refusals_end_the_search(model, endpoint):
    endpoint.fail(Fault.status(400, body={"error": "Input validation error: too long", "error_type": "validation"}))
    with pytest.raises(BadRequestError, match="too long"):
        await model().call("x")
    assert len(endpoint.requests) == 1


async def test_a_405_with_a_reason_is_that_reason():
    text = "json_schema response format is not supported for model: x"
    transport = ScriptedTransport(Answer.json({"error": text}, 405))
    with pytest.raises(BadRequestError, match=text):
        await HuggingFaceInference(endpoint_url="http://llm.invalid", transport=transport).call("x")
    assert len(transport.requests) == 1


@pytest.mark.parametrize("body", [{"detail": "Method Not Allowed"}, {}])
async def test_a_405_without_one_is_a_missing_dialect(body):
    transport = ScriptedTransport(Answer.json(body, 405), Answer.json({"choices": [{"text": "a"}]}))
    assert await HuggingFaceInference(endpoint_url="http://llm.invalid", transport=transport).call("x") == "a"
    assert [request.route.target for request in transport.requests] == [PATHS["chat"], PATHS["completions"]]


@pytest.mark.parametrize("server", ["tgi", "vllm"])
async def test_a_model_that_does_not_exist(model, server):
    async with FakeEndpoint(server=server, models=["there"]) as endpoint:
        with pytest.raises(ModelNotFoundError):
            await model(endpoint_url=endpoint.url, model="elsewhere").call("x")
        assert len(endpoint.requests) == 1
        assert await model(endpoint_url=endpoint.url, model="there").call("x")


async def test_the_error_for_an_unnamed_model_says_what_to_set():
    missing = Answer.json(
        {"error": {"message": "The model `gpt2` does not exist.", "param": "model", "code": 404}}, 404
    )
    llm = HuggingFaceInference(endpoint_url="http://llm.invalid", transport=ScriptedTransport(missing))
    with pytest.raises(ModelNotFoundError, match="set model="):
        await llm.call("x")


async def test_the_model_is_sent_where_it_is_named():
    transport = ScriptedTransport(Answer.chat("hi"))
    for model, provider, sent in [
        ("org/m", None, "org/m"),
        ("org/m", "groq", "org/m:groq"),
        ("org/m:cheapest", None, "org/m:cheapest"),
        (None, None, "gpt2"),
    ]:
        llm = HuggingFaceInference(model, provider=provider, api_key="hf_x", transport=transport)
        await llm.call("x")
        assert transport.bodies[-1]["model"] == sent
        assert next(iter(transport.bodies[-1])) == "model"
    elsewhere = HuggingFaceInference(endpoint_url="http://llm.invalid", api="chat", transport=transport)
    await elsewhere.call("x")
    assert "model" not in transport.bodies[-1]  # TGI would take it for the name of an adapter
    assert elsewhere.model == "gpt2"


@pytest.mark.parametrize(
    ("endpoint_url", "api", "sent"),
    [
        (None, "chat", "org/m:novita"),
        ("https://router.huggingface.co/v1", "chat", "org/m:novita"),
        (None, "completions", "org/m"),  # the provider's own route, not the router's
        ("http://llm.invalid/v1", "chat", "org/m"),
    ],
)
async def test_the_provider_is_said_to_the_router_only(endpoint_url, api, sent):
    text = {"index": 0, "message": {"content": "a"}, "text": "a", "finish_reason": "stop"}
    transport = ScriptedTransport(Answer.json({"choices": [text]}))
    llm = HuggingFaceInference(
        "org/m", provider="novita", endpoint_url=endpoint_url, api=api, api_key="hf_x", allow_http_key=True,
        transport=transport,
    )  # fmt: skip
    await llm.call("x")
    assert transport.bodies[0]["model"] == sent


async def test_tools_need_a_chat(model, endpoint):
    with pytest.raises(OptionValueError, match="chat"):
        await model(api="completions").call("x", tools=[{"type": "function", "function": {"name": "f"}}])
    assert endpoint.requests == []


@pytest.mark.parametrize(("told", "tokens"), [("7", 7), ("", None), ("-1", None), ("٣", None), ("9" * 5000, None)])
async def test_the_length_of_the_prompt_is_in_a_header_where_the_body_has_none(told, tokens):
    body = {"generated_text": "a", "details": {"finish_reason": "length", "generated_tokens": 2, "seed": None}}
    answer = Answer.json(body)
    answer.headers += ((b"x-prompt-tokens", told.encode()),)
    llm = HuggingFaceInference(
        endpoint_url="http://llm.invalid", api="text-generation", transport=ScriptedTransport(answer)
    )
    result = await llm.generate(["x"])
    assert (result.usage.input_tokens, result.usage.output_tokens) == (tokens, 2)
    assert result.llm_output["tokenUsage"].get("promptTokens") == tokens


async def test_parameters_that_a_model_does_not_know_are_left_out_once():
    """What transformers-served models answer; huggingface_hub does the same."""
    refusal = Answer.json(
        {"error": "The following `model_kwargs` are not used by the model: ['return_full_text', 'stop', 'details'] "
                  "(note: typos in the generate arguments will also show up in this list)", "warnings": ["x"]}, 400,
    )  # fmt: skip
    transport = ScriptedTransport(refusal, Answer.json([{"generated_text": "I am at work"}]))
    llm = HuggingFaceInference(
        endpoint_url="http://llm.invalid",
        api="text-generation",
        transport=transport,
        stop_sequences=["."],
        max_tokens=5,
    )
    assert await llm.call("x") == "I am at work"
    first, second = (body["parameters"] for body in transport.bodies)
    assert set(first) - set(second) == {"return_full_text", "stop", "details"}
    assert second["max_new_tokens"] == 5


async def test_they_are_left_out_only_once():
    refusal = Answer.json({"error": "The following `model_kwargs` are not used by the model: ['stop']"}, 400)
    transport = ScriptedTransport(refusal)
    llm = HuggingFaceInference(
        endpoint_url="http://llm.invalid", api="text-generation", transport=transport, stop_sequences=["."]
    )
    with pytest.raises(BadRequestError, match="model_kwargs"):
        await llm.call("x")
    assert len(transport.requests) == 2


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize("server", ["tgi", "vllm", "llamacpp"])
async def test_a_schema_is_written_as_the_server_wants_it(model, server, api):
    """TGI's ``response_format`` is not OpenAI's; which of them a server wants is asked once."""
    if server != "tgi" and api == "text-generation":
        api = "completions"
    async with FakeEndpoint(server=server, reply='{"a": "b"}') as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, response_format=SCHEMA)
        for _ in range(2):
            assert await llm.call("x") == '{"a": "b"}'
            assert (await llm.stream("x").result()).text == '{"a": "b"}'
        assert len(endpoint.requests) <= 5
