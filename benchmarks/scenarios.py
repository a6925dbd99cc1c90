"""What is measured: one entry a scenario, one a target. The clients are the files in `clients/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .answers import TOKENS

Kind = Literal["generate", "unread", "stream", "hold", "import"]

DEFAULT_CLIENTS = ("floor", "aiohttp_loop", "millstream_llm")


@dataclass(frozen=True)
class Scenario:
    """One row of the table. `batch` prompts are given at a time, and again until the time is over."""

    name: str
    title: str
    kind: Kind
    unit: str
    """What is counted, and what the costs are divided by."""
    behaviour: str = "coalesced"
    """Which of the origin's ports."""
    concurrency: int = 1
    batch: int = 1
    warm_up: int = 1
    units_each: int = 1
    """Units in one answer."""


def _generate(concurrency: int) -> Scenario:
    return Scenario(
        f"generate-{concurrency}",
        f"`generate`, {concurrency} in flight",
        "generate",
        "request",
        concurrency=concurrency,
        batch=max(500, 4 * concurrency),
        warm_up=max(200, 2 * concurrency),
    )


def _stream(behaviour: str, concurrency: int, batch: int, what: str) -> Scenario:
    return Scenario(
        f"stream-{behaviour}-{concurrency}",
        f"streamed token, {what}, {concurrency} {'stream' if concurrency == 1 else 'streams'}",
        "stream",
        "token",
        behaviour=behaviour,
        concurrency=concurrency,
        batch=batch,
        warm_up=max(2, concurrency),
        units_each=len(TOKENS),
    )


def _unread(behaviour: str, batch: int, what: str) -> Scenario:
    return Scenario(
        f"unread-{behaviour}-64",
        f"`generate`, streamed beneath (64 tokens, {what}), 64 in flight",
        "unread",
        "request",
        behaviour=behaviour,
        concurrency=64,
        batch=batch,
        warm_up=128,
    )


SCENARIOS = (
    *(_generate(concurrency) for concurrency in (1, 64, 256, 1024)),
    _unread("coalesced", 512, "in one write"),
    _unread("spaced", 128, "2 ms apart"),
    _stream("coalesced", 1, 50, "in one write"),
    _stream("coalesced", 64, 256, "in one write"),
    _stream("spaced", 1, 2, "2 ms apart"),
    _stream("spaced", 64, 128, "2 ms apart"),
    Scenario(
        "hold-2000", "open stream, 2000 at a time", "hold", "stream", behaviour="held", concurrency=2000, batch=2000
    ),
    Scenario("import", "import", "import", "process"),
)


@dataclass(frozen=True)
class Target:
    """`client`'s figure in `scenario` is to be at most `limit`, or at most `limit` times that of `against`."""

    scenario: str
    client: str
    limit: float
    against: str | None = None


TARGETS = (
    Target("generate-64", "millstream_llm", 1.0, "aiohttp_loop"),
    Target("generate-256", "millstream_llm", 1.0, "aiohttp_loop"),
    Target("hold-2000", "millstream_llm", 60.0),
    Target("import", "millstream_llm", 0.2),
)
