"""Chunks to a result and back: what was streamed equals what would have come at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import msgspec

from millstream._config import CallOptions
from millstream._errors import ProtocolError, excerpt
from millstream._results import (
    FinishReason,
    Generation,
    GenerationChunk,
    LLMResult,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
    token_usage,
)

__all__ = ["ResultBuilder", "chunks_of", "parse_response"]


class _Call:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.name: str | None = None
        self.id: str | None = None
        self.arguments: list[str] = []


class _Output:
    """One of the outputs, as far as it has come."""

    __slots__ = ("calls", "finish_reason", "info", "latest", "logprobs", "raw_finish_reason", "reasoning", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.finish_reason: FinishReason | None = None
        self.raw_finish_reason: str | None = None
        self.calls: list[_Call] = []
        self.latest: dict[int, _Call] = {}
        self.logprobs: list[TokenLogprob] = []
        self.info: dict[str, Any] = {}

    def add(self, chunk: GenerationChunk) -> None:
        if chunk.text:
            self.texts.append(chunk.text)
        if chunk.reasoning:
            self.reasoning.append(chunk.reasoning)
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
        if chunk.raw_finish_reason is not None:
            self.raw_finish_reason = chunk.raw_finish_reason
        if chunk.tool_calls:
            self.add_calls(chunk.tool_calls)
        if chunk.logprobs:
            self.logprobs.extend(chunk.logprobs)
        if chunk.generation_info:
            self.info.update(chunk.generation_info)

    def add_calls(self, deltas: Iterable[ToolCallDelta]) -> None:
        for delta in deltas:
            call = self.latest.get(delta.index)
            # Some servers give each of several whole calls the index 0: another id with a name is another call.
            if call is None or (call.id and delta.id and delta.name and call.id != delta.id):
                call = self.latest[delta.index] = _Call()
                self.calls.append(call)
            call.id = call.id or delta.id
            call.name = call.name or delta.name
            if delta.arguments:
                call.arguments.append(delta.arguments)

    def generation(self) -> Generation:
        return Generation(
            "".join(self.texts),
            self.info or None,
            self.finish_reason,
            self.raw_finish_reason,
            "".join(self.reasoning) or None,
            tuple(ToolCall(call.name or "", "".join(call.arguments), call.id) for call in self.calls),
            tuple(self.logprobs) or None,
        )


class ResultBuilder:
    """Collects the chunks of one prompt.

    Adding is one append, since it is done for each token; the rest is done when somebody asks, once for each chunk.

    Attributes:
        add: takes the next chunk.
    """

    __slots__ = ("_any", "_chunks", "_outputs", "_usage", "add")

    def __init__(self) -> None:
        self._chunks: list[GenerationChunk] = []  # those that nobody has asked about
        self._outputs: dict[int, _Output] = {}
        self._usage: Usage | None = None
        self._any = False
        self.add: Callable[[GenerationChunk], None] = self._chunks.append

    def __bool__(self) -> bool:
        """Whether anything has arrived."""
        return self._any or bool(self._chunks)

    @property
    def text(self) -> str:
        """The text of the first output so far; ``""`` for none."""
        self._fold()
        output = self._outputs.get(0)
        if output is None:
            return ""
        text = "".join(output.texts)
        output.texts = [text]
        return text

    def build(self, options: CallOptions | None = None) -> LLMResult:
        """The result: one row, its outputs in the order of their index.

        Args:
            options: of the call; with a type as `response_format`, `Generation.parsed` is filled. None: it isn't.

        Raises:
            ProtocolError: see `parse_response`.
        """
        self._fold()
        outputs = [self._outputs[index] for index in sorted(self._outputs)] or [_Output()]
        row = tuple(output.generation() for output in outputs)
        result = LLMResult((row,), token_usage(self._usage), self._usage)
        return result if options is None else parse_response(result, options)

    def _fold(self) -> None:
        chunks = self._chunks
        if not chunks:
            return
        self._any = True
        outputs = self._outputs
        for chunk in chunks:
            output = outputs.get(chunk.index)
            if output is None:
                output = outputs[chunk.index] = _Output()
            output.add(chunk)
            if chunk.usage is not None:
                self._usage = chunk.usage
        chunks.clear()  # not a new list: `add` is this one's


_UNPARSED: frozenset[FinishReason | None] = frozenset({"length", "content_filter", "tool_calls", "error"})


def parse_response(result: LLMResult, options: CallOptions) -> LLMResult:
    """`result` with `Generation.parsed`, where `options.response_format` is a `msgspec.Struct` type; else as it is.

    An output that was cut off (finish reason ``length``, ``content_filter``, ``error``) or that asks for tools need not
    be what was asked for: its `parsed` stays None if it isn't, and the text, which was paid for, is kept.

    Raises:
        ProtocolError: an output that is complete does not fit the type; with an excerpt of it.
    """
    wanted = options.response_format
    if not isinstance(wanted, type):
        return result
    decoder = _decoder_of(wanted)
    rows = tuple(tuple(_parsed(generation, decoder, wanted) for generation in row) for row in result.generations)
    return msgspec.structs.replace(result, generations=rows)


@lru_cache(maxsize=64)
def _decoder_of(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _parsed(generation: Generation, decoder: msgspec.json.Decoder[Any], wanted: type[Any]) -> Generation:
    try:
        value = decoder.decode(generation.text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        if generation.finish_reason in _UNPARSED:
            return generation
        raise ProtocolError(
            f"the output is no {wanted.__name__}: {error}", status_code=200, body=excerpt(generation.text)
        ) from None
    return msgspec.structs.replace(generation, parsed=value)


def chunks_of(result: LLMResult) -> list[GenerationChunk]:
    """The chunks of a result of one prompt that came at once: one for each output, the usage on the last."""
    row = result.generations[0] if result.generations else ()
    last = len(row) - 1
    chunks = [
        GenerationChunk(
            generation.text,
            index,
            generation.finish_reason,
            generation.raw_finish_reason,
            generation.reasoning,
            tuple(
                ToolCallDelta(at, call.arguments, call.name, call.id) for at, call in enumerate(generation.tool_calls)
            ),
            generation.logprobs,
            result.usage if index == last else None,
            generation.generation_info,
        )
        for index, generation in enumerate(row)
    ]
    if not chunks and result.usage is not None:
        chunks.append(GenerationChunk(usage=result.usage))
    return chunks
