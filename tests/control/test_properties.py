"""Whatever happens in whatever order, the window keeps its promises."""

from __future__ import annotations

from math import isfinite

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millstream._control import Window
from millstream._control._pacer import Pacer
from millstream._headers import StatedLimits

CEILING = 200

waits = st.one_of(st.none(), st.sampled_from([0.0, 0.01, 1.0, 60.0, 600.0, 1e9, -5.0, float("nan"), float("inf")]))
amounts = st.one_of(st.none(), st.floats(0, 1e6))


class Requests(RuleBasedStateMachine):
    """Keeps its own account of what is in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(start=8, ceiling=CEILING, random=lambda: 0.5)
        self.now = 1000.0
        self.waiting: list[float] = []
        self.served: list[float] = []
        self.silent: list[float] = []
        self.cool = -float("inf")
        self.rejections = 0

    @rule(count=st.integers(1, 40), signals=st.booleans())
    def send(self, count: int, signals: bool) -> None:
        for _ in range(count):
            if self.window.in_flight >= self.window.limit or self.window.ready_at(self.now) > self.now:
                return
            self.window.send(self.now, signals=signals)
            (self.waiting if signals else self.silent).append(self.now)

    @rule(count=st.integers(1, 40))
    def first_tokens(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            sent_at = self.waiting.pop(0)
            self.window.first_token(self.now, self.now - sent_at)
            self.served.append(sent_at)

    @rule(count=st.integers(1, 40), how=st.sampled_from(["done", "broken"]), tokens=st.one_of(st.none(), st.just(100)))
    def end(self, count: int, how: str, tokens: int | None) -> None:
        for _ in range(count):
            for pool, waiting in ((self.served, False), (self.silent, False), (self.waiting, True)):
                if pool:
                    pool.pop(0)
                    if how == "done":
                        self.window.done(self.now, waiting=waiting, tokens=tokens)
                    else:
                        self.window.broken(self.now, waiting=waiting)
                    break

    @rule(count=st.integers(1, 40), kind=st.sampled_from(["rate", "overload", "loading"]), wait=waits)
    def reject(self, count: int, kind: str, wait: float | None) -> None:
        for _ in range(min(count, len(self.waiting))):
            sent_at = self.waiting.pop()
            self.window.rejected(self.now, kind, wait, sent_at=sent_at, waiting=True)
            self.rejections += 1

    @precondition(lambda self: self.silent)
    @rule(kind=st.sampled_from(["rate", "overload", "loading"]), wait=waits)
    def reject_silent(self, kind: str, wait: float | None) -> None:
        self.window.rejected(self.now, kind, wait, sent_at=self.silent.pop(), waiting=False)
        self.rejections += 1

    @rule(count=st.integers(1, 12))
    def find_nobody(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            self.waiting.pop()
            self.window.unreachable(self.now, waiting=True)

    @precondition(lambda self: self.waiting)
    @rule()
    def unsend(self) -> None:
        self.waiting.pop()
        self.window.unsend(self.now, signals=True)

    @rule(requests=amounts, reset=amounts, tokens=amounts, concurrency=st.one_of(st.none(), st.integers(1, 1000)))
    def read_headers(
        self, requests: float | None, reset: float | None, tokens: float | None, concurrency: int | None
    ) -> None:
        self.window.stated(
            self.now,
            StatedLimits(
                requests_remaining=requests,
                requests_reset=reset,
                tokens_remaining=tokens,
                tokens_reset=reset,
                concurrency=concurrency,
            ),
        )

    @rule(seconds=st.sampled_from([0.0, 1e-9, 0.01, 0.3, 1.0, 5.0, 61.0, 7200.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.window.ready_at(self.now)

    @rule(seconds=st.sampled_from([-1e5, 1e5, 0.0]))
    def shift(self, seconds: float) -> None:
        self.window.shift(seconds)
        self.now += seconds
        self.cool += seconds
        for pool in (self.waiting, self.served, self.silent):
            pool[:] = [sent_at + seconds for sent_at in pool]

    @invariant()
    def counts_are_kept(self) -> None:
        statistics = self.window.statistics(self.now)
        assert statistics.waiting == len(self.waiting)
        assert statistics.served == len(self.served) + len(self.silent)
        assert self.window.in_flight == statistics.waiting + statistics.served
        assert statistics.rejected == self.rejections

    @invariant()
    def the_limit_is_between_one_and_the_ceiling(self) -> None:
        assert 1 <= self.window.limit <= CEILING

    @invariant()
    def no_cool_down_is_taken_back(self) -> None:
        until = self.window.statistics(self.now).cool_until
        assert until >= self.cool - 1e-6
        assert until <= self.now + 700
        self.cool = until

    @invariant()
    def all_figures_are_numbers(self) -> None:
        statistics = self.window.statistics(self.now)
        assert isfinite(statistics.excess)
        assert statistics.arrival_rate >= 0
        assert isfinite(statistics.arrival_rate)
        assert statistics.base is None or 0 <= statistics.base < 1e6
        assert statistics.pace is None or statistics.pace > 0
        assert self.now <= self.window.ready_at(self.now) < self.now + 3600


TestRequests = Requests.TestCase
TestRequests.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rate=st.floats(0.02, 500),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=60),
    greed=st.integers(1, 30),
)
def test_a_pacer_passes_no_more_than_its_rate_and_one_burst(rate: float, pauses: list[float], greed: int):
    pacer = Pacer()
    now = 50.0
    pacer.told(now, rate, renews_in=1e6)
    began, passed = now, 0
    for pause in pauses:
        now += pause
        for _ in range(greed):
            if pacer.ready_at(now) <= now:
                pacer.take(now)
                passed += 1
    assert passed <= rate * (now - began) + max(1.0, rate / 2) + 1e-3


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rate=st.floats(0.02, 500))
def test_who_comes_when_told_may_leave(rate: float):
    pacer = Pacer()
    pacer.told(0.0, rate, renews_in=1e6)
    now = 0.0
    for _ in range(50):
        now = pacer.ready_at(now)
        assert pacer.ready_at(now) == pytest.approx(now, abs=1e-9)
        pacer.take(now)
    assert now == pytest.approx(49 / rate, rel=0.05)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    events=st.lists(st.tuples(st.integers(0, 4), waits, st.floats(-1e4, 1e4)), max_size=60),
    start=st.sampled_from([-5.0, 0.5, 8.0, 1e9]),
    ceiling=st.sampled_from([-1, 1, 2, 1000]),
    adaptive=st.booleans(),
)
def test_wrong_use_and_a_clock_that_jumps_break_nothing(
    events: list[tuple[int, float | None, float]], start: float, ceiling: int, adaptive: bool
):
    window, now = Window(start=start, ceiling=ceiling, adaptive=adaptive, random=lambda: 1.0), 0.0
    for event, wait, jump in events:
        now += jump
        if event == 0:
            window.send(now)
        elif event == 1:
            window.first_token(now, 0.2)
        elif event == 2:
            window.done(now, waiting=False, tokens=0)
        elif event == 3:
            window.rejected(now, "rate", wait, sent_at=now - 1, waiting=True)
        else:
            window.rejected(now, "overload", wait, sent_at=now, waiting=False)
        assert 1 <= window.limit <= max(1, ceiling)
        assert window.in_flight >= 0
        assert now <= window.ready_at(now) <= now + 3601
