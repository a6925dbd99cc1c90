"""LangChain's chat model for Hugging Face, which has huggingface_hub below, and so 100 connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import ClassVar, Self

from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from benchmarks.client import Client


class Bench(Client):
    label = "langchain-huggingface"
    module = "langchain_huggingface"
    distributions = ("langchain-huggingface", "langchain-core", "huggingface_hub", "httpx", "pydantic")
    requirements = ("langchain-huggingface==1.2.3", "langchain-core==1.8.3", "huggingface_hub==1.33.0", "httpx==0.28.1")
    skips: ClassVar[Mapping[str, str]] = {
        "hold": "it has 100 connections",
        "wait": "it has 100 connections",
    }

    async def __aenter__(self) -> Self:
        self._endpoint = HuggingFaceEndpoint(endpoint_url=self.url)
        self._chat = ChatHuggingFace(llm=self._endpoint, max_tokens=64, temperature=0.7)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._endpoint.async_client.close()

    async def ask(self, prompt: str) -> str:
        return (await self._chat.ainvoke(prompt)).text

    async def tokens(self, prompt: str) -> AsyncGenerator[str]:
        async for chunk in self._chat.astream(prompt):
            if chunk.text:
                yield chunk.text
