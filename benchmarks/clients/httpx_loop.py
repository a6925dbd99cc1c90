"""The same by hand with httpx. Not among the default clients: it needs milliseconds a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx

from benchmarks.client import Client, payload


class Bench(Client):
    label = "httpx in a bare loop"
    module = "httpx"
    distributions = ("httpx",)

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        self._client = httpx.AsyncClient(base_url=self.url, limits=limits, timeout=None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, prompt: str) -> str:
        response = await self._client.post("/v1/chat/completions", json=payload(prompt))
        response.raise_for_status()
        return response.json()["choices"][0]["message"]["content"]

    async def read(self, prompt: str) -> str:
        tokens: list[str] = []
        body = payload(prompt, stream=True)
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                token = _token(line)
                if token:
                    tokens.append(token)
        return "".join(tokens)

    async def hold(self, prompt: str, arrived: Callable[[], None], release: asyncio.Event) -> None:
        body = payload(prompt, stream=True)
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if _token(line):
                    break
            arrived()
            await release.wait()


def _token(line: str) -> str | None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    return json.loads(line[6:])["choices"][0]["delta"].get("content")
