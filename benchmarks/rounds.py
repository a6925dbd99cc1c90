"""All scenarios with all clients, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import machine
from .described import Description
from .processes import Ready, running_origin
from .results import Line
from .scenarios import CORE, Scenario


@dataclass(frozen=True)
class Effort:
    """How often and how long."""

    rounds: int = 5
    peer_rounds: int = 2
    """For the clients that are not `CORE`."""
    seconds: float = 0.5
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


def run_all(steps: Sequence[Step], ready: Ready, seconds: float, tell: Callable[[Line], None]) -> list[Line]:
    """What took too long once is not tried in later rounds."""
    origin_core, client_core = machine.cores()
    lines: list[Line] = []
    hopeless: set[tuple[str, str]] = set()
    with running_origin(origin_core) as ports:
        for step in steps:
            what = (step.client.name, step.scenario.name)
            if step.why_not is not None:
                lines.append(step.line | {"skipped": step.why_not})
            elif what not in hopeless:
                port = ports[step.scenario.behaviour]
                line = ready.measure(step.client, step.scenario, port, seconds, client_core) | step.line
                if line.pop("hopeless", False):
                    hopeless.add(what)
                lines.append(line)
                tell(line)
    return lines
