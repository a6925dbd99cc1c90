"""What one writes by hand with aiohttp: post the JSON, decode the JSON; for a stream, split the lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aiohttp

from benchmarks.client import Client, payload


class Bench(Client):
    label = "aiohttp in a bare loop"
    module = "aiohttp"
    distributions = ("aiohttp",)

    async def __aenter__(self) -> Self:
        self._url = f"{self.url}/v1/chat/completions"
        connector = aiohttp.TCPConnector(limit=self.concurrency)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, prompt: str) -> str:
        async with self._session.post(self._url, json=payload(prompt)) as response:
            response.raise_for_status()
            answer = await response.json()
        return answer["choices"][0]["message"]["content"]

    async def read(self, prompt: str) -> str:
        tokens: list[str] = []
        async with self._session.post(self._url, json=payload(prompt, stream=True)) as response:
            response.raise_for_status()
            async for line in response.content:
                token = _token(line)
                if token:
                    tokens.append(token)
        return "".join(tokens)

    async def first(self, prompt: str, arrived: Callable[[], None]) -> str:
        tokens: list[str] = []
        async with self._session.post(self._url, json=payload(prompt, stream=True)) as response:
            response.raise_for_status()
            async for line in response.content:
                token = _token(line)
                if token:
                    if not tokens:
                        arrived()
                    tokens.append(token)
        return "".join(tokens)

    async def hold(self, prompt: str, arrived: Callable[[], None], release: asyncio.Event) -> None:
        async with self._session.post(self._url, json=payload(prompt, stream=True)) as response:
            async for line in response.content:
                if _token(line):
                    break
            arrived()
            await release.wait()


def _token(line: bytes) -> str | None:
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return None
    return json.loads(line[6:])["choices"][0]["delta"].get("content")
