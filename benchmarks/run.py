"""Measure all clients in all scenarios, interleaved: ``python -m benchmarks.run``, from the project's directory."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import machine
from .client import Client
from .report import Results, report, three_digits
from .scenarios import DEFAULT_CLIENTS, SCENARIOS, Scenario

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"

_LONGEST_SECONDS = 60
_IMPORT = "import time; began = time.process_time(); import {}; print(time.process_time() - began)"
_IMPORTS_EACH = 3


@contextlib.contextmanager
def running_origin(core: int | None) -> Iterator[dict[str, int]]:
    """The ports of an origin in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.origin"]
    if core is not None:
        command += ["--core", str(core)]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as origin,
    ):
        assert origin.stdin is not None
        assert origin.stdout is not None
        try:
            line = origin.stdout.readline()
            if not line:
                origin.wait()
                complaints.seek(0)
                raise RuntimeError(f"the origin did not start: {complaints.read()[-2000:]}")
            yield json.loads(line)
        finally:
            origin.stdin.close()  # its sign to leave


def run_one(client: str, scenario: Scenario, ports: dict[str, int], seconds: float, core: int | None) -> dict[str, Any]:
    """One process, one line. Whatever goes wrong is in the line."""
    line: dict[str, Any] = {"client": client, "scenario": scenario.name}
    try:
        if scenario.kind == "import":
            code = _IMPORT.format(_bench(client).module)
            figures = [float(_output([sys.executable, "-c", code])) for _ in range(_IMPORTS_EACH)]
            return line | {"figure": statistics.median(figures), "figure_unit": "CPU seconds"}
        command = [sys.executable, "-m", "benchmarks.measure", client, scenario.name]
        command += ["--port", str(ports[scenario.behaviour]), "--seconds", str(seconds)]
        if core is not None:
            command += ["--core", str(core)]
        return line | json.loads(_output(command))
    except Exception as error:
        return line | {"error": f"{type(error).__name__}: {error}"}


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        raise RuntimeError(f"exit status {done.returncode}: {last[:300]}")
    return done.stdout


def _bench(client: str) -> type[Client]:
    bench: type[Client] = importlib.import_module(f"benchmarks.clients.{client}").Bench
    return bench


def run_all(
    scenarios: Sequence[Scenario], clients: Sequence[str], *, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Each round is every scenario with every client; who is first changes from round to round."""
    origin_core, client_core = machine.cores()
    labels = {client: _label(client) for client in clients}
    lines: list[dict[str, Any]] = []
    with running_origin(origin_core) as ports:
        for turn in range(rounds):
            shift = turn % len(clients)
            for scenario in scenarios:
                for client in (*clients[shift:], *clients[:shift]):
                    line = run_one(client, scenario, ports, seconds, client_core)
                    lines.append(line | {"round": turn, "label": labels[client]})
                    _tell(lines[-1], rounds)
    return lines


def _label(client: str) -> str:
    try:
        return _bench(client).label
    except Exception:  # a client that can't be imported fails in each of its processes, where it is told
        return client


def _versions(clients: Sequence[str]) -> list[str]:
    found: list[str] = []
    for client in clients:
        with contextlib.suppress(Exception):
            found += _bench(client).distributions
    return list(dict.fromkeys(found))


def _tell(line: dict[str, Any], rounds: int) -> None:
    told = line.get("error") or f"{three_digits(line['figure'])} {line['figure_unit']}"
    print(f"{line['round'] + 1}/{rounds} {line['scenario']:20} {line['client']:16} {told}", file=sys.stderr, flush=True)


def write_readme(text: str) -> None:
    """Put the results between the two marks of the README."""
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README} has no {BEGIN} ... {END}")
    README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _chosen(names: str | None) -> list[Scenario]:
    """Those with one of these names, or with one that goes on after a hyphen; in the table's order."""
    if names is None:
        return list(SCENARIOS)
    parts = names.split(",")
    chosen = {part: [each for each in SCENARIOS if f"{each.name}-".startswith(f"{part}-")] for part in parts}
    for part, found in chosen.items():
        if not found:
            raise SystemExit(f"no scenario {part!r}; there are {', '.join(each.name for each in SCENARIOS)}")
    return [each for each in SCENARIOS if any(each in found for found in chosen.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (5)")
    parser.add_argument("--seconds", type=float, help="the least time of one measurement (0.5)")
    parser.add_argument(
        "--clients", help=f"names of files in clients/ ({','.join(DEFAULT_CLIENTS)}); the last is compared"
    )
    parser.add_argument("--scenarios", help="names, or their beginnings: generate,stream-spaced-64")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there, a line each")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (0.2 if options.quick else 0.5)
    clients = options.clients.split(",") if options.clients else list(DEFAULT_CLIENTS)
    scenarios = _chosen(options.scenarios)
    before = machine.load()
    lines = run_all(scenarios, clients, rounds=rounds, seconds=seconds)
    load = [f"{each:.1f}" if each is not None else "unknown" for each in (before, machine.load())]
    text = report(
        Results(lines, scenarios, clients), rounds=rounds, seconds=seconds, versions=_versions(clients), load=load
    )
    if options.json is not None:
        options.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if options.write:
        write_readme(text)
    print(text)


if __name__ == "__main__":
    main()
