"""Stop texts: the output ends before the first of them, on every server and however a stream is cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

__all__ = ["StopTrimmer", "find_stop"]

_NOWHERE = -1


def find_stop(text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """Where in `text` the stop text that begins first begins and ends (of two that begin there, the shorter)."""
    found: tuple[int, int] | None = None
    for stop in stops:
        at = text.find(stop)
        if at >= 0 and (found is None or (at, at + len(stop)) < found):
            found = at, at + len(stop)
    return found


@lru_cache(maxsize=256)
def _fallbacks(stop: str) -> tuple[int, ...]:
    """For each prefix of `stop` the length of its longest border (Knuth, Morris, Pratt)."""
    table = [0] * len(stop)
    length = 0
    for at in range(1, len(stop)):
        while length and stop[at] != stop[length]:
            length = table[length - 1]
        if stop[at] == stop[length]:
            length += 1
        table[at] = length
    return tuple(table)


class StopTrimmer:
    """Ends a text that arrives in pieces before its first stop text.

    What might be the beginning of a stop text is held back until it is decided. The pieces given out, joined, are the
    text before the place that `find_stop` finds in the whole. Each character is looked at a bounded number of times
    for each stop text (Knuth, Morris, Pratt), so that hostile repetitions cost no more than others.

    Attributes:
        stopped: a stop text was found; whatever comes after is dropped.
    """

    __slots__ = ("_beginnings", "_found", "_held", "_held_at", "_matched", "_seen", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._beginnings = frozenset(stop[0] for stop in stops)
        self._stops = [(stop, _fallbacks(stop)) for stop in stops]
        self._matched = [0] * len(self._stops)  # how much of each stop text the text so far ends with; all: found
        self._found = _NOWHERE  # where the first stop text begins; one that begins earlier may still be under way
        self._seen = 0
        self._held = ""
        self._held_at = 0  # positions count from the first character of the whole text

    def receive(self, text: str) -> str:
        """What can be given out now that `text` has arrived; ``""`` for nothing."""
        if self.stopped or not text:
            return ""
        if not self._held and self._beginnings.isdisjoint(text):  # nearly always
            self._seen += len(text)
            self._held_at = self._seen
            return text
        before, self._seen = self._seen, self._seen + len(text)
        limit = self._seen
        for number, (stop, fallbacks) in enumerate(self._stops):
            matched = self._matched[number]
            if matched == len(stop):
                continue
            matched, end = _advance(stop, fallbacks, matched, text)
            self._matched[number] = matched
            if end >= 0:
                begin = before + end - len(stop)
                self._found = begin if self._found < 0 else min(self._found, begin)
            else:
                limit = min(limit, self._seen - matched)
        if 0 <= self._found <= limit:
            limit = self._found
            self.stopped = True
        text = self._held + text
        given, self._held = text[: limit - self._held_at], text[limit - self._held_at :]
        self._held_at = limit
        return given

    def flush(self) -> str:
        """What was held back, where the text ends here."""
        if self.stopped:
            return ""
        held, self._held = self._held, ""
        if self._found >= 0:
            self.stopped = True
            held = held[: self._found - self._held_at]
        self._held_at = self._seen
        self._matched = [0] * len(self._stops)
        return held


def _advance(stop: str, fallbacks: tuple[int, ...], matched: int, text: str) -> tuple[int, int]:
    """How much of `stop` is matched after `text`, and where in `text` the whole of it ends (or -1)."""
    at = 0
    while at < len(text):
        if not matched:
            at = text.find(stop[0], at)  # most text holds no beginning of a stop text
            if at < 0:
                return 0, _NOWHERE
            matched = 1
        else:
            while matched and stop[matched] != text[at]:
                matched = fallbacks[matched - 1]
            if stop[matched] == text[at]:
                matched += 1
        at += 1
        if matched == len(stop):
            return matched, at
    return matched, _NOWHERE
