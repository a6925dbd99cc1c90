"""What a model gives back: frozen structs, shared by every dialect and written as LangChain.js writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from millstream._errors import DeserializationError

__all__ = [
    "FinishReason",
    "Generation",
    "GenerationChunk",
    "LLMResult",
    "Outcome",
    "SerializedLLM",
    "StreamEvent",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "TopLogprob",
    "Usage",
]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error", "other"]
"""Why a generation ended, the same word for every server; the server's own word is kept beside it."""

SerializedLLM = dict[str, Any]
"""What `BaseLLM.serialize` gives: ``{"_type": ..., "_model": ..., ...identifying parameters}``."""


class Usage(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """Tokens of one prompt, or of several added up. ``None``: the server did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Input tokens that the server had in its cache (a part of `input_tokens`)."""
    reasoning_tokens: int | None = None
    """Output tokens spent on reasoning (a part of `output_tokens`)."""

    @property
    def total_tokens(self) -> int | None:
        """Input and output together, None where either is unknown."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage.sum((self, other)) or Usage()

    @classmethod
    def sum(cls, usages: Iterable[Usage | None]) -> Usage | None:
        """All together; a figure that nobody told stays None, and so does the whole where there is no usage."""
        told = [usage for usage in usages if usage is not None]
        columns = zip(*(msgspec.structs.astuple(usage) for usage in told), strict=True)
        totals = [_total([figure for figure in column if figure is not None]) for column in columns]
        return cls(*totals) if told else None


def _total(figures: list[int]) -> int | None:
    return sum(figures) if figures else None


class TopLogprob(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An alternative at one position: the token's text and natural-log probability (None: not told)."""

    token: str
    logprob: float | None = None
    id: int | None = None


class TokenLogprob(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """One generated token. ``logprob`` is its natural-log probability, None where the server told none."""

    token: str
    logprob: float | None = None
    id: int | None = None
    special: bool = False
    """A token such as ``</s>`` that is no part of the text."""
    top_logprobs: tuple[TopLogprob, ...] = ()


class ToolCall(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """The model asks for a function: ``arguments`` is the JSON text that it wrote, valid or not."""

    name: str
    arguments: str = ""
    id: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """A streamed piece of a tool call: pieces of one `index` belong together, `arguments` are to be joined."""

    index: int
    arguments: str = ""
    name: str | None = None
    id: str | None = None


class Generation(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """One output for one prompt."""

    text: str
    generation_info: dict[str, Any] | None = None
    """What the server told beside the text (seed, model, fingerprint ...); None where it told nothing."""
    finish_reason: FinishReason | None = None
    raw_finish_reason: str | None = None
    """The server's own word, such as ``eos_token``."""
    reasoning: str | None = None
    """What the model thought before it answered, None where it did not or the server hides it."""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    parsed: Any = None
    """The text decoded into the `response_format` type, None without one. Not serialized: it is made of `text`."""


class GenerationChunk(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """One streamed piece of one output. The pieces' texts, joined, are the output's text."""

    text: str = ""
    index: int = 0
    """Which of the ``n`` outputs of the prompt this belongs to."""
    finish_reason: FinishReason | None = None
    raw_finish_reason: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage | None = None
    """Tokens so far, for the whole prompt: the last one told is the truth, they are never to be added."""
    generation_info: dict[str, Any] | None = None

    def __str__(self) -> str:
        return self.text


class LLMResult(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """Outputs for a list of prompts: ``generations[i][j]`` is output j of prompt i, in the order of the prompts."""

    generations: tuple[tuple[Generation, ...], ...]
    llm_output: dict[str, Any] | None = None
    """What concerns the whole call, such as LangChain.js's ``tokenUsage``."""
    usage: Usage | None = None
    """Tokens of all prompts together, None where no server told any."""

    @property
    def text(self) -> str:
        """The first output of the first prompt; ``""`` for no prompts."""
        return self.generations[0][0].text if self.generations and self.generations[0] else ""

    @property
    def texts(self) -> list[str]:
        """The first output of each prompt."""
        return [row[0].text if row else "" for row in self.generations]

    @classmethod
    def of(cls, text: str, *, finish_reason: FinishReason | None = "stop", usage: Usage | None = None) -> LLMResult:
        """The result of one prompt with one output."""
        return cls(((Generation(text, finish_reason=finish_reason),),), usage=usage)

    @classmethod
    def join(cls, results: Sequence[LLMResult]) -> LLMResult:
        """One result for several prompts, made of one result each; usage is added up."""
        usage = Usage.sum(result.usage for result in results)
        output = token_usage(usage)
        return cls(tuple(row for result in results for row in result.generations), output, usage)

    def to_json(self) -> bytes:
        """As JSON with LangChain.js's names (``generations``, ``llmOutput``, ``generationInfo``)."""
        return _json_encoder.encode(_without_parsed(self))

    @classmethod
    def from_json(cls, data: bytes | str) -> LLMResult:
        """The reverse of `to_json`; reads LangChain.js's too. Raises: DeserializationError."""
        return _decode(_json_decoder.decode, data)

    def to_msgpack(self) -> bytes:
        """As MessagePack, with the same names as JSON."""
        return _msgpack_encoder.encode(_without_parsed(self))

    @classmethod
    def from_msgpack(cls, data: bytes) -> LLMResult:
        """The reverse of `to_msgpack`. Raises: DeserializationError."""
        return _decode(_msgpack_decoder.decode, data)


_json_encoder = msgspec.json.Encoder()
_json_decoder = msgspec.json.Decoder(LLMResult)
_msgpack_encoder = msgspec.msgpack.Encoder()
_msgpack_decoder = msgspec.msgpack.Decoder(LLMResult)


def token_usage(usage: Usage | None) -> dict[str, Any] | None:
    """`usage` as LangChain.js tells it in ``llmOutput``."""
    if usage is None:
        return None
    given, made = usage.input_tokens, usage.output_tokens
    told: dict[str, int] = {}
    if given is not None:
        told["promptTokens"] = given
    if made is not None:
        told["completionTokens"] = made
    if given is not None and made is not None:
        told["totalTokens"] = given + made
    return {"tokenUsage": told}


def _without_parsed(result: LLMResult) -> LLMResult:
    for row in result.generations:
        if len(row) == 1:  # nearly each: without a loop of its own, which would take a tenth of the encoding
            if row[0].parsed is not None:
                return _stripped(result)
        elif any(generation.parsed is not None for generation in row):
            return _stripped(result)
    return result


def _stripped(result: LLMResult) -> LLMResult:
    rows = tuple(tuple(msgspec.structs.replace(g, parsed=None) for g in row) for row in result.generations)
    return msgspec.structs.replace(result, generations=rows)


def _decode(decode: Any, data: bytes | str) -> LLMResult:
    try:
        result: LLMResult = decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DeserializationError(f"this is no LLMResult: {error}") from None
    return result


class Outcome(msgspec.Struct, frozen=True):
    """What became of one item of `map`: a result or an error, never both."""

    index: int
    """The item's position in the input, from 0."""
    prompt: Any
    result: LLMResult | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.error is None

    @property
    def text(self) -> str:
        """The result's text. Raises: the item's error, if it has one."""
        return self.unwrap().text

    def unwrap(self) -> LLMResult:
        """The result. Raises: the item's error, if it has one."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class StreamEvent(msgspec.Struct, frozen=True):
    """One event of `stream_many`: a `chunk` of one prompt, or (last for that prompt) its `outcome`."""

    index: int
    """The prompt's position in the input, from 0."""
    prompt: Any
    chunk: GenerationChunk | None = None
    outcome: Outcome | None = None
