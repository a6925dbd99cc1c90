"""A replica that is scaled to zero, a model that loads, an outage: what clients see until all is well."""

from __future__ import annotations

import json
import math

import anyio
import httpx
import pytest

from millstream.testing import FakeEndpoint, Fault
from millstream.testing._behaviour import Behaviour
from millstream.testing._http import RawRequest
from millstream.testing._script import Send
from millstream.testing._service import Service
from tests.conftest import manual_backends

from .support import asking, chat

GENERATE = {"json": {"inputs": "Hi"}}
manual = pytest.mark.parametrize("anyio_backend", manual_backends())


def ask(service: Service, headers: dict[str, str] | None = None, path: str = "/generate"):
    """Status and body of the answer that a request would get now."""
    raw = request(headers, path)
    steps, ticket = service.plan(raw, {"inputs": "Hi"})
    if ticket is not None:
        service.engine.leave(ticket)
    head, _, body = b"".join(step.data for step in steps if isinstance(step, Send)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None


def request(headers: dict[str, str] | None = None, path: str = "/generate") -> RawRequest:
    return RawRequest("POST", path, {"content-type": "application/json", **(headers or {})}, b"{}", keep_alive=True)


def held(service: Service, told: str, **headers: str) -> float:
    return service.hold(request({"x-scale-up-timeout": told, **headers}))


@manual
async def test_the_first_request_starts_the_replica():
    service = Service(Behaviour(scale_up=90.0, reply="Yes"))
    await anyio.sleep(1000)
    refused = (503, {"error": "503 Service Unavailable"})
    assert ask(service) == refused
    await anyio.sleep(89.9)
    assert ask(service) == refused
    await anyio.sleep(0.1)
    assert ask(service) == (200, {"generated_text": "Yes"})
    await anyio.sleep(80_000)
    assert ask(service)[0] == 200


@manual
async def test_the_proxy_holds_a_request_that_says_so():
    service = Service(Behaviour(scale_up=90.0, reply="Yes"))
    assert held(service, "600") == 90  # the replica was started by that
    await anyio.sleep(30)
    assert held(service, "600") == 60
    assert held(service, "10.5") == 10.5
    assert held(service, "0") == 0
    for nonsense in ("", "soon", "nan", "inf", "-5"):
        assert held(service, nonsense) == 0
    assert service.hold(request()) == 0
    assert service.hold(request({"x-scale-up-timeout": "600"}, "/nowhere")) == 0
    await anyio.sleep(10.5)
    assert ask(service)[0] == 503
    await anyio.sleep(49.5)
    assert held(service, "600") == 0
    assert ask(service)[0] == 200


@manual
async def test_who_may_not_ask_starts_nothing():
    service = Service(Behaviour(scale_up=90.0, api_key="secret"))
    assert held(service, "600") == 0
    assert ask(service)[0] == 401
    await anyio.sleep(1000)
    assert held(service, "600", authorization="Bearer secret") == 90


@manual
async def test_a_model_loads():
    service = Service(Behaviour(loading=20.0, models=["gpt2"], reply="Yes"))
    told = {"error": "Model gpt2 is currently loading", "estimated_time": 20.0}
    assert ask(service) == (503, told)
    assert service.hold(request({"x-scale-up-timeout": "600"})) == 0
    await anyio.sleep(15.5)
    assert ask(service, path="/models/gpt2") == (503, {**told, "estimated_time": 4.5})
    await anyio.sleep(4.5)
    assert ask(service) == (200, {"generated_text": "Yes"})


@manual
async def test_first_the_replica_then_the_model():
    service = Service(Behaviour(server="llamacpp", apis=["text-generation"], scale_up=5, loading=3))
    assert ask(service) == (503, {"error": "503 Service Unavailable"})
    await anyio.sleep(5)
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    assert ask(service) == (503, loading)
    await anyio.sleep(2.9)
    assert ask(service) == (503, loading)
    await anyio.sleep(0.1)
    assert ask(service)[0] == 200


@manual
async def test_refusals_until_then_are_not_counted_against_the_limit():
    service = Service(Behaviour(scale_up=5, requests_per_minute=1, faults=[Fault.status(500)]))
    assert [ask(service)[0] for _ in range(3)] == [503] * 3
    await anyio.sleep(5)
    assert [ask(service)[0] for _ in range(2)] == [500, 429]


@manual
async def test_an_outage_lasts_its_time():
    service = Service(Behaviour(requests_per_minute=1, faults=[Fault.status(500)]))
    service.begin_outage(60, Fault.status(429, body={"error": "no"}))
    assert ask(service) == (429, {"error": "no"})
    await anyio.sleep(59.9)
    assert ask(service)[0] == 429
    await anyio.sleep(0.1)
    assert ask(service)[0] == 500  # the fault and the limit have waited
    assert ask(service)[0] == 429


@manual
async def test_an_outage_goes_before_a_start():
    service = Service(Behaviour(scale_up=10.0))
    service.begin_outage(60, Fault.status(502))
    assert ask(service)[0] == 502
    assert held(service, "600") == 0
    await anyio.sleep(60)
    assert held(service, "600") == 10


async def test_an_outage_of_all_kinds_ends_when_told():
    async with asking(reply="Yes", requests_per_minute=2) as (endpoint, client):
        endpoint.outage(math.inf)
        assert [(await client.post("/generate", **GENERATE)).status_code for _ in range(3)] == [503] * 3
        assert (await client.get("/health")).status_code == 200
        endpoint.outage(math.inf, Fault.truncate())
        for _ in range(3):
            answer = await client.post("/v1/chat/completions", json=chat(stream=True))
            assert (answer.status_code, "[DONE]" in answer.text) == (200, False)
        endpoint.outage(0)
        statuses = [(await client.post("/generate", **GENERATE)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


def test_an_outage_in_a_thread():
    with FakeEndpoint() as endpoint, httpx.Client(base_url=endpoint.url, timeout=10, verify=False) as client:
        endpoint.outage(math.inf)
        assert client.post("/generate", **GENERATE).status_code == 503
        endpoint.outage(0)
        assert client.post("/generate", **GENERATE).status_code == 200


async def test_held_until_the_replica_is_up():
    async with asking(reply="Yes", scale_up=0.02) as (endpoint, client):
        answer = await client.post("/generate", headers={"X-Scale-Up-Timeout": "600"}, **GENERATE)
        assert answer.json() == {"generated_text": "Yes"}
        assert (endpoint.served, endpoint.in_flight, endpoint.connections) == (1, 0, 1)


async def test_held_in_vain():
    async with asking(reply="Yes", scale_up=1000) as (endpoint, client):
        for headers in ({}, {"X-Scale-Up-Timeout": "0.01"}):
            answer = await client.post("/generate", headers=headers, **GENERATE)
            assert (answer.status_code, answer.json()) == (503, {"error": "503 Service Unavailable"})
        assert (endpoint.served, endpoint.in_flight, endpoint.connections) == (0, 0, 1)


async def test_who_leaves_while_held_is_counted_as_cancelled():
    async with asking(scale_up=1000) as (endpoint, client):

        async def wait() -> None:
            await client.post("/generate", headers={"X-Scale-Up-Timeout": "600"}, **GENERATE)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await endpoint.wait_for(lambda: endpoint.in_flight == 1)
                assert (endpoint.generating, endpoint.queued) == (0, 0)
                tasks.cancel_scope.cancel()
            await endpoint.wait_for(lambda: endpoint.cancelled == 1)
        assert endpoint.in_flight == 0


async def test_tokens_of_prompt_and_output_are_counted():
    options = {"tokens_per_minute": 12, "rate_window": 10_000, "rate_limit_headers": "x-ratelimit"}
    async with asking(reply="one two three", **options) as (_, client):
        body = {"inputs": "What is the time?", "parameters": {"max_new_tokens": 3}}  # 4 tokens, and 3
        answers = [await client.post("/generate", json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        left = [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers]
        assert left == ["5", "0", "0"]
        assert answers[2].json()["error"] == "Rate limit reached. Please slow down."
