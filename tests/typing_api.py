"""The public annotations in use: read by the type checkers, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import httpx2
import msgspec

import millstream.httpx2
from millstream import (
    LLM,
    AdaptiveConcurrency,
    AsyncCaller,
    BaseCallbackHandler,
    BaseLanguageModel,
    CallbackManagerForLLMRun,
    CallOptions,
    ChatMessage,
    Deadlines,
    Endpoint,
    GenerationChunk,
    HuggingFaceInference,
    InMemoryCache,
    LLMEndEvent,
    LLMResult,
    Outcome,
    PooledTransport,
    TokenCount,
    WindowEvent,
    WindowStatistics,
)
from millstream.limiters import Limiter, LocalLimiter, RedisLimiter, limiter_key
from millstream.testing import FakeEndpoint, Fault


class City(msgspec.Struct):
    name: str


class Parrot(LLM):
    async def _call(self, prompt: str, options: CallOptions, run: CallbackManagerForLLMRun | None) -> str:
        return prompt

    async def _stream(
        self, prompt: str, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> AsyncIterator[GenerationChunk]:
        yield GenerationChunk(prompt)


class Handler(BaseCallbackHandler):
    async def on_llm_end(self, event: LLMEndEvent, /) -> None:
        print(event.result.text)

    def on_window(self, event: WindowEvent, /) -> None:
        print(event.lane, event.limit, event.reason)


async def callers() -> None:
    adaptive = AsyncCaller(max_concurrency=AdaptiveConcurrency(start=4, ceiling=200))
    windows: dict[str, WindowStatistics] = adaptive.statistics().windows
    print(adaptive.max_concurrency, windows[""].limit)
    async with RedisLimiter(
        "redis://localhost", requests_per_minute=600, key=limiter_key("https://h/v1", "k")
    ) as shared:
        limiters: list[Limiter] = [shared, LocalLimiter(tokens_per_minute=1000)]
        for limiter in limiters:
            AsyncCaller(limiter=limiter)
    HuggingFaceInference("org/m", endpoints=["https://a", Endpoint("https://b", api_key="k")], max_concurrency="auto")
    HuggingFaceInference("org/m", provider=["groq", "together"], streaming=False)


def transports() -> None:
    httpx2.AsyncClient(
        transport=millstream.httpx2.PooledTransport(
            verify=httpx2.create_ssl_context(), limits=httpx2.Limits(max_connections=8)
        )
    )


async def models() -> None:
    llm = HuggingFaceInference(
        "org/m",
        endpoint_url="local",
        temperature=0.5,
        stop_sequences=["\n"],
        response_format=City,
        cache=InMemoryCache(),
        callbacks=[Handler()],
        deadlines=Deadlines(total=None),
        caller=AsyncCaller(max_concurrency=8),
        http_client=httpx.AsyncClient(transport=PooledTransport()),
    )
    text: str = await llm.call("x", ["\n"], temperature=0, max_tokens=5)
    result: LLMResult = await llm.generate(["x", [ChatMessage.user("y")], [{"role": "user", "content": "z"}]])
    message: ChatMessage = await llm.predict_messages([ChatMessage.user("x")])
    count: TokenCount = await llm.get_num_tokens(text)
    exact: bool = count.exact
    async with llm.stream("x") as stream:
        async for chunk in stream:
            piece: str = chunk.text
            print(piece, exact, message.text)
        whole: LLMResult = await stream.result()
    async with llm.map(str(n) for n in range(3)) as outcomes:
        async for outcome in outcomes:
            same: Outcome = outcome
            print(same.unwrap().texts, whole.usage, result.text)
    again: BaseLanguageModel = BaseLanguageModel.deserialize(llm.serialize(), allowed_hosts=["llm.example.com"])
    await again.predict("x")
    await Parrot(max_concurrency=2).generate(["x"])


async def fakes() -> None:
    async with FakeEndpoint(reply="x", faults=[Fault.status(503)]) as endpoint:
        print(endpoint.url)
    with FakeEndpoint() as endpoint:
        print(endpoint.requests[0].body)
