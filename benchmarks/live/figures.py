"""Figures of a log, or of a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .load import Log, Width
from .wire import Exchange

SAME = 0.98
"""Widths that reach this share of the best goodput are as good: the smallest of them counts."""


@dataclass(frozen=True)
class Figures:
    """From `begin` to `end`, in seconds since the log began."""

    begin: float
    end: float
    tokens: float
    """A second, of answers that were complete, or under way when the run was over."""
    answers: float
    """Complete ones a second."""
    ttft_p50: float | None
    """Seconds from sending a request to its first token; None: there was none."""
    ttft_p99: float | None
    first_tokens: int
    refused: float
    """The share of the requests that got no 200."""


def figures(log: Log, begin: float, end: float | None = None) -> Figures:
    end = log.ended - log.began if end is None else end
    low, high = log.began + begin, log.began + end
    seconds = end - begin
    good = [each for each in log.exchanges if each.status == 200 and not _is_lost(each, log)]
    tokens = sum(count for each in good for at, count in each.arrivals if low <= at < high)
    answers = sum(each.end == "complete" and low <= each.ended_at < high for each in good)
    times = sorted(
        each.arrivals[0][0] - each.sent_at for each in good if each.arrivals and low <= each.arrivals[0][0] < high
    )
    told = [each.status for each in log.exchanges if low <= each.sent_at < high and each.status is not None]
    return Figures(
        begin=begin,
        end=end,
        tokens=tokens / seconds,
        answers=answers / seconds,
        ttft_p50=quantile(times, 0.5),
        ttft_p99=quantile(times, 0.99),
        first_tokens=len(times),
        refused=sum(status != 200 for status in told) / max(1, len(told)),
    )


def _is_lost(exchange: Exchange, log: Log) -> bool:
    return exchange.end == "broken" or (exchange.end == "left" and exchange.ended_at < log.ended - 0.5)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def seconds_to(log: Log, goal: float, *, begin: float = 0.0, span: float = 2.0) -> float | None:
    """From `begin` until the `span` seconds that follow bring `goal` tokens a second; None: never."""
    at, last = begin, log.ended - log.began - span
    while at <= last:
        if figures(log, at, at + span).tokens >= goal:
            return at - begin
        at += span / 4
    return None


@dataclass(frozen=True)
class Best:
    """What a sweep found."""

    tokens: float
    """The highest goodput,"""
    width: int
    """the smallest width that reaches nearly as much,"""
    double: Figures | None
    """and the figures of twice that width."""


def best_of(sweep: dict[Width, Figures], same: float = SAME) -> Best:
    most = max(each.tokens for each in sweep.values())
    width = min(width for width, each in sweep.items() if isinstance(width, int) and each.tokens >= same * most)
    return Best(most, width, sweep.get(2 * width))
