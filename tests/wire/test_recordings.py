"""Every recorded answer decodes to what plain JSON reading says is in it, however its bytes are cut."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from millstream._assembly import ResultBuilder, chunks_of
from millstream._config import CallOptions
from millstream._errors import MillstreamError, StatusError, TruncatedStreamError
from millstream._prompts import StringPromptValue
from millstream._results import GenerationChunk, LLMResult
from millstream._wire import DIALECTS

DATA = Path(__file__).parent.parent / "data"


class Recording(NamedTuple):
    name: str
    dialect: str
    stream: bool
    body: bytes
    prompt: str = ""


def _of_cassettes() -> list[Recording]:
    found: list[Recording] = []
    for file in ("hf_hub_cassettes.json", "hf_js_tapes.json"):
        for entry in json.loads((DATA / file).read_bytes()):
            kind, response = entry["kind"], entry["response"]
            if response["status"] != 200 or kind.startswith("error"):
                continue
            dialect, shape = kind.split(" ")
            sent = json.loads(entry["request"].get("body") or "{}")
            prompt = sent.get("inputs") or sent.get("prompt") or ""
            if not isinstance(prompt, str):  # messages to a conversational pipeline
                prompt = ""
            found.append(Recording(entry["id"], dialect, shape == "stream", response["body"].encode(), prompt))
    return found


def _of_snapshots() -> list[Recording]:
    found: list[Recording] = []
    for name, value in json.loads((DATA / "tgi_snapshots.json").read_bytes()).items():
        short = name.rpartition("/")[2].removesuffix(".json")
        if isinstance(value, dict):
            first = value["choices"][0] if "choices" in value else {}
            if "delta" in first:
                found.append(Recording(short, "chat", True, _framed([value])))
                continue
            dialect = "chat" if "message" in first else "completions" if first else "text-generation"
            found.append(Recording(short, dialect, False, json.dumps(value).encode()))
        elif value and "generated_text" in value[0]:
            found += [
                Recording(f"{short}-{number}", "text-generation", False, json.dumps(item).encode())
                for number, item in enumerate(value)
            ]
        elif value:
            dialect = "chat" if "delta" in value[0]["choices"][0] else "completions"
            found.append(Recording(short, dialect, True, _framed(value)))
    return found


def _framed(chunks: list[Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def _of_llamacpp() -> list[Recording]:
    found: list[Recording] = []
    for path in sorted((DATA / "llamacpp").iterdir()):
        dialect = "completions" if path.name.startswith("completions") else "chat"
        if path.suffix == ".sse":
            found.append(Recording(path.name, dialect, True, path.read_bytes()))
            continue
        head, _, body = path.read_bytes().partition(b"\r\n\r\n")
        if b" 200 " in head.split(b"\r\n")[0] and b'"choices"' in body and b"event-stream" not in head:
            found.append(Recording(path.name, dialect, False, body))
    return found


RECORDINGS = _of_cassettes() + _of_snapshots() + _of_llamacpp()
STREAMS = [pytest.param(r, id=r.name) for r in RECORDINGS if r.stream]
WHOLES = [pytest.param(r, id=r.name) for r in RECORDINGS if not r.stream]
SMALL = [pytest.param(r, id=r.name) for r in RECORDINGS if r.stream and len(r.body) < 9_000]


def test_there_are_recordings_of_each_kind():
    kinds = {(r.dialect, r.stream) for r in RECORDINGS}

    assert kinds == {(dialect, stream) for dialect in DIALECTS for stream in (False, True)}
    assert len(STREAMS) > 50
    assert len(WHOLES) > 60


# The recorder wrote a quotation mark after the last event, which therefore is no JSON.
DAMAGED = {"hfjs-083": "This is a test."}


# -- what is expected, by plain reading of the JSON


class Expected(NamedTuple):
    texts: dict[int, str]
    reasoning: dict[int, str]
    arguments: dict[int, list[str]]
    usage: tuple[int, int] | None
    finished: set[int]
    error: bool = False


def _payloads(body: bytes) -> list[Any]:
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    return [json.loads(item) for item in data if item not in {b"[DONE]", b""}]


@cache
def expected_of_stream(recording: Recording) -> Expected:
    if recording.name in DAMAGED:
        return Expected({}, {}, {}, None, set())
    texts: dict[int, str] = {}
    reasoning: dict[int, str] = {}
    calls: dict[tuple[int, int], str] = {}
    usage = None
    finished: set[int] = set()
    for payload in _payloads(recording.body):
        if payload is None:
            continue
        if "error" in payload:
            return Expected(texts, reasoning, {}, None, set(), error=True)
        if recording.dialect == "text-generation":
            token = payload["token"]
            texts[0] = texts.get(0, "") + ("" if token["special"] else token["text"])
            if payload.get("details"):
                details = payload["details"]
                finished.add(0)
                usage = (details.get("input_length"), details["generated_tokens"])
        for choice in payload.get("choices", ()):
            index, delta = choice["index"], choice.get("delta") or {}
            text = choice.get("text") if recording.dialect == "completions" else delta.get("content")
            if choice.get("finish_reason"):
                finished.add(index)
            if choice.get("finish_reason") == "eos_token" and text == "</s>":
                text = ""
            texts[index] = texts.get(index, "") + (text or "")
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                reasoning[index] = reasoning.get(index, "") + thought
            for call in delta.get("tool_calls") or ():
                key = (index, call["index"])
                calls[key] = calls.get(key, "") + (call["function"]["arguments"] or "")
        if payload.get("usage"):
            usage = (payload["usage"]["prompt_tokens"], payload["usage"]["completion_tokens"])
    arguments: dict[int, list[str]] = {}
    for (index, _), joined in sorted(calls.items()):
        arguments.setdefault(index, []).append(joined)
    return Expected(texts, reasoning, arguments, usage, finished)


# -- streams


def decode_stream(recording: Recording, cuts: list[bytes]) -> tuple[list[GenerationChunk], MillstreamError | None]:
    decoder = DIALECTS[recording.dialect].stream_decoder(StringPromptValue(recording.prompt), CallOptions())
    chunks = [chunk for cut in cuts for chunk in decoder.receive_data(cut)]
    chunks += decoder.receive_eof()
    return chunks, decoder.error


def check_stream(recording: Recording, cuts: list[bytes]) -> None:
    expected = expected_of_stream(recording)
    chunks, error = decode_stream(recording, cuts)
    if expected.error:
        assert isinstance(error, StatusError)
        return
    if recording.name in DAMAGED:
        assert isinstance(error, TruncatedStreamError)
        assert "".join(chunk.text for chunk in chunks) == DAMAGED[recording.name]
        return
    assert error is None
    builder = ResultBuilder()
    for chunk in chunks:
        builder.add(chunk)
    result = builder.build()
    row = result.generations[0]
    assert [g.text for g in row] == [expected.texts[index] for index in sorted(expected.texts)]
    assert {i: g.reasoning for i, g in enumerate(row) if g.reasoning} == expected.reasoning
    assert {i: [c.arguments for c in g.tool_calls] for i, g in enumerate(row) if g.tool_calls} == expected.arguments
    usage = result.usage and (result.usage.input_tokens, result.usage.output_tokens)
    assert usage == expected.usage
    assert {i for i, g in enumerate(row) if g.finish_reason is not None} == expected.finished
    assert "</s>" not in result.text
    assert "<|eot_id|>" not in result.text


@pytest.mark.parametrize("recording", STREAMS)
def test_a_stream_as_one_piece(recording):
    check_stream(recording, [recording.body])


@pytest.mark.parametrize("recording", STREAMS)
def test_a_stream_cut_before_and_after_line_ends(recording):
    check_stream(recording, recording.body.splitlines(keepends=True))
    check_stream(recording, [b"\n" + part if n else part for n, part in enumerate(recording.body.split(b"\n"))])


@pytest.mark.parametrize("recording", SMALL)
def test_a_small_stream_byte_by_byte(recording):
    check_stream(recording, [recording.body[at : at + 1] for at in range(len(recording.body))])


@pytest.mark.parametrize("recording", STREAMS)
def test_a_stream_that_lost_its_last_line_ends(recording):
    check_stream(recording, [recording.body.rstrip(b"\r\n")])


# -- whole answers


@pytest.mark.parametrize("recording", WHOLES)
def test_a_whole_answer(recording):
    value = json.loads(recording.body)
    result = DIALECTS[recording.dialect].decode(recording.body, StringPromptValue(recording.prompt), CallOptions())
    row = result.generations[0]
    if recording.dialect == "text-generation":
        item = value[0] if isinstance(value, list) else value
        text = item["generated_text"].removeprefix(recording.prompt)
        assert [g.text for g in row] == [text]
        raw = item["details"]["finish_reason"] if "details" in item else None
        assert row[0].raw_finish_reason == raw
    else:
        choices = sorted(value["choices"], key=lambda choice: choice["index"])
        texts = [c["text"] if recording.dialect == "completions" else c["message"].get("content") for c in choices]
        assert [g.text for g in row] == [text or "" for text in texts]
        assert [g.raw_finish_reason for g in row] == [c["finish_reason"] for c in choices]
        assert all(g.finish_reason in {"stop", "length", "tool_calls"} for g in row)
        asked = [len(c.get("message", {}).get("tool_calls") or ()) for c in choices]
        assert [len(g.tool_calls) for g in row] == asked
        assert [g.finish_reason == "tool_calls" for g in row] == [count > 0 for count in asked]
        assert result.usage is not None
        assert result.usage.input_tokens == value["usage"]["prompt_tokens"]
        assert result.usage.output_tokens == value["usage"]["completion_tokens"]


@pytest.mark.parametrize("recording", WHOLES)
def test_a_whole_answer_as_chunks_is_the_same(recording):
    result: LLMResult = DIALECTS[recording.dialect].decode(
        recording.body, StringPromptValue(recording.prompt), CallOptions(logprobs=2)
    )
    builder = ResultBuilder()
    for chunk in chunks_of(result):
        builder.add(chunk)

    assert builder.build() == result
