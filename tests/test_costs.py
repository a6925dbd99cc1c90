"""What a call costs has not grown: counts that come out the same each time, so that no limit is a guess.

``python -m benchmarks.counts`` counts, and says what the words of the table mean.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COUNTS = [sys.executable, "-m", "benchmarks.counts"]

MEASURED = """
                    request  request-256       stream        token  token-alone         left  open-stream
calls                142.81       142.30       353.00         2.00        31.00            -            -
C-calls               74.00        74.00       315.00         4.00        17.00            -            -
instructions        3539.11            -      9354.00        88.00      1000.08            -            -
suspensions            0.00         0.00         1.00         0.00         1.00            -            -
handles                1.00         1.00         1.00         0.00         1.00            -            -
timers                 0.00         0.00         0.00         0.00         0.00            -            -
tasks                  0.00         0.00         0.00         0.00         0.00            -            -
futures                1.00         1.00         1.00         0.00         1.00            -            -
sends                  1.00         1.00         1.00         0.00         0.00            -            -
receives               1.00         1.00         1.00         0.00         1.00            -            -
bytes-sent           312.00       312.00       367.00         0.00         0.00            -            -
cyclic                    -            -            -            -            -         0.00            -
kept                      -            -            -            -            -         0.01            -
held-blocks               -            -            -            -            -            -       105.03
held-bytes                -            -            -            -            -            -      7936.50
"""
"""As printed on Python 3.11. Where something was saved: print it anew (`benchmarks/counts.py` says how)."""

MORE = 1.03
"""How much of it is allowed: another release of Python or of anyio has its own way to the same thing."""
ROUNDING = 0.1
"""And so much in all: a dictionary that grew in the midst of a batch is no cost of a request."""

Table = dict[str, dict[str, float]]
"""Figures, by what was counted and by what they are of."""


def parsed(text: str) -> Table:
    head, *lines = text.strip().splitlines()
    table: Table = {}
    for line in lines:
        kind, *cells = line.split()
        table[kind] = {unit: float(cell) for unit, cell in zip(head.split(), cells, strict=True) if cell != "-"}
    return table


def grown(now: Table, before: Table) -> Iterator[str]:
    """What to tell about each figure that is beyond its limit."""
    for kind, figures in before.items():
        for unit, was in figures.items():
            figure, limit = now[kind][unit], was * MORE + ROUNDING
            if figure > limit:
                yield (
                    f"{kind} of {unit}: {figure:g}, that is {figure - was:g} more than the {was:g} that were measured "
                    f"(the limit is {limit:g});\n  to see which: python -m benchmarks.counts --where {unit} {kind}"
                )


def shape(table: Table) -> dict[str, set[str]]:
    return {kind: set(figures) for kind, figures in table.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="counted with socket pairs that have no network beneath")
def test_nothing_costs_more_than_it_did():
    # In a process of its own: what other tests have left behind would count.
    done = subprocess.run(COUNTS, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    now, before = parsed(done.stdout.partition("\n\n")[0]), parsed(MEASURED)
    assert shape(now) == shape(before), "other things are counted: print the table anew"
    more = list(grown(now, before))
    assert not more, "\n".join(["it costs more than it did:", *more])


@pytest.mark.parametrize(("figure", "told"), [(99.0, False), (100.0, False), (103.0, False), (104.0, True)])
def test_what_grows_beyond_a_few_percent_is_told(figure: float, told: bool):
    assert any(grown({"calls": {"request": figure}}, {"calls": {"request": 100.0}})) is told


def test_it_is_told_what_grew_how_much_and_where_to_look():
    before = parsed("           request  token\ntimers      0.00      -\ncalls    100.00   3.00")
    [line] = grown({"timers": {"request": 1.0}, "calls": {"request": 100.0, "token": 3.0}}, before)
    assert "timers of request: 1, that is 1 more than the 0 that were measured" in line
    assert "python -m benchmarks.counts --where request timers" in line
