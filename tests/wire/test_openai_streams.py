"""Streams of the two OpenAI-compatible dialects."""

import contextlib
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._assembly import ResultBuilder, chunks_of
from millstream._config import CallOptions
from millstream._errors import (
    GenerationError,
    MillstreamError,
    ProtocolError,
    StatusError,
    TruncatedStreamError,
)
from millstream._prompts import StringPromptValue
from millstream._results import GenerationChunk, ToolCall, Usage
from millstream._wire import DIALECTS

from .test_openai import CHAT_LOGPROBS, answered, choice, decoded

CHAT = DIALECTS["chat"]
COMPLETIONS = DIALECTS["completions"]
BOTH = pytest.mark.parametrize("wire", [CHAT, COMPLETIONS], ids=["chat", "completions"])
PROMPT = StringPromptValue("Why?")


def part(text=None, *, index=0, finish=None, wire=CHAT, usage=None, **delta):
    if text is not None:
        delta["content"] = text
    said = {"delta": delta} if wire is CHAT else {"text": text or ""}
    chunk = {"choices": [{"index": index, "finish_reason": finish, "logprobs": None} | said], "id": "x", "model": "m"}
    return chunk if usage is None else chunk | {"usage": usage}


def framed(*values, done=True):
    said = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return "".join(f"data: {value}\n\n" for value in [*said, *(["[DONE]"] if done else [])]).encode()


def streamed(wire, *pieces, **options):
    decoder = wire.stream_decoder(PROMPT, CallOptions(**options))
    chunks = [chunk for piece in pieces for chunk in decoder.receive_data(piece)]
    return chunks + decoder.receive_eof(), decoder


def joined(chunks):
    builder = ResultBuilder()
    for chunk in chunks:
        builder.add(chunk)
    return builder.build()


INFO = {"id": "x", "model": "m"}


@BOTH
def test_a_stream(wire):
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    body = framed(
        *([part(role="assistant"), part("", role="assistant")] if wire is CHAT else []),
        part("a", wire=wire),
        part("b", wire=wire),
        part(finish="length", wire=wire),
        usage,
    )

    chunks, decoder = streamed(wire, body)

    assert chunks == [
        GenerationChunk("a", generation_info=INFO),
        GenerationChunk("b"),
        GenerationChunk(finish_reason="length", raw_finish_reason="length"),
        GenerationChunk(usage=Usage(1, 2)),
    ]
    assert decoder.done
    assert decoder.error is None
    whole = answered(
        choice("ab", finish="length", wire=wire), usage={"prompt_tokens": 1, "completion_tokens": 2}, id="x", model="m"
    )
    assert joined(chunks) == decoded(wire, whole)


@BOTH
def test_several_outputs_interleaved(wire):
    body = framed(
        "null",
        part("b", index=1, wire=wire),
        part("a", wire=wire),
        part("B", index=1, wire=wire),
        part("A", finish="stop", wire=wire),
        part(finish="length", index=1, wire=wire),
    )

    chunks, _ = streamed(wire, body, n=2)

    row = joined(chunks).generations[0]
    assert [(g.text, g.finish_reason) for g in row] == [("aA", "stop"), ("bB", "length")]


@BOTH
def test_usage_on_every_chunk_is_taken_last(wire):
    told = [{"prompt_tokens": 1, "completion_tokens": count} for count in range(4)]
    body = framed(
        *(part(text, wire=wire, usage=usage) for text, usage in zip(("", "a", "b"), told, strict=False)),
        part(finish="stop", wire=wire, usage=told[3]),
    )

    chunks, _ = streamed(wire, body)

    assert [chunk.text for chunk in chunks] == ["a", "b", ""]
    assert joined(chunks).usage == Usage(1, 3)


@BOTH
@pytest.mark.parametrize(
    ("end", "complete"),
    [
        ([], False),
        (["[DONE]"], True),
        (["finish"], True),
        (["finish", "[DONE]"], True),
        (["other finish"], False),
    ],
)
def test_when_a_stream_is_complete(wire, end, complete):
    ends = {"finish": part(finish="stop", wire=wire), "other finish": part(finish="stop", index=1, wire=wire)}
    body = framed(part("a", wire=wire), *(ends.get(word, word) for word in end), done=False)

    chunks, decoder = streamed(wire, body)

    assert chunks[0].text == "a"
    assert (decoder.error is None) == complete
    assert decoder.done == complete
    if not complete:
        assert isinstance(decoder.error, TruncatedStreamError)


def test_an_output_that_never_came_is_missed():
    _, decoder = streamed(CHAT, framed(part("a", finish="stop"), done=False), n=2)

    assert isinstance(decoder.error, TruncatedStreamError)


@BOTH
def test_a_last_event_without_line_ends(wire):
    body = framed(part("a", wire=wire), part("b", finish="stop", wire=wire), done=False)

    chunks, decoder = streamed(wire, body.rstrip())
    assert "".join(chunk.text for chunk in chunks) == "ab"
    assert decoder.error is None
    chunks, decoder = streamed(wire, body.rstrip()[:-1])
    assert "".join(chunk.text for chunk in chunks) == "a"
    assert isinstance(decoder.error, TruncatedStreamError)


def test_two_documents_in_one_event():
    lines = [json.dumps(part("a")), json.dumps(part("b", finish="length"))]
    body = f"data:{lines[0]}\ndata:{lines[1]} "

    for form in (body, body + "\n\n"):
        chunks, decoder = streamed(CHAT, form.encode())
        assert "".join(chunk.text for chunk in chunks) == "ab"
        assert decoder.error is None
    chunks, decoder = streamed(CHAT, body[:-5].encode())
    assert "".join(chunk.text for chunk in chunks) == "a"
    assert isinstance(decoder.error, TruncatedStreamError)


@pytest.mark.parametrize(("token", "text"), [("</s>", "a"), ("<|eot_id|>", "a"), ("", "a"), (" < 2", "a < 2")])
def test_an_end_token_is_no_text(token, text):
    chunks, _ = streamed(CHAT, framed(part("a"), part(token, finish="eos_token"), done=False))

    assert "".join(chunk.text for chunk in chunks) == text


@BOTH
def test_empty_words_for_not_yet(wire):
    chunks, _ = streamed(wire, framed(part("a", finish="", wire=wire), part("b", finish="eos_token", wire=wire)))

    assert [chunk.finish_reason for chunk in chunks] == [None, "stop"]


def test_reasoning():
    body = framed(part(reasoning_content="H"), part(reasoning="m"), part("a", finish="stop"))

    chunks, _ = streamed(CHAT, body)

    assert [(chunk.text, chunk.reasoning) for chunk in chunks] == [("", "H"), ("", "m"), ("a", None)]


def call(arguments, *, index=0, id=None, name=None):  # noqa: A002
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([[call("", id="a", name="f")], [call("{")], [call("}")]], (ToolCall("f", "{}", "a"),)),
        ([[call("{", id="0", name="f")], [call("}", id="0")]], (ToolCall("f", "{}", "0"),)),
        (
            [[call("1", id="a", name="f")], [call("3", index=1, id="b", name="g")], [call("2"), call("4", index=1)]],
            (ToolCall("f", "12", "a"), ToolCall("g", "34", "b")),
        ),
        (
            [[call("1", id="a", name="f")], [call("2", id="b", name="g")]],
            (ToolCall("f", "1", "a"), ToolCall("g", "2", "b")),
        ),
        ([call({"x": 1}, id=0, name="f")], (ToolCall("f", '{"x":1}', "0"),)),
    ],
)
def test_tool_call_deltas(deltas, expected):
    body = framed(*(part(tool_calls=delta) for delta in deltas), part("", finish="stop"))

    chunks, _ = streamed(CHAT, body)

    generation = joined(chunks).generations[0][0]
    assert generation.tool_calls == expected
    assert generation.finish_reason == "tool_calls"


@BOTH
def test_logprobs_in_a_stream(wire):
    first = part("a", wire=wire)
    first["choices"][0]["logprobs"] = {"content": CHAT_LOGPROBS["content"][:1]}
    second = part("", wire=wire, finish="stop")
    second["choices"][0]["logprobs"] = {"content": CHAT_LOGPROBS["content"][1:]}

    chunks, _ = streamed(wire, framed(first, second), logprobs=1)

    assert [token.token for token in joined(chunks).generations[0][0].logprobs] == ["a", "c"]


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "Request failed during generation: x", "http_status_code": 422}},
        {"error": "Request failed during generation: x", "error_type": "generation"},
    ],
)
def test_an_error_inside_a_stream_comes_after_what_was_before_it(wire, error):
    chunks, decoder = streamed(wire, framed(part("a#", wire=wire), error), stop=["##"])

    assert "".join(chunk.text for chunk in chunks) == "a#"
    assert isinstance(decoder.error, GenerationError)


@BOTH
@pytest.mark.parametrize("data", ['{"message":"boom"}', '"boom"', "5", '{"error":{"message":"boom"}}'])
def test_an_event_that_is_called_error(wire, data):
    _, decoder = streamed(wire, framed(part("a", wire=wire), done=False) + f"event: error\ndata: {data}\n\n".encode())

    assert isinstance(decoder.error, StatusError)


@BOTH
def test_events_that_say_nothing(wire):
    body = framed(
        "null", "5", '"x"', "[]", "{}", '{"choices":[]}', '{"object":"ping"}', part("a", finish="stop", wire=wire)
    )

    chunks, decoder = streamed(wire, b": ping\n\ndata:\n\n" + body)

    assert [chunk.text for chunk in chunks] == ["a"]
    assert decoder.error is None


@BOTH
@pytest.mark.parametrize("data", ["{nonsense", '{"choices":5}', '{"choices":[{"index":"0"}]}', "[" * 100_000])
def test_events_that_are_wrong(wire, data):
    chunks, decoder = streamed(wire, framed(part("a", wire=wire), data, part("b", wire=wire)))

    assert [chunk.text for chunk in chunks] == ["a"]
    assert type(decoder.error) is ProtocolError


@BOTH
def test_stop_texts(wire):
    body = framed(
        part("a", wire=wire),
        part("b#", wire=wire),
        part("#c", wire=wire),
        part("d", wire=wire),
        part(finish="length", wire=wire),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    )

    chunks, decoder = streamed(wire, body, stop=["##"])

    assert "".join(chunk.text for chunk in chunks) == "ab"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert joined(chunks).usage == Usage(1, 2)
    assert decoder.error is None


@BOTH
def test_a_stream_is_done_when_every_output_has_stopped(wire):
    decoder = wire.stream_decoder(PROMPT, CallOptions(stop=["#"], n=2))

    decoder.receive_data(framed(part("a#", wire=wire), done=False))
    assert not decoder.done
    decoder.receive_data(framed(part("b", index=1, wire=wire), part("#", index=1, wire=wire), done=False))
    assert decoder.done
    assert decoder.receive_eof() == []
    assert decoder.error is None


@BOTH
def test_usage_is_waited_for_where_the_server_ends_at_the_stop_text_and_leaves_it_in(wire):
    decoder = wire.stream_decoder(PROMPT, CallOptions(stop=["#"]))

    chunks = decoder.receive_data(framed(part("a#", wire=wire, finish="stop_sequence"), done=False))
    assert not decoder.done
    chunks += decoder.receive_data(framed({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}))
    assert decoder.done
    assert joined(chunks).generations[0][0].raw_finish_reason == "stop_sequence"
    assert joined(chunks).text == "a"
    assert joined(chunks).usage == Usage(1, 2)


@BOTH
def test_an_unfinished_stop_text_is_text(wire):
    chunks, _ = streamed(wire, framed(part("a#", wire=wire), part(finish="length", wire=wire)), stop=["##"])

    assert [chunk.text for chunk in chunks] == ["a", "#"]
    assert chunks[-1].finish_reason == "length"


def test_after_the_end_mark_nothing_counts():
    chunks, decoder = streamed(CHAT, framed(part("a", finish="stop")) + framed(part("b")), framed(part("c")))

    assert [chunk.text for chunk in chunks] == ["a"]
    assert decoder.error is None


def test_a_stream_without_end_is_refused():
    decoder = CHAT.stream_decoder(PROMPT, CallOptions())
    comments = (b":" + b"x" * 1022 + b"\n") * 16 * 1024
    for _ in range(16):
        decoder.receive_data(comments)
    assert decoder.error is None
    decoder.receive_data(b":")
    assert isinstance(decoder.error, ProtocolError)


# -- anything at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "index",
                    "delta",
                    "message",
                    "text",
                    "content",
                    "finish_reason",
                    "usage",
                    "error",
                    "logprobs",
                    "tool_calls",
                    "function",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)
choice_values = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"index": st.integers(0, 2), "delta": json_values, "text": json_values})
        )
    }
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(value=json_values | choice_values, cut=st.integers(0, 30))
def test_any_json_is_a_result_or_an_error_of_ours(value, cut):
    body = json.dumps(value).encode()
    for wire in (CHAT, COMPLETIONS):
        for data in (body, body[:cut]):
            with contextlib.suppress(MillstreamError):
                decoded(wire, data, stop=["a"])
            for kind in (b"", b"event: error\n"):
                _, decoder = streamed(
                    wire, framed(part("x", wire=wire), done=False) + kind + b"data: " + data + b"\n\n"
                )
                assert decoder.done or decoder.error is not None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 600), max_size=6))
def test_results_do_not_depend_on_how_the_bytes_are_cut(data, cuts):
    body = framed(part("a#"), part("é\u2028"), done=False) + data + framed(part("#b"), part("c", finish="stop"))
    at = [0, *sorted(cuts), len(body)]
    pieces = [body[begin:end] for begin, end in pairwise(at)]
    for options in ({}, {"stop": ["##"]}):
        whole, one = streamed(CHAT, body, **options)
        cut, two = streamed(CHAT, *pieces, **options)

        assert joined(cut) == joined(whole)
        assert type(one.error) is type(two.error)


@BOTH
def test_a_whole_answer_as_chunks(wire):
    value = answered(choice("b", index=1, wire=wire), choice("a", wire=wire), usage={"prompt_tokens": 1}, id="x")
    result = decoded(wire, value)

    assert joined(chunks_of(result)) == result
