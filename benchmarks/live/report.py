"""Results become tables in Markdown."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.report import three_digits

from .figures import Figures
from .groups import Result

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- live -->", "<!-- /live -->"

LEAST_GOODPUT = 0.95
"""Of the best fixed width."""
MOST_WAIT = 0.25
"""Of the p99 time to first token with twice that width."""
MOST_REFUSED = 0.02


def report(results: Sequence[Result], load: Sequence[str], *, quick: bool = False) -> str:
    today = dt.datetime.now(tz=dt.UTC).date()
    note = " Short runs, for a first look: the verdicts mean little." if quick else ""
    head = (
        f"{today}: Python {platform.python_version()}; {machine.cpu_model()}, {machine.core_count()} cores; load at the "
        f"beginning and at the end: {' and '.join(load)}.{note}"
    )
    return "\n\n".join(part for part in (head, adaptive_table(results), sweep_table(results), _errors(results)) if part)


def adaptive_table(results: Sequence[Result]) -> str:
    head = [
        "endpoint", "best fixed (at)", "adaptive, whole run", "steady", "90 % after", "TTFT p50 / p99, steady",
        "of twice the best width", "refused, whole / steady", "",
    ]  # fmt: skip
    return _table(head, [_row(each) for each in results])


def _row(each: Result) -> list[str]:
    best, double = each.best, each.best.double
    wait = f"{_ms(double.ttft_p99)} ({_share(each.steady.ttft_p99, double.ttft_p99)})" if double is not None else ""
    missed = missed_by(each)
    return [
        each.name,
        f"{three_digits(best.tokens)}/s ({best.width})",
        f"{three_digits(each.whole.tokens)}/s ({_share(each.whole.tokens, best.tokens)})",
        f"{three_digits(each.steady.tokens)}/s ({_share(each.steady.tokens, best.tokens)})",
        "never" if each.to_90 is None else f"{each.to_90:.1f} s",
        f"{_ms(each.steady.ttft_p50)} / {_ms(each.steady.ttft_p99)}",
        wait,
        f"{each.whole.refused:.1%} / {each.steady.refused:.1%}",
        f"**missed**: {', '.join(missed)}" if missed else "met",
    ]


def missed_by(each: Result) -> list[str]:
    """What the steady part missed."""
    missed: list[str] = []
    if each.steady.tokens < LEAST_GOODPUT * each.best.tokens:
        missed.append("goodput")
    double, own = each.best.double, each.steady.ttft_p99
    if double is not None and (own is None or double.ttft_p99 is None or own > MOST_WAIT * double.ttft_p99):
        missed.append("TTFT")
    if each.steady.refused > MOST_REFUSED:
        missed.append("refused")
    return missed


def sweep_table(results: Sequence[Result]) -> str:
    rows: list[list[str]] = []
    seen: set[int] = set()
    for each in results:
        if id(each.sweep) in seen:
            continue
        seen.add(id(each.sweep))
        rows += [[each.name, str(width), *_sweep_cells(found)] for width, found in each.sweep.items()]
    return _table(["endpoint", "fixed", "tokens/s", "answers/s", "TTFT p50 / p99", "refused"], rows)


def _sweep_cells(found: Figures) -> list[str]:
    wait = f"{_ms(found.ttft_p50)} / {_ms(found.ttft_p99)}"
    return [three_digits(found.tokens), three_digits(found.answers), wait, f"{found.refused:.1%}"]


def _errors(results: Sequence[Result]) -> str:
    lines = [
        f"- {each.name}: {len(each.errors)} calls failed, the first by {each.errors[0][:200]}"
        for each in results
        if each.errors
    ]
    return "Failures:\n\n" + "\n".join(lines) if lines else ""


def _share(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.0%}" if value is not None and whole else "-"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_readme(text: str, path: Path = README, begin: str = BEGIN, end: str = END) -> None:
    """Put the tables between the two marks."""
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{path} has no {begin} ... {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
