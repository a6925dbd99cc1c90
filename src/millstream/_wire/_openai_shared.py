"""What the two OpenAI-compatible dialects share: the fields of a request, usage, log-probabilities, the choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import msgspec

from millstream._config import CallOptions
from millstream._errors import ProtocolError
from millstream._results import Generation, LLMResult, TokenLogprob, ToolCall, TopLogprob, Usage
from millstream._wire._common import (
    cut_at_stop,
    decode_body,
    encode_body,
    finish_reason,
    row_of,
    told_logprob,
    wants_logprobs,
)
from millstream._wire._schema import openai_response_format, tgi_response_format
from millstream._wire._stream import BaseStreamDecoder

__all__ = [
    "OpenAIStreamDecoder",
    "WireUsage",
    "decode_logprobs",
    "generation",
    "info_of",
    "request_fields",
    "row",
    "usage_of",
    "with_tgi_response_format",
]

Number = int | float | None
"""A count. Some servers write all their statistics as floats."""


class _InputDetails(msgspec.Struct):
    cached_tokens: Number = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Number = None


class WireUsage(msgspec.Struct):
    """The ``usage`` of an answer or chunk."""

    prompt_tokens: Number = None
    completion_tokens: Number = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Top(msgspec.Struct):
    token: str = ""
    logprob: float | None = None
    id: int | None = None


class _Token(msgspec.Struct):
    token: str = ""
    logprob: float | None = None
    id: int | None = None
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    """Both shapes: ``content`` (chat, and completions of llama.cpp), parallel lists (completions)."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _Head(msgspec.Struct):
    """What is the same on each chunk of a stream, and read once."""

    id: Any = None
    model: Any = None
    system_fingerprint: Any = None


_SAME = ("max_tokens", "temperature", "top_k", "frequency_penalty", "repetition_penalty", "seed")
"""Options that the wire calls the same."""

_head_decoder = msgspec.json.Decoder(_Head)


def request_fields(options: CallOptions, *, stream: bool) -> dict[str, Any]:
    """The fields that both dialects have, without those that a server would refuse or misread.

    ``top_p: 1`` is refused by TGI, and a ``presence_penalty`` of 0 is a repetition penalty of 2 there. Other values
    that switch something off are sent: servers have defaults of the model that switch it on.
    """
    fields: dict[str, Any] = {name: value for name in _SAME if (value := getattr(options, name)) is not None}
    if options.top_p is not None and options.top_p < 1:
        fields["top_p"] = options.top_p
    if options.presence_penalty:
        fields["presence_penalty"] = options.presence_penalty
    if options.n is not None and options.n > 1:
        fields["n"] = options.n
    if options.stops:
        fields["stop"] = options.stops
    if options.response_format is not None:
        fields["response_format"] = openai_response_format(options.response_format)
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True}
    return fields


def with_tgi_response_format(body: bytes, status: int, answer: bytes) -> bytes | None:
    """The request with ``{"type": "json_object", "value": schema}``, None where its format was not what was refused."""
    if status != 422 or b"response_format" not in answer:
        return None
    request = msgspec.json.decode(body)
    written = tgi_response_format(request.get("response_format"))
    if written is None:
        return None
    return encode_body({**request, "response_format": written}, None)


def usage_of(wire: WireUsage) -> Usage | None:
    """The usage, None where it tells nothing."""
    details, more = wire.prompt_tokens_details, wire.completion_tokens_details
    given, made = _count(wire.prompt_tokens), _count(wire.completion_tokens)
    cached = None if details is None else _count(details.cached_tokens)
    reasoned = None if more is None else _count(more.reasoning_tokens)
    if given is None and made is None and cached is None and reasoned is None:
        return None
    return Usage(given, made, cached, reasoned)


def _count(value: Number) -> int | None:
    if value is None or type(value) is int:
        return value
    return int(value) if math.isfinite(value) else None


def decode_logprobs(value: Any) -> tuple[TokenLogprob, ...] | None:
    """The log-probabilities of a choice in whichever shape; None where there are none.

    Raises:
        ProtocolError: they are of a shape that nobody has.
    """
    if not isinstance(value, dict):
        return None
    try:
        wire = msgspec.convert(value, _Logprobs)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the server's logprobs can't be understood: {error}", status_code=200) from None
    if wire.content is not None:
        return tuple(_token_logprob(token) for token in wire.content) or None
    if not wire.tokens:
        return None
    figures, tops = wire.token_logprobs or [], wire.top_logprobs or []
    return tuple(
        TokenLogprob(
            token,
            told_logprob(figures[at]) if at < len(figures) else None,
            top_logprobs=_tops_of(tops[at]) if at < len(tops) else (),
        )
        for at, token in enumerate(wire.tokens)
    )


def _token_logprob(token: _Token) -> TokenLogprob:
    return TokenLogprob(
        token.token,
        told_logprob(token.logprob),
        token.id,
        top_logprobs=tuple(
            TopLogprob(top.token, told_logprob(top.logprob), top.id) for top in token.top_logprobs or ()
        ),
    )


def _tops_of(tops: dict[str, float | None] | None) -> tuple[TopLogprob, ...]:
    return tuple(TopLogprob(token, told_logprob(figure)) for token, figure in (tops or {}).items())


_TOLD = (str, int)


def info_of(id: Any, model: Any, system_fingerprint: Any) -> dict[str, Any] | None:  # noqa: A002
    """`Generation.generation_info`: what is told and not empty, None for nothing.

    An `id` may be a number. Of any other type it is nothing to lose an answer for.
    """
    told: dict[str, Any] = {}
    if id and isinstance(id, _TOLD):
        told["id"] = str(id)
    if model and isinstance(model, _TOLD):
        told["model"] = str(model)
    if system_fingerprint and isinstance(system_fingerprint, _TOLD):
        told["system_fingerprint"] = str(system_fingerprint)
    return told or None


def generation(
    text: str,
    raw: str | None,
    options: CallOptions,
    *,
    info: dict[str, Any] | None,
    logprobs: Any = None,
    reasoning: str | None = None,
    calls: Sequence[ToolCall] = (),
    refused: bool = False,
) -> Generation:
    """One choice of a whole answer."""
    tokens = None if logprobs is None else decode_logprobs(logprobs)
    text, tokens, stopped = cut_at_stop(text, tokens, options.stops)
    return Generation(
        text,
        info,
        "stop" if stopped else finish_reason(raw, calls=bool(calls), refused=refused),
        raw or None,
        reasoning or None,
        tuple(calls),
        tokens,
    )


def row(generations: Sequence[tuple[int, Generation]], usage: WireUsage | None) -> LLMResult:
    """The result of one prompt; the choices come with their index, in no order (TGI)."""
    ordered = sorted(generations, key=itemgetter(0))
    return row_of([made for _, made in ordered], usage_of(usage) if usage is not None else None)


class OpenAIStreamDecoder(BaseStreamDecoder):
    """What chunks of both dialects have in common beside their choices."""

    def __init__(self, options: CallOptions) -> None:
        super().__init__(options)
        self._info: dict[str, Any] | None = None
        self._info_read = False

    def _info_once(self, index: int, data: bytes) -> dict[str, Any] | None:
        """The chunk's `generation_info`, for the first chunk of each output."""
        if index in self._outputs:
            return None
        if not self._info_read:
            self._info_read = True
            head = decode_body(_head_decoder, data)
            self._info = info_of(head.id, head.model, head.system_fingerprint)
        return self._info


def logprobs_wanted(options: CallOptions) -> int | None:
    """How many alternatives to ask for, None for no log-probabilities at all."""
    if not wants_logprobs(options):
        return None
    return 0 if options.logprobs is True or options.logprobs is None else options.logprobs
