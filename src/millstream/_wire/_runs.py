"""Runs of tokens that differ in nothing but their text, read at once: for answers that nobody reads token by token.

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
_BORDER = b"\n\ndata: "

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

    __slots__ = ("_after", "_before", "_pattern", "_plain_text", "tries")

    def __init__(self, pattern: re.Pattern[bytes], plain_text: Callable[[bytes], str]) -> None:
        self._pattern = pattern
        self._plain_text = plain_text
        self._before = b""  # from the beginning of an event's data to its text; empty: not known
        self._after = b""  # from there to the end
        self.tries = _FEW

    def learn(self, data: bytes) -> None:
        """See from an event's data what the next ones look like, if it is a token."""
        self.tries -= 1
        if self._before and data.startswith(self._before):
            return
        found = self._pattern.search(data)
        if found is None:
            return
        before, after = data[: found.start(1)], data[found.end(1) :]
        try:
            is_plain = self._plain_text(before + _HOLE + after) == _HOLE.decode()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if is_plain:
            self._before, self._after = before, after

    def take(self, data: bytes) -> tuple[str, int]:
        """The text of the run of events that `data` begins with, and how many bytes they are: 0 where there is none."""
        before, after = self._before, self._after
        if not before or not data.startswith(before, len(_START)):
            return "", 0
        events = data[len(_START) :].split(_BORDER)
        events.pop()  # it ends otherwise, if it is complete
        while events and not (events[-1].endswith(after) and events[-1].startswith(before)):
            events.pop()
        if len(events) < 2:
            return "", 0
        start, end = len(before), -len(after)
        texts = [event[start:end] for event in events]
        run = _START + before + (after + _BORDER + before).join(texts) + after + b"\n\n"
        array = b'","'.join(texts)
        # A backslash before a border would make one text of two, if another were none: then the count may be right.
        if not data.startswith(run) or b'\\","' in array:
            return "", 0
        try:
            decoded = _texts_decoder.decode(b'["%b"]' % array)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return "", 0
        if len(decoded) != len(texts):
            return "", 0
        self.tries = _FEW
        return "".join(decoded), len(run)
