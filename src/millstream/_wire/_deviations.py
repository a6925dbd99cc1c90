"""Answers of the OpenAI-compatible dialects that are not quite in OpenAI's shape, and read all the same.

What is usual is read straight into structs; only what these refuse comes here, to be put right and read again.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from millstream._errors import ProtocolError
from millstream._wire._common import any_json, decode_body

__all__ = ["read_document"]

T = TypeVar("T")


def read_document(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """What `decoder` reads in `data`, whose shape may deviate in ways that are known.

    Raises:
        ProtocolError: no JSON, or of a shape that nobody has; with an excerpt.
    """
    try:
        return decode_body(decoder, data)
    except ProtocolError as refusal:
        value = any_json(data)
        if not isinstance(value, dict):
            raise
        _mend(value)
        try:
            mended: T = msgspec.convert(value, decoder.type)
        except (msgspec.ValidationError, RecursionError):
            raise refusal from None
        return mended


def _mend(document: dict[str, Any]) -> None:
    usage = document.get("usage")
    if isinstance(usage, dict):
        for name in ("prompt_tokens_details", "completion_tokens_details"):
            _drop_empty(usage, name)
    _drop_empty(document, "usage")
    choices = document.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if choice.get("index") is None:
            choice.pop("index", None)
        for message in (choice.get("message"), choice.get("delta")):
            if isinstance(message, dict):
                _mend_message(message)


def _drop_empty(holder: dict[str, Any], name: str) -> None:
    """``[]`` and ``""`` where nothing is: some gateways write an empty object so."""
    if not holder.get(name):
        holder.pop(name, None)


def _mend_message(message: dict[str, Any]) -> None:
    """Content in parts (Mistral's models that reason), and holes in the list of tool calls."""
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_text_of(part, "text") for part in content)
        thought = "".join(_text_of(part, "thinking") or _text_of(part, "reasoning") for part in content)
        if thought and not message.get("reasoning_content"):
            message["reasoning_content"] = thought
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [call for call in calls if call is not None]


def _text_of(part: Any, kind: str) -> str:
    """The text of a part that is of that kind, which may be a list of parts of text itself."""
    if isinstance(part, str):
        return part if kind == "text" else ""
    if not isinstance(part, dict) or part.get("type", "text") not in (kind, f"output_{kind}"):
        return ""
    value = part.get(kind)
    if isinstance(value, list):
        return "".join(_text_of(inner, "text") for inner in value)
    return value if isinstance(value, str) else ""
