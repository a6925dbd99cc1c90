"""The OpenAI-compatible APIs: shapes, checks and quirks of each server."""

from __future__ import annotations

import pytest

from .support import asking, chat, events

SERVERS = ["tgi", "vllm", "llamacpp"]
each_server = pytest.mark.parametrize("server", SERVERS)
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def text_of(stream: list) -> str:
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for e in stream[:-1] for c in e["choices"])


@each_server
@one_loop
async def test_chat(server):
    async with asking(server=server, reply="Hello world") as (_, client):
        answer = (await client.post("/v1/chat/completions", json=chat())).json()
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello world"}
        assert answer["choices"][0]["finish_reason"] == "stop"
        usage = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        assert usage == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        assert (answer["id"] == "") == (server == "tgi")
        assert ("timings" in answer) == (server == "llamacpp")
        assert ("stop_reason" in answer["choices"][0]) == (server == "vllm")
        assert ("logprobs" in answer["choices"][0]) == (server != "llamacpp")


@each_server
async def test_chat_stream(server):
    async with asking(server=server, reply="Hello world") as (_, client):
        stream = events(await client.post("/v1/chat/completions", json=chat(**WITH_USAGE)))
    assert stream[-1] == "[DONE]"
    assert stream[-2]["choices"] == []
    assert stream[-2]["usage"]["completion_tokens"] == 3
    assert text_of(stream) == "Hello world"
    deltas = [event["choices"][0]["delta"] for event in stream[:-2]]
    finishes = [event["choices"][0]["finish_reason"] for event in stream[:-2]]
    assert finishes == [None] * (len(finishes) - 1) + ["stop"]
    if server == "tgi":
        assert [delta["role"] for delta in deltas] == ["assistant"] * 3
        assert stream[0]["usage"] is None
    else:
        assert deltas[0] == {"role": "assistant", "content": "" if server == "vllm" else None}
        assert "usage" not in stream[0]
        assert deltas[-1] == ({"content": ""} if server == "vllm" else {})


@each_server
@one_loop
async def test_completions_stream(server):
    async with asking(server=server, reply="Hello world") as (_, client):
        stream = events(await client.post("/v1/completions", json={"prompt": "a b c", "stream": True}))
    assert stream[-1] == "[DONE]"
    assert text_of(stream) == "Hello world"
    finishes = [event["choices"][0]["finish_reason"] for event in stream[:-1]]
    expected = {"tgi": ["", "", "eos_token"], "vllm": [None, None, "stop"], "llamacpp": [None, None, "stop"]}
    assert finishes == expected[server]
    usages = [event.get("usage") for event in stream[:-1]]
    assert [usage is not None for usage in usages] == [False, False, server != "vllm"]
    if server != "vllm":
        assert (usages[-1]["prompt_tokens"], usages[-1]["completion_tokens"]) == (3, 3)


@one_loop
async def test_vllm_reports_usage_as_asked():
    async with asking(server="vllm", reply="Hello world") as (_, client):
        stream = events(await client.post("/v1/completions", json={"prompt": "a", **WITH_USAGE}))
        assert stream[-2]["choices"] == []
        assert stream[-2]["usage"]["total_tokens"] == 4
        options = {"include_usage": True, "continuous_usage_stats": True}
        stream = events(
            await client.post("/v1/completions", json={"prompt": "a", "stream": True, "stream_options": options})
        )
        assert [event["usage"]["completion_tokens"] for event in stream[:-1]] == [1, 2, 3, 3]


@each_server
@one_loop
async def test_stop(server):
    async with asking(server=server, reply="one two three") as (_, client):
        body = {"prompt": "x", "stop": ["two"]}
        choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
        assert choice["text"] == ("one two" if server == "tgi" else "one ")
        assert choice["finish_reason"] == ("stop_sequence" if server == "tgi" else "stop")
        if server == "vllm":
            assert choice["stop_reason"] == "two"
        stream = events(await client.post("/v1/chat/completions", json=chat(stop=["two"], stream=True)))
        assert text_of(stream) == choice["text"]


@each_server
@one_loop
async def test_several_prompts(server):
    async with asking(server=server, reply=str.upper) as (_, client):
        answer = (await client.post("/v1/completions", json={"prompt": ["a", "b"]})).json()
        assert {choice["index"]: choice["text"] for choice in answer["choices"]} == {0: "A", 1: "B"}
        assert [choice["index"] for choice in answer["choices"]] == ([1, 0] if server == "tgi" else [0, 1])
        assert answer["usage"]["completion_tokens"] == (2 if server == "llamacpp" else 4)
        stream = events(await client.post("/v1/completions", json={"prompt": ["a", "b"], "stream": True}))
        if server == "llamacpp":
            assert stream.pop(0) is None
        assert [event["choices"][0]["index"] for event in stream[:2]] == [0, 1]
        texts = {0: "", 1: ""}
        for event in stream[:-1]:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert texts == {0: "A", 1: "B"}


@each_server
@one_loop
async def test_n(server):
    async with asking(server=server) as (_, client):
        answer = (await client.post("/v1/chat/completions", json=chat(n=2, max_tokens=3))).json()
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        assert len(set(texts)) == (1 if server == "tgi" else 2)
        expected = {"tgi": 3, "vllm": 6, "llamacpp": 3}
        assert answer["usage"]["completion_tokens"] == expected[server]


@one_loop
async def test_completion_logprobs():
    body = {"prompt": "x", "logprobs": 2, "max_tokens": 2}
    async with asking(server="vllm", reply="one two") as (_, client):
        logprobs = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
        assert (logprobs["tokens"], logprobs["text_offset"]) == (["one", " two"], [0, 3])
        assert [len(top) for top in logprobs["top_logprobs"]] == [2, 2]
        stream = events(await client.post("/v1/completions", json={**body, "stream": True}))
        assert [event["choices"][0]["logprobs"]["text_offset"] for event in stream[:-1]] == [[0], [3]]
    async with asking(server="llamacpp", reply="one two") as (_, client):
        logprobs = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
        assert [entry["token"] for entry in logprobs["content"]] == ["one", " two"]
        assert logprobs["content"][0]["bytes"] == [111, 110, 101]


@each_server
@one_loop
async def test_chat_logprobs(server):
    async with asking(server=server, reply="one two") as (_, client):
        body = chat(logprobs=True, top_logprobs=2)
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        content = answer["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["one", " two"]
        assert [len(entry["top_logprobs"]) for entry in content] == [2, 2]
        stream = events(await client.post("/v1/chat/completions", json={**body, "stream": True}))
        tokens = [
            entry["token"]
            for event in stream[:-1]
            if event["choices"][0].get("logprobs")
            for entry in event["choices"][0]["logprobs"]["content"]
        ]
        assert tokens == ["one", " two"]


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"tool": "weather", "arguments": {"city": "New York"}}


@each_server
@one_loop
async def test_tool_calls(server):
    async with asking(server=server, reply=CALL) as (_, client):
        choice = (await client.post("/v1/chat/completions", json=chat(tools=[TOOL]))).json()["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert (call["type"], call["function"]["name"]) == ("function", "weather")
        assert call["function"]["arguments"] == '{"city":"New York"}'
        assert choice["finish_reason"] == ("stop" if server == "tgi" else "tool_calls")
        content = {"tgi": "absent", "vllm": None, "llamacpp": ""}
        assert choice["message"].get("content", "absent") == content[server]

        stream = events(await client.post("/v1/chat/completions", json=chat(tools=[TOOL], stream=True)))
        deltas = [event["choices"][0]["delta"] for event in stream[:-1]]
        parts = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert "".join(part["function"]["arguments"] for part in parts) == '{"city":"New York"}'
        assert [part["function"].get("name", "absent") for part in parts] == [
            "weather",
            None if server == "tgi" else "absent",
        ]
        assert stream[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]

        plain = (await client.post("/v1/chat/completions", json=chat())).json()["choices"][0]["message"]
        assert plain["content"] == '{"tool":"weather","arguments":{"city":"New York"}}'


@one_loop
async def test_parallel_tool_calls():
    async with asking(server="vllm", reply=[CALL, {"tool": "time"}]) as (_, client):
        message = (await client.post("/v1/chat/completions", json=chat(tools=[TOOL]))).json()["choices"][0]["message"]
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
        stream = events(await client.post("/v1/chat/completions", json=chat(tools=[TOOL], stream=True)))
        parts = [c for e in stream[:-1] for c in e["choices"][0]["delta"].get("tool_calls", [])]
        assert {part["index"] for part in parts} == {0, 1}


@each_server
@one_loop
async def test_reasoning(server):
    key = "reasoning" if server == "vllm" else "reasoning_content"
    async with asking(server=server, reply="Yes", reasoning="let me see") as (_, client):
        answer = (await client.post("/v1/chat/completions", json=chat())).json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Yes", key: "let me see"}
        assert answer["usage"]["completion_tokens"] == 5
        stream = events(await client.post("/v1/chat/completions", json=chat(stream=True)))
        thought = "".join(event["choices"][0]["delta"].get(key, "") for event in stream[:-1])
        assert (thought, text_of(stream)) == ("let me see", "Yes")


ARGUMENT_REFUSALS = [
    ("tgi", "/v1/chat/completions", chat(top_p=1.0), 422, "validation"),
    ("tgi", "/v1/chat/completions", chat(presence_penalty=-2), 422, "validation"),
    ("tgi", "/v1/chat/completions", chat(stop=list("abcde")), 422, "validation"),
    (
        "tgi",
        "/v1/chat/completions",
        chat(tools=[TOOL], response_format={"type": "json", "value": {}}),
        422,
        "tool_error",
    ),
    ("tgi", "/v1/completions", {"prompt": "a", "suffix": "b"}, 422, "suffix not supported"),
    ("tgi", "/v1/completions", {"prompt": list("abcde")}, 422, "batch size exceeded"),
    ("vllm", "/v1/chat/completions", chat(max_tokens=0), 400, "Bad Request"),
    ("vllm", "/v1/completions", {}, 400, "Bad Request"),
    ("vllm", "/v1/completions", {"prompt": "a", "max_tokens": "many"}, 400, "Bad Request"),
    ("vllm", "/v1/completions", {"prompt": "a", "max_tokens": 200_000}, 400, "Bad Request"),
    ("llamacpp", "/v1/completions", {}, 400, "invalid_request_error"),
    ("llamacpp", "/v1/completions", {"prompt": "a", "max_tokens": "many"}, 400, "invalid_request_error"),
    ("llamacpp", "/v1/chat/completions", {"messages": "a"}, 400, "invalid_request_error"),
    ("llamacpp", "/v1/chat/completions", chat(n=5), 400, "invalid_request_error"),
    ("llamacpp", "/v1/completions", {"prompt": "word " * 140_000}, 400, "exceed_context_size_error"),
]


@one_loop
@pytest.mark.parametrize(("server", "path", "body", "status", "kind"), ARGUMENT_REFUSALS)
async def test_what_each_server_refuses(server, path, body, status, kind):
    async with asking(server=server) as (_, client):
        answer = await client.post(path, json=body)
        assert answer.status_code == status, answer.text
        decoded = answer.json()
        assert (decoded["error_type"] if server == "tgi" else decoded["error"]["type"]) == kind


@one_loop
@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "x"},
        {"stream_options": None},
        {"logit_bias": {"1": 2}},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
    ],
)
async def test_what_tgi_can_not_decode_and_others_take(fields):
    for server in SERVERS:
        async with asking(server=server) as (_, client):
            answer = await client.post("/v1/chat/completions", json=chat(**fields))
            if server == "tgi":
                assert answer.status_code == 422
                assert answer.text.startswith("Failed to deserialize the JSON body")
            else:
                assert answer.status_code == 200, answer.text


@one_loop
async def test_tgi_refuses_a_stream_inside_the_stream():
    async with asking() as (_, client):
        stream = events(await client.post("/v1/chat/completions", json=chat(top_p=1, stream=True)))
        message = "Input validation error: `top_p` must be > 0.0 and < 1.0"
        assert stream == [{"error": {"message": message, "http_status_code": 422}}, "[DONE]"]


@one_loop
async def test_other_defaults_of_max_tokens():
    reply = "word " * 30
    for server, expected in (("tgi", 31), ("vllm", 16), ("llamacpp", 31)):
        async with asking(server=server, reply=reply.strip()) as (_, client):
            answer = (await client.post("/v1/completions", json={"prompt": "a"})).json()
            assert answer["usage"]["completion_tokens"] == expected
    async with asking(server="llamacpp", reply=reply) as (_, client):
        answer = (await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 0})).json()
        assert answer["usage"]["completion_tokens"] == 1


@one_loop
async def test_prompts_of_token_ids_and_echo():
    async with asking(server="vllm", reply=lambda prompt: f"[{prompt}]") as (_, client):
        answer = (await client.post("/v1/completions", json={"prompt": [[1, 2], [3]]})).json()
        assert [choice["text"] for choice in answer["choices"]] == ["[<1> <2>]", "[<3>]"]
        answer = (await client.post("/v1/completions", json={"prompt": "a", "echo": True})).json()
        assert answer["choices"][0]["text"] == "a[a]"


@one_loop
async def test_a_model_without_chat_template():
    async with asking(chat_template=False) as (_, client):
        answer = await client.post("/v1/chat/completions", json=chat(stream=True))
        assert answer.status_code == 422
        assert answer.json() == {"error": "Template error: template not found", "error_type": "template_error"}
    async with asking(chat_template=False, server="vllm") as (_, client):
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 400
