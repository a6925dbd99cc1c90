"""The whole admission against a model: windows that adapt, pace, cool-downs, limits, several endpoints, one queue each."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millstream._admission import Admission, Lanes, Permit
from millstream._control import Window
from millstream._headers import StatedLimits
from millstream.limiters import LocalLimiter
from tests.conftest import manual_backends
from tests.support.clock import ManualLoop

CEILING = 6
LANES: tuple[Lanes, ...] = (("a",), ("b",), ("a", "b"))
MOMENT = 2e-3
"""Seconds. So much later than it might somebody may leave: who keeps the time is not roused for less than that."""


class CheckedWindow(Window):
    """Is asked for no more than it allows."""

    __slots__ = ()

    def send(self, now: float, *, signals: bool = True) -> None:
        assert self.in_flight < self.limit, "more than the window allows"
        assert self.ready_at(now) <= now, "earlier than cool-down and pace allow"
        super().send(now, signals=signals)


class Asked:
    """Somebody who waits, or holds a permit."""

    def __init__(self, number: int, lanes: Lanes, tokens: int, *, signals: bool, front: bool) -> None:
        self.number = -1 if front else number
        self.lanes = lanes
        self.tokens = tokens
        self.signals = signals
        self.front = front
        self.waiting_for_token = signals
        self.task: asyncio.Task[Permit] | None = None

    @property
    def permit(self) -> Permit:
        assert self.task is not None
        return self.task.result()


class AdmissionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = ManualLoop()
        self.queues: dict[Lanes, list[Asked]] = {lanes: [] for lanes in LANES}
        self.held: list[Asked] = []
        self.asked = 0

    @initialize(adaptive=st.booleans(), limits=st.sampled_from([None, (4, None), (None, 100), (20, 300)]))
    def begin(self, adaptive: bool, limits: tuple[int | None, int | None] | None) -> None:
        chance = random.Random(0)
        limiter = None
        if limits is not None:
            limiter = LocalLimiter(requests_per_minute=limits[0], tokens_per_minute=limits[1])
        self.admission = Admission(
            lambda: CheckedWindow(start=2, ceiling=CEILING, adaptive=adaptive, random=chance.random), CEILING, limiter
        )

    # -- what happens -----------------------------------------------------------------------------------------------

    def do(self, action: Callable[[], object]) -> None:
        """In the event loop, and let everybody run who can."""

        async def act() -> None:
            action()

        self.loop.run_until_complete(act())
        self.settle()

    def settle(self) -> None:
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        for lanes, queue in self.queues.items():
            came = 0
            while came < len(queue) and queue[came].task.done():
                came += 1
            self.held += queue[:came]
            self.queues[lanes] = queue = queue[came:]
            assert not any(asked.task.done() for asked in queue), "first come, first served"

    @rule(
        count=st.integers(1, 5),
        lanes=st.sampled_from(LANES),
        tokens=st.sampled_from([0, 10, 90]),
        signals=st.booleans(),
    )
    def acquire(self, count: int, lanes: Lanes, tokens: int, signals: bool) -> None:
        for _ in range(count):
            self.ask(lanes, tokens, signals=signals, front=False)

    def ask(self, lanes: Lanes, tokens: int, *, signals: bool, front: bool) -> None:
        asked = Asked(self.asked, lanes, tokens, signals=signals, front=front)
        self.asked += 1
        queue = self.queues[lanes]
        queue.insert(0 if front else len(queue), asked)

        def begin() -> None:
            asked.task = self.loop.create_task(self.admission.acquire(lanes, tokens, signals=signals, front=front))

        self.do(begin)

    @rule(lanes=st.sampled_from(LANES), signals=st.booleans())
    def acquire_nowait(self, lanes: Lanes, signals: bool) -> None:
        got: list[Permit | None] = []
        self.do(lambda: got.append(self.admission.acquire_nowait(lanes, signals=signals)))
        if got[0] is not None:
            assert not self.queues[lanes], "nobody is overtaken"
            asked = Asked(self.asked, lanes, 0, signals=signals, front=False)
            asked.task = self.loop.create_task(_given(got[0]))
            self.settle()
            self.held.append(asked)

    def take(self, data: st.DataObject) -> Asked:
        return self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))

    @precondition(lambda self: any(asked.waiting_for_token for asked in self.held))
    @rule()
    def first_token(self) -> None:
        asked = next(asked for asked in self.held if asked.waiting_for_token)
        asked.waiting_for_token = False
        self.do(asked.permit.first_token)
        self.do(asked.permit.first_token)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), used=st.sampled_from([None, 0, 50, 200]), how=st.sampled_from(["release", "broken"]))
    def end(self, data: st.DataObject, used: int | None, how: str) -> None:
        permit = self.take(data).permit
        self.do(lambda: getattr(permit, how)(used))
        self.do(lambda: permit.release(used))  # the second time does nothing

    @precondition(lambda self: self.held)
    @rule(data=st.data(), kind=st.sampled_from(["rate", "overload", "loading"]), told=st.sampled_from([None, 0.5, 20]))
    def refused(self, data: st.DataObject, kind: str, told: float | None) -> None:
        asked = self.take(data)
        self.do(lambda: asked.permit.rejected(kind, told))
        self.ask(asked.lanes, asked.tokens, signals=asked.signals, front=True)

    @precondition(lambda self: len(self.held) > 1)
    @rule(kind=st.sampled_from(["rate", "overload", "loading"]))
    def all_refused(self, kind: str) -> None:
        for asked in list(self.held):
            self.held.remove(asked)
            self.do(lambda asked=asked: asked.permit.rejected(kind, None))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unreachable(self, data: st.DataObject) -> None:
        permit = self.take(data).permit
        self.do(permit.unreachable)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def given_back(self, data: st.DataObject) -> None:
        asked = self.take(data)
        if asked.signals and not asked.waiting_for_token:
            self.do(asked.permit.release)
        else:
            self.do(asked.permit.give_back)

    @rule(lane=st.sampled_from(["a", "b"]), left=st.sampled_from([0, 1, 30]), reset=st.sampled_from([1.0, 30.0]))
    def stated(self, lane: str, left: int, reset: float) -> None:
        self.do(lambda: self.admission.stated(lane, StatedLimits(requests_remaining=float(left), requests_reset=reset)))

    @precondition(lambda self: any(self.queues.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        lanes = data.draw(st.sampled_from([lanes for lanes, queue in self.queues.items() if queue]))
        queue = self.queues[lanes]
        asked = queue.pop(data.draw(st.integers(0, len(queue) - 1)))
        self.do(asked.task.cancel)
        assert asked.task.cancelled()

    @precondition(lambda self: self.held and any(self.queues.values()))
    @rule(data=st.data())
    def end_and_cancel_in_one_moment(self, data: st.DataObject) -> None:
        permit = self.take(data).permit
        lanes = data.draw(st.sampled_from([lanes for lanes, queue in self.queues.items() if queue]))
        asked = self.queues[lanes].pop(0)

        def both() -> None:
            permit.release()
            asked.task.cancel()

        self.do(both)
        assert asked.task.cancelled()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0, 61.0]))
    def tick(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.settle()

    # -- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def counts_are_conserved(self) -> None:
        admission = self.admission
        assert admission.in_flight == len(self.held) <= CEILING
        assert admission.waiting == sum(len(queue) for queue in self.queues.values())
        waiting = Counter(asked.permit.lane for asked in self.held if asked.waiting_for_token)
        served = Counter(asked.permit.lane for asked in self.held if not asked.waiting_for_token)
        for lane, window in admission.windows.items():
            now = window.statistics(self.loop.time())
            assert (now.waiting, now.served) == (waiting[lane], served[lane])
            assert window.in_flight == waiting[lane] + served[lane]

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not any(self.queues.values()):
            return
        self.tick(MOMENT)
        now, admission = self.loop.time(), self.admission
        free = [
            queue[0]
            for lanes, queue in self.queues.items()
            if queue
            and admission.in_flight < CEILING
            and any(
                window.in_flight < window.limit and window.ready_at(now) <= now
                for window in map(admission.window, lanes)
            )
        ]
        if free:
            assert admission.limiter is not None, "there is room, and it is time"
            first = min(free, key=lambda asked: asked.number)

            def ask() -> None:
                reservation = admission.limiter.acquire_nowait(1, first.tokens)
                assert reservation is None, "there is room, it is time, and the limits allow it"

            self.do(ask)

    def teardown(self) -> None:
        """From now on the endpoints serve everybody: each gets a turn."""
        if hasattr(self, "admission"):
            # At the slowest pace one leaves in a minute; a cool-down or a limit costs a few more.
            deadline = self.loop.time() + 400 + 130 * sum(len(queue) for queue in self.queues.values())
            while self.held or any(self.queues.values()):
                for asked in list(self.held):
                    self.held.remove(asked)
                    self.do(asked.permit.first_token)
                    self.do(lambda asked=asked: asked.permit.release(asked.tokens))
                self.tick(0.5)
                assert self.loop.time() < deadline, "somebody starves"
            assert (self.admission.in_flight, self.admission.waiting) == (0, 0)
        self.loop.close()


async def _given(permit: Permit) -> Permit:
    return permit


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


@pytest.mark.parametrize("anyio_backend", manual_backends())
@pytest.mark.parametrize("limited", [False, True])
async def test_whoever_keeps_the_time_looks_sooner_where_it_is_sooner(limited):
    """An answer of another request may tell that much more is left than was known."""
    limiter = LocalLimiter(requests_per_minute=4) if limited else None
    admission = Admission(lambda: Window(random=lambda: 0.5), 1000, limiter)
    for _ in range(2):
        await admission.acquire(signals=True)
    left: list[float] = []
    start = anyio.current_time()

    async def ask() -> None:
        await admission.acquire(signals=True)
        left.append(anyio.current_time() - start)

    admission.stated("", StatedLimits(requests_remaining=3, requests_reset=600))
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
        await anyio.sleep(5)
        assert len(left) == 1
        admission.stated("", StatedLimits(requests_remaining=1000, requests_reset=600))
    assert left[1] < 7
    assert left[2] == pytest.approx(60, abs=0.1) if limited else left[2] < 8
