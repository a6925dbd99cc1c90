"""A stream gives what looking at the whole of each event gives, whatever is in it: token by token, and as a sum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._assembly import ResultBuilder
from millstream._config import CallOptions
from millstream._prompts import StringPromptValue
from millstream._results import GenerationChunk
from millstream._wire import DIALECTS

from .test_recordings import STREAMS

PROMPT = StringPromptValue("a prompt")


def read(
    dialect: str, pieces: Sequence[bytes], *, joins: bool, options: CallOptions = CallOptions(), runs: bool = True
) -> Any:
    """All that can be seen of a stream but where its chunks begin and end, and how many there were."""
    decoder = DIALECTS[dialect].stream_decoder(PROMPT, options)
    decoder.joins = joins
    if not runs:
        decoder._runs = None
    builder, states, count = ResultBuilder(), [], 0
    for piece in (*pieces, None):
        chunks: Sequence[GenerationChunk] = decoder.receive_eof() if piece is None else decoder.receive_data(piece)
        count += len(chunks)
        for chunk in chunks:
            builder.add(chunk)
        states.append((decoder.done, type(decoder.error), str(decoder.error), builder.text))
    return (builder.build(), states), count


def check(dialect: str, pieces: Sequence[bytes], **options: Any) -> None:
    wanted = CallOptions(**options)
    expected, tokens = read(dialect, pieces, joins=False, options=wanted, runs=False)
    assert read(dialect, pieces, joins=False, options=wanted) == (expected, tokens)
    assert read(dialect, pieces, joins=True, options=wanted)[0] == expected


def events_of(body: bytes) -> list[bytes]:
    """As a server sends them that has one token at a time."""
    return [event + b"\n\n" for event in body.split(b"\n\n")]


@pytest.mark.parametrize("recording", STREAMS, ids=lambda recording: recording.name)
@pytest.mark.parametrize("size", [1 << 20, 4096, 1000, 333])
def test_recordings(recording, size):
    body = recording.body
    check(recording.dialect, [body[at : at + size] for at in range(0, len(body), size)])
    check(recording.dialect, events_of(body))


def event(dialect: str, text: str, *, ascii_only: bool = True, head: str = "id-1", **more: Any) -> bytes:
    """A token as the servers write it."""
    choice = {"index": 0, "text": text} if dialect == "completions" else {"index": 0, "delta": {"content": text}}
    chunk = {"id": head, "model": "m", "choices": [{**choice, "logprobs": None, "finish_reason": None}], **more}
    if dialect == "text-generation":
        chunk = {"index": 1, "token": {"id": 3, "text": text, "logprob": -1.5, "special": False}, **more}
    return b"data: " + json.dumps(chunk, ensure_ascii=ascii_only, separators=(",", ":")).encode() + b"\n\n"


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_a_run_is_one_chunk(dialect):
    stream = b"".join(event(dialect, text) for text in ["one", ' "two" ', "\n\n", "\\n", "ü", "", *"abcdef"])
    (result, _), count = read(dialect, [stream + b"data: [DONE]\n\n"], joins=True)
    assert result.text == 'one "two" \n\n\\nüabcdef'
    assert count == 2  # the first, and the run


@pytest.mark.parametrize("dialect", ["chat", "completions"])
@pytest.mark.parametrize(
    "bad",
    [
        b'data: {"choices":[{"delta":{"content":"a","b"},"index":0}]}\n\n',
        b"data: [DONE]\n\n",
        b'data: {"error":{"message":"overloaded"}}\n\n',
        b'event: error\ndata: {"message":"overloaded"}\n\n',
        b"data: garbage\n\n",
        b": comment\n\n",
        b"\r\n",
    ],
)
def test_what_is_between_the_tokens(dialect, bad):
    run = b"".join(event(dialect, text) for text in "abcdefgh")
    check(dialect, [run + bad + run + b"data: [DONE]\n\n"])


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_wrong_texts_do_not_make_up_for_each_other(dialect):
    """A quote too few, two too many: no event is JSON then, though as many strings as events may be seen in them."""
    events = [event(dialect, text) for text in "abcdefgh"]
    events[5] = events[5].replace(b'"f"', b'"f","g"')
    check(dialect, [b"".join(events)])
    events[3] = events[3].replace(b'"d"', b'"d\\"')
    events[4] = events[4].replace(b'"e"', b'","')
    events[5] = events[5].replace(b'"f","g"', b'","f"')
    check(dialect, [b"".join(events)])


@pytest.mark.parametrize("dialect", ["chat", "completions"])
@pytest.mark.parametrize(
    "more", [{"usage": {"completion_tokens": 3}}, {"error": {"message": "broken"}}, {"choices": None}, {"error": None}]
)
def test_events_that_are_alike_but_more_than_text(dialect, more):
    check(dialect, [b"".join(event(dialect, text, **more) for text in "abcdefgh")])
    same = [event(dialect, text).replace(b'"logprobs":null', b'"logprobs":{"tokens":["x"]}') for text in "abcdefgh"]
    check(dialect, [b"".join(same)], logprobs=0)
    field = b"text" if dialect == "completions" else b"content"
    other = [event(dialect, "x").replace(b'"id"', b'"%b":"%c","id"' % (field, at)) for at in b"abcdefgh"]
    check(dialect, [b"".join(other)])


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_a_run_behind_an_unfinished_event_is_none(dialect):
    run = b"".join(event(dialect, text) for text in "abcdefgh")
    for unfinished in (b"data: {", b"data: {}\n", b"data"):
        check(dialect, [run, unfinished, run, run])


def test_halves_of_a_character_do_not_join():
    halves = [event("chat", "a"), event("chat", "b"), event("chat", "\ud83d"), event("chat", "\ude00")]
    check("chat", [b"".join([*halves, event("chat", "c"), event("chat", "d")])])


texts = st.text(st.sampled_from(' ab"\\\n\t,:{}[]é\u2028😀') | st.characters(codec="utf-8"), max_size=6)
others = st.sampled_from(
    [
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}\n\n',
        b'data: {"choices":[{"index":1,"delta":{"content":"second"},"text":"second"}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"x"},"text":"x","logprobs":{"content":[{"token":"x"}]}}]}\n\n',
        b'data: {"generated_text":"whole","details":{"finish_reason":"length","generated_tokens":3}}\n\n',
        b'data: {"token":{"text":"</s>","special":true}}\n\n',
        b'data: {"error":"it broke","error_type":"generation"}\n\n',
        b"data: [DONE]\n\n",
        b": ping\n\n",
        b"data:{}\n\n",
        b"data: {\n\n",
        b"id: 7\n\n",
        b"\xff\n",
        b"\r",
        b"\n",
    ]
)


@st.composite
def streams(draw: st.DrawFn, dialect: str) -> bytes:
    events: list[bytes] = []
    for _ in range(draw(st.integers(1, 5))):
        head, ascii_only = draw(st.sampled_from(["id-1", "id-2"])), draw(st.booleans())
        events += [event(dialect, text, ascii_only=ascii_only, head=head) for text in draw(st.lists(texts, max_size=8))]
        events += draw(st.lists(others, max_size=1))
    return b"".join(events)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_stream(dialect, data):
    body = bytearray(data.draw(streams(dialect)))
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, 4000), st.sampled_from(b'"\\x{\n,\xff')), max_size=2)):
        if at < len(body):
            body[at] = byte
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=4)))
    pieces = [bytes(body[start:end]) for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    stop = data.draw(st.sampled_from([None, ["a"], ['ab"', "b\n"]]))
    check(dialect, pieces, stop=stop)
    check(dialect, events_of(bytes(body)), stop=stop)
