"""Millstream's decoder of chat streams: lines, events, typed chunks."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.part import Part
from millstream import CallOptions, StringPromptValue
from millstream._wire import DIALECTS


class Bench(Part):
    label = "millstream, typed chunks"
    module = "millstream"
    distributions = ("millstream", "msgspec")

    def texts(self, pieces: Iterable[bytes]) -> list[str]:
        decoder = DIALECTS["chat"].stream_decoder(StringPromptValue("Why?"), CallOptions())
        found = [chunk.text for piece in pieces for chunk in decoder.receive_data(piece) if chunk.text]
        if decoder.error is not None:
            raise decoder.error
        return found
