"""openai's `AsyncOpenAI` with the client on aiohttp that it offers."""

from __future__ import annotations

import httpx2
import openai

from benchmarks.clients import openai_sdk


class Bench(openai_sdk.Bench):
    label = "openai, with its aiohttp client"
    module = "openai"
    distributions = ("openai", "aiohttp", "httpx2", "pydantic")
    requirements = ("openai[aiohttp]==3.54.0", "httpx2==2.16.2")

    def _http_client(self) -> httpx2.AsyncClient:
        return openai.DefaultAioHttpClient()
