"""All scenarios with all clients, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import machine
from .described import Description
from .processes import Ready, running_origin
from .results import Line
from .scenarios import CORE, SCENARIOS, Scenario

_BY_COST = ("generate", "stream")
"""Kinds whose figure is time."""


@dataclass(frozen=True)
class Effort:
    """How often and how long."""

    rounds: int = 5
    peer_rounds: int = 2
    """For the clients that are not `CORE`."""
    seconds: float = 0.5
    patience: float = 8.0
    """Seconds. What would take longer, after what the same client needed with fewer in flight, is not tried."""
    even: bool = False
    """Whether scenarios that are not the main ones are measured as often as those, and not half as often."""

    def rounds_of(self, scenario: Scenario, client: str) -> int:
        rounds = self.rounds if scenario.parts or client in CORE else self.peer_rounds
        if not (scenario.main or self.even):
            rounds = (rounds + 1) // 2
        return rounds if scenario.rounds is None else min(rounds, scenario.rounds)


class Step(NamedTuple):
    """One measurement."""

    turn: int
    scenario: Scenario
    client: Description
    why_not: str | None
    """Why it is not tried, None where it is."""

    @property
    def line(self) -> Line:
        """What every line says of itself."""
        return {
            "client": self.client.name,
            "label": self.client.label,
            "scenario": self.scenario.name,
            "round": self.turn,
        }


def plan(
    scenarios: Sequence[Scenario], clients: Sequence[Description], parts: Mapping[str, Description], effort: Effort
) -> Iterator[Step]:
    """Each round is every scenario with every client; who is first changes from round to round."""
    for turn in range(effort.rounds):
        for scenario in scenarios:
            takers = [parts[name] for name in scenario.parts] or list(clients)
            shift = turn % max(1, len(takers))
            for client in (*takers[shift:], *takers[:shift]):
                reason = _why_not(scenario, client)
                if turn < (1 if reason else effort.rounds_of(scenario, client.name)):
                    yield Step(turn, scenario, client, reason)


def _why_not(scenario: Scenario, client: Description) -> str | None:
    if scenario.only and client.name not in scenario.only:
        return scenario.because
    return client.why_not(scenario.name)


def run_all(steps: Sequence[Step], ready: Ready, effort: Effort, tell: Callable[[Line], None]) -> list[Line]:
    """What is not tried has a line too, which says why. What took too long once is not tried in later rounds."""
    origin_core, client_core = machine.cores()
    lines: list[Line] = []
    hopeless: set[tuple[str, str]] = set()
    with running_origin(origin_core) as ports:
        for step in steps:
            what = (step.client.name, step.scenario.name)
            reason = step.why_not or too_long(step, lines, effort.patience)
            if what in hopeless:
                continue
            if reason is not None:
                lines.append(step.line | {"skipped": reason})
                continue
            port = ports[step.scenario.behaviour]
            line = ready.measure(step.client, step.scenario, port, effort.seconds, client_core) | step.line
            if line.pop("hopeless", False):
                hopeless.add(what)
            lines.append(line)
            tell(line)
    return lines


def too_long(step: Step, lines: Sequence[Line], patience: float) -> str | None:
    """Why a scenario would take a client too long, by what it needed with fewer in flight; None: it would not."""
    scenario = step.scenario
    family = scenario.name.rpartition("-")[0]
    smaller = {
        each.name: each
        for each in SCENARIOS
        if each.name.rpartition("-")[0] == family and each.concurrency < scenario.concurrency and each.kind in _BY_COST
    }
    known = [
        (smaller[line["scenario"]].concurrency, line["figure"] / 1e6)
        for line in lines
        if line["client"] == step.client.name and line["scenario"] in smaller and "figure" in line
    ]
    if not known:
        return None
    width, each = max(known)
    seconds = each * scenario.units_each * (scenario.warm_up + scenario.concurrency)
    if seconds <= patience:
        return None
    return f"about {seconds:.0f} s, by its {each * 1000:.2g} ms a {scenario.unit} with {width} in flight"
