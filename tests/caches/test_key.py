from __future__ import annotations

from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._errors import OptionTypeError, OptionValueError
from millstream._prompts import BasePromptValue, ChatMessage, ChatPromptValue, StringPromptValue
from millstream._secret import Secret
from millstream.caches import cache_key


class Answer(msgspec.Struct):
    city: str
    people: int


class Other(msgspec.Struct):
    city: str
    people: float


BASE: dict[str, Any] = {
    "endpoint_url": "https://router.huggingface.co",
    "model": "m",
    "provider": "auto",
    "api": "chat",
    "temperature": 0.5,
    "max_tokens": 1,
    "top_p": 0.5,
    "top_k": 1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 0.5,
    "seed": 1,
    "n": 1,
    "logprobs": 1,
    "stop": ("a",),
    "response_format": {"type": "object"},
    "tools": ({"type": "function"},),
    "tool_choice": "auto",
    "extra_body": {"min_p": 0.5},
}


def test_a_key_is_stable():
    """Stored caches depend on it: whoever changes this changes the version in the key too."""
    assert (
        cache_key({"model": "m", "temperature": 0.5}, "p", namespace="n")
        == "2ad443f93cf1c00a6c3d2d22f437fec8ba5bde34b6459de75ed3a85bc31118ff"
    )


@pytest.mark.parametrize("name", BASE)
def test_every_parameter_counts(name):
    changed: Any = {
        str: "other",
        int: 2,
        float: 0.25,
        tuple: ("b",),
        dict: {"other": 1},
    }[type(BASE[name])]
    without = {key: value for key, value in BASE.items() if key != name}
    keys = {cache_key(parameters, "p") for parameters in (BASE, {**BASE, name: changed}, {**BASE, name: None}, without)}
    assert len(keys) == 4


def test_values_that_python_takes_for_equal_are_apart():
    values = [
        1,
        1.0,
        True,
        "1",
        "1.0",
        "true",
        None,
        "null",
        0,
        False,
        0.0,
        -0.0,
        "",
        [],
        {},
        [1],
        "[1]",
        2**64,
        2.0**64,
    ]
    assert len({cache_key({"seed": value}, "p") for value in values}) == len(values)


def test_what_json_takes_for_equal_is_one():
    key = cache_key({"a": 1, "stop": ("x", "y"), "b": {"c": 1, "d": 2}}, "p")
    assert key == cache_key({"b": {"d": 2, "c": 1}, "stop": ["x", "y"], "a": 1}, "p")
    assert key == cache_key(
        MappingProxyType({"a": 1, "stop": ("x", "y"), "b": MappingProxyType({"c": 1, "d": 2})}), "p"
    )
    assert key != cache_key({"a": 1, "stop": ("y", "x"), "b": {"c": 1, "d": 2}}, "p")


def test_prompt_namespace_and_parameters_do_not_run_into_each_other():
    keys = [
        cache_key({}, "a"),
        cache_key({}, "b"),
        cache_key({}, "a", namespace="a"),
        cache_key({}, "", namespace="a"),
        cache_key({"prompt": "a"}, "a"),
        cache_key({}, '["text","a"]'),
        cache_key({}, [ChatMessage("user", "a")]),
        cache_key({}, [ChatMessage("system", "a")]),
        cache_key({}, [ChatMessage("user", "a"), ChatMessage("user", "a")]),
        cache_key({}, [ChatMessage("user", "a", name="n")]),
    ]
    assert len(set(keys)) == len(keys)


def test_one_prompt_in_several_guises_is_one():
    assert cache_key({}, "a") == cache_key({}, StringPromptValue("a"))
    messages = [{"role": "user", "content": "a"}]
    assert cache_key({}, messages) == cache_key({}, ChatPromptValue((ChatMessage("user", "a"),)))


def test_a_prompt_of_ones_own_counts_as_text_and_as_messages():
    class Mine(BasePromptValue, frozen=True):
        text: str
        role: str

        def to_string(self):
            return self.text

        def to_messages(self):
            return (ChatMessage(self.role, "same"),)

    prompts = [Mine("a", "user"), Mine("b", "user"), Mine("a", "system"), StringPromptValue("a")]
    assert len({cache_key({}, prompt) for prompt in prompts}) == 4


def test_a_struct_type_stands_for_its_schema():
    key = cache_key({"response_format": Answer}, "p")
    assert key == cache_key({"response_format": Answer}, "p")
    assert key == cache_key({"response_format": msgspec.json.schema(Answer)}, "p")
    assert key != cache_key({"response_format": Other}, "p")


def test_numbers_as_keys_are_what_they_are_on_the_wire():
    key = cache_key({"extra_body": {"logit_bias": {50256: -100, 7: 1}}}, "p")
    assert key == cache_key({"extra_body": {"logit_bias": {"7": 1, "50256": -100}}}, "p")
    assert key != cache_key({"extra_body": {"logit_bias": {50256: -100, 8: 1}}}, "p")
    with pytest.raises(OptionValueError, match="same key twice"):
        cache_key({"extra_body": {1: "a", "1": "b"}}, "p")


@pytest.mark.parametrize("wrong", [object(), Secret("hf_CANARY0123456789"), {"deep": [object()]}, print, int])
def test_what_json_can_not_have_is_refused(wrong):
    with pytest.raises(OptionTypeError, match="nothing that JSON can have") as caught:
        cache_key({"extra_body": wrong}, "p")
    assert "CANARY" not in str(caught.value)


def test_text_that_can_not_be_written_is_refused():
    with pytest.raises(OptionValueError, match="UTF-8"):
        cache_key({"stop": ["\ud800"]}, "p")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, 1.0, -1.0])
    | st.text('a1"\\,:[]{}é\x00', max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"', max_size=2), inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = st.dictionaries(st.sampled_from(["model", "stop", "extra_body"]), JSON, max_size=3)


def written_out(value: Any) -> Any:
    """Equal for two values exactly where they are equal as JSON, by other means than an encoder."""
    if isinstance(value, dict):
        return frozenset((key, written_out(each)) for key, each in value.items())
    if isinstance(value, list):
        return tuple(written_out(each) for each in value)
    return (type(value).__name__, repr(value))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PARAMETERS, PARAMETERS, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "a", "b"]))
def test_keys_are_equal_exactly_where_everything_is(left, right, left_prompt, right_prompt):
    equal = written_out(left) == written_out(right) and left_prompt == right_prompt
    assert (cache_key(left, left_prompt) == cache_key(right, right_prompt)) == equal
    assert cache_key(dict(reversed(left.items())), left_prompt) == cache_key(left, left_prompt)
