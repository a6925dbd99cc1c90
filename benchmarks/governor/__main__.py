"""``python -m benchmarks.governor``: every scenario with every governor, as a table."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import time
from pathlib import Path

from .rivals import RIVALS
from .scenarios import ORACLE, OURS, Job, Row, Scenario, draw, simulate, table

README = Path(__file__).parent.parent / "README.md"
GOVERNORS = (*RIVALS, OURS)
Found = dict[tuple[str, str], Row]


def main() -> None:
    arguments = _arguments()
    seed, quick = arguments.seed, arguments.quick
    named, random = table(quick=quick), draw(seed, quick=quick)
    jobs = [Job(i, name, seed, quick) for i in range(len(named) + len(random)) for name in (ORACLE, *GOVERNORS)]
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        rows = pool.map(simulate, jobs, chunksize=4)
    names = [one.name for one in (*named, *random)]
    found = {(names[job.number], job.governor): row for job, row in zip(jobs, rows, strict=True)}
    cells = (
        f"Seed {seed}{', shortened (--quick)' if quick else ''}. Cells: goodput as a share of an oracle's that knows the "
        "capacity / rejected requests in % / seconds to the first token at the 99th percentile."
    )
    drawn = f"{len(random)} endpoints at random, {random[0].seconds:.0f} s each, for which nothing was tuned:"
    text = "\n\n".join((cells, _table(named, found), drawn, _summary(random, found)))
    print(text)
    print(f"\n{len(jobs)} runs in {time.monotonic() - began:.0f} s")
    if arguments.write:
        _write(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.governor", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter scenarios, fewer random ones")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: 1)")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at a time (default: one for each core)")
    return parser.parse_args()


def _table(scenarios: list[Scenario], found: Found) -> str:
    lines = [
        "| scenario | " + " | ".join(name if name != OURS else f"**{name}**" for name in GOVERNORS) + " |",
        "| --- |" + " --- |" * len(GOVERNORS),
    ]
    for scenario in scenarios:
        best = found[scenario.name, ORACLE].completed
        cells: list[str] = []
        for name in GOVERNORS:
            row = found[scenario.name, name]
            cell = f"{_two(row.completed / best)}/{_one(100 * row.refused)}/{_one(row.late)}"
            cells.append(cell if name != OURS else f"**{cell}**")
        lines.append(f"| {scenario.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _summary(scenarios: list[Scenario], found: Found) -> str:
    heads = (
        "governor",
        "goodput / oracle's: median, 10th percentile, worst",
        "rejected %: median, worst",
        "median TTFT / oracle's: median, worst",
    )
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- | --- | --- |"]
    for name in (OURS, *RIVALS):
        pairs = [(found[one.name, name], found[one.name, ORACLE]) for one in scenarios]
        goodput = sorted(own.completed / best.completed for own, best in pairs)
        refused = sorted(100 * own.refused for own, _ in pairs)
        waits = sorted(own.median / best.median for own, best in pairs)
        middle = len(pairs) // 2
        lines.append(
            f"| {name} | {_two(goodput[middle])}, {_two(goodput[len(pairs) // 10])}, {_two(goodput[0])} "
            f"| {_one(refused[middle])}, {_one(refused[-1])} | {waits[middle]:.3g}, {waits[-1]:.3g} |"
        )
    return "\n".join(lines)


def _two(number: float) -> str:
    return f"{number:.2f}".removeprefix("0")


def _one(number: float) -> str:
    return f"{number:.0f}" if number >= 10 or number < 0.05 else f"{number:.1f}".removeprefix("0")


def _write(text: str) -> None:
    old = README.read_text()
    new = re.sub(
        r"(<!-- governor -->\n).*(<!-- /governor -->)",
        lambda match: f"{match[1]}\n{text}\n\n{match[2]}",
        old,
        flags=re.DOTALL,
    )
    if new == old and text not in old:
        raise SystemExit(f"{README} has no markers <!-- governor --> and <!-- /governor -->")
    README.write_text(new)


if __name__ == "__main__":
    main()
