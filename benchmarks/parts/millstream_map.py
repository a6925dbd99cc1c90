"""A model that answers at once, and `map` over as many prompts as are wanted."""

from __future__ import annotations

from typing import Any

from benchmarks.part import Part
from millstream import LLM, CallbackManagerForLLMRun, CallOptions


class _Echo(LLM):
    @property
    def _llm_type(self) -> str:
        return "echo"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {}

    async def _call(self, prompt: str, options: CallOptions, run: CallbackManagerForLLMRun | None) -> str:
        return prompt


class Bench(Part):
    label = "millstream, map"
    module = "millstream"
    distributions = ("millstream",)

    async def drain(self, count: int) -> int:
        answered = 0
        async with _Echo().map(f"Question {number}" for number in range(count)) as outcomes:
            async for outcome in outcomes:
                answered += outcome.text.startswith("Question")
        return answered
