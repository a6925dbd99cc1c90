"""Tokens that differ in nothing but their text, and runs of them that came together: read without looking at the rest.

The chunks of an answer repeat everything else: its id, the model, fields that are null. So the bytes around the text of
one chunk tell where the texts of those that follow begin and end, and what is left is an array of JSON strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import msgspec

__all__ = ["PlainChoice", "PlainChunk", "TextRuns", "text_pattern"]

ChoiceT = TypeVar("ChoiceT")

_FEW = 6
"""Events that no run follows, before none is sought any more."""
_HOLE = b"text"
_START = b"data: "

_END = b"\n\n"

_text_decoder = msgspec.json.Decoder(str)
_texts_decoder = msgspec.json.Decoder(list[str])


class PlainChoice(msgspec.Struct, gc=False, kw_only=True):
    """What stands beside the text of a plain token; each dialect adds where that is."""

    index: Literal[0] = 0
    finish_reason: Literal[""] | None = None
    logprobs: None = None


class PlainChunk(msgspec.Struct, Generic[ChoiceT], gc=False):
    """A chunk that is nothing but a token of the only output."""

    choices: tuple[ChoiceT]
    usage: None = None
    error: None = None


def text_pattern(field: bytes) -> re.Pattern[bytes]:
    """What finds the JSON string of `field`."""
    return re.compile(b'"' + field + rb'": ?"((?:[^"\\]|\\.)*+)"')


class TextRuns:
    """Finds the runs of one stream.

    Args:
        pattern: what finds the text of an event: `text_pattern`.
        plain_text: the text of an event's data if it is nothing but a token of the only output. Raises else.

    Attributes:
        tries: how many events may still come without a run, before it is not worth while to look for one.
    """

    __slots__ = ("_after", "_before", "_end", "_pattern", "_plain_text", "_start", "_two", "tries")

    def __init__(self, pattern: re.Pattern[bytes], plain_text: Callable[[bytes], str]) -> None:
        self._pattern = pattern
        self._plain_text = plain_text
        self._before = b""  # from the beginning of an event to the quote before its text; empty: not known
        self._after = b""  # from the quote behind it to the end
        self._start = self._end = 0  # where the text with its quotes begins, and ends from the end
        self._two = 0  # bytes that two events have at least
        self.tries = _FEW

    def learn(self, event: bytes) -> None:
        """See from an event what the next ones look like, if it is a token."""
        self.tries -= 1
        if self._before and event.startswith(self._before):
            return
        found = self._pattern.search(event)
        if found is None or not event.startswith(_START):
            return
        before, after = event[: found.start(1)], event[found.end(1) :]
        try:
            is_plain = self._plain_text((before + _HOLE + after)[len(_START) :]) == _HOLE.decode()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if is_plain:
            self._before, self._after = before, after
            self._start, self._end = len(before) - 1, 1 - len(after)
            self._two = 2 * (len(before) + len(after))

    def single(self, data: bytes) -> str | None:
        """The text of `data` if that is one event, a token that is shorter than what is around it; else None."""
        if len(data) < self._two and data.startswith(self._before) and data.endswith(self._after):
            try:
                return _text_decoder.decode(data[self._start : self._end])  # where they overlap it is no JSON
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return None
        return None

    def take(self, data: bytes) -> tuple[list[str], int]:
        """The texts of the events that `data` begins with, and how many bytes these are: 0 where they are no run."""
        if not self._before or not data.startswith(self._before):
            return [], 0
        text = self.single(data)
        if text is not None:
            texts, size = [text], len(data)
        else:
            try:
                texts, size = self._take_several(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return [], 0
        if texts:
            self.tries = _FEW
        return texts, size

    def _take_several(self, data: bytes) -> tuple[list[str], int]:
        before, after = self._before, self._after
        events = data.split(_END)
        events.pop()  # it ends otherwise, if it is complete
        tail = after[: -len(_END)]
        while events and not (events[-1].endswith(tail) and events[-1].startswith(before)):
            events.pop()
        start, end = len(before), -len(tail)
        texts = [event[start:end] for event in events]
        run = before + (after + before).join(texts) + after
        array = b'","'.join(texts)
        # A backslash before a border would make one text of two, if another were none: then the count may be right.
        if not events or not data.startswith(run) or array.find(b'\\","') >= 0:
            return [], 0
        decoded = _texts_decoder.decode(b'["%b"]' % array)
        return (decoded, len(run)) if len(decoded) == len(texts) else ([], 0)
