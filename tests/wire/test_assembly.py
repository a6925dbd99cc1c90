"""Chunks to results and back."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._assembly import ResultBuilder, chunks_of, parse_response
from millstream._config import CallOptions
from millstream._errors import ProtocolError
from millstream._results import (
    Generation,
    GenerationChunk,
    LLMResult,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
    token_usage,
)


class City(msgspec.Struct):
    name: str


AS_CITY = CallOptions(response_format=City)


def built(*chunks):
    builder = ResultBuilder()
    for chunk in chunks:
        builder.add(chunk)
    return builder.build()


def test_nothing():
    builder = ResultBuilder()

    assert not builder
    assert builder.text == ""
    assert builder.build() == LLMResult(((Generation(""),),))


@pytest.mark.parametrize("chunk", [GenerationChunk(), GenerationChunk("a"), GenerationChunk(usage=Usage(1, 2))])
def test_anything_has_arrived(chunk):
    builder = ResultBuilder()
    builder.add(chunk)

    assert builder
    builder.build()
    assert builder


def test_the_text_so_far_at_any_time():
    builder = ResultBuilder()

    for so_far, chunk in [("a", GenerationChunk("a")), ("a", GenerationChunk("x", 1)), ("ab", GenerationChunk("b"))]:
        builder.add(chunk)
        assert builder.text == so_far
        assert builder.text == so_far
    assert [g.text for g in builder.build().generations[0]] == ["ab", "x"]


def test_outputs_are_sorted():
    assert [g.text for g in built(GenerationChunk("c", 5), GenerationChunk("b", 2)).generations[0]] == ["b", "c"]


def test_all_fields():
    result = built(
        GenerationChunk(reasoning="H", generation_info={"id": "x"}),
        GenerationChunk(reasoning="m", usage=Usage(1, 1)),
        GenerationChunk("a", logprobs=(TokenLogprob("a", -1.0),), usage=Usage(1, 2)),
        GenerationChunk("b", 0, "length", "length", logprobs=(TokenLogprob("b", -2.0),), generation_info={"seed": 7}),
        GenerationChunk(usage=Usage(1, 3)),
    )

    assert result == LLMResult(
        (
            (
                Generation(
                    "ab",
                    {"id": "x", "seed": 7},
                    "length",
                    "length",
                    "Hm",
                    logprobs=(TokenLogprob("a", -1.0), TokenLogprob("b", -2.0)),
                ),
            ),
        ),
        {"tokenUsage": {"promptTokens": 1, "completionTokens": 3, "totalTokens": 4}},
        Usage(1, 3),
    )


def test_tool_calls():
    result = built(
        GenerationChunk(tool_calls=(ToolCallDelta(1, "{", "g", "b"), ToolCallDelta(0, "", "f", "a"))),
        GenerationChunk(tool_calls=(ToolCallDelta(0, "[]", None, "a"),)),
        GenerationChunk(tool_calls=(ToolCallDelta(1, "}"),)),
    )

    assert set(result.generations[0][0].tool_calls) == {ToolCall("f", "[]", "a"), ToolCall("g", "{}", "b")}


def test_results_do_not_change_when_more_arrives():
    builder = ResultBuilder()
    builder.add(GenerationChunk("a", generation_info={"id": "x"}))
    first = builder.build()
    builder.add(GenerationChunk("b", generation_info={"seed": 1}))

    assert first.text == "a"
    assert first.generations[0][0].generation_info == {"id": "x"}
    assert builder.build().text == "ab"


generations = st.builds(
    Generation,
    text=st.text(max_size=5),
    generation_info=st.none() | st.just({"id": "x"}),
    finish_reason=st.sampled_from(["stop", "length", None]),
    raw_finish_reason=st.sampled_from(["eos", None]),
    reasoning=st.none() | st.just("Hm"),
    tool_calls=st.just(()) | st.just((ToolCall("f", "{}", "a"), ToolCall("f", "{}", None))),
    logprobs=st.none() | st.just((TokenLogprob("a", -1.0),)),
)
usages = st.none() | st.just(Usage(1, 2))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(row=st.lists(generations, min_size=1, max_size=3), usage=usages)
def test_a_result_as_chunks_and_back(row, usage):
    result = LLMResult((tuple(row),), token_usage(usage), usage)

    assert built(*chunks_of(result)) == result


def test_chunks_of_nothing():
    assert chunks_of(LLMResult(())) == []
    assert chunks_of(LLMResult((), usage=Usage(1))) == [GenerationChunk(usage=Usage(1))]


@pytest.mark.parametrize("options", [CallOptions(), CallOptions(response_format={"type": "object"})])
def test_without_a_type_there_is_nothing_to_parse(options):
    result = LLMResult.of("{}")

    assert parse_response(result, options) is result


def test_a_type_is_parsed():
    builder = ResultBuilder()
    builder.add(GenerationChunk('{"name":', 0))
    builder.add(GenerationChunk(' "Rome"}', 0, "stop"))

    assert builder.build(AS_CITY).generations[0][0].parsed == City("Rome")
    assert builder.build().generations[0][0].parsed is None
    assert parse_response(LLMResult.of('\n {"name": "Rome"}\n'), AS_CITY).generations[0][0].parsed == City("Rome")


@pytest.mark.parametrize("text", ["", "Rome", '{"name": 5}', '{"nam'])
def test_what_is_complete_and_does_not_fit_is_an_error(text):
    for reason in ("stop", None):
        with pytest.raises(ProtocolError, match="City") as caught:
            parse_response(LLMResult.of(text, finish_reason=reason), AS_CITY)
        assert caught.value.body == text


@pytest.mark.parametrize("reason", ["length", "content_filter", "error", "tool_calls"])
def test_what_was_cut_off_is_kept(reason):
    result = parse_response(LLMResult.of('{"nam', finish_reason=reason), AS_CITY)

    assert (result.text, result.generations[0][0].parsed) == ('{"nam', None)
    whole = parse_response(LLMResult.of('{"name":"Rome"}', finish_reason=reason), AS_CITY)
    assert whole.generations[0][0].parsed == City("Rome")
