"""The head of a response, as it came: what is in it is looked for when somebody asks, since most of it nobody reads."""

from __future__ import annotations

__all__ = ["Head", "Headers"]

Headers = tuple[tuple[bytes, bytes], ...]
"""Header lines in the order in which they stand; a received name is in lower case."""


class Head:
    """A status line and header lines, of which the parser has seen that they are legal.

    Args:
        raw: all lines, each with its end; without the empty one.
    """

    __slots__ = ("_headers", "_lower", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._lower = b""
        self._headers: Headers | None = None

    @property
    def headers(self) -> Headers:
        """All header lines."""
        headers = self._headers
        if headers is None:
            parted = (line.partition(b":") for line in self._raw.split(b"\r\n")[1:-1])
            headers = self._headers = tuple((name.lower(), value.strip()) for name, _, value in parted)
        return headers

    def mentions(self, word: bytes) -> bool:
        """Whether any name has `word` (lower case) in it."""
        return word in self._lowered() and any(word in name for name, _ in self.headers)

    def value(self, name: bytes) -> bytes | None:
        """The header of this name (lower case), several lines joined with commas; None without one."""
        if self._lowered().find(b"\n" + name + b":") < 0:
            return None
        return b", ".join(value for key, value in self.headers if key == name)

    @property
    def http_version(self) -> bytes:
        """Such as ``1.1``."""
        return self._raw[5:8]

    @property
    def reason(self) -> bytes:
        """The words behind the status, empty without any."""
        return self._raw[: self._raw.find(b"\r")][13:].strip()

    def _lowered(self) -> bytes:
        if not self._lower:
            self._lower = self._raw.lower()
        return self._lower
