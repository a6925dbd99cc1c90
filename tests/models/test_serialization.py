"""Models and results as data, and back."""

from __future__ import annotations

import json
import pickle

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import (
    LLM,
    BaseLanguageModel,
    BaseLLM,
    DeserializationError,
    Generation,
    HuggingFaceInference,
    LLMResult,
    TokenLogprob,
    ToolCall,
    UntrustedEndpointError,
    Usage,
)


class City(msgspec.Struct):
    name: str


FULL = {
    "model": "org/m",
    "provider": "groq",
    "api": "chat",
    "bill_to": "acme",
    "stop_sequences": ["\n", "###"],
    "temperature": 0.0,
    "max_tokens": 5,
    "top_p": 0.9,
    "top_k": 40,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "repetition_penalty": 1.1,
    "seed": 2**64 - 1,
    "n": 2,
    "logprobs": 3,
    "response_format": {"type": "object", "properties": {"a": {"type": "string"}}},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "extra_body": {"min_p": 0.1},
}


def test_the_round_trip_is_exact():
    model = HuggingFaceInference(**FULL)
    data = model.serialize()
    assert data == {"_type": "huggingface_hub", "_model": "base_llm", **FULL}
    again = BaseLanguageModel.deserialize(json.dumps(data))
    assert isinstance(again, HuggingFaceInference)
    assert again.serialize() == data
    assert again.options == model.options
    assert repr(again) == repr(model)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 2),
            "max_tokens": st.integers(1, 10**6),
            "seed": st.integers(0, 2**64 - 1),
            "stop_sequences": st.lists(st.text(min_size=1), min_size=1, unique=True),
            "top_k": st.integers(-1, 100),
        },
    )
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_round_trip_is_exact(options):
    data = HuggingFaceInference(**options).serialize()
    again = BaseLLM.deserialize(json.dumps(data))
    assert again.serialize() == data == {"_type": "huggingface_hub", "_model": "base_llm", **options}


@pytest.mark.parametrize("data", [
    {"_type": "huggingface_hub", "_model": "base_llm"},
    {"_type": "hf", "_model": "base_llm"},
    {"_type": "huggingface_hub"},
    '{"_type":"huggingface_hub","_model":"base_llm"}',
    b'{"_type":"hf"}',
])  # fmt: skip
def test_what_langchain_js_wrote_is_read(data):
    model = BaseLanguageModel.deserialize(data)
    assert isinstance(model, HuggingFaceInference)
    assert model.model == "gpt2"
    assert model.serialize() == {"_type": "huggingface_hub", "_model": "base_llm"}


def test_names_of_langchain_js_are_known():
    data = {"_type": "hf", "maxTokens": 5, "topP": 0.5, "topK": 3, "frequencyPenalty": 1.0}
    model = HuggingFaceInference.deserialize(data)
    assert (model.max_tokens, model.top_p, model.top_k, model.frequency_penalty) == (5, 0.5, 3, 1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"_type": "openai"}, "Cannot load LLM with type openai"),
        ({"_type": "openai", "_model": "base_llm"}, "Cannot load LLM with type openai"),
        ({"_type": "hf", "_model": "base_chat_model"}, "Cannot load LLM with model base_chat_model"),
        ({}, "Cannot load LLM with type None"),
        ({"_type": ["hf"]}, "Cannot load LLM with type"),
        ({"_type": "hf", "lc": 1}, "no field 'lc'"),
        ({"_type": "hf", "api_key": "x"}, "no field 'api_key'"),
        ({"_type": "hf", "transport": "x"}, "no field 'transport'"),
        ({"_type": "hf", "temperature": -1}, "temperature must be"),
        ({"_type": "hf", "model": {"lc": 1}}, "model is text"),
        ("not json", "JSON object"),
        ("[1]", "JSON object"),
        (b"\xff", "JSON object"),
        ("[" * 100_000, "JSON object"),
        (5, "a mapping or its JSON"),
    ],
)
def test_anything_else_is_refused(data, message):
    with pytest.raises(DeserializationError, match=message):
        BaseLanguageModel.deserialize(data)


def test_an_endpoint_is_followed_only_where_it_is_allowed():
    data = HuggingFaceInference(endpoint_url="https://llm.example.com/v1").serialize()
    with pytest.raises(UntrustedEndpointError, match=r"llm\.example\.com.*allowed_hosts="):
        BaseLanguageModel.deserialize(data)
    model = BaseLanguageModel.deserialize(data, allowed_hosts=["LLM.example.com"])
    assert model.serialize() == data


def test_the_embedded_endpoint_is_allowed():
    assert HuggingFaceInference.deserialize({"_type": "hf", "endpoint_url": "local"}).endpoint_url == "local"


def test_a_struct_type_is_written_as_its_schema():
    schema = HuggingFaceInference(response_format=City).serialize()["response_format"]
    assert schema == json.loads(json.dumps(msgspec.json.schema(City)))


def test_a_model_of_ones_own_serializes():
    class Parrot(LLM):
        async def _call(self, prompt, options, run):
            return prompt

    assert Parrot().serialize() == {"_type": "Parrot", "_model": "base_llm"}


def test_a_model_is_pickled_without_what_it_holds():
    model = HuggingFaceInference("org/m", temperature=0.5, api_key="hf_secret", headers={"X": "y"}, callbacks=[])
    again = pickle.loads(pickle.dumps(model))
    assert again.serialize() == model.serialize()
    assert b"hf_secret" not in pickle.dumps(model)


TEXTS = st.text(max_size=20)
GENERATIONS = st.builds(
    Generation,
    text=TEXTS,
    generation_info=st.none()
    | st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS),
    finish_reason=st.none() | st.sampled_from(["stop", "length", "tool_calls"]),
    raw_finish_reason=st.none() | TEXTS,
    reasoning=st.none() | TEXTS,
    tool_calls=st.lists(st.builds(ToolCall, name=TEXTS, arguments=TEXTS), max_size=2).map(tuple),
    logprobs=st.none() | st.lists(st.builds(TokenLogprob, token=TEXTS), max_size=2).map(tuple),
)
RESULTS = st.builds(
    LLMResult,
    generations=st.lists(st.lists(GENERATIONS, max_size=2).map(tuple), max_size=2).map(tuple),
    usage=st.none() | st.builds(Usage, input_tokens=st.none() | st.integers(0, 10**9), output_tokens=st.integers(0, 9)),
)


@given(RESULTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_results_survive_both_encodings(result):
    assert LLMResult.from_json(result.to_json()) == result
    assert LLMResult.from_msgpack(result.to_msgpack()) == result


def test_results_travel_between_the_languages():
    written = {"generations": [[{"text": "hi", "generationInfo": {"seed": 1}}]],
               "llmOutput": {"tokenUsage": {"totalTokens": 3}}}  # fmt: skip
    result = LLMResult.from_json(json.dumps({**written, "run": {"runId": "x"}}))
    assert result.texts == ["hi"]
    assert json.loads(result.to_json()) == written


@pytest.mark.parametrize("before", [0, 1], ids=["an only output", "the second of two"])
def test_what_was_parsed_is_not_written(before: int):
    outputs = [Generation("cut off")] * before
    result = LLMResult(((*outputs, Generation('{"name": "Paris"}', parsed=City("Paris"))),))
    assert "parsed" not in result.to_json().decode()
    assert LLMResult.from_msgpack(result.to_msgpack()).text == result.text


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"generations": 1}', b"\xff"])
def test_what_is_no_result(data):
    with pytest.raises(DeserializationError):
        LLMResult.from_json(data)
    with pytest.raises(DeserializationError):
        LLMResult.from_msgpack(data)
