"""The peers whose libraries are here, and the one on Node, against the origin: a handful of answers each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.answers import ANSWER_TEXT
from benchmarks.described import describe

ROOT = Path(__file__).parents[2]
PEERS = (
    "httpx2_loop", "httpx2_pooled", "huggingface_hub", "huggingface_hub_wide", "huggingface_hub_pooled",
    "openai_sdk", "openai_aiohttp", "openai_pooled",
)  # fmt: skip

# All in one process, since their imports are what takes time.
ASK = """
import asyncio, importlib, json, sys
from benchmarks.answers import ANSWER_TEXT, STREAM_TEXT
from benchmarks.machine import new_loop

async def answers(name, port, concurrency):
    async with importlib.import_module("benchmarks.clients." + name).Bench(port, concurrency) as client:
        return [
            [text == ANSWER_TEXT for text in (await client.generate(["Hi"] * 6)).texts],
            [text == STREAM_TEXT for text in (await client.stream(["Hi"] * 6)).texts],
        ]

async def main(port):
    for name in sys.argv[2:]:
        print(json.dumps([name, await answers(name, port, 3)]))

with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main(int(sys.argv[1])))
"""

# What of LangChain.js it needs, where that is not installed.
LIBRARY = """
exports.HuggingFaceInference = class {
  static async imports() {}
  async call(inputs) {
    const body = JSON.stringify({ inputs });
    const answer = await fetch("https://api-inference.huggingface.co/models/gpt2", { method: "POST", body });
    return (await answer.json())[0].generated_text;
  }
};
"""


@pytest.fixture(scope="module")
def port():
    command = [sys.executable, "-m", "benchmarks.origin"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as origin:
        yield json.loads(origin.stdout.readline())["coalesced"]
        origin.stdin.close()


def test_each_understands_every_answer(port):
    command = [sys.executable, "-c", ASK, str(port), *PEERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told == [[name, [[True] * 6] * 2] for name in PEERS], done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not here")
@pytest.mark.parametrize(("answer", "expected"), [(ANSWER_TEXT, None), ("Another", "Error: a wrong answer: The sky")])
def test_the_one_on_node(port, answer, expected, tmp_path):
    (tmp_path / "langchain" / "llms").mkdir(parents=True)
    (tmp_path / "langchain" / "llms" / "hf.js").write_text(LIBRARY)
    scenario = {"kind": "generate", "unit": "request", "concurrency": 3, "batch": 12, "warm_up": 6}
    told = scenario | {"port": port, "seconds": 0.0, "answer": answer}
    done = subprocess.run(
        [*describe("langchain_js").foreign, json.dumps(told)],
        cwd=ROOT,
        env=os.environ | {"NODE_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    line = json.loads(done.stdout)
    if expected is None:
        assert (line["count"], line["figure_unit"]) == (12, "CPU us a request")
        assert line["figure"] > 0
        assert 0 < line["p50_ms"] <= line["p99_ms"]
    else:
        assert line["error"].startswith(expected)
