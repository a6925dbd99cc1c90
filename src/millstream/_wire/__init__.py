"""The wire: pure conversion between prompts and results and the bytes of each dialect."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from millstream._wire._dialect import Dialect, DialectName, StreamDecoder
from millstream._wire._stream import END_MARK
from millstream._wire.chat import Chat
from millstream._wire.completions import Completions
from millstream._wire.text_generation import TextGeneration

__all__ = ["DIALECTS", "END_MARK", "Dialect", "DialectName", "StreamDecoder"]

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {dialect.name: dialect for dialect in (TextGeneration(), Completions(), Chat())}
)
"""The dialects by name; stateless, shared by all calls."""
