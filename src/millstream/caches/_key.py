"""The name under which an answer is kept: everything that can change the text, and nothing else."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from millstream._errors import OptionTypeError, OptionValueError
from millstream._prompts import ChatPromptValue, PromptInput, StringPromptValue, as_prompt_value

__all__ = ["cache_key"]

_VERSION = "millstream cache 1"  # to be changed with anything that changes what a key stands for


def cache_key(parameters: Mapping[str, Any], prompt: PromptInput, *, namespace: str = "") -> str:
    """The key of one prompt under these parameters: SHA-256 (64 hexadecimal digits) of their canonical JSON.

    Different parameters never share a key. "Different" is meant as JSON means it: the order of a mapping's keys is
    nothing, a tuple is a list, a key ``1`` is a key ``"1"``; but ``1``, ``1.0``, ``True`` and ``"1"`` are four values,
    and a parameter that is None is another than one that is absent. A number that JSON can't have (NaN) is ``null``
    here as it is on the wire. A `msgspec.Struct` type stands for its JSON schema.

    Args:
        parameters: everything that can change the text: endpoint, model, provider, api, sampling, stop, schema, tools,
            extra body. Never a key or other secret.
        prompt: text, prompt value or messages. A text and the chat of one user message with that text are different.
        namespace: keeps tenants apart; the credential's fingerprint, for one.

    Raises:
        OptionTypeError: a value that JSON can't have.
        OptionValueError: text that can't be written as UTF-8, or one mapping with a key ``1`` and a key ``"1"``.
    """
    return hashlib.sha256(_canonical([_VERSION, namespace, parameters, _prompt(prompt)])).hexdigest()


def _prompt(prompt: PromptInput) -> list[Any]:
    if isinstance(prompt, str):
        return ["text", prompt]
    value = as_prompt_value(prompt)
    if type(value) is StringPromptValue:
        return ["text", value.text]
    if type(value) is ChatPromptValue:
        return ["chat", value.messages]
    return ["value", value.to_string(), value.to_messages()]  # it may be written in either way


def _canonical(value: list[Any]) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:
        raise OptionValueError(f"a parameter has text that can't be written as UTF-8: {error.reason}") from None
    except TypeError:
        return _canonical_with_other_keys(value)


def _canonical_with_other_keys(value: list[Any]) -> bytes:
    """For mappings whose keys are no text (``logit_bias={50256: -100}``), which msgspec does not sort as they are."""
    try:
        canonical = _encoder.encode(msgspec.to_builtins(value, str_keys=True, enc_hook=_plain))
        as_it_is = msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError) as error:
        raise OptionTypeError(f"a parameter is nothing that JSON can have: {error}") from None
    if len(canonical) != len(as_it_is):  # the same but for order, unless two keys became one
        raise OptionValueError("a mapping among the parameters has the same key twice, as text and as number")
    return canonical


def _plain(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, msgspec.Struct):
        return _schema(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise OptionTypeError(f"{type(value).__name__} is nothing that JSON can have")


@functools.lru_cache(maxsize=64)
def _schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return msgspec.json.schema(kind)


_encoder = msgspec.json.Encoder(enc_hook=_plain, order="deterministic")
