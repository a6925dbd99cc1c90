"""What the governor costs a call, in CPU time of the client: ``python -m benchmarks.governor_cost``.

The unit is a pass of ``async with anyio.CapacityLimiter``, measured in the same rounds. Nothing is sent: the function
that is called returns at once, or lets the others run once where thousands wait for it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import platform
import statistics
from collections.abc import Awaitable, Callable, Sequence
from time import process_time
from typing import Any

import anyio

from benchmarks import machine
from benchmarks.live.report import write_readme
from benchmarks.report import three_digits
from millstream import AdaptiveConcurrency, AsyncCaller
from millstream._admission import Admission
from millstream._caller import CallerOptions, Permit
from millstream._control import Window

BEGIN, END = "<!-- cost -->", "<!-- /cost -->"
LIMIT_US = 8.0
"""For what the governor adds to a call that nothing limits."""
FLAT = 2.0
"""A call with the most waiting costs at most so many times what it costs with the fewest."""
SLOTS = 64
WAITING = (100, 1_000, 10_000)

Passes = Callable[[int], Awaitable[None]]


async def _limiter(count: int) -> None:
    limiter = anyio.CapacityLimiter(SLOTS)
    for _ in range(count):
        async with limiter:
            pass


async def _admission(count: int) -> None:
    admission = Admission(lambda: Window(start=SLOTS, random=lambda: 0.5), SLOTS)
    for _ in range(count):
        permit = admission.acquire_nowait(signals=True)
        assert permit is not None
        permit.first_token()
        permit.release()


async def _nothing() -> None:
    """What is called."""


async def _bare(count: int) -> None:
    for _ in range(count):
        await _nothing()


class _Signals:
    """As a run does it: the permit is kept, and told the first token."""

    permit: Permit | None = None

    def begin(self, permit: Permit) -> None:
        self.permit = permit

    async def function(self) -> None:
        assert self.permit is not None
        self.permit.first_token()


async def _calls(count: int) -> None:
    one = _Signals()
    async with AsyncCaller() as caller:
        for _ in range(count):
            await caller.call_with_options(CallerOptions(begin=one.begin, signals=True), one.function)


ALONE: dict[str, Passes] = {
    "a bare `await`": _bare,
    "`anyio.CapacityLimiter`, a pass": _limiter,
    "governor: admit, first token, release": _admission,
    "`AsyncCaller.call_with_options`: the same, deadline, retries": _calls,
}
UNIT, GOVERNOR = "`anyio.CapacityLimiter`, a pass", "governor: admit, first token, release"


async def _crowd_of_limiter(waiting: int, count: int) -> None:
    limiter = anyio.CapacityLimiter(SLOTS)

    async def one() -> None:
        async with limiter:
            await anyio.lowlevel.checkpoint()

    await _crowd(one, waiting, count)


async def _crowd_of_caller(waiting: int, count: int) -> None:
    async def function() -> None:
        await anyio.lowlevel.checkpoint()

    adaptive = AdaptiveConcurrency(start=SLOTS, ceiling=SLOTS)
    async with AsyncCaller(max_concurrency=adaptive) as caller:
        await _crowd(lambda: caller.call_with_options(CallerOptions(), function), waiting, count)


async def _crowd(one: Callable[[], Awaitable[None]], waiting: int, count: int) -> None:
    """`count` calls, always with so many waiting; only the end of it has fewer."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(worker() for _ in range(SLOTS + waiting)))


CROWDS: dict[str, Callable[[int, int], Awaitable[None]]] = {
    "`anyio.CapacityLimiter`": _crowd_of_limiter,
    "`AsyncCaller`": _crowd_of_caller,
}


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    found: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        return found
    return {"uvloop": uvloop.new_event_loop, **found}


def cpu_us(new_loop: Callable[[], asyncio.AbstractEventLoop], passes: Passes, count: int) -> float:
    """CPU microseconds a pass."""

    async def timed() -> float:
        await passes(max(1, count // 10))
        began = process_time()
        await passes(count)
        return (process_time() - began) / count * 1e6

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(timed())


def crowd_us(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    crowd: Callable[[int, int], Awaitable[None]],
    waiting: int,
    calls: int,
) -> float:
    """CPU microseconds a call, the task's start and end with it: each task has about as many calls everywhere."""
    count = max(calls, 4 * waiting)

    async def timed() -> float:
        began = process_time()
        await crowd(waiting, count)
        return (process_time() - began) / count * 1e6

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(timed())


def measure(
    rounds: int, passes: int, crowd_sizes: Sequence[int] = WAITING
) -> tuple[dict[str, dict[str, float]], dict[str, dict[int, float]]]:
    """Medians of the rounds, interleaved: of each pass by loop; and of each crowd (on the first loop) by how many wait."""
    alone: dict[str, dict[str, list[float]]] = {name: {loop: [] for loop in loops()} for name in ALONE}
    crowds: dict[str, dict[int, list[float]]] = {name: {waiting: [] for waiting in crowd_sizes} for name in CROWDS}
    new_loop = next(iter(loops().values()))
    for _ in range(rounds):
        for loop, make in loops().items():
            for name, each in ALONE.items():
                alone[name][loop].append(cpu_us(make, each, passes))
        for waiting in crowd_sizes:
            for name, crowd in CROWDS.items():
                crowds[name][waiting].append(crowd_us(new_loop, crowd, waiting, passes))
    return (
        {name: {loop: statistics.median(values) for loop, values in each.items()} for name, each in alone.items()},
        {name: {count: statistics.median(values) for count, values in each.items()} for name, each in crowds.items()},
    )


def report(alone: dict[str, dict[str, float]], crowds: dict[str, dict[int, float]], load: Sequence[str]) -> str:
    names = list(next(iter(alone.values())))
    head = ["nothing limits", *(f"{loop}: CPU µs" for loop in names), *(f"{loop}: passes" for loop in names)]
    rows = [
        [
            what,
            *(three_digits(each[loop]) for loop in names),
            *(f"{each[loop] / alone[UNIT][loop]:.2f}" for loop in names),
        ]
        for what, each in alone.items()
    ]
    crowd_head = [
        f"{SLOTS} in flight ({names[0]}: CPU µs a call)",
        *(f"{waiting} wait" for waiting in next(iter(crowds.values()))),
        "last / first",
    ]
    crowd_rows = [
        [what, *(three_digits(value) for value in each.values()), f"{_growth(each):.2f}"]
        for what, each in crowds.items()
    ]
    today = dt.datetime.now(tz=dt.UTC).date()
    about = (
        f"{today}: Python {platform.python_version()}, anyio {machine.version('anyio')}, uvloop {machine.version('uvloop')}; "
        f"{machine.cpu_model()}; load at the beginning and at the end: {' and '.join(load)}."
    )
    return "\n\n".join([about, _table(head, rows), _table(crowd_head, crowd_rows), "\n".join(verdicts(alone, crowds))])


def verdicts(alone: dict[str, dict[str, float]], crowds: dict[str, dict[int, float]]) -> list[str]:
    most = max(alone[GOVERNOR].values())
    caller = crowds["`AsyncCaller`"]
    growth, fewest, most_waiting = _growth(caller), min(caller), max(caller)
    return [
        f"- at most {LIMIT_US:g} µs a call: {most:.1f} {_verdict(most <= LIMIT_US)}",
        f"- {most_waiting} waiting cost at most {FLAT:g} times what {fewest} do: {growth:.2f} {_verdict(growth <= FLAT)}",
    ]


def _growth(crowd: dict[int, float]) -> float:
    return crowd[max(crowd)] / crowd[min(crowd)]


def _verdict(met: Any) -> str:
    return "met" if met else "**missed**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (5)")
    parser.add_argument("--passes", type=int, default=20_000, help="of each measurement (20000)")
    parser.add_argument("--waiting", default=",".join(map(str, WAITING)), help="how many wait (100,1000,10000)")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    options = parser.parse_args(arguments)
    before = machine.load()
    alone, crowds = measure(options.rounds, options.passes, [int(each) for each in options.waiting.split(",")])
    load = [f"{each:.1f}" if each is not None else "unknown" for each in (before, machine.load())]
    text = report(alone, crowds, load)
    if options.write:
        write_readme(text, begin=BEGIN, end=END)
    print(text)


if __name__ == "__main__":
    main()
