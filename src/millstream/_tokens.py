"""Counting tokens as a model does, with whatever is at hand."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from millstream import _config
from millstream._errors import (
    DeadlineError,
    MissingExtraError,
    OptionTypeError,
    OptionValueError,
    ProtocolError,
    StatusError,
    TransportError,
)
from millstream._language_model import TokenCount, estimate_tokens

__all__ = ["TokenCounter"]

AskServer = Callable[[str, bytes], Awaitable[bytes | None]]


class TokenCounter:
    """The best count to be had: a ``tokenizer.json``, the server's ``/tokenize``, an estimate; in this order."""

    def __init__(self, model: str | None, tokenizer: str | os.PathLike[str] | None) -> None:
        if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
            raise OptionTypeError(f"tokenizer is the path of a tokenizer.json, not {type(tokenizer).__name__}")
        path = Path(tokenizer) if tokenizer is not None else None
        if path is None and model is not None:
            path = _config.cached_tokenizer(model)
        self._tokenizer = _load(path, required=tokenizer is not None) if path is not None else None
        self._server_counts = True

    async def count(self, text: str, ask: AskServer | None) -> TokenCount:
        """How many tokens `text` has. `ask` posts to a route of the server, None where there is none to ask.

        Raises: UsageError, where the server can't be asked at all (closed, no key).
        """
        text = text.encode("utf-8", "replace").decode()  # neither of them takes a lone surrogate
        if self._tokenizer is not None:
            return TokenCount(len(self._tokenizer.encode(text, add_special_tokens=False).ids), exact=True)
        if ask is not None and self._server_counts:
            try:
                answer = await ask("tokenize", _question(text))
            except (TransportError, DeadlineError, ProtocolError, StatusError):
                return estimate_tokens(text)  # this time; the next count asks again
            count = None if answer is None else _count_in(answer)
            if count is not None:
                return TokenCount(count, exact=True)
            self._server_counts = False  # no such route
        return estimate_tokens(text)


def _question(text: str) -> bytes:
    """What llama.cpp, TGI and vLLM each want; each ignores what the others want. Of the text alone, nothing added."""
    body = {"content": text, "inputs": text, "prompt": text, "add_special": False, "add_special_tokens": False}
    return msgspec.json.encode(body)


def _load(path: Path, *, required: bool) -> Any:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - an extra
    except ImportError:
        if not required:
            return None
        raise MissingExtraError('a tokenizer.json needs an extra: pip install "millstream[tokenizers]"') from None
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        if not required:
            return None
        raise OptionValueError(f"this is no tokenizer.json: {error}") from None


def _count_in(answer: bytes) -> int | None:
    try:
        value = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if isinstance(value, dict):
        if isinstance(value.get("count"), int):  # vLLM
            return int(value["count"])
        value = value.get("tokens")  # llama.cpp; TGI gives the bare list
    return len(value) if isinstance(value, list) else None
