"""litellm's `acompletion`, told that the endpoint speaks like OpenAI."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, ClassVar

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or its import asks the network for a list of prices

import litellm

from benchmarks.client import Client


class Bench(Client):
    label = "litellm"
    module = "litellm"
    distributions = ("litellm", "openai", "httpx", "aiohttp", "pydantic")
    requirements = ("litellm==1.110.2",)
    skips: ClassVar[Mapping[str, str]] = {
        "hold": "it has 500 connections to a host",
        "wait": "it has 500 connections to a host",
    }

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await litellm.close_litellm_async_clients()

    def _create(self, prompt: str, **more: Any) -> Any:
        return litellm.acompletion(
            model="openai/static-1b",
            messages=[{"role": "user", "content": prompt}],
            api_base=f"{self.url}/v1",
            api_key="none",
            max_tokens=64,
            temperature=0.7,
            **more,
        )

    async def ask(self, prompt: str) -> str:
        return (await self._create(prompt)).choices[0].message.content

    async def tokens(self, prompt: str) -> AsyncGenerator[str]:
        async for chunk in await self._create(prompt, stream=True):
            token = chunk.choices[0].delta.content
            if token:
                yield token
