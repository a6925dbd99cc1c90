"""The text-generation dialect against the tables of its protocol."""

import contextlib
import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._assembly import ResultBuilder, chunks_of
from millstream._config import CallOptions
from millstream._errors import (
    BadRequestError,
    MillstreamError,
    OptionTypeError,
    OptionValueError,
    OverloadedError,
    ProtocolError,
    TruncatedStreamError,
)
from millstream._prompts import ChatMessage, ChatPromptValue, StringPromptValue
from millstream._results import GenerationChunk, TokenLogprob, TopLogprob, Usage
from millstream._wire import DIALECTS

WIRE = DIALECTS["text-generation"]
PROMPT = StringPromptValue("Why?")
ALWAYS = {"return_full_text": False, "details": True}


class City(msgspec.Struct):
    name: str
    pop: int


def encoded(options: CallOptions, *, model=None, stream=False, prompt=PROMPT):
    return json.loads(WIRE.encode(prompt, options, model=model, stream=stream))


# -- requests


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, {"do_sample": True}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.0, "top_p": 0.9, "top_k": 5, "seed": 1}, {"do_sample": False}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"max_tokens": 5}, {"do_sample": True, "max_new_tokens": 5}),
        ({"top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
        ({"top_p": 1}, {"do_sample": True}),
        ({"top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"top_k": 0}, {"do_sample": True}),
        ({"top_k": -1}, {"do_sample": True}),
        ({"frequency_penalty": 0.5}, {"do_sample": True, "frequency_penalty": 0.5}),
        ({"frequency_penalty": 0}, {"do_sample": True}),
        ({"presence_penalty": 0}, {"do_sample": True}),
        ({"repetition_penalty": 1.2}, {"do_sample": True, "repetition_penalty": 1.2}),
        ({"repetition_penalty": 1}, {"do_sample": True}),
        ({"seed": 2**64 - 1}, {"do_sample": True, "seed": 2**64 - 1}),
        ({"n": 1}, {"do_sample": True}),
        ({"stop": "\n"}, {"do_sample": True, "stop": ["\n"]}),
        ({"stop": ["a", "b"]}, {"do_sample": True, "stop": ["a", "b"]}),
        ({"stop": []}, {"do_sample": True}),
        ({"logprobs": True}, {"do_sample": True}),
        ({"logprobs": 0}, {"do_sample": True}),
        ({"logprobs": 3}, {"do_sample": True, "top_n_tokens": 3}),
        ({"logprobs": False}, {"do_sample": True}),
    ],
)
def test_parameters(options, parameters):
    assert encoded(CallOptions(**options)) == {"inputs": "Why?", "parameters": ALWAYS | parameters}


def test_model_comes_first_and_stream_is_said():
    body = WIRE.encode(PROMPT, CallOptions(), model="a/b", stream=True)

    assert body.startswith(b'{"model":"a/b","inputs":"Why?"')
    assert json.loads(body)["stream"] is True


def test_messages_are_sent_as_text():
    prompt = ChatPromptValue((ChatMessage.system("Be brief."), ChatMessage.user("Why?")))

    assert encoded(CallOptions(), prompt=prompt)["inputs"] == "System: Be brief.\nHuman: Why?"


def test_extra_body_goes_over_everything_and_parameters_are_merged():
    extra = {"inputs": "Who?", "parameters": {"watermark": True, "details": False}, "options": {"use_cache": False}}

    body = encoded(CallOptions(max_tokens=3, extra_body=extra))

    assert body["inputs"] == "Who?"
    assert body["options"] == {"use_cache": False}
    assert body["parameters"] == {
        "return_full_text": False,
        "details": False,
        "do_sample": True,
        "max_new_tokens": 3,
        "watermark": True,
    }


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("response_format", "grammar"),
    [
        (SCHEMA, {"type": "json", "value": SCHEMA}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, {"type": "json", "value": SCHEMA}),
        ({"type": "json_object", "schema": SCHEMA}, {"type": "json", "value": SCHEMA}),
        ({"type": "regex", "value": "[0-9]+"}, {"type": "regex", "value": "[0-9]+"}),
        ({"type": "text"}, None),
    ],
)
def test_response_format(response_format, grammar):
    assert encoded(CallOptions(response_format=response_format))["parameters"].get("grammar") == grammar


def test_a_type_as_response_format_has_its_properties_at_the_top():
    grammar = encoded(CallOptions(response_format=City))["parameters"]["grammar"]

    assert grammar["type"] == "json"
    assert grammar["value"]["properties"] == {"name": {"type": "string"}, "pop": {"type": "integer"}}
    assert "$ref" not in grammar["value"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n": 2}, "n=2"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "auto"}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "schema"),
    ],
)
def test_what_the_dialect_does_not_have(options, word):
    with pytest.raises(OptionValueError, match=word):
        encoded(CallOptions(**options))


def test_what_is_no_json_is_named():
    with pytest.raises(OptionTypeError, match="extra_body"):
        encoded(CallOptions(extra_body={"x": object()}))


# -- whole answers


def answer(text, **details):
    return {"generated_text": text, "details": {"finish_reason": "length", "generated_tokens": 3} | details}


def tokens(*texts, special=()):
    return [{"id": at, "text": text, "logprob": -0.5, "special": text in special} for at, text in enumerate(texts)]


def decoded(value, *, prompt="Why?", **options):
    return WIRE.decode(json.dumps(value).encode(), StringPromptValue(prompt), CallOptions(**options))


def test_object_and_list_give_the_same():
    assert decoded(answer("Because")) == decoded([answer("Because")])


def test_all_that_is_told():
    result = decoded([answer("So", finish_reason="eos_token", seed=2**64 - 1, prefill=[{"id": 1}, {"id": 2}])])

    generation = result.generations[0][0]
    assert (generation.text, generation.finish_reason, generation.raw_finish_reason) == ("So", "stop", "eos_token")
    assert generation.generation_info == {"seed": 2**64 - 1}
    assert result.usage == Usage(2, 3)
    assert result.llm_output == {"tokenUsage": {"promptTokens": 2, "completionTokens": 3, "totalTokens": 5}}


def test_several_items_are_several_outputs():
    result = decoded([{"generated_text": "a"}, {"generated_text": "b"}])

    assert [g.text for g in result.generations[0]] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"generated_text": "Why? So."}, " So."),  # it ignored details, and so return_full_text
        (answer("Why? So.", tokens=tokens(" So", ".")), " So."),  # the tokens show the echo
        (answer("Why? So.", tokens=tokens("Why?", " So", ".")), "Why? So."),  # the model said it
        (answer("Why? So.", tokens=tokens(" Why", "?", " So", ".")), "Why? So."),  # so it did here
        (answer("Why? So.", tokens=[]), "Why? So."),
        ({"generated_text": "Because. Why? So."}, "Because. Why? So."),
        ({"generated_text": "Why?"}, ""),
    ],
)
def test_an_echo_of_the_prompt_is_taken_away_and_nothing_else(value, text):
    assert decoded(value).text == text


def test_an_echo_that_was_asked_for_stays():
    extra = {"parameters": {"return_full_text": True}}

    assert decoded({"generated_text": "Why? So."}, extra_body=extra).text == "Why? So."


def test_the_stop_text_does_not_stay():
    value = answer("one\ntwo", finish_reason="stop_sequence", tokens=tokens("one", "\n", "two"))

    result = decoded(value, stop=["\n"], logprobs=True)

    generation = result.generations[0][0]
    assert (generation.text, generation.finish_reason, generation.raw_finish_reason) == ("one", "stop", "stop_sequence")
    assert [token.token for token in generation.logprobs] == ["one", "\n"]


def test_logprobs_with_alternatives():
    value = answer("ab", tokens=tokens("a", "b", "</s>", special=["</s>"]), top_tokens=[tokens("a", "x"), tokens("b")])

    logprobs = decoded(value, logprobs=2).generations[0][0].logprobs

    assert logprobs == (
        TokenLogprob("a", -0.5, 0, False, (TopLogprob("a", -0.5, 0), TopLogprob("x", -0.5, 1))),
        TokenLogprob("b", -0.5, 1, False, (TopLogprob("b", -0.5, 0),)),
        TokenLogprob("</s>", -0.5, 2, True),
    )
    assert decoded(value).generations[0][0].logprobs is None


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"5", b'"x"', b"{}", b"<html>", b'[{"generated_text":5}]', b"[["]
)
def test_what_is_no_answer(body):
    with pytest.raises(ProtocolError) as caught:
        WIRE.decode(body, PROMPT, CallOptions())
    assert caught.value.body == body.decode()


@pytest.mark.parametrize(
    "value",
    [
        {"error": "Input validation error: `top_p` must be", "error_type": "validation"},
        [{"error": "Input validation error: no", "error_type": "validation"}],
    ],
)
def test_an_error_in_a_200(value):
    with pytest.raises(BadRequestError, match="Input validation error"):
        decoded(value)


# -- streams


def event(text, *, special=False, whole=None, details=None, **more):
    token = {"id": 1, "text": text, "logprob": -0.5, "special": special}
    return {"index": 1, "token": token, "generated_text": whole, "details": details} | more


def framed(*values, form="data: {}\n\n"):
    return "".join(form.format(value if isinstance(value, str) else json.dumps(value)) for value in values).encode()


def streamed(*pieces, **options):
    decoder = WIRE.stream_decoder(PROMPT, CallOptions(**options))
    chunks = [chunk for piece in pieces for chunk in decoder.receive_data(piece)]
    return chunks + decoder.receive_eof(), decoder


def joined(chunks):
    builder = ResultBuilder()
    for chunk in chunks:
        builder.add(chunk)
    return builder.build()


END = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": 7, "input_length": 2}


@pytest.mark.parametrize("form", ["data: {}\n\n", "data:{}\n\n", "data: {}\r\n\r\n", ": ping\n\ndata: {}\n\n"])
def test_a_stream(form):
    body = framed(event("Be"), event("cause"), event("</s>", special=True, whole="Because", details=END), form=form)

    chunks, decoder = streamed(body)

    assert [chunk.text for chunk in chunks] == ["Be", "cause", ""]
    assert chunks[-1] == GenerationChunk("", 0, "stop", "eos_token", usage=Usage(2, 3), generation_info={"seed": 7})
    assert decoder.done
    assert decoder.error is None


def test_the_whole_text_is_not_given_out_again_nor_the_prompt():
    chunks, _ = streamed(framed(event("a"), event("b", whole="Why?ab", details=None)))

    assert [chunk.text for chunk in chunks] == ["a", "b"]


def test_a_single_event_with_a_token():
    chunks, decoder = streamed(framed(event(" ", whole="")))

    assert [chunk.text for chunk in chunks] == [" "]
    assert decoder.done


def test_a_server_without_tokens_sends_the_text_at_once():
    chunks, decoder = streamed(framed({"generated_text": "Why? So."}))

    assert joined(chunks).text == " So."
    assert decoder.done


def test_empty_tokens_give_no_chunk():
    chunks, _ = streamed(framed(event(""), event("é"), event("", whole="é", details=END)))

    assert [chunk.text for chunk in chunks] == ["é", ""]


def test_a_stream_equals_the_whole():
    body = framed(
        event("one", top_tokens=tokens("one")),
        event("\n", whole="one\n", details=END | {"finish_reason": "stop_sequence"}, top_tokens=tokens("\n")),
    )
    whole = answer(
        "one\n",
        **END | {"finish_reason": "stop_sequence"},
        tokens=[event("one")["token"], event("\n")["token"]],
        top_tokens=[tokens("one"), tokens("\n")],
    )

    chunks, decoder = streamed(body, stop=["\n"], logprobs=1)

    assert decoder.error is None
    assert joined(chunks) == decoded(whole, stop=["\n"], logprobs=1)
    assert joined(chunks_of(joined(chunks))) == joined(chunks)


def test_a_stop_text_over_two_tokens():
    body = framed(event("a"), event("#"), event("#"), event("b"), event("c", whole="a##bc", details=END))

    chunks, decoder = streamed(body, stop=["##"])

    assert joined(chunks).text == "a"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert decoder.done
    assert joined(chunks).usage == Usage(2, 3)


def test_what_was_held_back_comes_at_the_end():
    chunks, _ = streamed(framed(event("a#"), event("", special=True, whole="a#")), stop=["##"])

    assert "".join(chunk.text for chunk in chunks) == "a#"


def test_an_error_inside_a_stream():
    error = {"error": "Model is overloaded", "error_type": "overloaded"}

    chunks, decoder = streamed(framed(event("a"), error, event("b")))

    assert [chunk.text for chunk in chunks] == ["a"]
    assert isinstance(decoder.error, OverloadedError)
    assert not decoder.done
    assert decoder.receive_data(framed(event("c"))) == []


def test_a_stream_that_ends_early():
    chunks, decoder = streamed(framed(event("a")))

    assert [chunk.text for chunk in chunks] == ["a"]
    assert isinstance(decoder.error, TruncatedStreamError)


def test_no_json_in_a_stream():
    chunks, decoder = streamed(framed(event("a"), "{nonsense"))

    assert [chunk.text for chunk in chunks] == ["a"]
    assert isinstance(decoder.error, ProtocolError)
    assert "nonsense" in decoder.error.body


def test_bytes_that_are_no_utf8_become_replacement_characters():
    chunks, decoder = streamed(framed(event("X"), event("", whole="")).replace(b"X", b"\xff"))

    assert chunks[0].text == "\ufffd"
    assert decoder.error is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["generated_text", "details", "token", "text", "seed", "error", "tokens", "special"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=json_values, cut=st.integers(0, 30))
def test_any_json_is_a_result_or_an_error_of_ours(value, cut):
    body = json.dumps(value).encode()
    for options in (CallOptions(), CallOptions(logprobs=True, stop=["a"])):
        for data in (body, body[:cut]):
            with contextlib.suppress(MillstreamError):
                WIRE.decode(data, PROMPT, options)
            for kind in ("", "event: error\n"):
                decoder = WIRE.stream_decoder(PROMPT, options)
                decoder.receive_data(kind.encode() + framed(event("x")) + b"data: " + data + b"\n\n")
                decoder.receive_eof()
                assert decoder.done or decoder.error is not None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_results_do_not_depend_on_how_the_bytes_are_cut(data, cuts):
    body = framed(event("a#"), event("é\u2028")) + data + framed(event("#b", whole="x", details=END))
    at = [0, *sorted(cuts), len(body)]
    pieces = [body[begin:end] for begin, end in pairwise(at)]
    for options in ({}, {"stop": ["##"]}):
        whole, one = streamed(body, **options)
        cut, two = streamed(*pieces, **options)

        assert joined(cut) == joined(whole)
        assert type(one.error) is type(two.error)
