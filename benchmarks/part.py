"""What a part of a client is to the measurement: no sockets, no event loop but its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class Part:
    """Base class. A file in `parts/` has one subclass, named `Bench`, with the class attributes of a `Client`."""

    label: ClassVar[str]
    module: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]] = ()
    requirements: ClassVar[tuple[str, ...]] = ()

    def decode(self, data: bytes) -> Any:
        """A result from its JSON, as an object with types."""
        raise NotImplementedError

    def encode(self, result: Any) -> bytes:
        """The reverse of `decode`: the same JSON, whatever the order and the white space."""
        raise NotImplementedError

    def texts(self, pieces: Iterable[bytes]) -> list[str]:
        """The tokens' texts in the body of a streamed answer."""
        raise NotImplementedError

    async def drain(self, count: int) -> int:
        """Answers to `count` prompts from a model without an endpoint, taken and dropped; how many there were."""
        raise NotImplementedError
