"""What can be set, and what is said about what can't."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from millstream import (
    AsyncCaller,
    CallOptions,
    CallOverrides,
    Deadlines,
    HuggingFaceInference,
    HuggingFaceParams,
    MillstreamError,
    OptionTypeError,
    OptionValueError,
    RetryPolicy,
    UnknownOptionError,
)

URL = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("request_per_minute", "requests_per_minute"),
        ("endpoint", "endpoint_url"),
        ("top_pp", "top_p"),
    ],
)
def test_an_unknown_keyword_is_a_type_error_that_names_the_nearest(name, nearest):
    with pytest.raises(TypeError, match=f"no HuggingFaceInference option '{name}'; did you mean '{nearest}'"):
        HuggingFaceInference(**{name: 1})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("timeout", "deadlines=Deadlines"),
        ("token", "'api_key'"),
        ("stop", "'stop_sequences'"),
        ("base_url", "'endpoint_url'"),
        ("max_new_tokens", "'max_tokens'"),
        ("maxConcurrency", "'max_concurrency'"),
    ],
)
def test_the_words_of_others_for_it(name, instead):
    with pytest.raises(UnknownOptionError, match=f"no HuggingFaceInference option '{name}'.*{instead}"):
        HuggingFaceInference(**{name: 1})


async def test_the_words_of_others_in_a_call():
    llm = HuggingFaceInference(endpoint_url=URL)
    for name, instead in (
        ("stream", r"llm\.stream\("),
        ("model", "model of its own"),
        ("timeout", "deadlines=Deadlines"),
    ):
        with pytest.raises(UnknownOptionError, match=f"no option '{name}'.*{instead}"):
            await llm.call("x", **{name: 1})


def test_where_nothing_is_near_each_option_is_named_once():
    with pytest.raises(UnknownOptionError) as caught:
        HuggingFaceInference(xyzzy=1)
    known = str(caught.value).partition("known are ")[2].split(", ")
    assert known == sorted(set(known))
    assert "max_tokens" in known


AT_ONCE = [
    ("callbacks", 5), ("callbacks", [print]), ("tags", "abc"), ("tags", 5), ("tags", [1]), ("metadata", [1]),
    ("verbose", "no"), ("allow_http_key", "false"), ("http2", "yes"), ("verify", 3), ("verify", None),
    ("transport", 5), ("http_client", 5), ("max_concurrency", None), ("proxy", 5), ("tokenizer", 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), AT_ONCE, ids=repr)
def test_wrong_types_are_refused_before_there_is_a_model(name, value):
    with pytest.raises(
        OptionTypeError, match={"callbacks": "handler", "proxy": "proxy's URL"}.get(name, name)
    ) as caught:
        HuggingFaceInference(**{"endpoint_url": URL, name: value})
    assert "\n" not in str(caught.value)


def test_no_tags_and_no_metadata():
    llm = HuggingFaceInference(endpoint_url=URL, tags=None, metadata=None)
    assert (llm.tags, llm.metadata) == ((), {})


def test_an_empty_endpoint_is_not_hugging_face():
    with pytest.raises(OptionValueError, match="endpoint_url is empty; leave it out"):
        HuggingFaceInference(endpoint_url="")


def test_a_url_is_no_model():
    with pytest.raises(OptionValueError, match="'https://huggingface.co/gpt2' can't be a model's name"):
        HuggingFaceInference("https://huggingface.co/gpt2")


async def test_a_file_of_certificates_that_is_missing():
    async with HuggingFaceInference(endpoint_url="https://127.0.0.1:9", verify="/no/such.pem", max_retries=0) as llm:
        with pytest.raises(OptionValueError, match=r"verify.*/no/such\.pem"):
            await llm.call("x")


async def test_an_unknown_keyword_of_a_call():
    llm = HuggingFaceInference(endpoint_url=URL)
    with pytest.raises(UnknownOptionError, match="did you mean 'temperature'"):
        await llm.call("x", tempreature=1)
    with pytest.raises(UnknownOptionError):
        llm.stream("x", maximum_tokens=1)
    with pytest.raises(UnknownOptionError):
        llm.map(["x"], wrong=1)


BAD_VALUES = [
    ("temperature", -0.1), ("temperature", 10**400), ("temperature", float("nan")), ("temperature", float("inf")), ("max_tokens", 0),
    ("max_tokens", -5), ("top_p", 0), ("top_p", 1.5), ("top_k", -2), ("frequency_penalty", 3),
    ("presence_penalty", -2.5), ("repetition_penalty", 0), ("seed", -1), ("seed", 2**64), ("n", 0), ("logprobs", -1),
    ("stop_sequences", [""]), ("api", "speech"), ("endpoint_url", "not a url"), ("endpoint_url", "ws://host"),
    ("model", "a b"), ("model", ""), ("max_concurrency", 0), ("max_retries", -1), ("requests_per_minute", 0),
    ("tokens_per_minute", -1), ("api_key", "two\nlines"), ("api_key", ""), ("bill_to", "a\r\nb"),
    ("headers", {"X-A": "a\nb"}), ("proxy", "nowhere"),
]  # fmt: skip

BAD_TYPES = [
    ("temperature", "0.5"), ("temperature", True), ("max_tokens", 1.5), ("top_k", "40"), ("seed", 1.0), ("n", "2"),
    ("stop_sequences", 5), ("stop_sequences", [1]), ("response_format", "json"), ("response_format", dict),
    ("tools", {"type": "function"}), ("tools", ["x"]), ("extra_body", [1]), ("deadlines", 30), ("model", 5),
    ("endpoint_url", 5), ("api_key", b"key"), ("headers", "X: y"), ("headers", {"X": 1}), ("cache", "memory"),
    ("caller", 5), ("callbacks", "me"), ("max_concurrency", 2.5), ("requests_per_minute", "60"), ("transport", 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=repr)
async def test_impossible_values(name, value):
    with pytest.raises(OptionValueError) as caught:
        await HuggingFaceInference(**{"endpoint_url": URL, name: value}).call("x")
    assert isinstance(caught.value, ValueError)
    assert caught.value.attempts == 0
    assert str(caught.value)


@pytest.mark.parametrize(("name", "value"), BAD_TYPES, ids=repr)
async def test_wrong_types(name, value):
    with pytest.raises(OptionTypeError) as caught:
        await HuggingFaceInference(**{"endpoint_url": URL, name: value}).call("x")
    assert isinstance(caught.value, TypeError)


def test_limits_of_a_shared_caller_are_set_on_the_caller():
    with pytest.raises(OptionValueError, match="max_concurrency"):
        HuggingFaceInference(endpoint_url=URL, caller=AsyncCaller(), max_concurrency=3)


def test_one_way_only():
    with pytest.raises(OptionValueError, match="only one"):
        HuggingFaceInference(endpoint_url=URL, transport=object(), proxy="http://127.0.0.1:1")


@pytest.mark.parametrize("value", [0, -1, float("nan"), "5"])
@pytest.mark.parametrize("name", ["connect", "queue", "first_token", "idle", "total", "write"])
def test_deadlines_are_checked(name, value):
    with pytest.raises((OptionValueError, OptionTypeError), match=name):
        Deadlines(**{name: value})


def test_a_retry_policy_is_checked():
    with pytest.raises(OptionValueError, match="max_wait"):
        RetryPolicy(max_wait=-1)


def test_keywords_and_structs_say_the_same():
    """Options are declared as a struct (to hold and check them) and as keywords (for type checkers): never apart."""
    fields = set(CallOptions.__struct_fields__)
    assert set(CallOverrides.__annotations__) | {"stop"} == fields
    assert fields - {"stop"} <= set(HuggingFaceParams.__annotations__)


def test_options_merge():
    low, high = CallOptions(temperature=0.5, stop=["a"]), CallOptions(temperature=0.0, seed=1)
    assert low.merged(high) == CallOptions(temperature=0.0, stop=("a",), seed=1)
    assert low.merged(None) is low
    assert CallOptions.of(high, {"seed": 2}) == CallOptions(temperature=0.0, seed=2)
    assert CallOptions(stop="one").stops == ("one",)
    assert CallOptions(stop=["b", "a", "b"]).stops == ("b", "a")


def test_every_option_survives_json():
    options = CallOptions(stop=["x"], temperature=0.5, n=2, tools=[{"a": 1}], deadlines=Deadlines(total=5))
    assert msgspec.json.decode(msgspec.json.encode(options), type=CallOptions) == options


def test_errors_of_options_are_ours():
    assert issubclass(OptionValueError, MillstreamError)
    assert issubclass(UnknownOptionError, MillstreamError)


async def test_a_closed_model_says_so():
    llm = HuggingFaceInference(endpoint_url=URL)
    async with llm:
        pass
    await llm.aclose()
    with pytest.raises(MillstreamError, match="closed"):
        await llm.call("x")
    with pytest.raises(MillstreamError, match="closed"):
        llm.map(["x"])


@pytest.mark.parametrize("name", ["verify", "http2"])
def test_what_a_brought_client_decides_is_not_set_beside_it(name):
    with pytest.raises(OptionValueError, match=name):
        HuggingFaceInference(endpoint_url=URL, http_client=httpx.AsyncClient(), **{name: True})
