"""Pydantic models of the same shape, and with the same names in JSON, as `millstream.LLMResult`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from benchmarks.part import Part


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Usage(_Model):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class TopLogprob(_Model):
    token: str
    logprob: float | None = None
    id: int | None = None


class TokenLogprob(_Model):
    token: str
    logprob: float | None = None
    id: int | None = None
    special: bool = False
    top_logprobs: tuple[TopLogprob, ...] = ()


class ToolCall(_Model):
    name: str
    arguments: str = ""
    id: str | None = None


class Generation(_Model):
    text: str
    generation_info: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "error", "other"] | None = None
    raw_finish_reason: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    parsed: Any = None


class LLMResult(_Model):
    generations: tuple[tuple[Generation, ...], ...]
    llm_output: dict[str, Any] | None = None
    usage: Usage | None = None


class Bench(Part):
    label = "pydantic models"
    module = "pydantic"
    distributions = ("pydantic", "pydantic-core")
    requirements = ("pydantic==2.14.4",)

    def decode(self, data: bytes) -> LLMResult:
        return LLMResult.model_validate_json(data)

    def encode(self, result: LLMResult) -> bytes:
        return result.model_dump_json(by_alias=True, exclude_defaults=True).encode()
