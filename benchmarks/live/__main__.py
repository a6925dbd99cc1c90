"""Does the caller find out what an endpoint serves best? ``python -m benchmarks.live``, from the project's directory."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine

from .endpoints import ROOT
from .groups import Result, batching, from_json, llamacpp, rates, tell, to_json
from .report import report, write_readme
from .scenarios import FULL, QUICK, Effort


def fake(effort: Effort) -> list[Result]:
    """The quotas, which mostly wait, run in a process of their own beside the rest."""
    command = [sys.executable, "-m", "benchmarks.live", "--only", "rates", "--json", *(["--quick"] * effort.quick)]
    with tempfile.TemporaryFile("w+") as told:
        with subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=subprocess.DEVNULL) as beside:
            results = batching(effort)
            tell("waiting for the quotas")
            beside.wait()
        told.seek(0)
        text = told.read()
    return results + (from_json(text) if beside.returncode == 0 else [])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs for a first look (a minute, not eight)")
    parser.add_argument("--only", choices=("fake", "batching", "rates", "llamacpp"), help="one group of endpoints")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write how each window went, look by look")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    machine.allow_many_files()
    before = machine.load()
    groups = {"fake": fake, "batching": batching, "rates": rates, "llamacpp": llamacpp}
    chosen = [options.only] if options.only else ["fake", "llamacpp"]
    results = [result for group in chosen for result in groups[group](effort)]
    if options.trace is not None:
        options.trace.write_text("".join(f"# {each.name}\n" + "\n".join(each.trace) + "\n\n" for each in results))
    if options.json:
        print(to_json(results))
        return
    load = [f"{each:.1f}" if each is not None else "unknown" for each in (before, machine.load())]
    text = report(results, load, quick=effort.quick)
    if options.write:
        write_readme(text)
    print(text)


if __name__ == "__main__":
    main()
