"""openai's `AsyncOpenAI` on our pool."""

from __future__ import annotations

import httpx2
import openai

from benchmarks.clients import openai_sdk
from millstream.httpx2 import PooledTransport


class Bench(openai_sdk.Bench):
    label = "openai, on millstream's pool"
    module = "openai"
    distributions = ("openai", "httpx2", "pydantic", "millstream")
    requirements = ("openai==3.54.0", "httpx2==2.16.2", ".[httpx2]")

    def _http_client(self) -> httpx2.AsyncClient:
        return openai.DefaultAsyncHttpxClient(transport=PooledTransport())
