"""The key is in nothing that is printed, stored, logged, told or raised."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import httpx
import msgspec
import pytest
import trustme
from anyio.streams.tls import TLSListener

from millstream import (
    AuthenticationError,
    CertificateError,
    ConnectError,
    DeadlineError,
    Deadlines,
    HuggingFaceInference,
    InMemoryCache,
    MillstreamError,
    ProtocolError,
    ReadError,
    TruncatedStreamError,
    UsageError,
)
from millstream._secret import Secret
from millstream.callbacks import LoggingCallbackHandler
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint, Fault

from .canary import KEY, OTHER, PASSWORD, assert_error_hides, assert_hidden


@pytest.fixture
async def endpoint() -> AsyncIterator[FakeEndpoint]:
    async with FakeEndpoint(api_key=KEY, reply="one two") as endpoint:
        yield endpoint


# -- the model ---------------------------------------------------------------------------------------------------------


async def test_a_model_shows_no_key(endpoint):
    async with HuggingFaceInference("a/model", endpoint_url=endpoint.url, api_key=KEY, api="chat") as llm:
        await llm.call("x")
        assert_hidden(repr(llm), str(llm), f"{llm}", f"{llm!r:>50}", llm.serialize(), json.dumps(llm.serialize()))
        assert_hidden(llm._identifying_params, llm._invocation_params(llm.options), llm._credential_fingerprint())
        assert_hidden(json.dumps(vars(llm), default=str), json.dumps(vars(llm), default=repr))
        assert_hidden(msgspec.json.encode(vars(llm), enc_hook=repr), repr(vars(llm)), vars(llm.caller))
        assert_hidden(vars(llm._transport), llm.caller.statistics(), llm._sites[0]._exchanges, [vars(llm.caller)])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_and_a_copy_have_no_key(protocol):
    llm = HuggingFaceInference(
        "a/model", endpoint_url="https://a.example", api_key=KEY, headers={"Authorization": f"Bearer {KEY}"}
    )
    data = pickle.dumps(llm, protocol)
    assert_hidden(data)
    for again in (pickle.loads(data), copy.copy(llm), copy.deepcopy(llm)):
        assert again.model == "a/model"
        assert_hidden(repr(vars(again)))
        assert again._key is None


def test_a_secret_can_not_be_pickled():
    with pytest.raises(UsageError) as caught:
        pickle.dumps(Secret(KEY))
    assert_error_hides(caught.value)
    assert_hidden(repr(Secret(KEY)), str(Secret(KEY)), f"{Secret(KEY)}", f"{Secret(KEY):>99}", [Secret(KEY)])
    with pytest.raises(TypeError):
        json.dumps(Secret(KEY))
    assert Secret(KEY) == Secret(KEY) != Secret(OTHER)


async def test_the_cache_has_no_key_but_tells_keys_apart(endpoint):
    cache = InMemoryCache()
    endpoint.api_key = None
    for key in (KEY, OTHER, None):
        async with HuggingFaceInference(endpoint_url=endpoint.url, api_key=key, cache=cache) as llm:
            await llm.call("x")
            await llm.call("x")
    headers = {"Authorization": f"Bearer {KEY}"}
    async with HuggingFaceInference(endpoint_url=endpoint.url, headers=headers, cache=cache) as llm:
        await llm.call("x")
    assert len([request for request in endpoint.requests if request.path.startswith("/v1")]) == 4
    assert_hidden(repr(cache), cache._entries)


async def test_logs_events_and_records_have_no_key(endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    listener = RecordingCallbackHandler()
    endpoint.fail(Fault.status(503, headers={"retry-after": "0.01"}), Fault.status(429, headers={"retry-after": "0"}))
    async with HuggingFaceInference(
        endpoint_url=endpoint.url,
        api_key=KEY,
        callbacks=[listener, LoggingCallbackHandler(texts=True)],
        cache=InMemoryCache(),
        verbose=True,
    ) as llm:
        await llm.generate(["x", "y"])
        await llm.stream("z").result()
        await llm.get_num_tokens("x")
    wrong = HuggingFaceInference(endpoint_url=endpoint.url, api_key=OTHER, callbacks=[listener])
    with pytest.raises(AuthenticationError):
        await wrong.call("x")
    await wrong.aclose()
    assert {"llm_start", "llm_end", "llm_error", "retry", "rate_limit", "attempt"} <= set(listener.kinds())
    assert_hidden(*map(repr, listener.events), caplog.text, [record.__dict__ for record in caplog.records])
    assert_hidden(*(msgspec.json.encode(event, enc_hook=repr) for event in listener.events))
    assert_hidden(repr(endpoint), repr(endpoint.requests))
    assert all(request.headers["authorization"].startswith("Bearer hf_") for request in endpoint.requests)


# -- errors ------------------------------------------------------------------------------------------------------------


async def failure(llm: HuggingFaceInference, *, streamed: bool) -> MillstreamError:
    try:
        with pytest.raises(MillstreamError) as caught:
            if streamed:
                await llm.stream("x").result()
            else:
                await llm.call("x")
    finally:
        await llm.aclose()
    return caught.value


ECHO = f"Invalid credentials: 'Bearer {KEY}'"
FAULTS = {
    "401": Fault.status(401),
    "401 with the key": Fault.status(401, body={"error": ECHO}),
    "401 with the key in text": Fault.status(401, body=ECHO),
    "401 with a part of the key": Fault.status(401, body="x" * 485 + KEY),
    "500 with the key": Fault.status(500, body={"error": {"message": ECHO, "type": KEY, "code": KEY}}),
    "500 with the key in headers": Fault.status(500, headers={"x-request-id": KEY, "x-inference-provider": KEY}),
    "200 with an error": Fault.error_in_200(body={"error": {"message": ECHO, "code": 500}}),
    "200 with garbage": Fault.status(200, body=f"{{{ECHO}"),
    "200 with other JSON": Fault.status(200, body={"choices": ECHO}),
    "an error event": Fault.error_event(1, message=ECHO),
    "redirect": Fault.status(307, headers={"location": f"https://evil.example/?key={KEY}"}),
    "truncated": Fault.truncate(),
    "disconnected": Fault.disconnect(),
    "broken": Fault.disconnect(150),
    "garbage": Fault.garbage(),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_errors_of_a_server(endpoint, fault, streamed):
    endpoint.fail(FAULTS[fault])
    llm = HuggingFaceInference(endpoint_url=endpoint.url, api_key=KEY, api="chat", max_retries=0)
    assert_error_hides(await failure(llm, streamed=streamed), echoed=fault.startswith("200") or "event" in fault)


@pytest.mark.parametrize("http_client", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_deadlines(endpoint, streamed, http_client):
    endpoint.fail(Fault.stall(times=3))
    async with httpx.AsyncClient() as client:
        llm = HuggingFaceInference(
            endpoint_url=endpoint.url,
            api_key=KEY,
            max_retries=0,
            deadlines=Deadlines(first_token=0.02, total=0.05),
            http_client=client if http_client else None,
        )
        error = await failure(llm, streamed=streamed)
    assert isinstance(error, DeadlineError)
    assert_error_hides(error)


@pytest.mark.parametrize("http_client", [False, True])
async def test_no_connection(http_client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}", "https://nowhere.invalid"):
            async with httpx.AsyncClient(trust_env=False) as client:
                llm = HuggingFaceInference(
                    endpoint_url=url, api_key=KEY, max_retries=0, http_client=client if http_client else None
                )
                error = await failure(llm, streamed=False)
            assert isinstance(error, ConnectError)
            assert_error_hides(error)


@asynccontextmanager
async def server(answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that hands each connection to `answer`; gives its port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def handle(stream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                await answer(stream)

    async def accept() -> None:
        async with listener:
            await (listener if tls is None else TLSListener(listener, tls)).serve(handle)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(accept)
        yield port
        tasks.cancel_scope.cancel()


async def echo(stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def echo_in_head(stream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\n" + await stream.receive())


async def echo_in_chunk(stream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + await stream.receive())


async def echo_in_encoding(stream) -> None:
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-encoding: gzip\r\n\r\n"
    await stream.send(head + await stream.receive())


async def echo_in_body(stream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + await stream.receive())


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("http_client", [False, True])
@pytest.mark.parametrize("answer", [echo, echo_in_head, echo_in_chunk, echo_in_encoding, echo_in_body])
async def test_a_server_that_sends_the_request_back(answer, http_client, streamed):
    if http_client and answer is echo_in_encoding:
        return  # httpx leaves generators of its own to the garbage collector here, of which trio warns
    async with server(answer) as port, httpx.AsyncClient(trust_env=False) as client:
        llm = HuggingFaceInference(
            endpoint_url=f"http://127.0.0.1:{port}",
            api_key=KEY,
            api="chat",
            max_retries=0,
            http_client=client if http_client else None,
        )
        error = await failure(llm, streamed=streamed)
    assert isinstance(error, ProtocolError | TruncatedStreamError | ReadError)
    assert_error_hides(error, echoed=True)


async def plain(stream) -> None:
    await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("http_client", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_tls_failures(encrypted, http_client):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)  # of an authority that nobody knows
    async with (
        server(plain, tls=context if encrypted else None) as port,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        llm = HuggingFaceInference(
            endpoint_url=f"https://127.0.0.1:{port}",
            api_key=KEY,
            max_retries=0,
            http_client=client if http_client else None,
        )
        error = await failure(llm, streamed=False)
    assert isinstance(error, CertificateError if encrypted else ConnectError)
    assert_error_hides(error)


async def test_a_cancelled_call(endpoint):
    endpoint.fail(Fault.stall(times=9))
    caught: list[BaseException] = []
    async with HuggingFaceInference(endpoint_url=endpoint.url, api_key=KEY, api="chat") as llm:
        for ask in (llm.call, lambda prompt: llm.stream(prompt).result()):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def call(ask=ask) -> None:
                        try:
                            await ask("x")
                        except BaseException as error:
                            caught.append(error)
                            raise

                    tasks.start_soon(call)
                    await endpoint.wait_for(lambda: endpoint.in_flight == 1)
                    scope.cancel()
            await endpoint.wait_for(lambda: endpoint.in_flight == 0)
        assert len(caught) == 2
        for error in caught:
            assert_error_hides(error)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"nonsense": 1},
        {"model": "a\nb"},
        {"endpoint_url": "ftp://x"},
        {"headers": {"a": "b\r\nc"}},
        {"headers": {"a b": "c"}},
        {"headers": {"": "c"}},
        {"bill_to": "a\nb"},
        {"provider": "a/b"},
        {"api": "nonsense"},
        {"cache": 5},
        {"caller": 5},
        {"deadlines": 5},
        {"proxy": "http://x", "transport": object()},
        {"max_concurrency": 0},
        {"stop_sequences": 5},
    ],
)
def test_an_option_that_can_not_be(options):
    with pytest.raises(UsageError) as caught:
        HuggingFaceInference(api_key=KEY, **options)
    assert_error_hides(caught.value)


async def test_a_model_without_a_key_in_a_call_that_fails_early():
    llm = HuggingFaceInference(endpoint_url="http://llm.example", api_key=KEY)
    error = await failure(llm, streamed=False)
    assert "allow_http_key" in str(error)
    assert_error_hides(error)


@pytest.mark.parametrize(
    "key",
    [f"{KEY}\nX-Evil: 1", f"{KEY}\r\n\r\nGET", f"{KEY} b", f"{KEY}\x00", f"{KEY}\u00e9", f"{KEY}\u2028", f"a\t{KEY}"],
)
def test_a_key_that_can_not_be(key, monkeypatch):
    with pytest.raises(UsageError) as caught:
        HuggingFaceInference(api_key=key)
    assert_error_hides(caught.value)
    monkeypatch.setenv("HF_TOKEN", key.replace("\x00", "\x7f"))
    llm = HuggingFaceInference()
    with pytest.raises(UsageError) as caught:
        llm._sites[0].authorization()
    assert_error_hides(caught.value)
    with pytest.raises(UsageError) as caught:
        HuggingFaceInference.deserialize({"_type": "hf", "_model": "base_llm"}, api_key=key)
    assert_error_hides(caught.value)


@pytest.mark.parametrize("key", ["", " ", "\n", 5, b"hf_x", ["hf_x"]])
def test_a_key_that_is_none(key):
    with pytest.raises(UsageError, match="key"):
        HuggingFaceInference(api_key=key)


# -- proxies -----------------------------------------------------------------------------------------------------------

PROXIES = [
    f"http://me:{PASSWORD}@127.0.0.1:1",
    f"socks5://me:{PASSWORD}@127.0.0.1:1",
    f"ftp://me:{PASSWORD}@127.0.0.1:1",
    f"http://me:{PASSWORD}@127.0.0.1:port",
    f"http://me:{PASSWORD}@[::1",
    f"me:{PASSWORD}@127.0.0.1",
    f"http://me:{PASSWORD}\n@127.0.0.1",
]


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("by", ["argument", "environment"])
async def test_the_password_of_a_proxy_is_never_shown(proxy, by, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    try:
        if by == "environment":
            monkeypatch.setenv("ALL_PROXY", proxy)
            llm = HuggingFaceInference(endpoint_url="http://llm.example", max_retries=0)
        else:
            llm = HuggingFaceInference(endpoint_url="http://llm.example", proxy=proxy, max_retries=0)
    except UsageError as error:
        assert_error_hides(error)
        return
    assert_hidden(repr(llm), repr(vars(llm)), json.dumps(vars(llm), default=str))
    assert_error_hides(await failure(llm, streamed=False))
    assert_hidden(caplog.text)
    if by == "argument":
        with pytest.raises(UsageError) as caught:
            pickle.dumps(llm)
        assert_error_hides(caught.value)
