"""Places and limits: exact over any 60 s, first come first served, nothing lost when cancelled."""

from __future__ import annotations

import asyncio
from collections import deque

import anyio
import anyio.lowlevel
import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millstream import _clock
from millstream._admission import Admission, Permit
from millstream._control import Window
from millstream._errors import ClosedError, OptionValueError
from millstream.limiters import LocalLimiter
from millstream.limiters._local import RequestLimit, TokenLimit
from tests.conftest import manual_backends
from tests.support.clock import ManualLoop

manual = pytest.mark.parametrize("anyio_backend", manual_backends())


def admission_of(places: int, requests: float | None = None, tokens: float | None = None) -> Admission:
    limiter = None
    if requests is not None or tokens is not None:
        limiter = LocalLimiter(requests_per_minute=requests, tokens_per_minute=tokens)
    return Admission(lambda: Window(ceiling=places, adaptive=False, random=lambda: 0.5), places, limiter)


def run_manually(backend: str, function, *args):
    options = (
        {"loop_factory": ManualLoop}
        if backend == "asyncio"
        else {"clock": trio.testing.MockClock(autojump_threshold=0)}
    )
    return anyio.run(function, *args, backend=backend, backend_options=options)


def suspends(coroutine) -> bool:
    """Whether the first step of `coroutine` ends in a suspension."""
    try:
        coroutine.send(None)
    except StopIteration:
        return False
    coroutine.close()
    return True


async def settle_down() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


# -- slots -----------------------------------------------------------------------------------------------------------


def test_a_free_slot_is_had_without_suspending_and_outside_of_any_loop():
    slots = admission_of(2)
    assert not suspends(slots.acquire())
    assert not suspends(slots.acquire())
    assert slots.in_flight == 2
    assert slots.acquire_nowait() is None


async def test_a_slot_that_is_released_twice_counts_once():
    slots = admission_of(1)
    first = await slots.acquire()
    first.release()
    second = await slots.acquire()
    first.release()
    assert slots.in_flight == 1
    second.release()
    assert slots.in_flight == 0


async def test_slots_are_given_in_the_order_of_asking():
    slots = admission_of(1)
    held = await slots.acquire()
    order = []

    async def ask(number):
        slot = await slots.acquire()
        order.append(number)
        await anyio.lowlevel.checkpoint()
        slot.release()

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(ask, number)
            await settle_down()
        held.release()
        assert slots.acquire_nowait() is None, "nobody comes in between a release and the one who waits"
    assert order == list(range(20))
    assert (slots.in_flight, slots.waiting) == (0, 0)


async def test_a_waiter_that_is_cancelled_when_it_was_just_granted_hands_the_slot_on():
    slots = admission_of(1)
    held = await slots.acquire()
    got = []

    async def first(scope):
        with scope:
            slot = await slots.acquire()
            try:
                await anyio.lowlevel.checkpoint()
            finally:
                slot.release()

    async def second():
        slot = await slots.acquire()
        got.append(slots.in_flight)
        slot.release()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(first, scope)
        await settle_down()
        group.start_soon(second)
        await settle_down()
        held.release()
        scope.cancel()
    assert got == [1]
    assert (slots.in_flight, slots.waiting) == (0, 0)


def test_the_same_with_a_native_cancellation():
    async def main():
        slots = admission_of(1)
        held = await slots.acquire()
        task = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        held.release()
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (slots.in_flight, slots.waiting) == (0, 0)

    asyncio.run(main())


async def test_many_waiters_can_be_cancelled_at_once():
    slots = admission_of(1)
    held = await slots.acquire()
    async with anyio.create_task_group() as group:
        for _ in range(500):
            group.start_soon(slots.acquire)
        await settle_down()
        assert slots.waiting == 500
        group.cancel_scope.cancel()
    assert slots.waiting == 0
    held.release()
    assert slots.in_flight == 0


async def test_closing_ends_the_waiting():
    slots = admission_of(1)
    held = await slots.acquire()
    ended = []

    async def ask():
        with pytest.raises(ClosedError, match="closed"):
            await slots.acquire()
        ended.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
        await settle_down()
        slots.close()
    assert ended == [True, True]
    with pytest.raises(ClosedError):
        slots.acquire_nowait()
    held.release()
    assert slots.in_flight == 0


class SlotsMachine(RuleBasedStateMachine):
    """Slots against a model: who holds, who waits in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = ManualLoop()
        self.slots = admission_of(3)
        self.held: list = []
        self.waiting: deque[asyncio.Task] = deque()

    def turn(self) -> None:
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))
        while self.waiting and self.waiting[0].done():
            self.held.append(self.waiting.popleft().result())

    @rule()
    def acquire(self) -> None:
        self.waiting.append(self.loop.create_task(self.slots.acquire()))
        self.turn()

    @rule()
    def acquire_nowait(self) -> None:
        slot = self.slots.acquire_nowait()
        assert (slot is None) == (len(self.held) == 3)
        if slot is not None:
            self.held.append(slot)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data) -> None:
        slot = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        slot.release()
        slot.release()
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        task = self.waiting[data.draw(st.integers(0, len(self.waiting) - 1))]
        self.waiting.remove(task)
        task.cancel()
        self.turn()
        assert task.cancelled()

    @precondition(lambda self: self.held and self.waiting)
    @rule()
    def release_and_cancel_the_first_in_one_moment(self) -> None:
        task = self.waiting.popleft()
        self.held.pop().release()
        task.cancel()
        self.turn()
        assert task.cancelled()

    @invariant()
    def agrees(self) -> None:
        assert self.slots.in_flight == len(self.held) <= 3
        assert self.slots.waiting == len(self.waiting)
        assert not self.waiting or len(self.held) == 3, "nobody waits while a slot is free"
        assert not any(task.done() for task in self.waiting), "first come, first served"

    def teardown(self) -> None:
        for task in self.waiting:
            task.cancel()
        self.turn_all()
        for slot in self.held:
            slot.release()
        assert (self.slots.in_flight, self.slots.waiting) == (0, 0)
        self.loop.close()

    def turn_all(self) -> None:
        self.waiting.clear()
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None, derandomize=True)


# -- limits ----------------------------------------------------------------------------------------------------------


async def send_all(
    admission: Admission, arrivals: list[tuple[float, int]], holds: float
) -> list[tuple[float, int, int]]:
    """Each arrival (time, tokens) asks at its time; gives (sent at, tokens, number) in the order of sending."""
    sent: list[tuple[float, int, int]] = []
    start = _clock.monotonic()

    async def ask(number: int, tokens: int) -> None:
        permit = await admission.acquire(tokens=tokens)
        sent.append((_clock.monotonic() - start, tokens, number))
        await anyio.sleep(holds)
        permit.release()

    async with anyio.create_task_group() as group:
        for number, (at, tokens) in enumerate(arrivals):
            wait = at - (_clock.monotonic() - start)
            if wait > 0:
                await anyio.sleep(wait)
            group.start_soon(ask, number, tokens)
            await settle_down()
    return sent


def assert_in_order(sent: list[tuple[float, int, int]], count: int) -> None:
    """Nobody left before one who asked earlier (in one moment, trio runs tasks in an order of its own)."""
    times = [at for at, _, _ in sorted(sent, key=lambda each: each[2])]
    assert len(times) == count
    assert times == sorted(times)


def most_in_a_minute(events: list[tuple[float, float]]) -> float:
    """The largest sum of amounts in any window [t, t + 60)."""
    # The clock's rounding (1e-9) is less than what is allowed for here.
    return max(sum(amount for at, amount in events if start <= at < start + 60 - 1e-6) for start, _ in events)


arrivals_of = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), min_size=1, max_size=25)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    gaps=arrivals_of,
    requests=st.integers(1, 6),
    tokens=st.integers(50, 120),
    slots=st.integers(1, 4),
    holds=st.floats(0, 20),
)
def test_both_limits_hold_over_any_minute_first_come_first_served(backend, gaps, requests, tokens, slots, holds):
    at = 0.0
    arrivals = []
    for gap, amount in gaps:
        at += gap
        arrivals.append((at, amount))
    admission = admission_of(slots, requests=requests, tokens=tokens)
    sent = run_manually(backend, send_all, admission, arrivals, holds)
    assert_in_order(sent, len(arrivals))
    assert most_in_a_minute([(at, 1) for at, *_ in sent]) <= requests
    assert most_in_a_minute([(at, amount) for at, amount, _ in sent]) <= tokens
    assert (admission.in_flight, admission.waiting) == (0, 0)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nobody_waits_longer_than_the_limit_asks_for(backend):
    admission = admission_of(100, requests=3)
    sent = run_manually(backend, send_all, admission, [(at, 0) for at in (0, 0, 10, 20, 20, 100, 200)], 0.0)
    assert [at for at, *_ in sent] == pytest.approx([0, 0, 10, 60, 60, 100, 200], abs=1e-4)


@manual
async def test_a_large_request_is_not_overtaken_by_small_ones():
    """A stream of small ones never lets a heap ordered by amount come to the large one."""
    admission = admission_of(100, tokens=10)
    arrivals = [(0.0, 5)] + [(1.0, 8)] + [(1.0 + n, 1) for n in range(30)]
    sent = await send_all(admission, arrivals, 0.0)
    assert_in_order(sent, 32)
    assert sent[1][0] == pytest.approx(60, abs=1e-4)


@pytest.mark.parametrize(
    ("per_minute", "sent"), [(0.5, [0, 120, 240]), (1, [0, 60, 120]), (1.5, [0, 60, 120]), (2.9, [0, 0, 60])]
)
@manual
async def test_limits_that_are_not_whole(per_minute, sent):
    admission = admission_of(10, requests=per_minute)
    told = await send_all(admission, [(0.0, 0)] * 3, 0.0)
    assert [at for at, *_ in told] == pytest.approx(sent, abs=1e-4)


def test_what_was_used_counts_for_exactly_a_minute():
    limit = RequestLimit(2)
    limit.take(0.0, 1)
    limit.take(10.0, 1)
    assert [limit.ready_at(now, 1) for now in (10.0, 59.999, 60.0, 69.0)] == [60.0, 60.0, 60.0, 69.0]
    limit.take(60.0, 1)
    assert [limit.ready_at(now, 1) for now in (60.0, 69.999, 70.0)] == [70.0, 70.0, 70.0]
    assert [limit.used(now) for now in (70.0, 119.999, 120.0)] == [1, 1, 0]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_lets_nothing_through_is_refused(value):
    with pytest.raises(OptionValueError, match="requests_per_minute"):
        RequestLimit(value)
    with pytest.raises(OptionValueError, match="tokens_per_minute"):
        TokenLimit(value)


@manual
async def test_more_tokens_than_the_limit_is_an_error_and_not_a_wait_for_ever():
    admission = admission_of(1, tokens=100)
    with pytest.raises(OptionValueError, match="about 101 tokens can never be sent under tokens_per_minute=100"):
        await admission.acquire(tokens=101)
    (await admission.acquire(tokens=100)).release()
    assert (admission.in_flight, admission.waiting) == (0, 0)


@manual
async def test_what_was_not_used_is_given_back_at_once_and_wakes_who_waits():
    admission = admission_of(10, tokens=100)
    first = await admission.acquire(tokens=90)
    start = _clock.monotonic()
    async with anyio.create_task_group() as group:
        times = []

        async def ask():
            (await admission.acquire(tokens=50)).release()
            times.append(_clock.monotonic() - start)

        group.start_soon(ask)
        await anyio.sleep(5)
        assert times == []
        first.release(10)
        first.release(0)
    assert times == [5]


@manual
async def test_what_was_used_beyond_the_estimate_delays_the_next():
    admission = admission_of(10, tokens=100)
    first = await admission.acquire(tokens=10)
    await anyio.sleep(20)
    first.release(95)
    start = _clock.monotonic()
    (await admission.acquire(tokens=20)).release()
    # 10 count until 60, the other 85 from when they were known (20) until 80
    assert _clock.monotonic() - start == pytest.approx(60, abs=1e-4)


@manual
async def test_usage_beyond_the_estimate_that_is_known_while_the_next_waits_for_a_slot():
    """The first in the queue looks again when it has its slot: the tokens that it saw may be gone."""
    admission = admission_of(1, tokens=100)
    first = await admission.acquire(tokens=10)
    start = _clock.monotonic()
    async with anyio.create_task_group() as group:
        times = []

        async def ask():
            permit = await admission.acquire(tokens=50)
            times.append(_clock.monotonic() - start)
            permit.release()

        group.start_soon(ask)
        await anyio.sleep(30)
        first.release(100)
        await anyio.sleep(1)
        assert admission.in_flight == 0, "it holds no slot while it waits for tokens"
    assert times == pytest.approx([90], abs=1e-4)


@manual
async def test_a_permit_that_is_given_back_leaves_no_trace():
    admission = admission_of(1, requests=1, tokens=10)
    permit = await admission.acquire(tokens=10)
    permit.give_back()
    permit.give_back()
    assert isinstance(admission.acquire_nowait(tokens=10), Permit)


@manual
async def test_who_is_cancelled_while_waiting_has_used_up_nothing():
    admission = admission_of(5, requests=1, tokens=10)
    (await admission.acquire(tokens=10)).release()
    start = _clock.monotonic()
    with anyio.move_on_after(30):
        await admission.acquire(tokens=5)
    assert admission.waiting == 0
    (await admission.acquire(tokens=10)).release()
    assert _clock.monotonic() - start == pytest.approx(60, abs=1e-4)


@manual
async def test_permits_are_taken_when_the_slot_is_there_and_not_before():
    """Else a queue for slots would save up permits, and send them together with those of the next minute."""
    admission = admission_of(1, requests=2)
    arrivals = [(0.0, 0)] * 4
    sent = await send_all(admission, arrivals, 50.0)
    assert [at for at, *_ in sent] == pytest.approx([0, 50, 100, 150], abs=1e-4)


@manual
async def test_closing_ends_the_waiting_for_limits():
    admission = admission_of(5, requests=1)
    (await admission.acquire()).release()
    start = _clock.monotonic()
    async with anyio.create_task_group() as group:

        async def ask():
            with pytest.raises(ClosedError):
                await admission.acquire()

        group.start_soon(ask)
        group.start_soon(ask)
        await anyio.sleep(1)
        admission.close()
    assert _clock.monotonic() - start == 1
    assert (admission.in_flight, admission.waiting) == (0, 0)


def test_the_limits_hold_over_two_event_loops_whose_clocks_differ():
    admission = admission_of(5, requests=2, tokens=100)

    async def run(expected):
        await anyio.sleep(1000 * expected[-1])  # the clocks of the two loops have nothing to do with each other
        start = _clock.monotonic()
        times = []
        for _ in range(2):
            (await admission.acquire(tokens=50)).release()
            times.append(_clock.monotonic() - start)
        assert times == pytest.approx(expected, abs=0.5)

    run_manually("asyncio", run, [0, 0])
    run_manually("asyncio", run, [60, 60])
    run_manually("trio", run, [60, 60])
