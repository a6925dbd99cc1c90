"""What the three dialects share: bodies, finish reasons, and answers that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import msgspec

from millstream._config import CallOptions
from millstream._errors import OptionTypeError, ProtocolError, excerpt
from millstream._results import FinishReason, Generation, LLMResult, TokenLogprob, Usage, token_usage
from millstream._wire._stop import find_stop
from millstream._wire.errors import error_in_body, without_keys

__all__ = [
    "any_json",
    "cut_at_stop",
    "decode_body",
    "encode_body",
    "finish_reason",
    "refuse_body",
    "row_of",
    "told_logprob",
    "wants_logprobs",
]

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_any_decoder = msgspec.json.Decoder()

_FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "complete": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "abort": "error",
    "error": "error",
}

_NO_LOGPROB = -9999.0
"""vLLM writes this where it has none (JSON has no minus infinity)."""


def finish_reason(raw: str | None, *, calls: bool, refused: bool = False) -> FinishReason | None:
    """The reason that a server's word means.

    TGI says ``stop`` for tool calls, and ``""`` for "not yet"; OpenAI says ``stop`` where the model refused to answer.
    """
    if not raw:
        return None
    reason = _FINISH_REASONS.get(raw) or _FINISH_REASONS.get(raw.lower(), "other")
    if reason != "stop":
        return reason
    return "tool_calls" if calls else "content_filter" if refused else "stop"


def wants_logprobs(options: CallOptions) -> bool:
    """Whether log-probabilities were asked for (0: without alternatives)."""
    return options.logprobs is not None and options.logprobs is not False


def told_logprob(value: float | None) -> float | None:
    """A log-probability, None for the figure that stands for none."""
    return value if value is None or value > _NO_LOGPROB else None


def encode_body(body: dict[str, Any], extra: Mapping[str, Any] | None) -> bytes:
    """`body` with `extra` over it, as JSON."""
    if extra:
        body.update(extra)
    try:
        return _encoder.encode(body)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise OptionTypeError(
            f"the request can't be written as JSON ({error}); see extra_body, tools, response_format and the messages"
        ) from None


def any_json(data: bytes) -> Any:
    """The JSON value in `data`, whatever it is.

    Raises:
        ProtocolError: it is no JSON.
    """
    return decode_body(_any_decoder, data)


def decode_body(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """What `decoder` reads in `data`, which need not be quite JSON: see `_as_strict_json`.

    Raises:
        ProtocolError: no JSON, or not of that shape; with an excerpt.
    """
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            return decoder.decode(_as_strict_json(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_understood(str(error), data) from None


def _as_strict_json(data: bytes) -> str:
    """`data` as the text it was meant to be.

    Bytes that are no UTF-8 and halves of surrogate pairs become U+FFFD, as everywhere on the web; a byte order mark is
    dropped; and what Python's own writer makes of log-probabilities that are no numbers (``NaN``, ``-Infinity``)
    becomes null.
    """
    text = data.decode("utf-8-sig", "replace")
    try:
        value = json.loads(text, parse_constant=lambda _: None)
        strict = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return strict.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def refuse_body(data: bytes, why: str | ProtocolError) -> NoReturn:
    """Raise what a body that is no result means: the server's error if it holds one, else a `ProtocolError`.

    Args:
        data: the body.
        why: what is wrong with it as a result.

    Raises:
        StatusError: an error inside a 200 answer.
        ProtocolError: anything else.
    """
    refusal = why if isinstance(why, ProtocolError) else _not_understood(why, data)
    try:
        value = any_json(data)
    except ProtocolError:
        raise refusal from None
    if isinstance(value, list) and value:
        value = value[0]
    raise error_in_body(value) or refusal from None


def _not_understood(why: str, data: bytes) -> ProtocolError:
    start = data.lstrip()[:1]
    if not start:
        why = "it is empty"
    elif start == b"<":
        why = "it is a page (HTML or XML), no JSON; is endpoint_url right?"
    return ProtocolError(
        f"the server's answer can't be understood: {why}", status_code=200, body=without_keys(excerpt(data))
    )


def cut_at_stop(
    text: str, logprobs: tuple[TokenLogprob, ...] | None, stops: Sequence[str]
) -> tuple[str, tuple[TokenLogprob, ...] | None, bool]:
    """The text before its first stop text, the tokens up to that one's end, and whether there was one."""
    found = find_stop(text, stops) if stops else None
    if found is None:
        return text, logprobs, False
    if logprobs is not None:
        kept: list[TokenLogprob] = []
        length = 0
        for token in logprobs:
            if length >= found[1]:
                break
            kept.append(token)
            length += 0 if token.special else len(token.token)
        logprobs = tuple(kept)
    return text[: found[0]], logprobs, True


def row_of(generations: Sequence[Generation], usage: Usage | None) -> LLMResult:
    """The result of one prompt."""
    return LLMResult((tuple(generations),), token_usage(usage), usage)
