"""Each fault, seen from the client."""

from __future__ import annotations

import anyio
import httpx
import pytest

from millstream.testing import Fault

from .support import asking, chat, events

GENERATE = {"json": {"inputs": "Hi"}}
SERVERS = ["tgi", "vllm", "llamacpp"]


async def test_status_and_what_follows():
    async with asking(reply="Yes") as (endpoint, client):
        endpoint.fail(Fault.status(503, times=2), Fault.status(429, body={"a": 1}, headers={"retry-after": "7"}))
        answers = [await client.post("/generate", **GENERATE) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [503, 503, 429, 200]
        assert answers[0].json()["error"]
        assert (answers[2].json(), answers[2].headers["retry-after"]) == ({"a": 1}, "7")
        assert (endpoint.served, len(endpoint.requests), endpoint.connections) == (1, 4, 1)


async def test_information_is_not_struck():
    async with asking(faults=[Fault.status(500)]) as (_, client):
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/generate", **GENERATE)).status_code == 500


async def test_html_and_an_error_in_a_200():
    async with asking(faults=[Fault.html(), Fault.error_in_200()]) as (_, client):
        page = await client.post("/generate_stream", **GENERATE)
        assert (page.status_code, page.headers["content-type"]) == (502, "text/html")
        assert page.text.startswith("<html>")
        error = await client.post("/generate_stream", **GENERATE)
        assert (error.status_code, error.headers["content-type"]) == (200, "application/json")
        assert error.json()["error"]["code"] == 502


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_disconnect(path, reset):
    async with asking() as (endpoint, client):
        for after_bytes in (None, 0, 10):
            endpoint.fail(Fault.disconnect(after_bytes, reset=reset))
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await client.post(path, **GENERATE)
        endpoint.fail(Fault.disconnect(250, reset=reset))
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            async with client.stream("POST", path, json={"inputs": "Hi", "parameters": {"details": True}}) as answer:
                await answer.aread()
        with anyio.fail_after(30):
            await endpoint.wait_for(lambda: endpoint.in_flight == 0)
        assert (endpoint.served, endpoint.cancelled, endpoint.connections) == (0, 0, 4)


@pytest.mark.parametrize("after", [0, 2])
async def test_a_truncated_stream_ends_in_good_order(after):
    async with asking() as (endpoint, client):
        for path, body in (("/generate_stream", {"inputs": "Hi"}), ("/v1/chat/completions", chat(stream=True))):
            endpoint.fail(Fault.truncate(after))
            stream = (await client.post(path, json=body)).text.split("\n\n")
            assert len(stream) == after + 1
            assert "[DONE]" not in stream


async def test_a_truncated_whole_answer_is_half_a_json():
    async with asking() as (endpoint, client):
        endpoint.fail(Fault.truncate())
        answer = await client.post("/generate", **GENERATE)
        assert answer.status_code == 200
        with pytest.raises(ValueError):
            answer.json()


@pytest.mark.parametrize("server", SERVERS)
async def test_error_event(server):
    async with asking(server=server, reply="one two three") as (endpoint, client):
        endpoint.fail(Fault.error_event(2, message="broken"))
        stream = events(await client.post("/v1/chat/completions", json=chat(stream=True)))
        if server == "tgi":
            assert stream[-2:] == [{"error": {"message": "broken", "http_status_code": 422}}, "[DONE]"]
        elif server == "vllm":
            assert stream[-2]["error"]["code"] == 500
            assert stream[-1] == "[DONE]"
        else:
            assert stream[-1]["error"]["message"] == "broken"
        texts = [event["choices"][0]["delta"].get("content") for event in stream if "choices" in event]
        assert [text for text in texts if text] == ["one", " two"]
        endpoint.fail(Fault.error_event())
        answer = await client.post("/v1/chat/completions", json=chat())
        assert answer.status_code == (424 if server == "tgi" else 500)


async def test_error_event_of_the_text_generation_task():
    async with asking() as (endpoint, client):
        endpoint.fail(Fault.error_event(0))
        (event,) = events(await client.post("/generate_stream", **GENERATE))
        assert event["error_type"] == "generation"
        assert event["error"].startswith("Request failed during generation:")


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_garbage(path):
    async with asking(faults=[Fault.garbage(), Fault.garbage(3)]) as (_, client):
        for expected in (1, 4):
            answer = await client.post(path, **GENERATE)
            assert answer.status_code == 200
            if path == "/generate_stream":
                assert answer.text.count("data:") == expected
            with pytest.raises(ValueError):
                answer.json()


@pytest.mark.parametrize("after", [None, 0, 2])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_stall_lasts_until_the_client_leaves(path, after):
    async with asking() as (endpoint, client):
        endpoint.fail(Fault.stall(after))

        async def ask():
            async with client.stream("POST", path, **GENERATE) as answer:
                seen.append(answer.status_code)
                async for piece in answer.aiter_bytes():
                    seen.append(piece)

        seen: list = []
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await endpoint.wait_for(lambda: endpoint.in_flight == 1)
                if after is not None:
                    while not seen:
                        await anyio.sleep(0.001)
                assert endpoint.generating == 1
                tasks.cancel_scope.cancel()
            await endpoint.wait_for(lambda: endpoint.cancelled == 1)
        assert (seen == []) == (after is None)
        assert (endpoint.in_flight, endpoint.generating, endpoint.served) == (0, 0, 0)


async def test_slow_is_late_but_whole():
    async with asking(reply="Yes") as (endpoint, client):
        endpoint.fail(Fault.slow(0.01))
        assert (await client.post("/generate", **GENERATE)).json() == {"generated_text": "Yes"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_faults_by_a_function_and_by_chance():
    async with asking(faults=lambda number: Fault.status(500) if number % 2 else None) as (_, client):
        statuses = [(await client.post("/generate", **GENERATE)).status_code for _ in range(4)]
        assert statuses == [500, 200, 500, 200]

    async def draw(seed):
        async with asking(fault_rate=0.5, faults=[Fault.status(500), Fault.html()], seed=seed) as (_, client):
            return [(await client.post("/generate", **GENERATE)).status_code for _ in range(20)]

    once = await draw(1)
    assert set(once) == {200, 500, 502}
    assert await draw(1) == once != await draw(2)
