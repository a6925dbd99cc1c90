"""One client in one scenario, in a process of its own: prints one line of JSON.

`run.py` starts it; by hand: ``python -m benchmarks.measure CLIENT SCENARIO --port N`` beside a running origin.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from .answers import ANSWER_TEXT, STREAM_TEXT
from .client import Answers, Client
from .machine import allow_many_files, new_loop, peak_resident_bytes, pin, resident_bytes
from .scenarios import SCENARIOS, Scenario

_HELD_AT_A_TIME = 100
"""Streams that are being opened at the same time, so that what is measured is open streams and not a rush."""


class WrongAnswerError(Exception):
    """A client that did not understand the origin: its time counts for nothing."""


def prompts_of(count: int) -> list[str]:
    question = "Why is the sky blue, and why is it red in the evening? This is question number"
    return [f"{question} {1000 + number}." for number in range(count)]


async def measure(client: Client, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Run a scenario and give its figures."""
    if scenario.kind == "hold":
        return await _measure_memory(client, scenario)
    ask = {"generate": client.generate, "unread": client.unread, "stream": client.stream}[scenario.kind]
    expected = ANSWER_TEXT if scenario.kind == "generate" else STREAM_TEXT
    _check(await ask(prompts_of(scenario.warm_up)), expected, scenario.warm_up)
    return await _measure_time(ask, scenario, expected, seconds)


async def _measure_time(
    ask: Callable[[Sequence[str]], Coroutine[Any, Any, Answers]], scenario: Scenario, expected: str, seconds: float
) -> dict[str, Any]:
    prompts = prompts_of(scenario.batch)
    cpu = wall = 0.0
    answered = 0
    latencies: list[float] = []
    gc.collect()
    while not answered or wall < seconds:
        cpu_began, wall_began = time.process_time(), time.perf_counter()
        answers = await ask(prompts)
        cpu += time.process_time() - cpu_began
        wall += time.perf_counter() - wall_began
        _check(answers, expected, scenario.batch)
        answered += scenario.batch
        latencies += answers.seconds
    units = answered * scenario.units_each
    latencies.sort()
    return {
        "figure": cpu / units * 1e6,
        "figure_unit": f"CPU us a {scenario.unit}",
        "count": units,
        "per_second": units / wall,
        "cpu_share": cpu / wall,
        "p50_ms": statistics.median(latencies) * 1000,
        "p99_ms": latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1000,
    }


def _check(answers: Answers, expected: str, count: int) -> None:
    wrong = sum(text != expected for text in answers.texts)
    if wrong or len(answers.texts) != count:
        raise WrongAnswerError(f"{len(answers.texts)} answers to {count} prompts, {wrong} of them wrong")


async def _measure_memory(client: Client, scenario: Scenario) -> dict[str, Any]:
    """What each further open stream adds, once the client's code and first objects are there."""
    release = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def hold(count: int) -> None:
        left = count
        all_there = asyncio.Event()

        def arrived() -> None:
            nonlocal left
            left -= 1
            if not left:
                all_there.set()

        new = [asyncio.create_task(client.hold(prompt, arrived, release)) for prompt in prompts_of(count)]
        tasks.extend(new)
        waiting = asyncio.create_task(all_there.wait())
        await asyncio.wait([waiting, *new], return_when=asyncio.FIRST_COMPLETED)
        for task in new:
            if task.done():
                task.result()
        await waiting

    await hold(_HELD_AT_A_TIME // 2)
    gc.collect()
    before = resident_bytes()
    began = time.process_time()
    for start in range(0, scenario.batch, _HELD_AT_A_TIME):
        await hold(min(_HELD_AT_A_TIME, scenario.batch - start))
    cpu = time.process_time() - began
    gc.collect()
    each = (resident_bytes() - before) / scenario.batch
    release.set()
    await asyncio.gather(*tasks)
    return {
        "figure": each / 1000,
        "figure_unit": f"kB an open {scenario.unit}",
        "count": scenario.batch,
        "open_cpu_us": cpu / scenario.batch * 1e6,
    }


async def _run(bench: type[Client], scenario: Scenario, port: int, seconds: float) -> dict[str, Any]:
    # A held stream needs a place for itself, and for the few that were opened before anything was counted.
    concurrency = scenario.concurrency + (_HELD_AT_A_TIME if scenario.kind == "hold" else 0)
    async with bench(port, concurrency) as client:
        return await measure(client, scenario, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("client")
    parser.add_argument("scenario", choices=[each.name for each in SCENARIOS if each.kind != "import"])
    parser.add_argument("--port", type=int, required=True, help="the origin's, for the scenario's behaviour")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long, at least")
    parser.add_argument("--core", type=int, help="the core to stay on")
    options = parser.parse_args()
    pin(options.core)
    allow_many_files()
    scenario = next(each for each in SCENARIOS if each.name == options.scenario)
    line: dict[str, Any] = {"client": options.client, "scenario": scenario.name}
    try:
        bench: type[Client] = importlib.import_module(f"benchmarks.clients.{options.client}").Bench
        with asyncio.Runner(loop_factory=new_loop) as runner:
            line |= runner.run(_run(bench, scenario, options.port, options.seconds))
        line["peak_rss_mb"] = peak_resident_bytes() / 1e6
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(line))


if __name__ == "__main__":
    main()
