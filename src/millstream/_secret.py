"""The one type that holds a key, and gives it to nobody by accident."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

from millstream._errors import OptionTypeError, OptionValueError, UsageError

__all__ = ["Secret"]


class Secret:
    """A key whose value only `reveal` gives: not repr, not str, not format, not pickle, not copy into JSON.

    Args:
        value: the key; surrounding white space (the line end of a file) is dropped.

    Raises:
        OptionTypeError: it is not text.
        OptionValueError: it is empty, or has characters that no HTTP header may have. The message never has the value.

    """

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise OptionTypeError(f"an API key is text (str), not {type(value).__name__}")
        value = value.strip(" \t\r\n")
        if not value:
            raise OptionValueError("the API key is empty")
        for position, character in enumerate(value):
            if not "\x21" <= character <= "\x7e":
                raise OptionValueError(
                    f"the API key has a character that no HTTP header may have (U+{ord(character):04X} at position "
                    f"{position}): a line break, a space, or a character that is not ASCII"
                )
        self.__value = value

    def reveal(self) -> str:
        """The key itself."""
        return self.__value

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
