"""The benchmark's clients against its origin: a handful of answers each, nothing timed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.client import Client
from benchmarks.measure import measure
from benchmarks.scenarios import SCENARIOS
from benchmarks.timing import WrongAnswerError

ROOT = Path(__file__).parents[2]
ORIGIN = [sys.executable, "-m", "benchmarks.origin", "--gap", "0.0002", "--late", "0.02"]

# All scenarios in one process: what is tested is that answers are right, and starting Python is what takes time.
CHECK = """
import asyncio, dataclasses, importlib, json, sys
from benchmarks.machine import new_loop
from benchmarks.measure import measure
from benchmarks.scenarios import SCENARIOS

async def main(client, ports):
    bench = importlib.import_module("benchmarks.clients." + client).Bench
    for scenario in SCENARIOS:
        if scenario.name not in sys.argv[3:]:
            continue
        width = min(scenario.concurrency, 2)
        small = dataclasses.replace(scenario, concurrency=width, batch=6, warm_up=2, opened=width)
        async with bench(ports[scenario.behaviour], 60 if scenario.kind in ("hold", "wait") else width) as one:
            figures = await measure(one, small, 0)
        print(json.dumps({"scenario": scenario.name, **figures}))

with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""

# One of each kind: those that differ in their numbers only are the same here.
TRIED = (
    "generate-1", "generate-64", "unread-coalesced-64", "stream-coalesced-64", "stream-spaced-64",
    "stream-spaced-1024", "hold-2000", "wait-2000", "first", "latency-10000",
)  # fmt: skip

CLIENTS = ("floor", "aiohttp_loop", "httpx_loop", "millstream_llm")


@pytest.fixture(scope="module")
def running():
    """All clients at once, each with its origin, since each mostly waits for Python."""
    with contextlib.ExitStack() as stack:
        origins = [
            stack.enter_context(subprocess.Popen(ORIGIN, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in CLIENTS
        ]
        environment = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"}
        processes = {
            client: subprocess.Popen(
                [sys.executable, "-c", CHECK, client, origin.stdout.readline().decode(), *TRIED],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for client, origin in zip(CLIENTS, origins, strict=True)
        }
        yield processes
        for process in processes.values():
            process.kill()
            process.communicate()
        for origin in origins:
            origin.stdin.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured by /proc")
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_understands_every_answer(client, running):
    printed, complaints = running[client].communicate(timeout=30)
    assert (running[client].returncode, complaints) == (0, "")
    lines = [json.loads(line) for line in printed.splitlines()]
    counts = {line["scenario"]: line["count"] for line in lines}
    assert counts.pop("first") >= 100
    assert counts == {
        each.name: 6 * each.units_each for each in SCENARIOS if each.name in TRIED and each.name != "first"
    }


def test_an_answer_that_was_not_understood_fails_the_measurement():
    class Deaf(Client):
        async def ask(self, prompt):
            return "" if prompt.endswith("1003.") else "something else"

    with pytest.raises(WrongAnswerError, match=r"200 answers to 200 prompts, 200 of them wrong"):
        asyncio.run(measure(Deaf(0, 1), SCENARIOS[0], 0))
