"""The one type that holds a key, and gives it to nobody by accident."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, NoReturn

from millstream._errors import OptionTypeError, OptionValueError, UsageError

__all__ = ["Secret"]


_STARS = "***"
_TELLTALE = 8
"""Fewer characters of a key ("hf_" and a few) tell nothing."""


class Secret:
    """A key whose value only `reveal` gives: not repr, not str, not format, not pickle, not copy into JSON.

    Args:
        value: the key; surrounding white space (the line end of a file) is dropped. A `Secret` gives its twin.
        what: what it is, for messages.

    Raises:
        OptionTypeError: it is not text.
        OptionValueError: it is empty, or has characters that no HTTP header may have. The message never has the value.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str | Secret, what: str = "the API key") -> None:
        wrong = _what_is_wrong(value, what)
        self.__value = "" if wrong else _text(value)
        del value  # tools that print tracebacks show local variables too
        if wrong is not None:
            raise wrong

    def reveal(self) -> str:
        """The key itself."""
        return self.__value

    def hide_in(self, text: str) -> str:
        """`text` with stars in the place of the key, or of its beginning where the text was cut amid it."""
        text = text.replace(self.__value, _STARS)
        for ending in ("", "..."):
            cut = text.removesuffix(ending)
            for length in range(min(len(self.__value), len(cut)), _TELLTALE - 1, -1):
                if cut.endswith(self.__value[:length]):
                    return cut[:-length] + _STARS + ending
        return text

    def hide_in_bytes(self, data: bytes) -> bytes:
        """The same for bytes that have not been cut."""
        return data.replace(self.__value.encode(), _STARS.encode())

    def fingerprint(self) -> str:
        """Eight hexadecimal digits that tell two keys apart and tell nothing of either."""
        return hashlib.sha256(self.__value.encode()).hexdigest()[:8]

    def __repr__(self) -> str:
        return f"Secret(sha256:{self.fingerprint()})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.__value, other.__value)

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __reduce__(self) -> NoReturn:
        raise UsageError("a key is not pickled or copied; give it again where the model is loaded")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


def _text(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value.strip(" \t\r\n")


def _what_is_wrong(value: Any, what: str) -> UsageError | None:
    if not isinstance(value, str | Secret):
        return OptionTypeError(f"{what} is text (str), not {type(value).__name__}")
    text = _text(value)
    if not text:
        return OptionValueError(f"{what} is empty")
    for position, character in enumerate(text):
        if not "\x21" <= character <= "\x7e":
            return OptionValueError(
                f"{what} has a character that no HTTP header may have (U+{ord(character):04X} at position "
                f"{position}): a line break, a space, or a character that is not ASCII"
            )
    return None
