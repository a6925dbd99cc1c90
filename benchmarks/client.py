"""What a client is to the measurement: answers to prompts, one at a time or many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self


class Answers(NamedTuple):
    """What came of a batch."""

    texts: Sequence[str]
    """All texts, in any order: they are compared with what the origin sent."""
    seconds: Sequence[float]
    """How long each took."""


class Client:
    """Base class. A client file has one subclass, named `Bench`; each process makes one instance of it.

    Say `ask` and `read`, and `hold`; or `generate` where the client has its own way with many prompts.
    """

    label: ClassVar[str]
    """Its name in the table."""
    module: ClassVar[str]
    """What is imported to use it; its import is timed too."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """Whose versions are told."""

    def __init__(self, port: int, concurrency: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.concurrency = concurrency

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""

    async def ask(self, prompt: str) -> str:
        """The text of a whole answer."""
        raise NotImplementedError

    async def read(self, prompt: str) -> str:
        """The text of a streamed answer, understood token by token as they come."""
        raise NotImplementedError

    async def hold(self, prompt: str, arrived: Callable[[], None], release: asyncio.Event) -> None:
        """Open a stream, call `arrived` when its first token is there, and keep it open until `release` is set."""
        raise NotImplementedError

    async def generate(self, prompts: Sequence[str]) -> Answers:
        return await spread(self.ask, prompts, self.concurrency)

    async def unread(self, prompts: Sequence[str]) -> Answers:
        """As `generate`, but the answers are streamed, though nobody reads them before they are whole."""
        return await self.stream(prompts)

    async def stream(self, prompts: Sequence[str]) -> Answers:
        return await spread(self.read, prompts, self.concurrency)


def payload(prompt: str, *, stream: bool = False) -> dict[str, Any]:
    """What is posted, by every client that does not make its own."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 64, "temperature": 0.7}
    if stream:
        body["stream"] = True
    return body


async def spread(one: Callable[[str], Awaitable[str]], prompts: Sequence[str], concurrency: int) -> Answers:
    """Ask for all prompts, `concurrency` at a time, in as many tasks."""
    texts: list[str] = []
    seconds: list[float] = []
    left = iter(prompts)

    async def worker() -> None:
        for prompt in left:
            began = perf_counter()
            texts.append(await one(prompt))
            seconds.append(perf_counter() - began)

    await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
    return Answers(texts, seconds)
