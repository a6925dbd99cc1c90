"""Slots, queue and time, on a clock that jumps."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from millstream.testing import Latency
from millstream.testing._behaviour import Behaviour
from millstream.testing._engine import Engine, QueueFullError
from tests.conftest import manual_backends

pytestmark = pytest.mark.parametrize("anyio_backend", manual_backends())


async def serve(engine: Engine, tokens: int, log: list, name: str):
    ticket = engine.enter()
    try:
        await ticket.wait()
        await engine.generate(ticket, 1, first=True)
        log.append((name, "first", round(anyio.current_time() - START[0], 6)))
        await engine.generate(ticket, tokens - 1, first=False)
        log.append((name, "last", round(anyio.current_time() - START[0], 6)))
    finally:
        engine.leave(ticket)


START = [0.0]


async def run(engine: Engine, names: str, tokens: int = 3) -> list:
    log: list = []
    START[0] = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(serve, engine, tokens, log, name)
            await anyio.lowlevel.checkpoint()
    return log


async def test_each_token_takes_its_time():
    engine = Engine(Behaviour(latency=Latency(0.5, 0.1)))
    assert await run(engine, "a") == [("a", "first", 0.5), ("a", "last", 0.7)]


async def test_requests_beyond_the_slots_queue_in_order():
    engine = Engine(Behaviour(latency=Latency(1.0), slots=1))
    log = await run(engine, "abc", tokens=1)
    assert [entry for entry in log if entry[1] == "last"] == [
        ("a", "last", 1.0),
        ("b", "last", 2.0),
        ("c", "last", 3.0),
    ]
    assert (engine.running, engine.waiting, engine.finished) == (0, 0, 3)


async def test_a_full_queue_refuses():
    engine = Engine(Behaviour(slots=1, max_queue=1))
    first, second = engine.enter(), engine.enter()
    with pytest.raises(QueueFullError):
        engine.enter()
    engine.leave(first)
    assert second.holds
    assert engine.waiting == 0
    third = engine.enter()
    assert not third.holds


async def test_who_leaves_the_queue_takes_no_slot():
    engine = Engine(Behaviour(slots=1))
    first, second, third = engine.enter(), engine.enter(), engine.enter()
    engine.leave(second)
    engine.leave(first)
    assert (third.holds, second.holds, engine.running) == (True, False, 1)


async def test_more_slots_admit_those_who_wait():
    behaviour = Behaviour(slots=1)
    engine = Engine(behaviour)
    tickets = [engine.enter() for _ in range(4)]
    behaviour.slots = 3
    engine.admit()
    assert [ticket.holds for ticket in tickets] == [True, True, True, False]


async def test_fewer_slots_wait_until_enough_have_left():
    behaviour = Behaviour(slots=2)
    engine = Engine(behaviour)
    first, second, third = (engine.enter() for _ in range(3))
    behaviour.slots = 1
    engine.leave(first)
    assert not third.holds
    engine.leave(second)
    assert third.holds


async def test_a_larger_batch_makes_each_token_slower():
    engine = Engine(Behaviour(latency=Latency(inter_token=0.1, load=0.05)))
    assert ("a", "last", 0.2) in await run(engine, "a")
    assert ("c", "last", 0.4) in await run(engine, "abc")


async def test_jitter_is_bounded_and_seeded():
    async def firsts(seed: int):
        engine = Engine(Behaviour(latency=Latency(1.0, jitter=0.5), seed=seed))
        return [when for _, event, when in await run(engine, "abcd", tokens=1) if event == "first"]

    once = await firsts(1)
    assert all(1.0 <= when <= 1.5 for when in once)
    assert len(set(once)) == 4
    assert await firsts(1) == once != await firsts(2)


async def test_no_latency_takes_no_time():
    engine = Engine(Behaviour())
    assert await run(engine, "a", tokens=100) == [("a", "first", 0.0), ("a", "last", 0.0)]
