"""Fake endpoints in a process of their own: ``python -m benchmarks.live.endpoints '[{...}]'``.

It prints a line of JSON, the URLs, then takes lines ``{"endpoint": 0, "slots": 24}`` until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from benchmarks.machine import allow_many_files, new_loop
from millstream.testing import FakeEndpoint, Latency

ROOT = Path(__file__).resolve().parents[2]
Options = dict[str, Any]

_COUNT = re.compile(r"\d+")


class Endpoints:
    """The running process."""

    def __init__(self, process: subprocess.Popen[str], urls: Sequence[str]) -> None:
        self.urls = urls
        self._process = process

    def resize(self, slots: int, endpoint: int = 0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"endpoint": endpoint, "slots": slots}) + "\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def running_endpoints(options: Sequence[Options]) -> Iterator[Endpoints]:
    """Fake endpoints with these options, those of `FakeEndpoint`; a latency as a list of `Latency`'s fields."""
    command = [sys.executable, "-m", "benchmarks.live.endpoints", json.dumps(options)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the endpoints did not start")
            yield Endpoints(process, json.loads(line))
        finally:
            process.stdin.close()  # its sign to leave


def words(prompt: str) -> str:
    """As many words as the prompt asks for."""
    asked = _COUNT.search(prompt)
    return " ".join(["word"] * (int(asked[0]) if asked else 16))


def _endpoint(options: Options) -> FakeEndpoint:
    given = {**options, "latency": Latency(*options["latency"])}
    return FakeEndpoint(reply=words, record=False, coalesce=True, **given)


async def serve(all_options: Sequence[Options]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        endpoints = [await stack.enter_async_context(_endpoint(options)) for options in all_options]
        print(json.dumps([endpoint.url for endpoint in endpoints]), flush=True)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            command = json.loads(line)
            endpoints[command["endpoint"]].resize(command["slots"])


def main() -> None:
    allow_many_files()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
