"""What is at which path, and who may see it."""

from __future__ import annotations

import pytest

from .support import asking, chat, events

SERVERS = ["tgi", "vllm", "llamacpp"]
each_server = pytest.mark.parametrize("server", SERVERS)
pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@each_server
async def test_unknown_paths_and_wrong_methods(server):
    async with asking(server=server) as (endpoint, client):
        missing, wrong = await client.get("/nothing"), await client.get("/v1/chat/completions")
        assert missing.status_code == 404
        assert wrong.status_code == (404 if server == "llamacpp" else 405)
        if server == "tgi":
            assert missing.content == wrong.content == b""
        else:
            assert missing.json()["error"]["code"] == 404
            assert (await client.post("/generate", json={"inputs": "a"})).status_code == 404
        assert [request.path for request in endpoint.requests][:2] == ["/nothing", "/v1/chat/completions"]


@pytest.mark.parametrize("api", ["text-generation", "completions", "chat"])
async def test_only_the_apis_that_are_offered(api):
    asked = {
        "text-generation": ("/generate", {"inputs": "a"}),
        "completions": ("/v1/completions", {"prompt": "a"}),
        "chat": ("/v1/chat/completions", chat()),
    }
    async with asking(apis=[api]) as (_, client):
        statuses = {name: (await client.post(path, json=body)).status_code for name, (path, body) in asked.items()}
    assert statuses == {name: 200 if name == api else 404 for name in asked}


@each_server
async def test_models(server):
    async with asking(server=server, models=["org/one", "two"]) as (_, client):
        listed = (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["org/one", "two"]
        assert (await client.get("/v1/models/org/one")).json()["id"] == "org/one"
        assert (await client.get("/v1/models/three")).status_code == 404
        for path, body in (
            ("/v1/chat/completions", chat(model="three")),
            ("/models/three/v1/chat/completions", chat()),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == (200 if server == "llamacpp" else 404)
        assert (await client.post("/v1/chat/completions", json=chat(model="two"))).json()["model"] == "two"
        assert (await client.post("/v1/chat/completions", json=chat())).json()["model"] == "org/one"


@each_server
async def test_the_key(server):
    async with asking(server=server, api_key="secret") as (endpoint, client):
        refused = await client.post("/v1/chat/completions", json=chat())
        assert refused.status_code == 401
        assert (refused.content == b"") == (server == "tgi")
        wrong = await client.get("/v1/models", headers={"authorization": "Bearer other"})
        assert wrong.status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == (401 if server == "llamacpp" else 200)
        right = await client.post("/v1/chat/completions", json=chat(), headers={"authorization": "Bearer secret"})
        assert right.status_code == 200
        assert "secret" not in repr(endpoint) + repr(endpoint.requests)
        assert endpoint.requests[-1].headers["authorization"] == "Bearer secret"


async def test_small_routes():
    async with asking(max_total_tokens=77) as (_, client):
        assert (await client.get("/")).content == (await client.get("/health")).content == b""
        assert (await client.get("/info")).json()["max_total_tokens"] == 77
        tokens = (await client.post("/tokenize", json={"inputs": "one two"})).json()
        assert [(token["text"], token["start"], token["stop"]) for token in tokens] == [("one", 0, 3), (" two", 3, 7)]
        assert "tgi_batch_current_size 0" in (await client.get("/metrics")).text
        head = await client.head("/health")
        assert (head.status_code, head.content) == (200, b"")
    async with asking(server="llamacpp") as (_, client):
        assert (await client.get("/health")).json() == {"status": "ok"}
        tokens = (await client.post("/tokenize", json={"content": "one two"})).json()["tokens"]
        pieces = (await client.post("/tokenize", json={"content": "one two", "with_pieces": True})).json()["tokens"]
        assert [piece["id"] for piece in pieces] == tokens
        assert [piece["piece"] for piece in pieces] == ["one", " two"]
        assert (await client.get("/info")).status_code == 404
    async with asking(server="vllm") as (_, client):
        assert (await client.post("/tokenize", json={"prompt": "one two"})).json()["count"] == 2
        assert (await client.post("/tokenize", json={"content": "one two"})).status_code == 400


@each_server
async def test_bodies_that_are_no_json(server):
    async with asking(server=server) as (endpoint, client):
        answer = await client.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert (endpoint.requests[0].body, endpoint.requests[0].raw) == (None, b"{")
        plain = await client.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
        assert plain.status_code == {"tgi": 415, "vllm": 400, "llamacpp": 200}[server]


async def test_rate_limit():
    async with asking(requests_per_minute=1, rate_limit_headers="ratelimit") as (_, client):
        first = await client.post("/generate", json={"inputs": "a"})
        second = await client.post("/generate_stream", json={"inputs": "a"})
        assert (first.status_code, second.status_code) == (200, 429)
        assert first.headers["ratelimit"] == second.headers["ratelimit"] == '"api";r=0;t=60'
    async with asking(requests_per_minute=1, server="vllm") as (_, client):
        first, second = [await client.post("/v1/completions", json={"prompt": "a"}) for _ in range(2)]
        assert "retry-after" not in first.headers
        assert second.headers["retry-after"] == "60"


async def test_own_headers_are_sent_with_every_answer():
    async with asking(headers={"x-request-id": "r1"}) as (_, client):
        for answer in (
            await client.get("/nothing"),
            await client.post("/generate", json={"inputs": "a"}),
            await client.post("/generate_stream", json={"inputs": "a"}),
        ):
            assert answer.headers["x-request-id"] == "r1"


async def test_a_full_queue_is_told_in_the_servers_way():
    async with asking(slots=0, max_queue=0) as (_, client):
        answer = await client.post("/generate", json={"inputs": "a"})
        overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
        assert (answer.status_code, answer.json()) == (429, overloaded)
        assert events(await client.post("/generate_stream", json={"inputs": "a"})) == [overloaded]
    for server in ("vllm", "llamacpp"):
        async with asking(slots=0, max_queue=0, server=server) as (_, client):
            assert (await client.post("/v1/completions", json={"prompt": "a", "stream": True})).status_code == 503
