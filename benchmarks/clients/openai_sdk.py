"""openai's `AsyncOpenAI` as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self

import httpx2
import openai

from benchmarks.client import Client


class Bench(Client):
    label = "openai"
    module = "openai"
    distributions = ("openai", "httpx2", "pydantic")
    requirements = ("openai==3.54.0", "httpx2==2.16.2")

    async def __aenter__(self) -> Self:
        self._openai = openai.AsyncOpenAI(api_key="none", base_url=f"{self.url}/v1", http_client=self._http_client())
        return self

    def _http_client(self) -> httpx2.AsyncClient | None:
        """None: its own, with 1000 connections."""
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._openai.close()

    def _create(self, prompt: str, **more: Any) -> Any:
        messages: Any = [{"role": "user", "content": prompt}]
        return self._openai.chat.completions.create(
            model="static-1b", messages=messages, max_tokens=64, temperature=0.7, **more
        )

    async def ask(self, prompt: str) -> str:
        answer = await self._create(prompt)
        return answer.choices[0].message.content

    async def tokens(self, prompt: str) -> AsyncGenerator[str]:
        async with await self._create(prompt, stream=True) as stream:
            async for chunk in stream:
                token = chunk.choices[0].delta.content
                if token:
                    yield token
