"""What is generated: words, limits, stops; without sockets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.testing._text import draw_words, generate, split_tokens


@given(st.text())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_tokens_joined_are_the_text(text: str):
    assert "".join(split_tokens(text)) == text


@given(st.text(alphabet="ab \n", max_size=30), st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_pieces_joined_are_the_text_and_no_stop_stays(text: str, stop: list[str]):
    output = generate(split_tokens(text), None, stop)
    assert "".join(output.pieces) == output.text
    assert not any(sequence in output.text for sequence in stop)
    assert text.startswith(output.text)
    assert output.finish == ("stop" if any(sequence in text for sequence in stop) else "eos")
    assert len(output.pieces) == len(output.tokens) + (output.finish == "eos")


@pytest.mark.parametrize(
    ("max_tokens", "text", "finish", "count"),
    [
        (None, "one two three", "eos", 4),
        (4, "one two three", "eos", 4),
        (3, "one two three", "length", 3),
        (1, "one", "length", 1),
    ],
)
def test_the_end_takes_a_token_of_its_own(max_tokens, text, finish, count):
    output = generate(split_tokens("one two three"), max_tokens)
    assert (output.text, output.finish, output.count) == (text, finish, count)


def test_a_stop_that_spans_tokens_is_held_back_or_kept():
    tokens = split_tokens("one two three four")
    cut = generate(tokens, None, ["two three"])
    assert (cut.text, cut.pieces, cut.finish, cut.stop) == ("one ", ["one", " ", ""], "stop", "two three")
    kept = generate(tokens, None, ["two th"], keep_stop=True)
    assert (kept.text, kept.pieces) == ("one two th", ["one", " two", " th"])


def test_what_only_looked_like_a_stop_comes_late():
    output = generate(split_tokens("go, on and on now"), None, ["on now!"])
    assert output.pieces == ["go,", " ", "on and", " ", "on now", ""]


def test_the_stop_that_is_complete_first_wins():
    assert generate(split_tokens("a b c d"), None, ["c d", "b"]).text == "a "


def test_reasoning_uses_up_the_budget():
    output = generate(split_tokens("an answer"), 3, reasoning=split_tokens("let me see"))
    assert (output.reasoning, output.text, output.finish) == (["let", " me", " see"], "", "length")


def test_words_depend_on_their_key_alone():
    assert draw_words(("m", "p"), 8) == draw_words(("m", "p"), 8)
    assert draw_words(("m", "p"), 8) != draw_words(("m", "q"), 8)
    assert draw_words("k", 5) == draw_words("k", 9)[:5]
