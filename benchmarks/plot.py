"""The picture: CPU time a request by how many are in flight, and a streamed token, both on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .report import three_digits
from .results import Results
from .scenarios import SCENARIOS

OURS = "millstream_llm"

_WIDTH, _LEFT, _RIGHT, _TOP = 1040, 70, 340, 56
_LINES_HEIGHT, _BAR, _BETWEEN_BARS = 380, 11, 9
_LABEL_HEIGHT = 17
_COLOURS = (
    "#6e7781", "#1f77d0", "#2ca25f", "#8c6bd1", "#c2569b", "#b7791f", "#17a2b8",
    "#7a9a01", "#e07b39", "#5b7fa6", "#a05d56", "#3f9e8f", "#9467bd",
)  # fmt: skip
_STYLE = """
svg { --ink: #1f2328; --soft: #59636e; --grid: #d9dee3; --paper: #ffffff; --ours: #d1242f }
@media (prefers-color-scheme: dark) {
  svg { --ink: #f0f6fc; --soft: #9198a1; --grid: #30363d; --paper: #0d1117; --ours: #ff6b61 }
}
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink, #1f2328) }
.soft { fill: var(--soft, #59636e); font-size: 12px }
.title { font-size: 15px; font-weight: 600 }
.ours { font-weight: 700; fill: var(--ours, #d1242f) }
.paper { fill: var(--paper, #ffffff) }
.grid { stroke: var(--grid, #d9dee3); stroke-width: 1 }
polyline { fill: none; stroke-width: 2 }
polyline.ours { fill: none; stroke: var(--ours, #d1242f); stroke-width: 4 }
"""


@dataclass(frozen=True)
class _Log:
    """A logarithmic axis from `low` to `high`, on the screen from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def tens(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]


def picture(results: Results) -> str:
    """An SVG with its own background, for light and dark pages."""
    lines, bars_top = _requests(results, _TOP), _TOP + _LINES_HEIGHT + 110
    bars, height = _tokens(results, bars_top)
    body = "\n".join([*lines, *bars])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="CPU time a request and a streamed token, by client">\n<style>{_STYLE}</style>\n'
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>\n{body}\n</svg>\n'
    )


def _requests(results: Results, top: int) -> list[str]:
    """One line a client, and its name at the line's end."""
    scenarios = [each for each in SCENARIOS if each.kind == "generate"]
    clients = results.clients([each.name for each in scenarios])
    points = {
        client: [
            (each.concurrency, figure)
            for each in scenarios
            if (figure := results.median(each.name, client)) is not None
        ]
        for client in clients
    }
    points = {client: found for client, found in points.items() if found}
    bottom = top + _LINES_HEIGHT
    drawn = [
        _text(
            _LEFT, top - 28, "CPU µs a request, by requests in flight (named: at the most that was measured)", "title"
        )
    ]
    if not points:
        return drawn
    figures = [figure for found in points.values() for _, figure in found]
    upward = _Log(min(figures) / 1.6, max(figures) * 1.2, bottom, top)
    along = _Log(1, max(each.concurrency for each in scenarios), _LEFT, _WIDTH - _RIGHT)
    drawn += [_tick(along.start, along.end, upward(value), value) for value in upward.tens()]
    drawn.append(f'<line class="grid" x1="{along.start}" x2="{along.end}" y1="{bottom}" y2="{bottom}"/>')
    for each in scenarios:
        drawn.append(_text(along(each.concurrency), bottom + 20, f"{each.concurrency:,}", "soft", "middle"))
    ends = _apart([upward(found[-1][1]) for found in points.values()], _LABEL_HEIGHT)
    colours = _colours(clients)
    # Ours is drawn last, over the others.
    for (client, found), end in sorted(zip(points.items(), ends, strict=True), key=lambda each: each[0][0] == OURS):
        places = [(along(width), upward(figure)) for width, figure in found]
        ours = ' class="ours"' if client == OURS else f' stroke="{colours[client]}"'
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        x, y = places[-1]
        if len(places) > 1:
            drawn.append(f'<polyline{ours} points="{path}"/>')
        drawn += [f'<circle fill="{colours[client]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
        drawn.append(
            f'<path d="M{x + 5:.1f} {y:.1f} L{along.end + 14:.1f} {end:.1f}" stroke="{colours[client]}" '
            f'stroke-width="1" stroke-dasharray="1 3" fill="none"/>'
        )
        name = f"{results.label(client)}  {three_digits(found[-1][1])}"
        drawn.append(_text(along.end + 18, end + 4, name, "ours" if client == OURS else ""))
    return drawn


def _tokens(results: Results, top: int) -> tuple[list[str], int]:
    """Two bars a client; and where the picture ends."""
    coalesced, spaced = "stream-coalesced-64", "stream-spaced-64"
    clients = results.clients([coalesced, spaced])
    pairs = {client: [results.median(name, client) for name in (coalesced, spaced)] for client in clients}
    pairs = {client: pair for client, pair in pairs.items() if any(pair)}
    title = "CPU µs a streamed token, 64 streams: all in one write (full), 2 ms apart (pale)"
    drawn = [_text(_LEFT, top - 28, title, "title")]
    if not pairs:
        return drawn, top
    start = _LEFT + 230
    each = 2 * _BAR + _BETWEEN_BARS
    bottom = top + each * len(pairs)
    along = _axis([figure for pair in pairs.values() for figure in pair if figure], start, _WIDTH - 70)
    for value in along.tens():
        x = along(value)
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{bottom}"/>')
        drawn.append(_text(x, bottom + 18, f"{value:g}", "soft", "middle"))
    colours = _colours(clients)
    for number, (client, pair) in enumerate(pairs.items()):
        y = top + number * each
        drawn.append(_text(start - 12, y + _BAR + 4, results.label(client), "ours" if client == OURS else "", "end"))
        for row, (figure, strength) in enumerate(zip(pair, (1, 0.45), strict=True)):
            if figure:
                width, base = along(figure) - start, y + row * _BAR
                drawn.append(
                    f'<rect fill="{colours[client]}" fill-opacity="{strength}" x="{start}" y="{base}" '
                    f'width="{width:.1f}" height="{_BAR - 1}"/>'
                )
                drawn.append(_text(start + width + 6, base + _BAR - 1, three_digits(figure), "soft"))
    return drawn, bottom + 36


def _axis(figures: Sequence[float], start: float, end: float) -> _Log:
    """From the power of ten below the least to somewhat above the most."""
    low = 10.0 ** math.floor(math.log10(min(figures)))
    return _Log(low, max(max(figures) * 1.2, low * 10), start, end)


def _colours(clients: Sequence[str]) -> dict[str, str]:
    others = [client for client in clients if client != OURS]
    return {OURS: "var(--ours, #d1242f)"} | {
        client: _COLOURS[number % len(_COLOURS)] for number, client in enumerate(others)
    }


def _apart(places: Sequence[float], least: float) -> list[float]:
    """The same order, moved so that none is nearer to the next than `least`."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    groups: list[list[int]] = []

    def centre(group: list[int]) -> float:
        return sum(places[each] for each in group) / len(group)

    for number in order:
        groups.append([number])
        # Two groups that overlap become one, around the middle of its members.
        while (
            len(groups) > 1
            and centre(groups[-1]) - centre(groups[-2]) < least * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            last = groups.pop()
            groups[-1] += last
    found = [0.0] * len(places)
    for group in groups:
        first = centre(group) - least * (len(group) - 1) / 2
        for turn, number in enumerate(group):
            found[number] = first + turn * least
    return found


def _tick(left: float, right: float, y: float, value: float) -> str:
    line = f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f"{line}\n{_text(left - 10, y + 4, f'{value:,.0f}', 'soft', 'end')}"


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'
