"""Millstream's own result."""

from __future__ import annotations

from benchmarks.part import Part
from millstream import LLMResult


class Bench(Part):
    label = "millstream.LLMResult"
    module = "millstream"
    distributions = ("millstream", "msgspec")

    def decode(self, data: bytes) -> LLMResult:
        return LLMResult.from_json(data)

    def encode(self, result: LLMResult) -> bytes:
        return result.to_json()
