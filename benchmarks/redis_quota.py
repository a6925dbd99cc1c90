"""One quota on one Redis server for several processes: ``python -m benchmarks.redis_quota``, from the project's directory.

It starts a redis-server of its own (on a free port, keeping nothing) and real processes that take all they get. For each
row of the table: the most that all of them began within any window, the share of the quota that was used (the mean over
all windows of the run), the share of each process in what was begun, and the requests begun in a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import machine

ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 3.0
"""For all processes to be there before the first of them begins."""


class Row(NamedTuple):
    """What is measured. `slow`: seconds that all but the first process need after each request."""

    name: str
    requests_per_minute: float
    seconds: float
    processes: int = 2
    period: float = 60.0
    slow: float = 0.0


ROWS = (
    Row("600 a minute, two processes", 600, 150),
    Row("600 a minute in windows of 6 s, two processes, one slower", 600, 30, period=6, slow=0.02),
    Row("6000 a minute in windows of 6 s, eight processes", 6000, 30, processes=8, period=6),
    Row("no limit reached, one process", 1e9, 5, processes=1),
    Row("no limit reached, two processes", 1e9, 5),
)
_UNREACHED = 1e8


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """The URL of a server that nobody else uses."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        sys.exit("redis-server is not installed: apt-get install redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                for _ in range(100):
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                        break
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        server.wait(0.05)
                yield f"redis://127.0.0.1:{port}"
            finally:
                server.terminate()


async def work(url: str, row: Row, index: int, begin: float) -> None:
    """One process: takes all it gets, and prints when."""
    from millstream.limiters._redis import RedisLimiter

    limit, key = row.requests_per_minute, f"{row.name} {begin}"
    keeps = limit < _UNREACHED
    pause = row.slow if index else 0.0
    times: list[float] = []
    count = 0
    end = begin + row.seconds
    async with RedisLimiter(url, requests_per_minute=limit, period=row.period, key=key) as limiter:
        await limiter.wait()  # connects
        await asyncio.sleep(begin - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(end - time.monotonic()):
                while time.monotonic() < end:
                    if limiter.acquire_nowait() is None:
                        await limiter.wait()
                        continue
                    count += 1
                    if keeps:
                        times.append(time.monotonic())
                    if pause:
                        await asyncio.sleep(pause)
        degraded = limiter.degraded
    print(json.dumps({"count": count, "times": times, "degraded": degraded}))


def most_within(times: Sequence[float], seconds: float) -> int:
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def mean_within(times: Sequence[float], seconds: float, begin: float, end: float) -> float:
    """How many lie in a window of so many seconds, on average over all windows that lie in the run."""
    last = end - seconds
    return sum(max(0.0, min(at, last) - max(at - seconds, begin)) for at in times) / (last - begin)


def measure(url: str, row: Row) -> str:
    begin = time.monotonic() + _START_SECONDS  # on the machine's clock, the same for all its processes
    command = [sys.executable, "-m", "benchmarks.redis_quota", "--work", json.dumps([url, row, begin])]
    running = [
        subprocess.Popen([*command, str(index)], cwd=ROOT, stdout=subprocess.PIPE) for index in range(row.processes)
    ]
    told = [json.loads(process.communicate()[0]) for process in running]
    times = sorted(at for each in told for at in each["times"])
    total = sum(each["count"] for each in told)
    shares = " / ".join(f"{100 * each['count'] / total:.1f}" for each in told)
    rate = f"{total / row.seconds:,.0f}"
    note = ", without Redis for a while" if any(each["degraded"] for each in told) else ""
    if not times:
        return f"| {row.name}{note} | - | - | {shares} | {rate} |"
    limit = row.requests_per_minute * row.period / 60
    used = mean_within(times, row.period, begin, begin + row.seconds) / limit
    most = most_within(times, row.period)
    return f"| {row.name}{note} | {most} of {limit:g} | {100 * used:.1f} % | {shares} | {rate} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="of each row instead of its own (more than one window)")
    parser.add_argument("--only", type=int, help="the row with this number, from 1")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        url, row, begin = json.loads(options.work[0])
        with asyncio.Runner(loop_factory=machine.new_loop) as runner:
            runner.run(work(url, Row(*row), int(options.work[1]), begin))
        return
    rows = ROWS if options.only is None else ROWS[options.only - 1 : options.only]
    print(
        f"{machine.cpu_model()}, {machine.core_count()} cores, load {machine.load()}; redis-py {machine.version('redis')}"
    )
    print("| quota | most in any window | used | shares, % | begun a second |\n|---|--:|--:|--:|--:|")
    with running_redis() as url:
        for row in rows:
            print(measure(url, row._replace(seconds=options.seconds or row.seconds)), flush=True)


if __name__ == "__main__":
    main()
