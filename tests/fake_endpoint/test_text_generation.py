"""The text-generation task: shapes, checks and quirks of tgi."""

from __future__ import annotations

import pytest

from .support import asking, events

one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # the bytes are the same on all


async def test_the_three_routes():
    async with asking(reply="Hello world") as (endpoint, client):
        compat = await client.post("/", json={"inputs": "Hi"})
        assert compat.json() == [{"generated_text": "HiHello world"}]
        assert compat.headers["x-compute-type"] == "fake"
        body = {"inputs": "Hi", "stream": True}
        assert (await client.post("/generate", json=body)).json() == {"generated_text": "Hello world"}
        stream = events(await client.post("/generate_stream", json=body))
        assert [(e["index"], e["token"]["text"], e["token"]["special"]) for e in stream] == [
            (1, "Hello", False),
            (2, " world", False),
            (3, "</s>", True),
        ]
        assert [e["generated_text"] for e in stream] == [None, None, "Hello world"]
        assert events(await client.post("/", json=body))[-1]["generated_text"] == "HiHello world"
        assert [request.path for request in endpoint.requests] == ["/", "/generate", "/generate_stream", "/"]
        assert endpoint.requests[0].body == {"inputs": "Hi"}
        assert (endpoint.served, endpoint.cancelled, endpoint.in_flight, endpoint.connections) == (4, 0, 0, 1)


@pytest.mark.parametrize("prefix", ["/models/org/name", "/hf-inference/models/org/name", "/models/gpt2"])
@one_loop
async def test_routes_below_a_model(prefix: str):
    async with asking(reply="Yes", models=["org/name", "gpt2"]) as (_, client):
        assert (await client.post(prefix, json={"inputs": "Hi"})).json()[0]["generated_text"] == "HiYes"
        assert (await client.post(f"{prefix}/generate", json={"inputs": "Hi"})).json()["generated_text"] == "Yes"
        answer = await client.post(f"{prefix}/v1/completions", json={"prompt": "Hi"})
        assert answer.json()["model"] == prefix.rpartition("models/")[2]


@one_loop
async def test_details():
    async with asking(reply="Hello world") as (_, client):
        parameters = {"details": True, "decoder_input_details": True, "top_n_tokens": 2, "seed": 2**64 - 1}
        answer = (await client.post("/generate", json={"inputs": "a b", "parameters": parameters})).json()["details"]
        assert (answer["finish_reason"], answer["generated_tokens"], answer["seed"]) == ("eos_token", 3, 2**64 - 1)
        assert [token["text"] for token in answer["prefill"]] == ["<s>", "a", " b"]
        assert answer["prefill"][0]["logprob"] is None
        assert [token["text"] for token in answer["tokens"]] == ["Hello", " world", "</s>"]
        assert [len(top) for top in answer["top_tokens"]] == [2, 2, 2]
        parameters = {"details": True, "max_new_tokens": 1}
        answer = await client.post("/generate_stream", json={"inputs": "a b", "parameters": parameters})
        expected = {"finish_reason": "length", "generated_tokens": 1, "seed": None, "input_length": 2}
        assert events(answer)[-1]["details"] == expected


@one_loop
async def test_the_stop_sequence_stays_in_the_text():
    async with asking(reply="one two three") as (_, client):
        body = {"inputs": "x", "parameters": {"stop": ["two"], "details": True}}
        answer = (await client.post("/generate", json=body)).json()
        assert answer["generated_text"] == "one two"
        assert answer["details"]["finish_reason"] == "stop_sequence"
        assert answer["details"]["generated_tokens"] == 2


@one_loop
async def test_best_of_gives_the_other_sequences():
    async with asking(reply="one") as (_, client):
        body = {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True, "details": True}}
        details = (await client.post("/generate", json=body)).json()["details"]
        assert [other["generated_text"] for other in details["best_of_sequences"]] == ["one"]


REFUSED = [
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 3}, "`frequency_penalty` must be between -2.0 and 2.0"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 9. Given: 0"),
    (
        {"max_new_tokens": 9},
        "`inputs` tokens + `max_new_tokens` must be <= 10. Given: 2 `inputs` tokens and 9 `max_new_tokens`",
    ),
]


@one_loop
@pytest.mark.parametrize(("parameters", "message"), REFUSED)
async def test_values_that_are_refused(parameters, message):
    expected = {"error": f"Input validation error: {message}", "error_type": "validation"}
    async with asking(max_total_tokens=10) as (_, client):
        answer = await client.post("/generate", json={"inputs": "Hi there", "parameters": parameters})
        assert (answer.status_code, answer.json()) == (422, expected)
        answer = await client.post("/generate_stream", json={"inputs": "Hi there", "parameters": parameters})
        assert (answer.status_code, events(answer)) == (200, [expected])


@one_loop
@pytest.mark.parametrize("parameters", [{"best_of": 2, "do_sample": True}, {"decoder_input_details": True}])
async def test_what_can_not_be_streamed(parameters):
    async with asking() as (_, client):
        answer = await client.post("/generate_stream", json={"inputs": "Hi", "parameters": parameters})
        assert "streaming" in events(answer)[0]["error"]


@one_loop
@pytest.mark.parametrize(
    ("content", "status", "start"),
    [
        (b"{nonsense", 400, "Failed to parse the request body as JSON"),
        (
            b"{}",
            422,
            "Failed to deserialize the JSON body into the target type: missing field `inputs` at line 1 column 2",
        ),
        (
            b'{"inputs": 3}',
            422,
            "Failed to deserialize the JSON body into the target type: inputs: invalid type: number",
        ),
        (
            b'{"inputs": "a", "parameters": {"stop": "x"}}',
            422,
            "Failed to deserialize the JSON body into the target type",
        ),
        (b'{"inputs": "a", "parameters": {"stop": null}}', 422, "Failed to deserialize the JSON body"),
        (b'{"inputs": "a", "parameters": {"do_sample": null}}', 422, "Failed to deserialize the JSON body"),
        (b'{"inputs": "a", "parameters": {"seed": -1}}', 422, "Failed to deserialize the JSON body"),
        (b'{"inputs": "' + b"a" * 2_000_000 + b'"}', 413, "Failed to buffer the request body"),
    ],
)
async def test_bodies_that_are_refused_in_plain_text(content, status, start):
    async with asking() as (_, client):
        answer = await client.post("/generate_stream", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text.startswith(start)


@one_loop
async def test_content_type():
    async with asking() as (_, client):
        answer = await client.post("/generate", content=b'{"inputs": "a"}')
        assert (answer.status_code, answer.text) == (415, "Expected request with `Content-Type: application/json`")
        answer = await client.post(
            "/generate", content=b'{"inputs": "a"}', headers={"content-type": "application/x+json; charset=utf-8"}
        )
        assert answer.status_code == 200


@one_loop
async def test_truncate_keeps_the_last_tokens():
    async with asking(reply=str.upper) as (_, client):
        answer = await client.post("/generate", json={"inputs": "one two three", "parameters": {"truncate": 2}})
        assert answer.json() == {"generated_text": " TWO THREE"}


@one_loop
async def test_words_are_the_same_every_time():
    async def ask(prompt="Hi", seed=0, **parameters):
        async with asking(seed=seed) as (_, client):
            answer = await client.post("/generate", json={"inputs": prompt, "parameters": parameters})
            return answer.json()["generated_text"]

    first = await ask()
    assert len(first.split()) == 16
    assert await ask() == first
    others = [await ask("Ho"), await ask(seed=1), await ask(temperature=0.5), await ask(top_k=3)]
    assert first not in others
    assert (await ask(max_new_tokens=3)).split() == first.split()[:3]


@one_loop
async def test_replies_are_cycled_through():
    async with asking(reply=["one", "two"]) as (_, client):
        answers = [(await client.post("/generate", json={"inputs": "x"})).json()["generated_text"] for _ in range(3)]
        assert answers == ["one", "two", "one"]
