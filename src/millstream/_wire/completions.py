"""The OpenAI-compatible ``/v1/completions``."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from millstream._config import CallOptions
from millstream._errors import OptionValueError, ProtocolError
from millstream._prompts import BasePromptValue
from millstream._results import GenerationChunk, LLMResult
from millstream._sse import ServerSentEvent
from millstream._wire._common import encode_body, refuse_body
from millstream._wire._deviations import read_document
from millstream._wire._dialect import DialectName
from millstream._wire._openai_shared import (
    OpenAIStreamDecoder,
    WireUsage,
    decode_logprobs,
    generation,
    info_of,
    logprobs_wanted,
    request_fields,
    row,
    usage_of,
    with_tgi_response_format,
)
from millstream._wire._runs import PlainChoice, PlainChunk, TextRuns, text_pattern
from millstream._wire._stream import Piece

__all__ = ["Completions", "CompletionsStreamDecoder"]


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    error: Any = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    id: Any = None
    model: Any = None
    system_fingerprint: Any = None
    error: Any = None


class _PlainChoice(PlainChoice, gc=False, kw_only=True):
    text: str


_plain_decoder = msgspec.json.Decoder(PlainChunk[_PlainChoice])
_answer_decoder = msgspec.json.Decoder(_Answer)
_chunk_decoder = msgspec.json.Decoder(_Chunk | None)


class Completions:
    """The dialect ``"completions"``."""

    name: ClassVar[DialectName] = "completions"

    def encode(self, prompt: BasePromptValue, options: CallOptions, *, model: str | None, stream: bool) -> bytes:
        """The body; messages are sent as the text that they make.

        Raises:
            OptionValueError: tools, which this dialect does not have.
            OptionTypeError: a value that can't be written as JSON.
        """
        if options.tools or options.tool_choice is not None:
            raise OptionValueError('completions have no tools; use api="chat"')
        body: dict[str, Any] = {} if model is None else {"model": model}
        body["prompt"] = prompt.to_string()
        body.update(request_fields(options, stream=stream))
        tops = logprobs_wanted(options)
        if tops is not None:
            body["logprobs"] = max(1, tops)  # llama.cpp takes 0 for "none at all"
        return encode_body(body, options.extra_body)

    def can_stream(self, options: CallOptions) -> bool:
        """``best_of`` is the best of several whole outputs."""
        return (options.extra_body or {}).get("best_of") in (None, 1)

    def decode(self, body: bytes, prompt: BasePromptValue, options: CallOptions) -> LLMResult:
        """The choices, in the order of their index.

        Raises:
            StatusError: the body is an error.
            ProtocolError: the body can't be understood.
        """
        try:
            answer = read_document(_answer_decoder, body)
        except ProtocolError as error:
            refuse_body(body, error)
        if answer.error or not answer.choices:
            refuse_body(body, "there are no choices in it")
        info = info_of(answer.id, answer.model, answer.system_fingerprint)
        made = [
            (
                choice.index,
                generation(choice.text or "", choice.finish_reason, options, info=info, logprobs=choice.logprobs),
            )
            for choice in answer.choices
        ]
        return row(made, answer.usage)

    def amend(self, body: bytes, status: int, answer: bytes) -> bytes | None:
        """The request with its ``response_format`` as TGI writes it, where that was refused."""
        return with_tgi_response_format(body, status, answer)

    def stream_decoder(self, prompt: BasePromptValue, options: CallOptions) -> CompletionsStreamDecoder:
        """A new decoder for one streamed answer."""
        return CompletionsStreamDecoder(options)


_text = text_pattern(b"text")


def _plain_text(data: bytes) -> str:
    return _plain_decoder.decode(data).choices[0].text


class CompletionsStreamDecoder(OpenAIStreamDecoder):
    """Chunks with ``choices[].text``."""

    def __init__(self, options: CallOptions) -> None:
        super().__init__(options)
        self._runs = TextRuns(_text, _plain_text)

    def _receive_events(self, events: list[ServerSentEvent]) -> None:
        chunks, ready, plain, decode = self._chunks, self._ready, self._plain, _chunk_decoder.decode
        for event in events:
            try:
                decoded = decode(event.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                decoded = None
            if decoded is None or decoded.error is not None or (choices := decoded.choices) is None:
                self._receive_unusual(event)
                if self._ended:
                    return
                continue
            if (
                len(choices) == 1
                and not (choice := choices[0]).finish_reason
                and decoded.usage is None
                and choice.logprobs is None
                and (output := ready.get(choice.index)) is not None
            ):
                text = choice.text
                if text and not plain:
                    text = self._trimmed(output, choice.index, text)
                if text:
                    chunks.append(GenerationChunk(text, choice.index))
            else:
                self._receive_chunk(decoded, event.data)

    def _receive_document(self, data: bytes) -> None:
        decoded = read_document(_chunk_decoder, data)
        if decoded is not None:
            self._receive_chunk(decoded, data)

    def _receive_chunk(self, chunk: _Chunk, data: bytes) -> None:
        first = len(self._chunks)
        for choice in chunk.choices or ():
            piece = Piece(
                choice.text or "",
                choice.index,
                choice.finish_reason,
                logprobs=decode_logprobs(choice.logprobs),
                generation_info=self._info_once(choice.index, data),
            )
            self._add(piece)
        usage = usage_of(chunk.usage) if chunk.usage is not None else None
        if usage is not None:
            self._add_usage(usage, first)
