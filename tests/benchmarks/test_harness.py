"""The benchmark's clients against its origin: a handful of answers each, nothing timed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.client import Client
from benchmarks.measure import WrongAnswerError, measure
from benchmarks.report import Results, report
from benchmarks.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
ORIGIN = [sys.executable, "-m", "benchmarks.origin", "--gap", "0.0005"]

# All scenarios in one process: what is tested is that answers are right, and starting Python is what takes time.
CHECK = """
import asyncio, dataclasses, importlib, json, sys
from benchmarks.machine import new_loop
from benchmarks.measure import measure
from benchmarks.scenarios import SCENARIOS

async def main(client, ports):
    bench = importlib.import_module("benchmarks.clients." + client).Bench
    for scenario in SCENARIOS:
        if scenario.kind == "import":
            continue
        width = min(scenario.concurrency, 3)
        small = dataclasses.replace(scenario, concurrency=width, batch=6, warm_up=2)
        async with bench(ports[scenario.behaviour], 60 if scenario.kind == "hold" else width) as one:
            figures = await measure(one, small, 0)
        print(json.dumps({"scenario": scenario.name, **figures}))

with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


CLIENTS = ("floor", "aiohttp_loop", "httpx_loop", "millstream_llm")


@pytest.fixture(scope="module")
def running():
    """All clients at once, since each mostly waits for Python and for the origin."""
    with subprocess.Popen(ORIGIN, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as origin:
        ports = origin.stdout.readline().decode()
        environment = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"}
        processes = {
            client: subprocess.Popen(
                [sys.executable, "-c", CHECK, client, ports],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for client in CLIENTS
        }
        yield processes
        for process in processes.values():
            process.kill()
            process.communicate()
        origin.stdin.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured by /proc")
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_understands_every_answer(client, running):
    printed, complaints = running[client].communicate(timeout=30)
    assert (running[client].returncode, complaints) == (0, "")
    lines = [json.loads(line) for line in printed.splitlines()]
    counts = {line["scenario"]: line["count"] for line in lines}
    assert counts == {each.name: 6 * each.units_each for each in SCENARIOS if each.kind != "import"}


def test_an_answer_that_was_not_understood_fails_the_measurement():
    class Deaf(Client):
        async def ask(self, prompt):
            return "" if prompt.endswith("1003.") else "something else"

    with pytest.raises(WrongAnswerError, match=r"200 answers to 200 prompts, 200 of them wrong"):
        asyncio.run(measure(Deaf(0, 1), SCENARIOS[0], 0))


def test_a_failure_stays_in_the_table():
    line = {"scenario": "generate-1", "figure_unit": "CPU us a request", "round": 0}
    lines = [
        {**line, "client": "floor", "figure": 10.0},
        {**line, "client": "aiohttp_loop", "error": "OSError: no"},
        {**line, "client": "millstream_llm", "figure": 30.0},
        {**line, "client": "millstream_llm", "round": 1, "error": "OSError: no"},
    ]
    results = Results(lines, SCENARIOS[:1], ["floor", "aiohttp_loop", "millstream_llm"])
    text = report(results, rounds=2, seconds=1, versions=[], load=["0.0", "0.0"])
    assert "| 10.0 | **failed** | 30.0 (**1 of 2 failed**) | 3.00 |  |" in text
    assert "- aiohttp_loop, generate-1: OSError: no" in text


def test_a_ratio_is_taken_within_each_round():
    lines = [
        {"scenario": "generate-1", "client": client, "round": turn, "figure": figure}
        for turn, figures in enumerate([(10, 20), (100, 200), (1000, 2000)])
        for client, figure in zip(["floor", "millstream_llm"], figures, strict=True)
    ]
    results = Results(lines, SCENARIOS[:1], ["floor", "millstream_llm"])
    assert results.ratio("generate-1", "millstream_llm", "floor") == 2.0
