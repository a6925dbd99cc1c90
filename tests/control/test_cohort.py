"""A cohort tells the median of all that were sent, whichever of them came first."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given, settings

from millstream._control._cohort import SAMPLES, Cohort

times = st.lists(st.floats(0.001, 100.0), min_size=SAMPLES, max_size=60)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(took=times, seed=st.integers(0, 99))
def test_it_is_the_median_of_all_as_soon_as_half_of_them_came(took: list[float], seed: int):
    cohort, rng = Cohort(), random.Random(seed)
    cohort.begin(0.0)
    sent = sorted((rng.random() for _ in took), key=lambda _: 0)
    for _ in took:
        cohort.send()
    assert cohort.tell(1.0, SAMPLES) is None
    told = None
    came = 0
    for sent_at, seconds in sorted(zip(sent, took, strict=True), key=lambda one: one[1]):  # the fastest first
        cohort.note(sent_at + seconds, seconds)
        came += 1
        told = cohort.tell(1.0, SAMPLES)
        if told is not None:
            break
    assert told is not None
    assert told.count == len(took)
    assert told.median == sorted(took)[(len(took) - 1) // 2]
    assert told.fastest == min(took)
    assert came <= max(SAMPLES, len(took) // 2 + 1)


def test_what_was_sent_before_or_after_does_not_count():
    cohort = Cohort()
    cohort.send()
    cohort.begin(10.0)
    for _ in range(5):
        cohort.send()
    cohort.note(11.0, 5.0)  # sent at 6
    assert cohort.tell(12.0, SAMPLES) is None  # closed
    cohort.send()
    cohort.note(13.0, 0.5)  # sent at 12.5
    for _ in range(4):
        cohort.note(13.0, 2.0)
    told = cohort.tell(13.0, SAMPLES)
    assert told is not None
    assert (told.count, told.median) == (5, 2.0)


def test_those_that_ended_without_a_first_token_are_not_waited_for():
    cohort = Cohort()
    cohort.begin(0.0)
    for _ in range(10):
        cohort.send()
    for _ in range(4):
        cohort.note(1.0, 1.0)
    assert cohort.tell(1.0, SAMPLES) is None
    for _ in range(3):
        cohort.lose(0.0)
    told = cohort.tell(1.0, SAMPLES)
    assert told is not None
    assert told.count == 7


def test_it_tells_what_the_others_have_waited_at_least():
    cohort = Cohort()
    cohort.begin(0.0)
    for _ in range(4):
        cohort.send()
    assert cohort.waited(5.0) == 0.0, "more may still be sent"
    cohort.tell(1.0, SAMPLES)
    assert cohort.waited(5.0) == 4.0


def test_few_are_not_enough():
    cohort = Cohort()
    cohort.begin(0.0)
    for _ in range(SAMPLES - 1):
        cohort.send()
        cohort.note(1.0, 1.0)
    assert cohort.tell(1.0, SAMPLES) is None
    told = cohort.tell(1.0, SAMPLES - 1)
    assert told is not None
    assert told.deviation == 0.0


def test_a_shift_of_the_clock_changes_nothing():
    cohort = Cohort()
    cohort.begin(100.0)
    for _ in range(5):
        cohort.send()
    cohort.tell(101.0, SAMPLES)
    cohort.shift(-90.0)
    for _ in range(4):
        cohort.note(12.0, 1.5)
    told = cohort.tell(12.0, SAMPLES)
    assert told is not None
    assert told.median == 1.5
