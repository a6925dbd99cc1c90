"""Each rule of the window by itself; times are plain numbers."""

from __future__ import annotations

import random

import pytest

from millstream._control import Window
from millstream._headers import StatedLimits

BASE = 0.3


def make(*, start: float = 8, ceiling: int = 1000, adaptive: bool = True, chance: float = 0.5) -> Window:
    return Window(start=start, ceiling=ceiling, adaptive=adaptive, random=lambda: chance)


class Endpoint:
    """Keeps the window full; every request has its first token after `ttft` and is served until told otherwise."""

    def __init__(self, window: Window, now: float = 100.0):
        self.window = window
        self.now = now

    def fill(self, most: int = 10_000) -> int:
        sent = 0
        while sent < most and self.window.in_flight < self.window.limit and self.window.ready_at(self.now) <= self.now:
            self.window.send(self.now)
            sent += 1
        return sent

    def tokens(self, count: int, ttft: float = BASE) -> None:
        for _ in range(count):
            self.window.first_token(self.now, ttft)

    def end(self, count: int) -> None:
        for _ in range(count):
            self.window.done(self.now, waiting=False)

    def round(self, seconds: float = 1.0, ttft: float = BASE) -> None:
        """All that wait get their first token, half of what is served ends, the window is filled again."""
        self.fill()
        self.now += BASE
        self.tokens(self.window.statistics(self.now).waiting, ttft)
        self.now += seconds - BASE
        self.end(self.window.statistics(self.now).served // 2)
        self.fill()


def grown(limit: int = 100, ceiling: int = 1000) -> Endpoint:
    endpoint = Endpoint(make(ceiling=ceiling))
    for _ in range(40):
        if endpoint.window.limit >= limit:
            break
        endpoint.round()
    assert endpoint.window.limit >= limit
    endpoint.window.change = None
    return endpoint


def test_begins_small_and_lets_all_of_it_go_at_once():
    endpoint = Endpoint(make(start=8))
    assert endpoint.window.limit == 8
    assert endpoint.fill() == 8
    assert endpoint.window.in_flight == 8


def test_slow_start_goes_on_with_each_round_of_first_tokens():
    endpoint = Endpoint(make(start=8))
    limits = []
    for _ in range(4):
        endpoint.fill()
        endpoint.now += BASE
        endpoint.tokens(endpoint.window.statistics(endpoint.now).waiting)
        limits.append(endpoint.window.limit)
    assert limits == [16, 32, 64, 96]


def test_never_over_the_ceiling():
    endpoint = Endpoint(make(ceiling=20))
    for _ in range(12):
        endpoint.round()
        assert endpoint.window.limit <= 20
    assert endpoint.window.limit == 20


def test_a_window_that_is_not_full_does_not_grow():
    endpoint = Endpoint(make(start=50))
    for _ in range(20):
        endpoint.fill(most=10 - endpoint.window.in_flight)
        endpoint.now += 1.0
        endpoint.tokens(endpoint.window.statistics(endpoint.now).waiting)
        endpoint.end(5)
    assert endpoint.window.limit == 50


def test_gives_up_what_stands_in_the_queue():
    endpoint = grown()
    window = endpoint.window
    before = window.limit
    endpoint.end(window.statistics(endpoint.now).served)
    endpoint.fill()  # all of it waits now, and the server lets 20 through
    endpoint.now += 1.0
    endpoint.tokens(20, ttft=1.0)
    served, waiting = window.statistics(endpoint.now).served, window.statistics(endpoint.now).waiting
    endpoint.now += 1.0
    window.ready_at(endpoint.now)
    assert waiting > 30
    assert served < window.limit < before
    assert window.limit >= before // 2
    assert window.change is not None
    assert window.change.reason == "queue"
    assert window.statistics(endpoint.now).cuts >= 1


def test_a_queue_of_others_takes_no_more_than_half():
    endpoint = grown()
    window = endpoint.window
    before = window.limit
    for _ in range(12):
        endpoint.end(window.statistics(endpoint.now).served // 2)
        endpoint.fill()
        endpoint.now += 1.0
        endpoint.tokens(4, ttft=20.0)
    assert window.limit == before // 2


def test_slow_start_takes_no_second_step_before_the_first_one_shows():
    endpoint = Endpoint(make())
    window = endpoint.window
    endpoint.fill()
    endpoint.now += 2.0
    endpoint.tokens(8, ttft=2.0)
    assert window.limit == 16
    endpoint.fill()
    for _ in range(3):  # of those that were sent since, none has its first token
        endpoint.now += 0.6
        window.ready_at(endpoint.now)
    assert window.limit == 16
    endpoint.now += 0.2
    endpoint.tokens(8, ttft=1.9)
    endpoint.end(4)
    endpoint.fill()
    endpoint.now += 1.0
    window.ready_at(endpoint.now)
    assert window.limit == 32


def test_four_of_eight_say_nothing_of_the_other_four():
    """Four slots were free; how long the time without load is cannot be known before one of the others has its token."""
    endpoint = Endpoint(make())
    window = endpoint.window
    endpoint.fill()
    endpoint.now += BASE
    endpoint.tokens(4)
    endpoint.now += 3.0
    window.ready_at(endpoint.now)
    assert window.statistics(endpoint.now).base is None
    assert window.limit == 8
    endpoint.end(1)
    endpoint.tokens(1, ttft=BASE + 3.0)
    endpoint.now += 1.0
    window.ready_at(endpoint.now)
    assert window.statistics(endpoint.now).base == BASE


def test_a_first_base_that_may_be_a_queue_is_measured_anew_before_the_window_grows():
    """One slot: the fastest of eight came at once, half of them after four answers."""
    endpoint = Endpoint(make())
    window = endpoint.window
    sent_at = [endpoint.now] * endpoint.fill()
    most, seen = window.limit, []
    for step in range(80):
        endpoint.now += 0.05 if step % 2 == 0 else 0.95
        if step % 2 == 0:
            endpoint.tokens(1, endpoint.now - sent_at.pop(0))
        else:
            endpoint.end(1)
        sent_at += [endpoint.now] * endpoint.fill()
        most = max(most, window.limit)
        seen.append(window.statistics(endpoint.now).base)
    assert max(each for each in seen if each is not None) > 2.0
    assert seen[-1] == pytest.approx(0.05, abs=0.05)
    assert most == 8
    assert window.limit in (1, 2)


def tiny(slots: int, seconds: int) -> Window:
    """After so many seconds at a server that begins an answer for each that ends, one a second, first come first served."""
    endpoint = Endpoint(make())
    window = endpoint.window
    sent: list[float] = []
    served = 0
    for _ in range(seconds):
        sent += [endpoint.now] * endpoint.fill()
        endpoint.now += 0.1
        while served < slots and sent:
            endpoint.tokens(1, ttft=endpoint.now - sent.pop(0))
            served += 1
        endpoint.now += 0.9
        if served:
            served -= 1
            endpoint.end(1)
    return window


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_before_few_slots_hardly_one_waits(slots):
    assert slots <= tiny(slots, 100).limit <= slots + 2


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_what_was_measured_with_a_whole_window_at_once_is_corrected(slots):
    window = tiny(slots, 100)
    statistics = window.statistics(200.0)
    assert statistics.probes >= 1
    assert statistics.base is not None
    assert statistics.base < 0.5


def test_what_comes_first_of_a_growing_window_is_not_taken_for_the_usual_time():
    """First tokens take 1 to 9 s whatever the load: right after a step those that came are the fastest."""
    endpoint = Endpoint(make())
    window, rng = endpoint.window, random.Random(1)
    waiting: list[tuple[float, float]] = []
    for _ in range(1500):
        waiting += [(endpoint.now + rng.uniform(1, 9), endpoint.now) for _ in range(endpoint.fill())]
        endpoint.now += 0.1
        came = sorted(one for one in waiting if one[0] <= endpoint.now)
        waiting = [one for one in waiting if one[0] > endpoint.now]
        for _, sent_at in came:
            endpoint.tokens(1, endpoint.now - sent_at)
        endpoint.end(window.statistics(endpoint.now).served)
    base = window.statistics(endpoint.now).base
    assert base is not None
    assert 4.0 < base < 6.0
    assert window.limit > 300


def test_overload_cuts_once_for_all_of_an_epoch():
    endpoint = grown()
    window = endpoint.window
    endpoint.end(window.in_flight)
    endpoint.fill()
    sent_at, before, cuts = endpoint.now, window.limit, window.statistics(endpoint.now).cuts
    endpoint.now += 0.1
    for _ in range(before):
        window.rejected(endpoint.now, "overload", None, sent_at=sent_at, waiting=True)
    assert window.limit == int(0.85 * before)
    assert window.in_flight == 0
    assert window.statistics(endpoint.now).rejected == before
    assert window.statistics(endpoint.now).cuts == cuts + 1
    assert endpoint.now + 0.25 <= window.ready_at(endpoint.now) <= endpoint.now + 0.5


def test_the_second_epoch_without_a_success_leaves_one_that_tries():
    endpoint = grown()
    window = endpoint.window
    endpoint.end(window.in_flight)
    for _ in range(2):
        endpoint.fill()
        sent_at = endpoint.now
        endpoint.now += 0.1
        for _ in range(window.in_flight):
            window.rejected(endpoint.now, "overload", None, sent_at=sent_at, waiting=True)
        endpoint.now = window.ready_at(endpoint.now)
    assert window.limit == 1
    assert endpoint.fill() == 1
    endpoint.now += BASE
    window.first_token(endpoint.now, BASE)
    assert window.limit > 1  # slow start
    assert window.change is not None


def test_cool_downs_double_up_to_ten_seconds():
    endpoint = Endpoint(make(chance=1.0))
    window, cools = endpoint.window, []
    for _ in range(8):
        window.send(endpoint.now)
        window.rejected(endpoint.now, "overload", None, sent_at=endpoint.now, waiting=True)
        cools.append(window.ready_at(endpoint.now) - endpoint.now)
        endpoint.now = window.ready_at(endpoint.now)
    assert cools == pytest.approx([0.5, 1, 2, 4, 8, 10, 10, 10])


def test_a_told_time_is_never_cut_short_and_a_shorter_one_takes_nothing_back():
    endpoint = Endpoint(make(chance=0.0))
    window = endpoint.window
    for _ in range(3):
        window.send(endpoint.now)
    window.rejected(endpoint.now, "rate", 30.0, sent_at=endpoint.now, waiting=True)
    assert window.ready_at(endpoint.now) == endpoint.now + 30
    window.rejected(endpoint.now, "rate", 5.0, sent_at=endpoint.now, waiting=True)
    assert window.ready_at(endpoint.now) == endpoint.now + 30
    window.rejected(endpoint.now, "rate", 40.0, sent_at=endpoint.now, waiting=True)
    assert window.ready_at(endpoint.now) == endpoint.now + 40


def test_the_pace_is_what_was_accepted_in_the_window_of_the_server():
    endpoint = Endpoint(make(start=1000))
    window = endpoint.window
    start = endpoint.now
    for _ in range(600):  # a quota of 600 a minute, used up in 6 seconds
        window.send(endpoint.now)
        endpoint.now += 0.01
        window.first_token(endpoint.now, 0.01)
        window.done(endpoint.now, waiting=False)
    window.send(endpoint.now)
    window.rejected(endpoint.now, "rate", start + 60 - endpoint.now, sent_at=endpoint.now, waiting=True)
    assert window.statistics(endpoint.now).pace == pytest.approx(9.2)
    assert window.change is not None
    assert window.change.reason == "rate"
    assert window.limit == 1000  # a rate is no sign of too many at a time

    endpoint.now = window.ready_at(endpoint.now)
    assert endpoint.now >= start + 60
    passed = 0
    while endpoint.now < start + 70.5:
        if window.ready_at(endpoint.now) <= endpoint.now:
            window.send(endpoint.now)
            window.first_token(endpoint.now, 0.0)
            window.done(endpoint.now, waiting=False)
            passed += 1
        endpoint.now += 0.001
    assert 80 <= passed <= 105


def test_a_rate_without_a_told_time_comes_from_the_last_seconds():
    endpoint = Endpoint(make(start=1000))
    window = endpoint.window
    for _ in range(200):
        window.send(endpoint.now)
        endpoint.now += 0.1
        window.first_token(endpoint.now, 0.1)
        window.done(endpoint.now, waiting=False)
        window.ready_at(endpoint.now)
    window.send(endpoint.now)
    window.rejected(endpoint.now, "rate", None, sent_at=endpoint.now, waiting=True)
    assert window.statistics(endpoint.now).pace == pytest.approx(9, rel=0.1)


def test_a_loading_model_is_asked_by_one_and_keeps_its_window():
    endpoint = grown()
    window = endpoint.window
    endpoint.end(window.in_flight)
    before = window.limit
    window.send(endpoint.now)
    window.rejected(endpoint.now, "loading", 500.0, sent_at=endpoint.now, waiting=True)
    assert endpoint.now + 60 <= window.ready_at(endpoint.now) <= endpoint.now + 64
    endpoint.now = window.ready_at(endpoint.now)
    assert endpoint.fill() == 1
    window.broken(endpoint.now, waiting=True)
    assert endpoint.fill() == 1
    window.done(endpoint.now, waiting=True)
    assert window.limit == before
    assert window.change is not None
    assert window.change.reason == "recovered"


def test_five_that_find_nobody_leave_one_that_tries():
    endpoint = grown()
    window = endpoint.window
    endpoint.end(window.in_flight)
    for count in range(1, 9):
        assert endpoint.fill(most=1) == 1
        window.unreachable(endpoint.now, waiting=True)
        assert (window.ready_at(endpoint.now) > endpoint.now) is (count >= 5)
        endpoint.now = window.ready_at(endpoint.now)
    assert window.limit == 1
    assert endpoint.fill() == 1
    window.done(endpoint.now, waiting=True)
    assert window.limit >= 100


def test_who_tries_does_not_wait_for_those_that_hang():
    endpoint = grown()
    window = endpoint.window
    for _ in range(5):
        window.unreachable(endpoint.now, waiting=bool(window.statistics(endpoint.now).waiting))
    in_flight = window.in_flight
    assert in_flight > 50
    endpoint.now = window.ready_at(endpoint.now)
    assert endpoint.fill() == 1
    assert window.limit == window.in_flight == in_flight + 1
    window.broken(endpoint.now, waiting=True)
    assert endpoint.fill() == 1


def test_headers_set_the_pace_and_stop_all_when_nothing_is_left():
    window = make(start=1000, chance=0.0)
    now = 100.0
    window.stated(now, StatedLimits(requests_remaining=300, requests_reset=30))
    assert window.statistics(now).pace == pytest.approx(10)
    window.stated(now, StatedLimits(requests_remaining=0, requests_reset=30))
    assert window.ready_at(now) == now + 5  # a bucket that is full in 30 s may have something before
    assert window.change is not None
    assert window.change.reason == "stated"
    now += 30
    assert window.ready_at(now) == now  # one asks at once what the new window holds


def test_a_quota_of_tokens_becomes_one_of_requests():
    window = make()
    now = 100.0
    for _ in range(3):
        window.send(now)
        window.done(now, waiting=True, tokens=200)
    window.stated(now, StatedLimits(tokens_remaining=60_000, tokens_reset=60))
    assert window.statistics(now).pace == pytest.approx(5)


def test_tokens_of_unknown_size_are_no_pace():
    window = make()
    window.stated(100.0, StatedLimits(tokens_remaining=60_000, tokens_reset=60))
    assert window.statistics(100.0).pace is None


def test_told_concurrency_is_a_ceiling_below_the_users():
    endpoint = grown()
    endpoint.window.stated(endpoint.now, StatedLimits(concurrency=12))
    assert endpoint.window.limit == 12
    for _ in range(5):
        endpoint.round()
    assert endpoint.window.limit == 12
    small = make(start=8, ceiling=10)
    small.stated(0.0, StatedLimits(concurrency=500))
    assert small.limit == 8


def test_fixed_begins_at_the_ceiling_and_no_queue_makes_it_smaller():
    endpoint = Endpoint(make(ceiling=64, adaptive=False))
    window = endpoint.window
    assert endpoint.fill() == 64
    for _ in range(100):
        endpoint.now += 1.0
        endpoint.tokens(1, ttft=30.0)
        endpoint.end(1)
        endpoint.fill()
    assert window.limit == 64
    assert window.statistics(endpoint.now).probes == 0


def test_fixed_comes_back_to_the_ceiling_after_an_overload():
    endpoint = Endpoint(make(ceiling=64, adaptive=False))
    window = endpoint.window
    endpoint.fill()
    window.rejected(endpoint.now, "overload", None, sent_at=endpoint.now, waiting=True)
    assert window.limit == int(0.7 * 64)
    endpoint.now += 1.0
    for _ in range(20):
        endpoint.round()
    assert window.limit == 64


def test_the_time_without_load_is_measured_anew():
    endpoint = grown(ceiling=128)
    window = endpoint.window
    base = window.statistics(endpoint.now).base
    assert base == BASE
    fed = before = window.limit
    for _ in range(90):
        endpoint.end(window.statistics(endpoint.now).served // 3)
        endpoint.fill()
        fed = min(fed, window.limit)
        endpoint.now += 1.0
        endpoint.tokens(window.statistics(endpoint.now).waiting, ttft=0.4)
    assert fed < 0.8 * before  # during the measurement
    assert window.statistics(endpoint.now).probes >= 1
    assert window.statistics(endpoint.now).base == pytest.approx(0.4, rel=0.1)


def test_after_a_long_pause_it_starts_again():
    endpoint = grown()
    endpoint.end(endpoint.window.in_flight)
    endpoint.now += 3600
    endpoint.fill(most=1)
    assert endpoint.window.limit == 8
    assert endpoint.window.statistics(endpoint.now).base is None


def test_one_that_did_not_leave_gives_its_turn_back():
    window = make()
    window.stated(0.0, StatedLimits(requests_remaining=60, requests_reset=60))
    assert window.ready_at(0.0) == 0.0
    window.send(0.0)
    assert window.ready_at(0.0) > 0.5
    window.unsend(0.0, signals=True)
    assert window.in_flight == 0
    assert window.ready_at(0.0) == 0.0


def test_a_shift_of_the_clock_changes_nothing_else():
    endpoint = Endpoint(make(chance=0.0))
    window = endpoint.window
    window.send(endpoint.now)
    window.rejected(endpoint.now, "rate", 30.0, sent_at=endpoint.now, waiting=True)
    window.shift(-90.0)
    assert window.ready_at(10.0) == pytest.approx(40.0)


def test_a_clock_that_jumped_back_does_not_stop_it_for_ever():
    window = make()
    window.send(1e6)
    window.rejected(1e6, "rate", 30.0, sent_at=1e6, waiting=True)
    assert window.ready_at(0.0) <= 700
    assert window.ready_at(700.0) <= 701


def test_a_step_of_slow_start_that_brings_nothing_is_undone():
    """An endpoint with eight slots that reads the first eight prompts all at once: that time is none without load."""
    endpoint = Endpoint(make())
    window = endpoint.window
    sent_at = [endpoint.now] * endpoint.fill()
    endpoint.now += 2.8
    endpoint.tokens(8, 2.8)
    del sent_at[:8]
    most = window.limit
    for _ in range(80):
        sent_at += [endpoint.now] * endpoint.fill()
        most = max(most, window.limit)
        endpoint.now += 0.35  # one of eight ends, and the next one is read
        endpoint.end(1)
        if sent_at:
            endpoint.tokens(1, endpoint.now - sent_at.pop(0))
    assert most <= 16
    assert window.limit <= 12
    assert window.statistics(endpoint.now).probes >= 1


def test_a_base_that_was_measured_in_a_queue_is_measured_anew_at_once():
    endpoint = Endpoint(make())
    window = endpoint.window
    sent_at = [endpoint.now] * endpoint.fill()
    while not window.statistics(endpoint.now).probes and endpoint.now < 130:
        endpoint.now += 0.5  # one slot, half a second an answer
        if window.statistics(endpoint.now).served:
            endpoint.end(1)
        if sent_at:
            endpoint.tokens(1, endpoint.now - sent_at.pop(0))
        sent_at += [endpoint.now] * endpoint.fill()
    assert window.statistics(endpoint.now).base == pytest.approx(0.5)
