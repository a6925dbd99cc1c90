"""Start, end, connections, cancellation."""

from __future__ import annotations

import anyio
import httpx
import pytest

from millstream.testing import FakeEndpoint, Latency

from .support import asking, chat

SLOW = Latency(first_token=30.0)


async def test_an_error_of_the_body_comes_out_as_it_is():
    with pytest.raises(KeyError, match="mine"):
        async with FakeEndpoint():
            raise KeyError("mine")


async def test_it_ends_with_its_block():
    async with FakeEndpoint() as endpoint:
        url = endpoint.url
    async with httpx.AsyncClient(verify=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_it_ends_although_a_client_waits():
    async with httpx.AsyncClient(verify=False) as client, anyio.create_task_group() as tasks:

        async def ask(url: str):
            with pytest.raises(httpx.HTTPError):
                await client.post(f"{url}/generate", json={"inputs": "Hi"})

        async with FakeEndpoint(latency=SLOW) as endpoint:
            tasks.start_soon(ask, endpoint.url)
            await endpoint.wait_for(lambda: endpoint.generating == 1)


async def test_it_ends_under_cancellation():
    with anyio.move_on_after(0.01) as scope:
        await FakeEndpoint().serve_forever()
    assert scope.cancelled_caught


async def test_misuse_is_told():
    endpoint = FakeEndpoint()
    with pytest.raises(RuntimeError, match="async with"):
        _ = endpoint.url
    async with endpoint:
        pass
    with pytest.raises(RuntimeError, match="once"):
        await endpoint.__aenter__()


@pytest.mark.parametrize("server", ["tgi", "vllm", "llamacpp"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_noticed(server, stream):
    async with asking(server=server, latency=SLOW, slots=1) as (endpoint, client):
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(lambda: client.post("/v1/chat/completions", json=chat(stream=stream)))
                await endpoint.wait_for(lambda: endpoint.in_flight == 2)
                assert (endpoint.generating, endpoint.queued) == (1, 1)
                tasks.cancel_scope.cancel()
            await endpoint.wait_for(lambda: endpoint.cancelled == 2)
        assert (endpoint.in_flight, endpoint.generating, endpoint.queued, endpoint.served) == (0, 0, 0, 0)


async def test_a_slot_passes_on():
    async with asking(slots=1, latency=Latency(first_token=0.001), reply="Yes") as (endpoint, client):
        answers: list = []

        async def ask():
            answers.append((await client.post("/generate", json={"inputs": "Hi"})).json()["generated_text"])

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        assert answers == ["Yes"] * 5
        assert (endpoint.served, endpoint.generating, endpoint.queued) == (5, 0, 0)


async def test_more_slots_while_it_runs():
    async with asking(slots=0, reply="Yes") as (endpoint, client), anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.post("/generate", json={"inputs": "Hi"}))
        with anyio.fail_after(30):
            await endpoint.wait_for(lambda: endpoint.queued == 1)
            endpoint.resize(1)
            await endpoint.wait_for(lambda: endpoint.served == 1)


async def test_tgi_sends_its_head_at_once_and_llamacpp_when_it_has_a_slot():
    for server, at_once in (("tgi", True), ("vllm", True), ("llamacpp", False)):
        async with asking(server=server, slots=0) as (endpoint, client), anyio.create_task_group() as tasks:
            answered = anyio.Event()

            async def ask(client=client, answered=answered):
                async with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
                    answered.set()
                    await answer.aread()

            tasks.start_soon(ask)
            with anyio.fail_after(30):
                await endpoint.wait_for(lambda endpoint=endpoint: endpoint.queued == 1)
                if at_once:
                    await answered.wait()
                else:
                    assert not answered.is_set()
                endpoint.resize(None)
                await answered.wait()


@pytest.mark.parametrize("coalesce", [True, False])
async def test_events_in_one_write_or_one_by_one(coalesce):
    async with asking(coalesce=coalesce, reply="one two three") as (_, client):
        async with client.stream("POST", "/generate_stream", json={"inputs": "Hi"}) as answer:
            pieces = [piece async for piece in answer.aiter_raw()]
        assert b"".join(pieces).count(b"data:") == 4


async def test_connections():
    async with asking() as (endpoint, client):
        for _ in range(3):
            await client.get("/health")
        assert (endpoint.connections, endpoint.open_connections) == (1, 1)
        assert {request.connection for request in endpoint.requests} == {1}
        await client.get("/health", headers={"connection": "close"})
        with anyio.fail_after(30):
            await endpoint.wait_for(lambda: endpoint.open_connections == 0)
    async with asking(keep_alive=False) as (endpoint, client):
        answers = [await client.get("/health") for _ in range(2)]
        assert answers[0].headers["connection"] == "close"
        assert endpoint.connections == 2
    async with FakeEndpoint(idle_timeout=0.005) as endpoint:
        port = int(endpoint.url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            with anyio.fail_after(30), pytest.raises(anyio.EndOfStream):
                await stream.receive()


async def test_bytes_that_are_no_http_and_a_request_in_pieces():
    async with FakeEndpoint(reply="Yes") as endpoint:
        port = int(endpoint.url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 400")
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            head = b"POST /generate HTTP/1.1\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
            await stream.send(head + b"Content-Length: 15\r\n\r\n")
            assert await stream.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            for byte in b'{"inputs": "a"}':
                await stream.send(bytes([byte]))
            assert (await stream.receive()).endswith(b'{"generated_text":"Yes"}')


async def test_many_connections():
    async with FakeEndpoint(reply="Yes", latency=Latency(first_token=0.01)) as endpoint:
        limits = httpx.Limits(max_connections=100)
        async with (
            httpx.AsyncClient(base_url=endpoint.url, limits=limits, verify=False) as client,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(60):
                tasks.start_soon(lambda: client.post("/generate", json={"inputs": "Hi"}))
        assert (endpoint.served, endpoint.cancelled) == (60, 0)


async def test_requests_are_kept_as_wanted():
    async with asking() as (endpoint, client):
        for record in (True, False, True):
            endpoint.record = record
            await client.get("/health")
        assert [request.number for request in endpoint.requests] == [1, 3]


def test_from_sync_code():
    with FakeEndpoint(reply="Yes", slots=0) as endpoint:
        endpoint.resize(1)
        with httpx.Client(base_url=endpoint.url, verify=False) as client:
            assert client.post("/generate", json={"inputs": "Hi"}).json() == {"generated_text": "Yes"}
        assert endpoint.requests[0].path == "/generate"
    with pytest.raises(KeyError), FakeEndpoint():
        raise KeyError
