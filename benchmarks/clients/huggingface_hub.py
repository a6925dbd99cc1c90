"""huggingface_hub's `AsyncInferenceClient` as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self

import httpx2
from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from huggingface_hub.utils._http import async_hf_request_event_hook, async_hf_response_event_hook

from benchmarks.client import Client

_CONNECTIONS = 100  # what its own HTTP client has

# Its own HTTP client is made with these.
OPTIONS: dict[str, Any] = {
    "event_hooks": {"request": [async_hf_request_event_hook], "response": [async_hf_response_event_hook]},
    "follow_redirects": True,
    "timeout": None,
}


class Bench(Client):
    label = "huggingface_hub"
    module = "huggingface_hub.inference._generated._async_client"
    distributions = ("huggingface_hub", "httpx2")
    requirements = ("huggingface_hub==2.4.0", "httpx2==2.16.2")

    async def __aenter__(self) -> Self:
        self._choose_http_client()
        self._hub = AsyncInferenceClient(self.url)
        return self

    def _choose_http_client(self) -> None:
        if self.concurrency > _CONNECTIONS:
            limits = httpx2.Limits(max_connections=self.concurrency)
            set_async_client_factory(lambda: httpx2.AsyncClient(limits=limits, **OPTIONS))

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
