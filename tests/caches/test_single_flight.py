from __future__ import annotations

import asyncio
import gc
import traceback
import weakref

import anyio
import pytest
import trio

from millstream._errors import RateLimitError, ReadError, StatusError
from millstream.caches import SingleFlight
from tests.conftest import EVENT_LOOPS

asyncio_only = pytest.mark.parametrize("anyio_backend", [EVENT_LOOPS["asyncio"], EVENT_LOOPS["uvloop"]])


class Origin:
    """Counts what is asked of it; every fetch takes `turns` turns of the loop and can be made to stop at one."""

    def __init__(self, turns=3):
        self.turns = turns
        self.started = 0
        self.finished = 0
        self.cancelled = 0
        self.fails = {}
        self.on_turn = lambda fetch, turn: None

    async def fetch(self):
        self.started += 1
        number = self.started
        try:
            for turn in range(1, self.turns + 1):
                self.on_turn(number, turn)
                await anyio.lowlevel.checkpoint()
        except BaseException:
            self.cancelled += 1
            raise
        if number in self.fails:
            raise self.fails[number]
        self.finished += 1
        return f"answer {number}"


async def call(flights, origin, got, name, scope=None, key="k"):
    with scope or anyio.CancelScope():
        try:
            got[name] = await flights.run(key, origin.fetch)
        except Exception as error:
            got[name] = error


async def test_a_thousand_identical_calls_are_one():
    flights, origin, got = SingleFlight(), Origin(), {}
    async with anyio.create_task_group() as group:
        for i in range(1000):
            group.start_soon(call, flights, origin, got, i)
        await anyio.wait_all_tasks_blocked()
    assert origin.started == 1
    assert sorted(got) == list(range(1000))
    assert {value for value, _ in got.values()} == {"answer 1"}
    assert sum(shared for _, shared in got.values()) == 999
    assert len(flights) == 0


async def test_different_keys_are_apart():
    flights, origin, got = SingleFlight(), Origin(), {}
    async with anyio.create_task_group() as group:
        for key in "abc":
            group.start_soon(call, flights, origin, got, key, None, key)
    assert origin.started == 3
    assert {shared for _, shared in got.values()} == {False}


async def test_nothing_is_kept_when_it_is_over():
    flights, origin = SingleFlight(), Origin()

    class Value:
        pass

    async def fetch():
        assert len(flights) == 1
        return Value()

    value, shared = await flights.run("k", fetch)
    gone = weakref.ref(value)
    del value
    gc.collect()
    assert (gone(), shared, len(flights)) == (None, False, 0)
    assert await flights.run("k", origin.fetch) == ("answer 1", False)
    assert await flights.run("k", origin.fetch) == ("answer 2", False)


async def test_a_leader_alone_does_not_suspend():
    async def fetch():
        return 1

    with pytest.raises(StopIteration) as stopped:
        SingleFlight().run("k", fetch).send(None)
    assert stopped.value.value == (1, False)


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("leaders", [1, 2, 4])
async def test_a_cancelled_leader_hands_over(turn, leaders):
    """The first `leaders` that fetch are cancelled at that turn; the other calls have an answer all the same."""
    flights, origin, got = SingleFlight(), Origin(), {}
    scopes = {}
    fetching = {}

    def on_turn(fetch, now):
        fetching.setdefault(fetch, current[0])
        if fetch <= leaders and now == turn:
            scopes[fetching[fetch]].cancel()

    current = [None]
    origin.on_turn = on_turn

    async def one(name):
        async def fetch():
            current[0] = name
            return await origin.fetch()

        with scopes[name]:
            got[name] = await flights.run("k", fetch)

    async with anyio.create_task_group() as group:
        for i in range(5):
            scopes[i] = anyio.CancelScope()
            group.start_soon(one, i)
    assert sum(scope.cancelled_caught for scope in scopes.values()) == leaders
    assert (origin.started, origin.cancelled) == (leaders + 1, leaders)
    assert len(got) == 5 - leaders
    assert {value for value, _ in got.values()} == {f"answer {leaders + 1}"}
    assert sum(not shared for _, shared in got.values()) == 1
    assert len(flights) == 0


@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_a_cancelled_follower_concerns_nobody(turn):
    flights, origin, got = SingleFlight(), Origin(), {}
    scope = anyio.CancelScope()
    origin.on_turn = lambda fetch, now: scope.cancel() if now == turn else None
    async with anyio.create_task_group() as group:
        group.start_soon(call, flights, origin, got, "leader")
        await anyio.lowlevel.checkpoint() if turn > 1 else None
        group.start_soon(call, flights, origin, got, "follower", scope)
        group.start_soon(call, flights, origin, got, "other")
    got.pop("follower", None)  # on trio tasks start in any order: it may have led, and then another was handed over to
    assert {value for value, _ in got.values()} == {f"answer {origin.started}"}
    assert len(got) == 2
    assert len(flights) == 0


async def test_cancelling_all_cancels_the_call():
    flights, origin, got = SingleFlight(), Origin(turns=10**9), {}
    async with anyio.create_task_group() as group:
        for i in range(5):
            group.start_soon(call, flights, origin, got, i)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert got == {}
    assert (origin.finished, origin.started) == (0, origin.cancelled)
    assert len(flights) == 0


@asyncio_only
@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("whom", [[0], [1], [0, 1], [0, 1, 2]])
async def test_native_cancels_at_every_turn_of_the_loop(ticks, whom):
    flights, origin = SingleFlight(), Origin()
    tasks = [asyncio.create_task(flights.run("k", origin.fetch)) for _ in range(3)]
    for _ in range(ticks):
        await asyncio.sleep(0)
    cancelled = {i for i in whom if tasks[i].cancel()}
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for i, outcome in enumerate(outcomes):
        if i in cancelled:
            assert isinstance(outcome, asyncio.CancelledError)
        else:
            assert outcome[0].startswith("answer")
    assert origin.finished <= 1 or ticks >= 3
    assert len(flights) == 0


async def test_an_error_reaches_all_each_its_own():
    flights, origin, got = SingleFlight(), Origin(), {}
    cause = ValueError("why")
    error = RateLimitError("slow down", status_code=429, retry_after=3.0, provider="p")
    error.__cause__ = cause
    error.attempts = 2
    error.add_note("a note")
    origin.fails = {1: error}
    async with anyio.create_task_group() as group:
        for i in range(4):
            group.start_soon(call, flights, origin, got, i)
    assert origin.started == 1
    assert len({id(each) for each in got.values()}) == 4
    for each in got.values():
        assert type(each) is RateLimitError
        assert str(each) == str(error)
        assert (each.retry_after, each.attempts, each.__cause__, each.__notes__) == (3.0, 2, cause, ["a note"])
    got[0].prompt_index = 7
    got[0].add_note("another")
    assert {each.prompt_index for i, each in got.items() if i} == {None}
    assert {len(each.__notes__) for i, each in got.items() if i} == {1}
    assert len(flights) == 0
    assert await flights.run("k", origin.fetch) == ("answer 2", False)  # the error is not kept


async def test_tracebacks_do_not_grow_into_each_other():
    flights, origin, got = SingleFlight(), Origin(), {}
    origin.fails = {1: ReadError("broken")}
    async with anyio.create_task_group() as group:
        for i in range(20):
            group.start_soon(call, flights, origin, got, i)
    assert len(got) == 20
    for each in got.values():
        frames = [frame.name for frame in traceback.extract_tb(each.__traceback__)]
        assert frames == ["call", "run", "_lead", "fetch"]


async def test_an_error_is_freed_without_the_collector():
    flights, origin, got = SingleFlight(), Origin(), {}
    error = ReadError("broken")
    origin.fails = {1: error}
    async with anyio.create_task_group() as group:
        for i in range(3):
            group.start_soon(call, flights, origin, got, i)
    gone = [weakref.ref(each) for each in got.values()]
    gc.collect()
    gc.disable()
    try:
        del error
        origin.fails.clear()
        got.clear()
        assert [each() for each in gone] == [None] * 3
    finally:
        gc.enable()


async def test_an_error_that_can_not_be_copied_is_told_all_the_same():
    class OddError(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} {b}")

    class ForeignError(StatusError):
        def __reduce__(self):
            return (ValueError, ("x",))

    for error in (OddError(1, 2), ForeignError("no")):
        flights, origin, got = SingleFlight(), Origin(), {}
        origin.fails = {1: error}
        async with anyio.create_task_group() as group:
            for i in range(3):
                group.start_soon(call, flights, origin, got, i)
        assert [got[i] is error for i in range(3)] == [True] * 3


async def test_an_interrupt_of_the_leader_does_not_reach_the_followers():
    flights, origin, got = SingleFlight(), Origin(), {}
    origin.fails = {1: GeneratorExit()}

    async def shielded(name):
        try:
            await call(flights, origin, got, name)
        except GeneratorExit:
            got[name] = None

    async with anyio.create_task_group() as group:
        for i in range(3):
            group.start_soon(shielded, i)
    assert sorted(value[0] if value else "" for value in got.values()) == ["", "answer 2", "answer 2"]


@pytest.mark.parametrize("order", [(asyncio.run, asyncio.run), (asyncio.run, trio.run), (trio.run, asyncio.run)])
def test_what_a_dead_loop_has_left_is_not_waited_for(order):
    flights = SingleFlight()
    left = []

    class Never:
        def __await__(self):
            yield

    async def die_in_the_middle():
        left.append(flights.run("k", Never))
        left[0].send(None)  # as by a task that is never run again
        assert len(flights) == 1

    async def again():
        with anyio.fail_after(30):
            return await flights.run("k", Origin().fetch)

    run = [lambda function, each=each: each(function()) if each is asyncio.run else each(function) for each in order]
    run[0](die_in_the_middle)
    assert run[1](again) == ("answer 1", False)
    left[0].close()
    assert len(flights) == 0


def test_a_leader_that_is_closed_after_its_loop_is_quiet():
    class Never:
        def __await__(self):
            yield

    async def begin():
        leader.send(None)
        task = asyncio.create_task(flights.run("k", Never))
        task._log_destroy_pending = False
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    flights = SingleFlight()
    leader = flights.run("k", Never)
    loop = asyncio.new_event_loop()
    follower = loop.run_until_complete(begin())
    loop.close()
    leader.close()
    assert not follower.done()
    assert len(flights) == 0
