"""What one writes by hand with httpx, and with httpx2 in the same words."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Self

from benchmarks.client import Client, payload


class LikeHttpx(Client):
    library: ClassVar[ModuleType]

    async def __aenter__(self) -> Self:
        self._client = self._new_client()
        return self

    def _new_client(self) -> Any:
        limits = self.library.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        return self.library.AsyncClient(base_url=self.url, limits=limits, timeout=None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, prompt: str) -> str:
        response = await self._client.post("/v1/chat/completions", json=payload(prompt))
        response.raise_for_status()
        return response.json()["choices"][0]["message"]["content"]

    async def tokens(self, prompt: str) -> AsyncGenerator[str]:
        body = payload(prompt, stream=True)
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                token = _token(line)
                if token:
                    yield token


def _token(line: str) -> str | None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    return json.loads(line[6:])["choices"][0]["delta"].get("content")
