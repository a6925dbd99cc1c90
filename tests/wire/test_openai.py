"""The two OpenAI-compatible dialects against the tables of their protocol."""

import json

import msgspec
import pytest

from millstream._config import CallOptions
from millstream._errors import (
    BadRequestError,
    OptionTypeError,
    OptionValueError,
    OverloadedError,
    ProtocolError,
    StatusError,
)
from millstream._prompts import ChatMessage, ChatPromptValue, StringPromptValue
from millstream._results import TokenLogprob, ToolCall, TopLogprob, Usage
from millstream._wire import DIALECTS

CHAT = DIALECTS["chat"]
COMPLETIONS = DIALECTS["completions"]
BOTH = pytest.mark.parametrize("wire", [CHAT, COMPLETIONS], ids=["chat", "completions"])
PROMPT = StringPromptValue("Why?")
SAID = {"chat": {"messages": [{"role": "user", "content": "Why?"}]}, "completions": {"prompt": "Why?"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


class City(msgspec.Struct):
    name: str
    parts: list["City"] = []


def encoded(wire, *, model=None, stream=False, prompt=PROMPT, **options):
    return json.loads(wire.encode(prompt, CallOptions(**options), model=model, stream=stream))


# -- requests


@BOTH
@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.7, "max_tokens": 5}, {"temperature": 0.7, "max_tokens": 5}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_p": 1}, {}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": -1}, {"top_k": -1}),
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
        ({"presence_penalty": 0}, {}),
        ({"presence_penalty": -1}, {"presence_penalty": -1}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"seed": 0}, {"seed": 0}),
        ({"n": 1}, {}),
        ({"n": 2}, {"n": 2}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"stop": []}, {}),
        ({"logprobs": False}, {}),
    ],
)
def test_fields(wire, options, fields):
    assert encoded(wire, **options) == SAID[wire.name] | fields


@pytest.mark.parametrize(
    ("logprobs", "chat", "completions"),
    [
        (True, {"logprobs": True}, {"logprobs": 1}),
        (0, {"logprobs": True}, {"logprobs": 1}),
        (3, {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
    ],
)
def test_logprobs_are_asked_for_in_the_dialects_own_way(logprobs, chat, completions):
    assert encoded(CHAT, logprobs=logprobs) == SAID["chat"] | chat
    assert encoded(COMPLETIONS, logprobs=logprobs) == SAID["completions"] | completions


@BOTH
def test_model_comes_first_and_a_stream_asks_for_usage(wire):
    body = wire.encode(PROMPT, CallOptions(), model="a/b:groq", stream=True)

    assert body.startswith(b'{"model":"a/b:groq",')
    assert json.loads(body)["stream"] is True
    assert json.loads(body)["stream_options"] == {"include_usage": True}
    assert b"null" not in body


@BOTH
def test_extra_body_goes_over_everything(wire):
    body = encoded(wire, max_tokens=5, extra_body={"max_tokens": 6, "min_p": 0.1})

    assert body == SAID[wire.name] | {"max_tokens": 6, "min_p": 0.1}
    with pytest.raises(OptionTypeError, match="extra_body"):
        encoded(wire, extra_body={"x": object()})
    with pytest.raises(OptionTypeError, match="extra_body"):
        encoded(wire, extra_body={"x": "\ud800"})


def test_messages():
    prompt = ChatPromptValue(
        (
            ChatMessage.system("Be brief."),
            ChatMessage("assistant", tool_calls=({"id": "1", "type": "function"},)),
            ChatMessage("tool", "4", tool_call_id="1"),
        )
    )

    assert encoded(CHAT, prompt=prompt)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]
    assert encoded(COMPLETIONS, prompt=prompt)["prompt"].startswith("System: Be brief.\n")


def test_tools_are_for_chat():
    assert encoded(CHAT, tools=[TOOL], tool_choice="auto") == SAID["chat"] | {"tools": [TOOL], "tool_choice": "auto"}
    assert encoded(CHAT, tools=[]) == SAID["chat"]
    with pytest.raises(OptionValueError, match="chat"):
        encoded(COMPLETIONS, tools=[TOOL])
    with pytest.raises(OptionValueError, match="chat"):
        encoded(COMPLETIONS, tool_choice="auto")


SCHEMA = {"title": "A city!", "type": "object", "properties": {"name": {"type": "string"}}}


@BOTH
@pytest.mark.parametrize(
    ("response_format", "sent"),
    [
        (SCHEMA, {"type": "json_schema", "json_schema": {"name": "A_city", "schema": SCHEMA, "strict": True}}),
        ({"type": "json_object"}, {"type": "json_object"}),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, {"type": "json_schema", "json_schema": {"name": "x"}}),
        (
            {"type": "json", "value": SCHEMA},
            {"type": "json_schema", "json_schema": {"name": "response", "schema": SCHEMA, "strict": True}},
        ),
    ],
)
def test_response_format(wire, response_format, sent):
    assert encoded(wire, response_format=response_format)["response_format"] == sent


def test_a_type_as_response_format():
    sent = encoded(CHAT, response_format=City)["response_format"]["json_schema"]

    schema = sent["schema"]
    assert (sent["name"], sent["strict"]) == ("City", True)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["parts"]["items"] == {"$ref": "#/$defs/City"}
    assert "City" in schema["$defs"]


# -- whole answers


def choice(text, *, index=0, finish="stop", wire=CHAT, **more):
    said = {"message": {"role": "assistant", "content": text}} if wire is CHAT else {"text": text}
    return {"index": index, "finish_reason": finish} | said | more


def answered(*choices, usage=None, **more):
    return {"choices": list(choices)} | ({"usage": usage} if usage else {}) | more


def decoded(wire, value, **options):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return wire.decode(body, PROMPT, CallOptions(**options))


@BOTH
def test_choices_are_sorted_by_index(wire):
    result = decoded(wire, answered(choice("b", index=1, wire=wire), choice("a", wire=wire)))

    assert [g.text for g in result.generations[0]] == ["a", "b"]


@BOTH
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("abort", "error"),
        ("error", "error"),
        ("repetition", "other"),
        ("", None),
        (None, None),
    ],
)
def test_finish_reasons(wire, raw, reason):
    generation = decoded(wire, answered(choice("a", finish=raw, wire=wire))).generations[0][0]

    assert (generation.finish_reason, generation.raw_finish_reason) == (reason, raw or None)


@BOTH
def test_usage_and_info(wire):
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7.0,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "completion_tokens_per_sec": 91.2,
    }
    result = decoded(wire, answered(choice("a", wire=wire), usage=usage, id="x", model="m", system_fingerprint=""))

    assert result.usage == Usage(5, 7, 3, 2)
    assert result.generations[0][0].generation_info == {"id": "x", "model": "m"}
    assert decoded(wire, answered(choice("a", wire=wire), id="", model=None)).generations[0][0].generation_info is None
    assert decoded(wire, answered(choice("a", wire=wire), usage={"prompt_tokens": None})).usage is None


@BOTH
def test_the_stop_text_does_not_stay(wire):
    generation = decoded(wire, answered(choice("a\nb", finish="length", wire=wire)), stop=["\n"]).generations[0][0]

    assert (generation.text, generation.finish_reason, generation.raw_finish_reason) == ("a", "stop", "length")


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_and_no_content(key):
    value = answered({"index": 0, "finish_reason": "stop", "message": {key: "Hm.", "content": None}})

    generation = decoded(CHAT, value).generations[0][0]
    assert (generation.text, generation.reasoning) == ("", "Hm.")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}}, ToolCall("f", '{"x": 1}', "a")),
        (
            {"id": 0, "function": {"name": "f", "arguments": {"x": 1}, "description": None}},
            ToolCall("f", '{"x":1}', "0"),
        ),
        ({"function": {"name": "f", "arguments": None}}, ToolCall("f")),
    ],
)
def test_tool_calls(call, expected):
    value = answered({"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "tool_calls": [call]}})

    generation = decoded(CHAT, value).generations[0][0]
    assert generation.tool_calls == (expected,)
    assert (generation.finish_reason, generation.raw_finish_reason) == ("tool_calls", "stop")


CHAT_LOGPROBS = {
    "content": [
        {
            "id": 4,
            "token": "a",
            "bytes": [97],
            "logprob": -0.5,
            "top_logprobs": [{"id": 5, "token": "b", "logprob": -1}],
        },
        {"token": "c", "logprob": -9999.0},
    ]
}


@BOTH
def test_logprobs_of_the_chat_shape(wire):
    generation = decoded(wire, answered(choice("ac", wire=wire, logprobs=CHAT_LOGPROBS))).generations[0][0]

    assert generation.logprobs == (
        TokenLogprob("a", -0.5, 4, top_logprobs=(TopLogprob("b", -1.0, 5),)),
        TokenLogprob("c", None),
    )


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        (
            {"tokens": ["a", "b"], "token_logprobs": [None, -9999.0], "top_logprobs": [None, {"b": -1, "c": -2}]},
            (TokenLogprob("a"), TokenLogprob("b", top_logprobs=(TopLogprob("b", -1.0), TopLogprob("c", -2.0)))),
        ),
        ({"tokens": ["a", "b"], "token_logprobs": [-0.5]}, (TokenLogprob("a", -0.5), TokenLogprob("b"))),
        ({"tokens": []}, None),
        ({"content": []}, None),
        (None, None),
        (-0.5, None),
    ],
)
def test_logprobs_of_completions(logprobs, expected):
    value = answered(choice("ab", wire=COMPLETIONS, logprobs=logprobs))

    assert decoded(COMPLETIONS, value).generations[0][0].logprobs == expected


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"5",
        b"{}",
        b'{"choices":[]}',
        b'{"choices":null}',
        b'{"choices":[5]}',
        b"<html>",
        b"[[",
        b'{"choices":[{"index":"0"}]}',
        b'{"choices":[{"index":0,"text":"a","message":{},"logprobs":{"content":5}}]}',
    ],
)
def test_what_is_no_answer(wire, body):
    with pytest.raises(ProtocolError) as caught:
        decoded(wire, body)
    assert len(caught.value.body) <= 500


@BOTH
@pytest.mark.parametrize(
    ("body", "why"), [(b"", "it is empty"), (b" \n", "it is empty"), (b"\n<!doctype html>", "endpoint_url right")]
)
def test_what_is_no_answer_and_plainly_so(wire, body, why):
    with pytest.raises(ProtocolError, match=why):
        decoded(wire, body)


@BOTH
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"error": {"message": "Bad", "type": "BadRequestError", "code": 400}}, BadRequestError),
        ({"error": {"message": "Model is overloaded", "http_status_code": 422}}, OverloadedError),
        ({"object": "error", "message": "Bad", "type": "BadRequestError", "code": 400}, BadRequestError),
        ({"choices": None, "error_type": "BadRequestError", "error_message": "Bad"}, BadRequestError),
    ],
)
def test_an_error_in_a_200(wire, value, kind):
    with pytest.raises(kind) as caught:
        decoded(wire, value)
    assert isinstance(caught.value, StatusError)
