"""openai and huggingface_hub on our pool, by `millstream.httpx2.PooledTransport`, against the fake endpoint."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import httpx2
import huggingface_hub
import openai
import pytest
from huggingface_hub.utils._http import default_async_client_factory

from millstream._transport.pool import PoolTransport
from millstream.httpx2 import PooledTransport
from millstream.testing import FakeEndpoint, Fault

from ..conftest import EVENT_LOOPS
from .quiet import assert_quiet, settle

pytestmark = pytest.mark.parametrize(  # both have parts that are made for asyncio only
    "anyio_backend", [EVENT_LOOPS["asyncio"], EVENT_LOOPS["uvloop"]], ids=["asyncio", "uvloop"]
)
MESSAGES = [{"role": "user", "content": "Hi there"}]
TEXT = "Hello big world"


@pytest.fixture
async def pool():
    """Nothing may be under way in it at the end."""
    transport = PoolTransport()
    yield transport
    assert_quiet(transport)
    await transport.aclose()


@asynccontextmanager
async def openai_at(endpoint, pool, **options):
    http_client = openai.DefaultAsyncHttpxClient(transport=PooledTransport(pool=pool))
    async with openai.AsyncOpenAI(
        base_url=f"{endpoint.url}/v1", api_key="k", http_client=http_client, **options
    ) as client:
        yield client


@pytest.fixture
def hub_on(pool):
    huggingface_hub.set_async_client_factory(
        lambda: httpx2.AsyncClient(transport=PooledTransport(pool=pool), follow_redirects=True, timeout=None)
    )
    yield
    huggingface_hub.set_async_client_factory(default_async_client_factory)


class TestOpenAI:
    async def test_one_shot(self, pool):
        async with FakeEndpoint(reply=TEXT, server="vllm") as endpoint, openai_at(endpoint, pool) as client:
            for _ in range(3):
                answer = await client.chat.completions.create(model="m", messages=MESSAGES)
                assert answer.choices[0].message.content == TEXT
            assert endpoint.connections == 1
        assert pool.statistics().requests_total == 3

    async def test_streams_at_a_time(self, pool):
        async with FakeEndpoint(reply=TEXT, server="vllm") as endpoint, openai_at(endpoint, pool) as client:
            texts = []

            async def read():
                stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
                texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(read)
            assert texts == [TEXT] * 20
            assert endpoint.served == 20
            assert_quiet(pool)

    async def test_a_stream_that_is_left_is_cut_off(self, pool):
        async with (
            FakeEndpoint(reply=TEXT, server="vllm", faults=[Fault.stall(1)]) as endpoint,
            openai_at(endpoint, pool) as client,
        ):
            async with await client.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
                async for chunk in stream:
                    if chunk.choices[0].delta.content:
                        break
            assert pool.statistics().open == 0
            await settle(lambda: endpoint.cancelled == 1)

    async def test_cancelled_the_connection_is_closed(self, pool):
        async with (
            FakeEndpoint(reply=TEXT, server="vllm", faults=[Fault.stall(0)]) as endpoint,
            openai_at(endpoint, pool) as client,
        ):
            async with anyio.create_task_group() as tasks:

                async def ask():
                    await client.chat.completions.create(model="m", messages=MESSAGES)

                tasks.start_soon(ask)
                await settle(lambda: endpoint.in_flight == 1)
                tasks.cancel_scope.cancel()
            assert pool.statistics().open == 0
            await settle(lambda: endpoint.cancelled == 1)
            assert (await client.chat.completions.create(model="m", messages=MESSAGES)).choices[0].message.content

    async def test_its_own_errors_and_retries(self, pool):
        async with (
            FakeEndpoint(reply=TEXT, server="vllm") as endpoint,
            openai_at(endpoint, pool, max_retries=0) as client,
        ):

            async def ask(**options):
                return await client.with_options(**options).chat.completions.create(model="m", messages=MESSAGES)

            endpoint.fail(Fault.status(500))
            with pytest.raises(openai.InternalServerError):
                await ask()
            endpoint.fail(Fault.disconnect(20))
            with pytest.raises(openai.APIConnectionError) as broken:
                await ask()
            assert isinstance(broken.value.__cause__, httpx2.ReadError)
            endpoint.fail(Fault.stall(0))
            with pytest.raises(openai.APITimeoutError) as late:
                await ask(timeout=httpx2.Timeout(30, read=0.05))
            assert isinstance(late.value.__cause__, httpx2.ReadTimeout)
            endpoint.fail(Fault.disconnect(20))
            assert (await ask(max_retries=1)).choices[0].message.content == TEXT


@pytest.mark.usefixtures("hub_on")
class TestHuggingFaceHub:
    async def test_one_shot(self, pool):
        async with (
            FakeEndpoint(reply=TEXT) as endpoint,
            huggingface_hub.AsyncInferenceClient(endpoint.url) as client,
        ):
            for _ in range(3):
                answer = await client.chat_completion(MESSAGES)
                assert answer.choices[0].message.content == TEXT
            assert await client.text_generation("Hi", return_full_text=False) == TEXT
            assert endpoint.connections == 1
        assert pool.statistics().requests_total == 4

    async def test_streams_at_a_time(self, pool):
        async with FakeEndpoint(reply=TEXT) as endpoint:
            async with huggingface_hub.AsyncInferenceClient(endpoint.url) as client:
                texts = []

                async def read():
                    stream = await client.chat_completion(MESSAGES, stream=True)
                    texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

                async with anyio.create_task_group() as tasks:
                    for _ in range(20):
                        tasks.start_soon(read)
                assert texts == [TEXT] * 20

    async def test_a_stream_that_is_left_is_cut_off_with_its_client(self, pool):
        async with FakeEndpoint(reply=TEXT, faults=[Fault.stall(1)]) as endpoint:
            async with huggingface_hub.AsyncInferenceClient(endpoint.url) as client:
                stream = await client.chat_completion(MESSAGES, stream=True)
                assert (await anext(stream)).choices[0].delta.content == "Hello"
                await stream.aclose()
            assert pool.statistics().open == 0
            await settle(lambda: endpoint.cancelled == 1)

    async def test_cancelled_the_connection_is_closed(self, pool):
        async with (
            FakeEndpoint(reply=TEXT, faults=[Fault.stall(0)]) as endpoint,
            huggingface_hub.AsyncInferenceClient(endpoint.url) as client,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.chat_completion, MESSAGES)
                await settle(lambda: endpoint.in_flight == 1)
                tasks.cancel_scope.cancel()
            assert pool.statistics().open == 0
            await settle(lambda: endpoint.cancelled == 1)

    async def test_its_own_errors(self, pool):
        async with (
            FakeEndpoint(reply=TEXT) as endpoint,
            huggingface_hub.AsyncInferenceClient(endpoint.url) as client,
            huggingface_hub.AsyncInferenceClient(endpoint.url, timeout=0.05) as hasty,
        ):
            endpoint.fail(Fault.status(500), Fault.disconnect(20), Fault.stall(0))
            with pytest.raises(huggingface_hub.errors.HfHubHTTPError) as refused:
                await client.chat_completion(MESSAGES)
            assert refused.value.response.status_code == 500
            with pytest.raises(httpx2.ReadError):
                await client.chat_completion(MESSAGES)
            with pytest.raises(huggingface_hub.errors.InferenceTimeoutError):
                await hasty.chat_completion(MESSAGES)
