"""Measure all clients in all scenarios: ``python -m benchmarks.run``, from the project's directory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import machine
from .described import Description, describe, names_in
from .environments import ROOT, default_folder
from .plot import picture
from .processes import Ready
from .report import Circumstances, report, three_digits
from .results import Line, Results
from .rounds import Effort, Step, plan, run_all
from .scenarios import Scenario, chosen, in_order

README = ROOT / "benchmarks" / "README.md"
PICTURE = ROOT / "benchmarks" / "results.svg"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def write_readme(text: str) -> None:
    """Put the results between the two marks of the README."""
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README} has no {BEGIN} ... {END}")
    README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def effort_of(options: argparse.Namespace) -> Effort:
    """What was asked for, or else the usual, or else the quick."""
    usual = Effort(1, 1, 0.2) if options.quick else Effort()
    rounds = options.rounds or usual.rounds
    peer_rounds = min(rounds, options.peer_rounds or (options.rounds if options.clients else 0) or usual.peer_rounds)
    seconds = options.seconds or usual.seconds
    return Effort(rounds, peer_rounds, seconds, options.patience, even=options.scenarios is not None)


def _clients(names: str | None) -> list[Description]:
    return [describe(name) for name in (names.split(",") if names else in_order(names_in("clients")))]


def _parts(scenarios: Sequence[Scenario]) -> dict[str, Description]:
    return {name: describe(name) for scenario in scenarios for name in scenario.parts}


def _measure(steps: Sequence[Step], ready: Ready, effort: Effort) -> list[Line]:
    wanted = sum(step.why_not is None for step in steps)
    done = 0

    def tell(line: Line) -> None:
        nonlocal done
        done += 1
        told = line.get("error") or f"{three_digits(line['figure'])} {line['figure_unit']}"
        where = f"{done}/{wanted} round {line['round'] + 1}"
        print(f"{where} {line['scenario']:22} {line['client']:22} {told}", file=sys.stderr, flush=True)

    return run_all(steps, ready, effort, tell)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of the main scenarios, for a first look")
    parser.add_argument(
        "--rounds", type=int, help="how often the main scenarios are measured, and all that are named (5)"
    )
    parser.add_argument("--peer-rounds", type=int, help="the same for the slow peers (2; with --clients as --rounds)")
    parser.add_argument("--seconds", type=float, help="the least time of one measurement (0.5)")
    parser.add_argument(
        "--patience",
        type=float,
        default=Effort.patience,
        help="what a client needs longer for is not tried (%(default)s s)",
    )
    parser.add_argument("--clients", help="names of files in clients/ (all)")
    parser.add_argument("--scenarios", help="names, or their beginnings: generate,stream-spaced-64")
    parser.add_argument(
        "--environments",
        type=Path,
        default=default_folder(),
        metavar="DIR",
        help="where peers are installed (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there, a line each")
    parser.add_argument("--write", action="store_true", help="put the tables and the picture into benchmarks/")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    effort = effort_of(options)
    try:
        scenarios, clients = chosen(options.scenarios, quick=options.quick), _clients(options.clients)
    except LookupError as error:
        raise SystemExit(str(error)) from None
    parts = _parts(scenarios)
    steps = list(plan(scenarios, clients, parts, effort))
    wanted = {step.client.name: step.client for step in steps if step.why_not is None}
    ready = Ready(list(wanted.values()), options.environments)
    before, began = machine.load(), time.monotonic()
    lines = _measure(steps, ready, effort)
    load = [f"{each:.1f}" if each is not None else "unknown" for each in (before, machine.load())]
    minutes = (time.monotonic() - began) / 60
    how = Circumstances(effort.rounds, effort.peer_rounds, effort.seconds, ready.versions(), load, minutes)
    results = Results(lines)
    text = report(results, scenarios, how)
    if options.json is not None:
        options.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if options.write:
        PICTURE.write_text(picture(results))
        write_readme(f"![CPU time a request and a streamed token]({PICTURE.name})\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
