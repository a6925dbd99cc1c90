"""What a client is to the measurement: answers to prompts, one at a time or many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
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

    Say `ask` and `tokens`; or `generate` where the client has its own way with many prompts, and `read` where a
    generator's own costs would show.

    The class attributes are read without importing the file, since what it imports is in an environment of its own:
    each file says all of them itself (none is inherited), as literals.
    """

    label: ClassVar[str]
    """Its name in the table."""
    module: ClassVar[str]
    """What is imported to use it; its import is timed too."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """Whose versions are told, as they are in its environment."""
    requirements: ClassVar[tuple[str, ...]] = ()
    """What pip installs into an environment of its own, with versions: ``("openai==3.57.0",)``. uvloop is there
    already. ``"."`` or ``".[extra]"`` is this checkout, editable. Empty: it runs where the benchmark itself runs.

    With `foreign` that is a Node program, they are npm's: ``("openai@6.9.0",)``.
    """
    foreign: ClassVar[tuple[str, ...]] = ()
    """The command of a program in another language, from the project's directory: ``("node",
    "benchmarks/clients/openai_node.cjs")``. It is started for each measurement, with one further argument, a JSON
    object: what `Scenario` has (name, kind, concurrency, batch, warm_up, units_each, ...), and with it ``port``,
    ``seconds`` (how long, at least), ``answer`` and ``stream`` (the texts that must have been understood).
    ``NODE_PATH`` leads to what was installed, so that ``require`` finds it. It prints one line of JSON, as `measure`
    does: ``figure`` (CPU us a unit, user and system), ``figure_unit``, ``count``, ``per_second``, ``cpu_share``,
    ``p50_ms``, ``p99_ms``, ``peak_rss_mb``; or ``error``. The class `Bench` beside it has the attributes only.
    """
    skips: ClassVar[Mapping[str, str]] = {}
    """Scenarios that make no sense for it, by name or beginning (``"generate-10000"``, ``"hold"``), and why: that is
    what the table says there. Without an entry everything is tried, and what fails or takes too long is told."""

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

    def tokens(self, prompt: str) -> AsyncGenerator[str]:
        """The texts of a streamed answer's tokens, each as it comes."""
        raise NotImplementedError

    async def read(self, prompt: str) -> str:
        """The text of a streamed answer, understood token by token as they come."""
        texts: list[str] = []
        async with aclosing(self.tokens(prompt)) as tokens:
            async for text in tokens:
                texts.append(text)
        return "".join(texts)

    async def first(self, prompt: str, arrived: Callable[[], None]) -> str:
        """As `read`, and `arrived` is called when the first token is there."""
        async with aclosing(self.tokens(prompt)) as tokens:
            texts = [await anext(tokens)]
            arrived()
            async for text in tokens:
                texts.append(text)
        return "".join(texts)

    async def hold(self, prompt: str, arrived: Callable[[], None], release: asyncio.Event) -> None:
        """Open a stream, call `arrived` when its first token is there, and keep it open until `release` is set."""
        async with aclosing(self.tokens(prompt)) as tokens:
            await anext(tokens)
            arrived()
            await release.wait()

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
