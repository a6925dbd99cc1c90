"""One client in one scenario, in a process of its own: prints one line of JSON.

`run.py` starts it; by hand: ``python -m benchmarks.measure CLIENT SCENARIO --port N`` beside a running origin. It may run
in an environment that has nothing but the client: only the client's own file imports more than the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
from typing import Any

from .client import Client
from .described import module_of
from .machine import allow_many_files, new_loop, peak_resident_bytes
from .memory import AT_A_TIME, measure_calls, measure_streams
from .part import Part
from .parts_measured import measure_part
from .scenarios import SCENARIOS, Scenario
from .timing import measure_answers, measure_first, measure_late

MEMORY = {"hold": measure_streams, "wait": measure_calls}
TIMES = {"first": measure_first, "late": measure_late}


async def measure(client: Client, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Run a scenario and give its figures."""
    if scenario.kind in MEMORY:
        return await MEMORY[scenario.kind](client, scenario)
    return await TIMES.get(scenario.kind, measure_answers)(client, scenario, seconds)


async def _run(bench: type[Client], scenario: Scenario, port: int, seconds: float) -> dict[str, Any]:
    # What is held needs a place for itself, and for the few that were opened before anything was counted.
    concurrency = scenario.concurrency + (AT_A_TIME if scenario.kind in MEMORY else 0)
    async with bench(port, concurrency) as client:
        return await measure(client, scenario, seconds)


def run(name: str, scenario: Scenario, port: int, seconds: float) -> dict[str, Any]:
    """A client by its file's name."""
    bench: Any = importlib.import_module(module_of(name)).Bench
    if issubclass(bench, Part):
        return measure_part(bench(), scenario, seconds)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_run(bench, scenario, port, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("client")
    parser.add_argument("scenario", choices=[each.name for each in SCENARIOS if not each.kind.startswith("import")])
    parser.add_argument("--port", type=int, default=0, help="the origin's, for the scenario's behaviour")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long, at least")
    options = parser.parse_args()
    allow_many_files()
    scenario = next(each for each in SCENARIOS if each.name == options.scenario)
    line: dict[str, Any] = {"client": options.client, "scenario": scenario.name}
    try:
        line |= run(options.client, scenario, options.port, options.seconds)
        line["peak_rss_mb"] = peak_resident_bytes() / 1e6
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(line))


if __name__ == "__main__":
    main()
