"""Answers that are not quite in the shape, and are read all the same: nothing that was paid for is lost over a detail."""

import json

import pytest

from millstream._config import CallOptions
from millstream._errors import ProtocolError, ServerError
from millstream._prompts import StringPromptValue
from millstream._results import TokenLogprob, Usage
from millstream._wire import DIALECTS

from .test_openai import BOTH, CHAT, COMPLETIONS, City, answered, choice, decoded
from .test_openai_streams import framed, joined, part, streamed

TEXT = DIALECTS["text-generation"]
PROMPT = StringPromptValue("Why?")

THOUGHT = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}, {"type": "text", "text": "."}]},
    {"type": "text", "text": "Be"},
    {"type": "image_url", "image_url": {"url": "data:,"}},
    {"type": "text", "text": "cause"},
]


def said(message, **more):
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message} | more]}


def bytewise(wire, body, **options):
    chunks, decoder = streamed(wire, *(body[at : at + 1] for at in range(len(body))), **options)
    assert decoder.error is None
    return joined(chunks)


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        (THOUGHT, "Because", "Hm."),
        ([{"type": "output_text", "text": "a"}, "b", 5, {"text": "c"}], "abc", None),
        ([{"type": "reasoning", "reasoning": "Hm"}], "", "Hm"),
        ([], "", None),
    ],
)
def test_content_in_parts(content, text, reasoning):
    whole = decoded(CHAT, said({"role": "assistant", "content": content}))
    chunks = [{"choices": [{"index": 0, "delta": {"content": content}}]}, part(finish="stop")]

    for result in (whole, bytewise(CHAT, framed(*chunks))):
        assert (result.text, result.generations[0][0].reasoning) == (text, reasoning)


def test_a_refusal_is_the_text_and_no_answer():
    whole = decoded(CHAT, said({"content": None, "refusal": "I won't."}), response_format=City)
    deltas = [{"role": "assistant", "content": "", "refusal": None}, {"refusal": "I wo"}, {"refusal": "n't."}]
    stream = bytewise(CHAT, framed(*(part(**delta) for delta in deltas), part(finish="stop")))

    for result in (whole, stream):
        generation = result.generations[0][0]
        assert generation.text == "I won't."
        assert (generation.finish_reason, generation.raw_finish_reason) == ("content_filter", "stop")


def test_an_empty_refusal_is_none():
    generation = decoded(CHAT, said({"content": "Yes", "refusal": ""})).generations[0][0]

    assert (generation.text, generation.finish_reason) == ("Yes", "stop")


@BOTH
def test_no_index(wire):
    first, second = choice("a", finish="stop", wire=wire) | {"index": None}, choice("b", finish="stop", wire=wire)
    second.pop("index")

    assert [generation.text for generation in decoded(wire, answered(first, second)).generations[0]] == ["a", "b"]
    events = [part("a", index=None, wire=wire), part("b", index=None, finish="stop", wire=wire)]
    assert bytewise(wire, framed(*events)).text == "ab"


@BOTH
@pytest.mark.parametrize("id", [7, "7"])
def test_an_id_may_be_a_number(wire, id):  # noqa: A002
    value = answered(choice("a", wire=wire), id=id, model={"name": "m"}, system_fingerprint=[])

    assert decoded(wire, value).generations[0][0].generation_info == {"id": "7"}
    stream = bytewise(wire, framed(part("a", finish="stop", wire=wire) | {"id": id, "model": 5.5}))
    assert stream.generations[0][0].generation_info == {"id": "7"}


@BOTH
@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ([], None),
        ("", None),
        (
            {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": [], "completion_tokens_details": ""},
            Usage(3, 4),
        ),
    ],
)
def test_empty_usage_that_is_no_object(wire, usage, expected):
    assert decoded(wire, answered(choice("a", wire=wire), usage=usage)).usage == expected
    assert bytewise(wire, framed(part("a", finish="stop", wire=wire) | {"usage": usage})).usage == expected


def test_holes_in_the_tool_calls():
    call = {"id": "a", "function": {"name": "f", "arguments": "{}"}}

    assert [c.name for c in decoded(CHAT, said({"tool_calls": [None, call]})).generations[0][0].tool_calls] == ["f"]


@BOTH
@pytest.mark.parametrize("error", [{}, "", [], False, None])
def test_an_error_that_says_nothing_is_none(wire, error):
    assert decoded(wire, answered(choice("a", wire=wire), error=error)).text == "a"
    assert bytewise(wire, framed(part("a", finish="stop", wire=wire) | {"error": error})).text == "a"
    assert TEXT.decode(json.dumps({"generated_text": "a", "error": error}).encode(), PROMPT, CallOptions()).text == "a"


@BOTH
@pytest.mark.parametrize(
    ("raw", "reason"),
    [("STOP", "stop"), ("MAX_TOKENS", "length"), ("COMPLETE", "stop"), ("tool_use", "tool_calls"), ("Odd", "other")],
)
def test_finish_reasons_in_capitals_and_of_other_makers(wire, raw, reason):
    generation = decoded(wire, answered(choice("a", finish=raw, wire=wire))).generations[0][0]

    assert (generation.finish_reason, generation.raw_finish_reason) == (reason, raw)


def test_a_whole_message_in_a_stream():
    chunks = [{"object": "chat.completion", **said({"role": "assistant", "content": "Because"})}]

    assert bytewise(CHAT, framed(*chunks)).text == "Because"


@BOTH
def test_a_byte_order_mark_before_the_answer(wire):
    body = b"\xef\xbb\xbf" + json.dumps(answered(choice("a", wire=wire))).encode()

    assert wire.decode(body, PROMPT, CallOptions()).text == "a"


@BOTH
@pytest.mark.parametrize("figure", ["NaN", "-Infinity", "Infinity"])
def test_what_python_writes_for_no_number(wire, figure):
    logprobs = {"content": [{"token": "a", "logprob": "X", "top_logprobs": []}]}
    body = json.dumps(answered(choice("a", wire=wire, logprobs=logprobs))).replace('"X"', figure).encode()
    event = json.dumps(part("a", finish="stop", wire=wire)).replace('"logprobs": null', '"logprobs": "X"')
    event = event.replace('"X"', json.dumps(logprobs)).replace('"X"', figure)

    for result in (wire.decode(body, PROMPT, CallOptions(logprobs=True)), bytewise(wire, framed(event))):
        assert result.generations[0][0].logprobs == (TokenLogprob("a"),)


@BOTH
def test_half_of_a_surrogate_pair_becomes_a_replacement_character(wire):
    body = json.dumps(answered(choice("XY", wire=wire))).replace("X", r"\ud83d").replace("Y", r"\ud83d\ude00").encode()
    event = json.dumps(part("XY", finish="stop", wire=wire)).replace("X", r"\ud83d").replace("Y", r"\ud83d\ude00")

    assert wire.decode(body, PROMPT, CallOptions()).text == "\ufffd\U0001f600"
    assert bytewise(wire, framed(event)).text == "\ufffd\U0001f600"


@pytest.mark.parametrize("wire", [CHAT, COMPLETIONS, TEXT], ids=["chat", "completions", "text-generation"])
def test_events_of_other_kinds(wire):
    plain = b"event: ping\ndata: 2026-11-22 10:00\n\n"
    end = b'data: {"token":{"text":"a"},"generated_text":"a"}\n\n' if wire is TEXT else framed(part("a", wire=wire))

    assert bytewise(wire, plain + end).generations[0][0] is not None

    _, decoder = streamed(wire, b"event: error\ndata: the engine died\n\n" + end)
    assert isinstance(decoder.error, ServerError)
    assert "the engine died" in str(decoder.error)


def test_tokens_with_nulls():
    events = [
        {"token": {"id": None, "text": None, "logprob": None, "special": None}, "generated_text": None},
        {"token": {"id": 1, "text": "a", "logprob": -1.0, "special": None}, "generated_text": "a", "details": None},
    ]
    decoder = TEXT.stream_decoder(PROMPT, CallOptions(logprobs=True))
    chunks = decoder.receive_data(framed(*events, done=False))

    assert decoder.error is None
    assert joined(chunks).text == "a"


@pytest.mark.parametrize("body", [b"{nonsense", b'{"choices":[{"index":0,"message":{"content":5}}]}'])
def test_a_refusal_to_read_is_said_once(body):
    with pytest.raises(ProtocolError) as caught:
        decoded(CHAT, body)
    assert str(caught.value).count("can't be understood") == 1
