"""The OpenAI-compatible ``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from millstream._config import CallOptions
from millstream._errors import ProtocolError
from millstream._prompts import BasePromptValue, StringPromptValue
from millstream._results import GenerationChunk, LLMResult, ToolCall, ToolCallDelta
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

__all__ = ["Chat", "ChatStreamDecoder"]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | int | None = None
    function: _Function | None = None


_Calls = list[_Call] | _Call | None
"""TGI before 2.0 streamed one object instead of a list."""


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: _Calls = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    id: Any = None
    model: Any = None
    system_fingerprint: Any = None
    error: Any = None


class _ChunkChoice(msgspec.Struct, gc=False):
    delta: _Message | None = None
    message: _Message | None = None
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_ChunkChoice] | None = None
    usage: WireUsage | None = None
    error: Any = None


class _PlainDelta(msgspec.Struct, gc=False):
    content: str
    reasoning_content: None = None
    reasoning: None = None
    tool_calls: None = None
    refusal: None = None


class _PlainChoice(PlainChoice, gc=False, kw_only=True):
    delta: _PlainDelta
    message: None = None


_plain_decoder = msgspec.json.Decoder(PlainChunk[_PlainChoice])
_answer_decoder = msgspec.json.Decoder(_Answer)
_chunk_decoder = msgspec.json.Decoder(_Chunk | None)
_encoder = msgspec.json.Encoder()
_NO_MESSAGE = _Message()


class Chat:
    """The dialect ``"chat"``."""

    name: ClassVar[DialectName] = "chat"

    def encode(self, prompt: BasePromptValue, options: CallOptions, *, model: str | None, stream: bool) -> bytes:
        """The body; a prompt that is text is one message of the user.

        Raises:
            OptionTypeError: a value that can't be written as JSON.
        """
        body: dict[str, Any] = {} if model is None else {"model": model}
        if type(prompt) is StringPromptValue:
            body["messages"] = ({"role": "user", "content": prompt.text},)
        else:
            body["messages"] = prompt.to_messages()
        body.update(request_fields(options, stream=stream))
        tops = logprobs_wanted(options)
        if tops is not None:
            body["logprobs"] = True
            if tops:
                body["top_logprobs"] = tops
        if options.tools:
            body["tools"] = [dict(tool) for tool in options.tools]
        if options.tool_choice is not None:
            choice = options.tool_choice
            body["tool_choice"] = dict(choice) if isinstance(choice, Mapping) else choice
        return encode_body(body, options.extra_body)

    def can_stream(self, options: CallOptions) -> bool:
        """Always; what some servers refuse (tools, with llama.cpp's older ones) is seen from the refusal."""
        return True

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
                generation(
                    (message := choice.message or _NO_MESSAGE).content or message.refusal or "",
                    choice.finish_reason,
                    options,
                    info=info,
                    logprobs=choice.logprobs,
                    reasoning=message.reasoning_content or message.reasoning,
                    calls=[_tool_call(call) for call in _list_of(message.tool_calls)] if message.tool_calls else (),
                    refused=_is_refusal(message),
                ),
            )
            for choice in answer.choices
        ]
        return row(made, answer.usage)

    def amend(self, body: bytes, status: int, answer: bytes) -> bytes | None:
        """The request with its ``response_format`` as TGI writes it, where that was refused."""
        return with_tgi_response_format(body, status, answer)

    def stream_decoder(self, prompt: BasePromptValue, options: CallOptions) -> ChatStreamDecoder:
        """A new decoder for one streamed answer."""
        return ChatStreamDecoder(options)


def _is_refusal(message: _Message) -> bool:
    """Whether the model says ``refusal`` instead of an answer: then that is the text."""
    return bool(message.refusal and not message.content)


def _list_of(calls: _Calls) -> Sequence[_Call]:
    return () if calls is None else (calls,) if isinstance(calls, _Call) else calls


def _tool_call(call: _Call) -> ToolCall:
    function = call.function
    if function is None:
        return ToolCall("", "", _id_of(call))
    return ToolCall(function.name or "", _arguments(function.arguments), _id_of(call))


def _delta(call: _Call, position: int) -> ToolCallDelta:
    """TGI says the id in each delta, with a name that is null: neither counts where it is empty."""
    index = position if call.index is None else call.index
    function = call.function
    if function is None:
        return ToolCallDelta(index, id=_id_of(call))
    return ToolCallDelta(index, _arguments(function.arguments), function.name or None, _id_of(call))


def _id_of(call: _Call) -> str | None:
    """TGI's is ``"0"``, before 2.4 the number."""
    return None if call.id is None or call.id == "" else str(call.id)


def _arguments(value: Any) -> str:
    """The JSON text of the arguments, which some servers (TGI before 3.1) give as an object."""
    if isinstance(value, str):
        return value
    return "" if value is None else _encoder.encode(value).decode()


_text = text_pattern(b"content")


def _plain_text(data: bytes) -> str:
    return _plain_decoder.decode(data).choices[0].delta.content


class ChatStreamDecoder(OpenAIStreamDecoder):
    """Chunks with ``choices[].delta``."""

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
                and (delta := choice.delta) is not None
                and (text := delta.content)
                and delta.tool_calls is None
                and delta.reasoning_content is None
                and delta.reasoning is None
                and choice.logprobs is None
                and (output := ready.get(choice.index)) is not None
            ):
                if not plain:
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
            delta = choice.delta or choice.message or _NO_MESSAGE
            calls = _list_of(delta.tool_calls)
            piece = Piece(
                delta.content or delta.refusal or "",
                choice.index,
                choice.finish_reason,
                delta.reasoning_content or delta.reasoning,
                tuple(_delta(call, position) for position, call in enumerate(calls)),
                decode_logprobs(choice.logprobs),
                self._info_once(choice.index, data),
                _is_refusal(delta),
            )
            self._add(piece)
        usage = usage_of(chunk.usage) if chunk.usage is not None else None
        if usage is not None:
            self._add_usage(usage, first)
