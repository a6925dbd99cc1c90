"""What is wanted: one entry a target, with what would be good and what has to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .results import Results

_OURS = "millstream_llm"
_COALESCED, _SPACED = "stream-coalesced-64", "stream-spaced-64"
_STREAMS = ((_COALESCED, "in one write"), (_SPACED, "2 ms apart"))


@dataclass(frozen=True)
class Target:
    """`value` is to be at most `goal`, and has to be at most `must`; or at least, where more is better."""

    what: str
    needs: tuple[tuple[str, str], ...]
    """The scenarios, each with a client, that it is made of."""
    value: Callable[[Results], float | None]
    """None: what it is made of failed, or was not tried."""
    goal: float
    must: float
    form: str = "{:.2f}"
    better: Literal["less", "more"] = "less"

    def met(self, value: float, limit: float) -> bool:
        return value <= limit if self.better == "less" else value >= limit

    def told(self, value: float | None) -> str:
        return "not measured" if value is None else self.form.format(value)


def _times(what: str, scenario: str, against: str, goal: float, must: float) -> Target:
    needs = ((scenario, _OURS), (scenario, against))
    return Target(what, needs, lambda results: results.ratio(scenario, _OURS, against), goal, must, "{:.2f}x")


def _less(what: str, scenario: str, against: str, goal: float, must: float, client: str = _OURS) -> Target:
    """The other way round: how many times more the other needs."""
    needs = ((scenario, client), (scenario, against))
    return Target(
        what, needs, lambda results: results.ratio(scenario, against, client), goal, must, "{:.1f}x less", "more"
    )


def _growth(what: str, scenario: str, base: str, goal: float, must: float, client: str = _OURS) -> Target:
    needs = ((scenario, client), (base, client))
    return Target(what, needs, lambda results: results.growth(scenario, base, client), goal, must, "{:.2f}x")


def _figure(what: str, scenario: str, goal: float, must: float, form: str) -> Target:
    return Target(what, ((scenario, _OURS),), lambda results: results.median(scenario, _OURS), goal, must, form)


def _tokens_a_second(results: Results) -> float | None:
    figure = results.median("events", "millstream_events")
    return 1e6 / figure if figure else None


TARGETS = (
    _times("`generate`, 256 in flight, against aiohttp in a bare loop", "generate-256", "aiohttp_loop", 0.4, 0.7),
    _times("`generate`, 256 in flight, against the floor", "generate-256", "floor", 2.5, 4.0),
    _less("`generate`, 256 in flight, against huggingface_hub", "generate-256", "huggingface_hub", 25, 15),
    _less("`generate`, 256 in flight, against openai", "generate-256", "openai_sdk", 25, 15),
    _growth("`generate`, growth from 64 to 10 000 in flight", "generate-10000", "generate-64", 1.3, 1.6),
    *(
        target
        for scenario, how in _STREAMS
        for target in (
            _times(f"streamed token, 64 streams, {how}, against aiohttp by hand", scenario, "aiohttp_loop", 0.5, 0.8),
            _less(f"streamed token, 64 streams, {how}, against huggingface_hub", scenario, "huggingface_hub", 12, 8),
            _less(f"streamed token, 64 streams, {how}, against openai", scenario, "openai_sdk", 25, 15),
        )
    ),
    _growth(
        "streamed token in one write, growth from 64 to 1024 streams", "stream-coalesced-1024", _COALESCED, 1.2, 1.5
    ),
    _growth("streamed token one by one, growth from 64 to 1024 streams", "stream-spaced-1024", _SPACED, 1.2, 1.5),
    Target(
        "tokens decoded a second a core, many in one piece",
        (("events", "millstream_events"),),
        _tokens_a_second,
        400e3,
        250e3,
        "{:,.0f}/s",
        "more",
    ),
    _figure("memory of an open stream, 5000 open", "hold-5000", 25, 40, "{:.1f} kB"),
    Target(
        "time to the first token added, against raw sockets",
        (("first", _OURS), ("first", "floor")),
        lambda results: results.added("first", _OURS, "floor"),
        0.3,
        0.6,
        "{:.3f} ms",
    ),
    _figure("import", "import", 0.12, 0.2, "{:.3f} s"),
    *(
        _less(
            f"`LLMResult`, {way} ({what}), against pydantic",
            f"codec-{way}-{shape}",
            "pydantic_result",
            8,
            4,
            "millstream_result",
        )
        for way in ("decode", "encode")
        for shape, what in (("plain", "64 generations"), ("logprobs", "logprobs of 64 tokens"))
    ),
    Target(
        "10 000 in flight, answers after 2 s: share of the ideal rate",
        (("latency-10000", _OURS),),
        lambda results: results.median("latency-10000", _OURS),
        0.99,
        0.99,
        "{:.2%}",
        "more",
    ),
    _growth(
        "`map`, memory at the peak, 1 000 000 against 10 000 prompts",
        "map-1000000",
        "map-10000",
        1.05,
        1.2,
        "millstream_map",
    ),
)
