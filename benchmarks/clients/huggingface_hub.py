"""huggingface_hub's `AsyncInferenceClient` as it comes: with 100 connections, for which what is over that waits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, ClassVar, Self

from huggingface_hub import AsyncInferenceClient

from benchmarks.client import Client


class Bench(Client):
    label = "huggingface_hub"
    module = "huggingface_hub.inference._generated._async_client"
    distributions = ("huggingface_hub", "httpx2")
    requirements = ("huggingface_hub==2.4.0", "httpx2==2.16.2")
    skips: ClassVar[Mapping[str, str]] = {
        "hold": "it has 100 connections",
        "wait": "it has 100 connections",
    }

    async def __aenter__(self) -> Self:
        self._hub = AsyncInferenceClient(self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._hub.close()

    def _create(self, prompt: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": prompt}]
        return self._hub.chat_completion(messages, max_tokens=64, temperature=0.7, **more)

    async def ask(self, prompt: str) -> str:
        answer = await self._create(prompt)
        return answer.choices[0].message.content

    async def tokens(self, prompt: str) -> AsyncGenerator[str]:
        async for chunk in await self._create(prompt, stream=True):
            token = chunk.choices[0].delta.content
            if token:
                yield token
