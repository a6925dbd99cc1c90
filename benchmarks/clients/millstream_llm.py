"""The whole of Millstream: retries, a limit of requests a minute, one callback handler, typed results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from types import TracebackType
from typing import Self

from benchmarks.client import Answers, Client
from millstream import BaseCallbackHandler, HuggingFaceInference, LLMEndEvent, LLMStartEvent


class _Latencies(BaseCallbackHandler):
    """From each run's start to its end. (The events' own times are the loop's clock: whole milliseconds on uvloop.)"""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began: dict[str, float] = {}

    def on_llm_start(self, event: LLMStartEvent, /) -> None:
        self._began[event.run_id] = perf_counter()

    def on_llm_end(self, event: LLMEndEvent, /) -> None:
        self.seconds.append(perf_counter() - self._began.pop(event.run_id))


class Bench(Client):
    label = "millstream"
    module = "millstream"
    distributions = ("millstream", "anyio", "httptools", "msgspec")

    async def __aenter__(self) -> Self:
        self._handler = _Latencies()
        self._llm = self._model()
        self._streamed = self._model(streaming=True)
        return self

    def _model(self, *, streaming: bool | None = None) -> HuggingFaceInference:
        return HuggingFaceInference(
            endpoint_url=self.url,
            api="chat",
            temperature=0.7,
            max_tokens=64,
            max_concurrency=self.concurrency,
            requests_per_minute=1e9,
            callbacks=[self._handler],
            streaming=streaming,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._llm.aclose()
        await self._streamed.aclose()

    async def generate(self, prompts: Sequence[str]) -> Answers:
        return await self._generate(self._llm, prompts)

    async def unread(self, prompts: Sequence[str]) -> Answers:
        return await self._generate(self._streamed, prompts)

    async def _generate(self, llm: HuggingFaceInference, prompts: Sequence[str]) -> Answers:
        self._handler.seconds = []
        result = await llm.generate(prompts)
        return Answers(result.texts, self._handler.seconds)

    async def read(self, prompt: str) -> str:
        tokens: list[str] = []
        async with self._llm.stream(prompt) as stream:
            async for chunk in stream:
                tokens.append(chunk.text)
        return "".join(tokens)

    async def first(self, prompt: str, arrived: Callable[[], None]) -> str:
        async with self._llm.stream(prompt) as stream:
            tokens = [(await anext(stream)).text]
            arrived()
            async for chunk in stream:
                tokens.append(chunk.text)
        return "".join(tokens)

    async def hold(self, prompt: str, arrived: Callable[[], None], release: asyncio.Event) -> None:
        async with self._llm.stream(prompt) as stream:
            await anext(stream)
            arrived()
            await release.wait()
