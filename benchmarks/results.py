"""The lines of a run, and what can be asked of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Line = dict[str, Any]


class Results:
    """All lines of a run, by scenario, client and round.

    A line has a ``figure`` with its ``figure_unit`` and what was seen beside it, or an ``error``, or, where it was not
    even tried, ``skipped``: why. Two figures are compared within a round, and the median of the rounds is what is told:
    what the machine does to a whole round is in both.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines

    def of(self, scenario: str, client: str) -> list[Line]:
        return [line for line in self.lines if line["scenario"] == scenario and line["client"] == client]

    def clients(self, scenarios: Sequence[str]) -> list[str]:
        """Those that have a line in one of these scenarios, in the order of their first ones."""
        return list(dict.fromkeys(line["client"] for line in self.lines if line["scenario"] in scenarios))

    def label(self, client: str) -> str:
        return next((line["label"] for line in self.lines if line["client"] == client and "label" in line), client)

    def median(self, scenario: str, client: str, name: str = "figure") -> float | None:
        values = [line[name] for line in self.of(scenario, client) if name in line]
        return statistics.median(values) if values else None

    def ratio(self, scenario: str, client: str, against: str) -> float | None:
        """`client`'s figure as a multiple of that of `against`."""
        return self._compare((scenario, client), (scenario, against), lambda figure, base: figure / base)

    def growth(self, scenario: str, base: str, client: str) -> float | None:
        """The figure in one scenario as a multiple of that in another."""
        return self._compare((scenario, client), (base, client), lambda figure, base: figure / base)

    def added(self, scenario: str, client: str, against: str) -> float | None:
        """What `client`'s figure is above that of `against`."""
        return self._compare((scenario, client), (scenario, against), lambda figure, base: figure - base)

    def _compare(
        self, one: tuple[str, str], other: tuple[str, str], how: Callable[[float, float], float]
    ) -> float | None:
        bases = {line["round"]: line["figure"] for line in self.of(*other) if line.get("figure")}
        values = [
            how(line["figure"], bases[line["round"]])
            for line in self.of(*one)
            if "figure" in line and line["round"] in bases
        ]
        return statistics.median(values) if values else None
