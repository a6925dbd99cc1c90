"""Lines of JSON become tables in Markdown."""

from __future__ import annotations

import datetime as dt
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from . import machine
from .scenarios import TARGETS, Scenario, Target

Line = dict[str, Any]

_COMMON = ("uvloop",)
_BESIDE = (
    "Beside the costs: units a second (and the share of a core that the client used), the time of one answer at the "
    "median / at the 99th percentile, and the most memory that the process had. The server answers at once, so these "
    "are no figures of an endpoint."
)


class Results:
    """All lines of a run, by scenario, client and round."""

    def __init__(self, lines: Sequence[Line], scenarios: Sequence[Scenario], clients: Sequence[str]) -> None:
        self.lines = lines
        self.scenarios = scenarios
        self.clients = clients

    def of(self, scenario: str, client: str) -> list[Line]:
        return [line for line in self.lines if line["scenario"] == scenario and line["client"] == client]

    def median(self, scenario: str, client: str, name: str = "figure") -> float | None:
        values = [line[name] for line in self.of(scenario, client) if name in line]
        return statistics.median(values) if values else None

    def ratio(self, scenario: str, client: str, against: str) -> float | None:
        """The median of the rounds' ratios: what the machine does to a whole round is in both."""
        bases = {line["round"]: line["figure"] for line in self.of(scenario, against) if line.get("figure")}
        ratios = [
            line["figure"] / bases[line["round"]]
            for line in self.of(scenario, client)
            if "figure" in line and line["round"] in bases
        ]
        return statistics.median(ratios) if ratios else None

    def labels(self) -> list[str]:
        found = {line["client"]: line["label"] for line in self.lines if "label" in line}
        return [found.get(client, client) for client in self.clients]


def report(results: Results, *, rounds: int, seconds: float, versions: Sequence[str], load: Sequence[str]) -> str:
    """Everything, as it stands in the README."""
    parts = [
        _circumstances(rounds, seconds, versions, load),
        _costs(results),
        _targets(results),
        _BESIDE,
        _details(results),
        _failures(results),
    ]
    return "\n\n".join(part for part in parts if part)


def _circumstances(rounds: int, seconds: float, versions: Sequence[str], load: Sequence[str]) -> str:
    today = dt.datetime.now(tz=dt.UTC).date()
    used = ", ".join(f"{name} {machine.version(name)}" for name in (*versions, *_COMMON))
    pinned = "the origin on one, the client on another" if machine.cores()[0] is not None else "nothing pinned"
    return (
        f"{today}: Python {platform.python_version()}, {used}; {machine.cpu_model()}, "
        f"{machine.core_count()} cores ({pinned}); {platform.system()} {platform.release()}; medians of {rounds} "
        f"interleaved {'round' if rounds == 1 else 'rounds'}, {seconds:g} s each; load at the beginning and at the "
        f"end: {' and '.join(load)}."
    )


def _costs(results: Results) -> str:
    *others, last = results.clients
    labels = results.labels()
    head = ["scenario", "unit", *labels, *(f"{labels[-1]} / {label.partition(':')[0]}" for label in labels[:-1])]
    rows: list[list[str]] = []
    for scenario in results.scenarios:
        cells = [_figure(results.of(scenario.name, client)) for client in results.clients]
        ratios = [_text(results.ratio(scenario.name, last, other), "{:.2f}") for other in others]
        rows.append([scenario.title, _unit(results, scenario), *cells, *ratios])
    return _table(head, rows)


def _unit(results: Results, scenario: Scenario) -> str:
    units = [line["figure_unit"] for line in results.lines if line["scenario"] == scenario.name and "figure" in line]
    return units[0].replace("CPU us", "CPU µs") if units else ""


def _figure(lines: Sequence[Line]) -> str:
    """The median, with what went wrong beside it; nothing where it was not tried."""
    values = [line["figure"] for line in lines if "figure" in line]
    failed = len(lines) - len(values)
    if not values:
        return "**failed**" if failed else ""
    text = three_digits(statistics.median(values))
    return f"{text} (**{failed} of {len(lines)} failed**)" if failed else text


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _targets(results: Results) -> str:
    lines = [line for line in map(_target(results), TARGETS) if line]
    return "Targets:\n\n" + "\n".join(lines) if lines else ""


def _target(results: Results) -> Callable[[Target], str]:
    titles = {scenario.name: scenario.title for scenario in results.scenarios}

    def told(target: Target) -> str:
        if target.scenario not in titles or target.client not in results.clients:
            return ""
        if target.against is None:
            value = results.median(target.scenario, target.client)
            limit = f"at most {target.limit:g}"
        elif target.against in results.clients:
            value = results.ratio(target.scenario, target.client, target.against)
            limit = f"at most {target.limit:g} times {results.labels()[results.clients.index(target.against)]}"
        else:
            return ""
        verdict = "no figure" if value is None else "met" if value <= target.limit else "**missed**"
        return f"- {titles[target.scenario]}: {limit}: {_text(value, '{:.2f}')} {verdict}"

    return told


def _details(results: Results) -> str:
    head = ["scenario", *results.labels()]
    rows: list[list[str]] = []
    for scenario in results.scenarios:
        cells = [_detail(results, scenario.name, client) for client in results.clients]
        if any(cells):
            rows.append([scenario.title, *cells])
    return _table(head, rows) if rows else ""


def _detail(results: Results, scenario: str, client: str) -> str:
    rate = results.median(scenario, client, "per_second")
    if rate is None:
        return ""
    share, p50, p99, peak = (
        results.median(scenario, client, name) or 0.0 for name in ("cpu_share", "p50_ms", "p99_ms", "peak_rss_mb")
    )
    return f"{rate:.0f}/s ({share:.0%}), {three_digits(p50)} / {three_digits(p99)} ms, {peak:.0f} MB"


def _failures(results: Results) -> str:
    told = dict.fromkeys(
        f"- {line['client']}, {line['scenario']}: {line['error']}" for line in results.lines if "error" in line
    )
    return "Failures:\n\n" + "\n".join(told) if told else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
