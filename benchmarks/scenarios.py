"""What is measured: one entry a scenario, in the table where it stands. The clients are the files in `clients/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .answers import TOKENS

Kind = Literal[
    "generate",
    "unread",
    "stream",
    "first",
    "late",
    "hold",
    "wait",
    "import",
    "import-memory",
    "decode",
    "encode",
    "events",
    "map",
]

CORE = ("floor", "aiohttp_loop", "millstream_llm")
"""Those that take part in every round; the others, which are slow, in fewer."""

_TABLE_ORDER = (
    "floor",
    "aiohttp_loop",
    "httpx_loop",
    "httpx2_loop",
    "huggingface_hub",
    "openai_sdk",
    "openai_aiohttp",
    "openai_node",
    "langchain_huggingface",
    "litellm",
    "huggingface_hub_pooled",
    "openai_pooled",
    "httpx2_pooled",
)


def in_order(names: list[str]) -> tuple[str, ...]:
    """From the barest to the fullest; one that is not known here before the last, which is Millstream."""
    known = {name: number for number, name in enumerate(_TABLE_ORDER)}
    return tuple(sorted(names, key=lambda name: (name == "millstream_llm", known.get(name, len(known)), name)))


@dataclass(frozen=True)
class Scenario:
    """One column of a table. `batch` prompts are given at a time, and again until the time is over."""

    name: str
    title: str
    """What it is, in full."""
    column: str
    """The same at the head of its table's column."""
    kind: Kind
    unit: str
    """What is counted, and what the costs are divided by."""
    behaviour: str = "coalesced"
    """Which of the origin's ports."""
    concurrency: int = 1
    batch: int = 1
    warm_up: int = 1
    opened: int = 0
    """Whole answers that are asked for before the warm-up, so that all connections are open."""
    units_each: int = 1
    """Units in one answer."""
    shape: str = ""
    """Of a part's data."""
    parts: tuple[str, ...] = ()
    """Measured in these parts of clients (`parts/`), and not in clients."""
    only: tuple[str, ...] = ()
    """The clients that it is measured in; empty: all."""
    because: str = ""
    """Why only in those."""
    main: bool = False
    """Whether it is one of those that a quick run has, and a whole run measures twice as often as the others."""
    rounds: int | None = None
    """At most so many rounds; None: as many as there are."""
    longest: float = 60.0
    """Seconds after which a measurement is given up."""


@dataclass(frozen=True)
class Table:
    """Scenarios that are told side by side, with the ratio of each figure to that of `compared`."""

    title: str
    scenarios: tuple[Scenario, ...]
    compared: str = "millstream_llm"


def _generate(concurrency: int, *, main: bool = False) -> Scenario:
    return Scenario(
        f"generate-{concurrency}",
        f"`generate`, {concurrency} in flight",
        f"{concurrency} in flight",
        "generate",
        "request",
        concurrency=concurrency,
        batch=max(500, (4 if concurrency <= 1024 else 2) * concurrency),
        warm_up=max(200, (2 if concurrency <= 256 else 1) * concurrency),
        main=main,
    )


def _unread(behaviour: str, batch: int, what: str) -> Scenario:
    return Scenario(
        f"unread-{behaviour}-64",
        f"`generate`, streamed beneath (64 tokens, {what}), 64 in flight",
        f"64 tokens {what}",
        "unread",
        "request",
        behaviour=behaviour,
        concurrency=64,
        batch=batch,
        warm_up=128,
        only=CORE,
        because="only Millstream asks for a stream where a whole answer is wanted",
    )


def _stream(concurrency: int, batch: int, *, spaced: bool = False, main: bool = False) -> Scenario:
    apart = 2 if concurrency <= 64 else 32
    behaviour = ("spaced" if apart == 2 else "sparse") if spaced else "coalesced"
    streams = f"{concurrency} {'stream' if concurrency == 1 else 'streams'}"
    what = f"{apart} ms apart" if spaced else "in one write"
    return Scenario(
        f"stream-{'spaced' if spaced else 'coalesced'}-{concurrency}",
        f"streamed token, {what}, {streams}",
        f"{streams}, {what}",
        "stream",
        "token",
        behaviour=behaviour,
        concurrency=concurrency,
        batch=batch,
        warm_up=min(64, max(2, concurrency)),
        opened=concurrency,
        units_each=len(TOKENS),
        main=main,
    )


def _memory(kind: Literal["hold", "wait"], count: int) -> Scenario:
    what, unit, behaviour = (
        ("open stream", "stream", "held") if kind == "hold" else ("call in flight", "call", "silent")
    )
    many = count > 500
    return Scenario(
        f"{kind}-{count}",
        f"{what}, {count} at a time",
        f"{what}, {count} of them",
        kind,
        unit,
        behaviour=behaviour,
        concurrency=count,
        batch=count,
        only=CORE if many else (),
        because="500 show it too, and each needs milliseconds to open" if many else "",
        rounds=2,
    )


def _late(concurrency: int) -> Scenario:
    return Scenario(
        f"latency-{concurrency}",
        f"{concurrency} in flight, each answered after 2 s",
        f"rate with {concurrency} in flight and answers after 2 s",
        "late",
        "of the ideal rate",
        behaviour="late",
        concurrency=concurrency,
        batch=4 * concurrency,
        warm_up=1,
        only=CORE,
        because="at milliseconds of CPU a request no 5000 requests a second are possible",
        rounds=2,
    )


def _codec(way: Literal["decode", "encode"], shape: str, what: str) -> Scenario:
    return Scenario(
        f"codec-{way}-{shape}",
        f"`LLMResult` of {what}, {way}d {'from' if way == 'decode' else 'to'} JSON",
        f"{way}, {what}",
        way,
        "result",
        shape=shape,
        parts=("pydantic_result", "millstream_result"),
        main=True,
    )


def _map(count: int, *, main: bool) -> Scenario:
    return Scenario(
        f"map-{count}",
        f"`map` over {count} prompts, model without an endpoint",
        f"{count} prompts",
        "map",
        "MB at the peak",
        batch=count,
        parts=("millstream_map",),
        main=main,
        rounds=1,
        longest=300.0,
    )


TABLES = (
    Table(
        "CPU µs a request",
        (
            _generate(1),
            _generate(8),
            _generate(64, main=True),
            _generate(256, main=True),
            _generate(1024),
            _generate(4096),
            _generate(10_000),
        ),
    ),
    Table(
        "CPU µs a streamed token",
        (
            _stream(1, 50),
            _stream(64, 256, main=True),
            _stream(1024, 1024),
            _stream(1, 2, spaced=True),
            _stream(64, 128, spaced=True, main=True),
            _stream(1024, 1024, spaced=True),
        ),
    ),
    Table(
        "kB of memory for each", tuple(_memory(kind, count) for kind in ("wait", "hold") for count in (500, 2000, 5000))
    ),
    Table(
        "Time and memory to begin",
        (
            Scenario("first", "first token of one stream", "first token, ms", "first", "ms", "first", main=True),
            Scenario("import", "import", "import, CPU s", "import", "process", main=True),
            Scenario(
                "import-memory", "memory after the import", "after the import, MB", "import-memory", "process", rounds=2
            ),
        ),
    ),
    Table("Ten thousand in flight, the share of the ideal rate", (_late(10_000),)),
    Table(
        "CPU µs a request that is streamed beneath, 64 in flight",
        (_unread("coalesced", 512, "in one write"), _unread("spaced", 128, "2 ms apart")),
    ),
    Table(
        "Results to JSON and back, CPU µs",
        (
            _codec("decode", "plain", "64 generations"),
            _codec("encode", "plain", "64 generations"),
            _codec("decode", "logprobs", "64 tokens with 5 alternatives"),
            _codec("encode", "logprobs", "64 tokens with 5 alternatives"),
        ),
        compared="millstream_result",
    ),
    Table(
        "Events of a stream decoded without sockets, CPU µs a token",
        (
            Scenario(
                "events",
                "stream events, many in one piece",
                "pieces of 16 KB",
                "events",
                "token",
                parts=("by_hand_events", "millstream_events"),
                main=True,
            ),
        ),
        compared="millstream_events",
    ),
    Table(
        "`map` without an endpoint, MB at the peak",
        (_map(10_000, main=True), _map(1_000_000, main=False)),
        compared="millstream_map",
    ),
)

SCENARIOS = tuple(scenario for table in TABLES for scenario in table.scenarios)


def chosen(names: str | None, *, quick: bool = False) -> list[Scenario]:
    """Those with one of these names, or with one that goes on after a hyphen, in the tables' order; None: all.

    Raises:
        LookupError: a name that no scenario has.
    """
    if names is None:
        return [each for each in SCENARIOS if each.main or not quick]
    found: set[str] = set()
    for part in names.split(","):
        matching = {each.name for each in SCENARIOS if f"{each.name}-".startswith(f"{part}-")}
        if not matching:
            raise LookupError(f"no scenario {part!r}; there are {', '.join(each.name for each in SCENARIOS)}")
        found |= matching
    return [each for each in SCENARIOS if each.name in found]
