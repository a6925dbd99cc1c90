"""What was measured becomes tables in Markdown."""

from __future__ import annotations

import datetime as dt
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import machine
from .results import Results
from .scenarios import TABLES, Scenario, Table
from .targets import TARGETS, Target

_BESIDE = (
    "Units a second (and the share of a core that the client used), the time of one answer at the median / at the 99th "
    "percentile, and the most memory that the process had. The server answers at once, so these are no figures of an "
    "endpoint."
)
_NOT_TRIED = "-"


@dataclass(frozen=True)
class Circumstances:
    """How a run was made."""

    rounds: int
    peer_rounds: int
    seconds: float
    versions: Mapping[str, Mapping[str, str]]
    """By the client's label, its distributions' versions where it ran."""
    load: Sequence[str]
    """At the beginning and at the end."""
    minutes: float


def report(results: Results, scenarios: Sequence[Scenario], how: Circumstances) -> str:
    """Everything, as it stands in the README."""
    names = {scenario.name for scenario in scenarios}
    tables = [
        Table(table.title, kept, table.compared)
        for table in TABLES
        if (kept := tuple(each for each in table.scenarios if each.name in names))
    ]
    parts = [
        _circumstances(how),
        _targets(results),
        *(_costs(results, table) for table in tables),
        _left_out(results),
        _failures(results),
        _details(results, tables),
        _versions(how),
    ]
    return "\n\n".join(part for part in parts if part)


def _circumstances(how: Circumstances) -> str:
    today = dt.datetime.now(tz=dt.UTC).date()
    pinned = "the origin on one, the client on another" if machine.cores()[0] is not None else "nothing pinned"
    rounds = f"{how.rounds} interleaved {'round' if how.rounds == 1 else 'rounds'}"
    if how.peer_rounds < how.rounds:
        rounds += f" (peers in {how.peer_rounds}; what is not among the main scenarios in half as many)"
    return (
        f"{today}: Python {platform.python_version()}, uvloop {machine.version('uvloop')}; {machine.cpu_model()}, "
        f"{machine.core_count()} cores ({pinned}); {platform.system()} {platform.release()}; medians of {rounds}, "
        f"{how.seconds:g} s each, {how.minutes:.0f} minutes in all; load at the beginning and at the end: "
        f"{' and '.join(how.load)}."
    )


def _targets(results: Results) -> str:
    rows = [row for row in (_target_row(results, target) for target in TARGETS) if row]
    return "Targets:\n\n" + _table(["", "goal", "must", "measured", "goal", "must"], rows) if rows else ""


def _target_row(results: Results, target: Target) -> list[str]:
    """Nothing where it is about what is not in this run."""
    if not all(results.of(*each) for each in target.needs):
        return []
    value = target.value(results)
    if value is None:
        verdicts = [_NOT_TRIED, _NOT_TRIED]
    else:
        verdicts = ["met" if target.met(value, limit) else "**missed**" for limit in (target.goal, target.must)]
    return [target.what, target.told(target.goal), target.told(target.must), target.told(value), *verdicts]


def _costs(results: Results, table: Table) -> str:
    names = [scenario.name for scenario in table.scenarios]
    clients = results.clients(names)
    if not clients:
        return ""
    ours = results.label(table.compared)
    rows = [
        [_row_name(results, table, client), *(_cell(results, name, client, table.compared) for name in names)]
        for client in clients
    ]
    told = f", in brackets as a multiple of {ours}" if table.compared in clients and len(clients) > 1 else ""
    return f"**{table.title}**{told}:\n\n" + _table(["", *(each.column for each in table.scenarios)], rows)


def _row_name(results: Results, table: Table, client: str) -> str:
    label = results.label(client)
    return f"**{label}**" if client == table.compared else label


def _cell(results: Results, scenario: str, client: str, compared: str) -> str:
    """The median and its ratio, with what went wrong beside it."""
    lines = results.of(scenario, client)
    values = [line["figure"] for line in lines if "figure" in line]
    failed = sum("error" in line for line in lines)
    if not values:
        return "**failed**" if failed else _NOT_TRIED
    text = three_digits(statistics.median(values))
    if client == compared:
        text = f"**{text}**"
    elif (ratio := results.ratio(scenario, client, compared)) is not None:
        text += f" ({three_digits(ratio)}x)"
    return f"{text} (**{failed} of {len(lines)} failed**)" if failed else text


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _left_out(results: Results) -> str:
    return _reasons(results, "skipped", f"Not tried ({_NOT_TRIED})")


def _failures(results: Results) -> str:
    return _reasons(results, "error", "Failed")


def _reasons(results: Results, name: str, title: str) -> str:
    """One line for each client and reason, with the scenarios that it is about."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for line in results.lines:
        if name in line:
            found.setdefault((line["client"], line[name]), {})[line["scenario"]] = None
    shared: dict[tuple[str, str], list[str]] = {}
    for (client, reason), scenarios in found.items():
        shared.setdefault((", ".join(scenarios), reason), []).append(results.label(client))
    told = [f"- {', '.join(labels)}: {scenarios}: {reason}" for (scenarios, reason), labels in shared.items()]
    return f"{title}:\n\n" + "\n".join(told) if told else ""


def _details(results: Results, tables: Sequence[Table]) -> str:
    parts = [part for table in tables if (part := _detail_table(results, table))]
    if not parts:
        return ""
    inner = "\n\n".join(parts)
    return f"<details>\n<summary>Rates, times and memory</summary>\n\n{_BESIDE}\n\n{inner}\n\n</details>"


def _detail_table(results: Results, table: Table) -> str:
    names = [scenario.name for scenario in table.scenarios]
    rows = [
        [_row_name(results, table, client), *cells]
        for client in results.clients(names)
        if any(cells := [_detail(results, name, client) for name in names])
    ]
    if not rows:
        return ""
    return _table([table.title, *(each.column for each in table.scenarios)], rows)


def _detail(results: Results, scenario: str, client: str) -> str:
    def of(name: str) -> float | None:
        return results.median(scenario, client, name)

    rate, share, p50, p99, peak, cpu = map(of, ("per_second", "cpu_share", "p50_ms", "p99_ms", "peak_rss_mb", "cpu_us"))
    told: list[str] = []
    if rate is not None:
        told.append(f"{rate:.0f}/s" + (f" ({share:.0%})" if share is not None else ""))
    if cpu is not None:
        told.append(f"{three_digits(cpu)} µs CPU each")
    if p50 is not None and p99 is not None:
        told.append(f"{three_digits(p50)} / {three_digits(p99)} ms")
    if told and peak is not None:
        told.append(f"{peak:.0f} MB")
    return ", ".join(told)


def _versions(how: Circumstances) -> str:
    told = [
        f"- {label}: {', '.join(f'{name} {version}' for name, version in versions.items())}"
        for label, versions in how.versions.items()
        if versions
    ]
    return "Versions:\n\n" + "\n".join(told) if told else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
