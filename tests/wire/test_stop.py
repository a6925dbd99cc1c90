"""Stop texts never stay in the text, wherever a stream is cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._wire._stop import StopTrimmer, find_stop


def plainly(text: str, stops: list[str]) -> str:
    """The definition: the text before the first of them."""
    return min((text.split(stop, maxsplit=1)[0] for stop in stops), key=len)


def trim(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    trimmer = StopTrimmer(stops)
    text = "".join([*(trimmer.receive(piece) for piece in pieces), trimmer.flush()])
    return text, trimmer.stopped


# Few letters, so that stop texts overlap themselves, each other and the text.
letters = st.text("abé", max_size=40)
stop_texts = st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=letters, stops=stop_texts, cuts=st.lists(st.integers(0, 40), max_size=12))
def test_any_text_cut_anywhere(text, stops, cuts):
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in pairwise(at)]

    assert trim(pieces, stops) == (plainly(text, stops), plainly(text, stops) != text)
    assert trim(list(text), stops) == trim([text], stops)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=letters, stops=stop_texts)
def test_what_is_given_out_is_never_taken_back_and_never_late_by_more_than_a_stop_text(text, stops):
    trimmer = StopTrimmer(stops)
    given_out, seen = "", ""
    for letter in text:
        given_out += trimmer.receive(letter)
        seen += letter
        assert plainly(seen, stops).startswith(given_out)
        if not trimmer.stopped:
            assert len(seen) - len(given_out) < max(map(len, stops)) * 2


@pytest.mark.parametrize(
    ("text", "stops", "found"),
    [
        ("one\ntwo", ["\n"], (3, 4)),
        ("abc", ["c", "bc"], (1, 3)),
        ("abc", ["bc", "b"], (1, 2)),
        ("abc", ["x"], None),
        ("", ["x"], None),
    ],
)
def test_find_stop(text, stops, found):
    assert find_stop(text, stops) == found


def test_an_earlier_stop_text_still_under_way_wins():
    assert trim(["xa", "b", "c"], ["b", "abc"]) == ("x", True)
    assert trim(["xa", "b", "d"], ["b", "abc"]) == ("xa", True)
    assert trim(["xa", "b"], ["b", "abc"]) == ("xa", True)


def test_after_the_stop_text_nothing_comes():
    trimmer = StopTrimmer(["\n\n"])

    assert [trimmer.receive(piece) for piece in ("a\n", "b\n", "\nc", "d")] == ["a", "\nb", "", ""]
    assert trimmer.stopped
    assert trimmer.flush() == ""


def test_text_goes_on_after_a_flush():
    trimmer = StopTrimmer(["ab"])

    assert [trimmer.receive("xa"), trimmer.flush(), trimmer.receive("b"), trimmer.receive("ya")] == ["x", "a", "b", "y"]
    assert not trimmer.stopped


def test_hostile_repetition():
    # Quadratic, these would be minutes.
    stop = "a" * 100_000 + "b"
    assert trim(["a" * 50] * 10_000, [stop]) == ("a" * 500_000, False)
    assert trim(["a" * 50] * 10_000 + ["b"], [stop]) == ("a" * 400_000, True)
