"""Answers that are streamed though nobody reads the tokens: the same results and errors as for whoever does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from millstream import (
    BadRequestError,
    CallOptions,
    DeadlineError,
    Deadlines,
    GenerationError,
    ModelLoadingError,
    ProtocolError,
    RateLimitError,
    ReadError,
    StatusError,
    StringPromptValue,
    TruncatedStreamError,
)
from millstream._clock import monotonic
from millstream._http import Exchange
from millstream._origin import Origin, parse_url
from millstream._streams import ResultSource, read_rest
from millstream._transport import PoolTransport
from millstream._transport._seam import Route
from millstream._wire import DIALECTS
from millstream.testing import FakeEndpoint, Fault

from ..conftest import manual_backends
from ..support.servers import chunked, serve
from ..support.transports import Answer, ScriptedTransport, chat_events

PROMPT = StringPromptValue("x")
PLAIN = Answer.chat("asked")
STREAMED = Answer.stream(chat_events("one", " two", end=True), stalls=False)
WANTS_WHOLE: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "f"}}]}


def exchange_at(transport: ScriptedTransport, api: str = "chat", **options: Any) -> Exchange:
    route = Route("POST", Origin("http", "llm.invalid", 80), "/v1/chat/completions")
    return Exchange(DIALECTS[api], route, route, transport, model=None, **options)


def refusal(message: str, status: int = 400) -> Answer:
    return Answer.json({"error": {"message": message}}, status)


def in_stream(message: str) -> Answer:
    return Answer.stream([b'data: {"error":{"message":"%b","http_status_code":422}}\n\n' % message.encode()])


async def test_it_is_opened_with_the_first_chunks_there():
    transport = ScriptedTransport(STREAMED)
    source = await exchange_at(transport).open_or_ask(PROMPT, CallOptions())
    first = await source.receive()
    assert [chunk.text for chunk in first] == ["one"]
    assert (await source.rest(first)).text == "one two"
    assert transport.open_bodies == 0


async def test_whoever_reads_gets_a_chunk_for_each_token_though_they_come_at_once():
    words = [f" {number}" for number in range(20)]
    transport = ScriptedTransport(Answer.stream([b"".join(chat_events(*words, end=True))], stalls=False))
    exchange = exchange_at(transport)
    source = await exchange.open_or_ask(PROMPT, CallOptions())
    got = []
    while chunks := await source.receive():
        got += [chunk.text for chunk in chunks]
    await source.aclose()
    assert got == [*words, ""]  # the last is the finish reason
    source = await exchange.open_or_ask(PROMPT, CallOptions())
    assert (await source.rest(await source.receive())).text == "".join(words)


@pytest.mark.parametrize(
    "refused",
    [
        refusal("stream is not supported"),
        refusal("Cannot stream results when best_of > n", 422),
        refusal("Streaming is not implemented", 501),
        refusal("extra fields: stream_options"),
        in_stream("Input validation error: `x` is not supported when streaming tokens"),
    ],
)
async def test_what_is_refused_because_it_streams_is_asked_for_plainly_from_then_on(refused):
    transport = ScriptedTransport(refused, PLAIN, PLAIN, STREAMED)
    exchange = exchange_at(transport)
    for _ in range(2):
        source = await exchange.open_or_ask(PROMPT, CallOptions(**WANTS_WHOLE))
        assert isinstance(source, ResultSource)
        assert (await source.rest(await source.receive())).text == "asked"
    source = await exchange.open_or_ask(PROMPT, CallOptions())  # of another kind
    assert (await source.rest(await source.receive())).text == "one two"
    assert [request.stream for request in transport.requests] == [True, False, False, True]
    assert transport.open_bodies == 0


async def test_a_refusal_for_another_reason_is_raised():
    for refused in (refusal("upstream says no"), refusal("the stream is full", 429)):
        transport = ScriptedTransport(refused, PLAIN)
        with pytest.raises((BadRequestError, RateLimitError)):
            await exchange_at(transport).open_or_ask(PROMPT, CallOptions())
        assert len(transport.requests) == 1


async def test_a_plain_request_that_fails_too_proves_nothing():
    transport = ScriptedTransport(refusal("no streams"), refusal("nor this"), STREAMED)
    exchange = exchange_at(transport)
    with pytest.raises(BadRequestError, match="nor this"):
        await exchange.open_or_ask(PROMPT, CallOptions())
    source = await exchange.open_or_ask(PROMPT, CallOptions())
    assert (await source.rest(await source.receive())).text == "one two"


@pytest.mark.parametrize(
    ("api", "extra", "streams"),
    [
        ("chat", {"n": 2}, True),
        ("completions", {"best_of": 2}, False),
        ("completions", {"best_of": 1}, True),
        ("text-generation", {"parameters": {"best_of": 2}}, False),
        ("text-generation", {"parameters": {"num_return_sequences": 2}}, False),
        ("text-generation", {"parameters": {"decoder_input_details": True}}, False),
        ("text-generation", {"parameters": {"decoder_input_details": False, "best_of": 1}}, True),
        ("text-generation", {"parameters": None}, True),
    ],
)
def test_what_a_dialect_can_not_stream(api, extra, streams):
    assert DIALECTS[api].can_stream(CallOptions(extra_body=extra)) is streams


class Listener:
    """Keeps what it is told of limits."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.stated = self.told.append

    def explain(self, error: Exception, /) -> None:
        """Nothing to say."""


async def test_limits_that_an_answer_states_are_told():
    listener = Listener()
    limited = {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "10"}
    transport = ScriptedTransport(
        Answer.json({"error": "busy"}, 429, **limited), Answer(200, limited, PLAIN.pieces, 0.0, stalls=False), PLAIN
    )
    exchange = exchange_at(transport, listener=listener)
    with pytest.raises(RateLimitError):
        await exchange.ask(PROMPT, CallOptions())
    for _ in range(2):
        await exchange.ask(PROMPT, CallOptions())
    assert [(limits.requests_remaining, limits.requests_reset) for limits in listener.told] == [(3, 10)] * 2


PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "text-generation": "/"}


@asynccontextmanager
async def at(url: str, api: str = "chat") -> AsyncIterator[Exchange]:
    """An exchange over real connections, none of which is in use at the end."""
    transport = PoolTransport()
    origin, _ = parse_url(url)
    route = Route("POST", origin, PATHS[api], [("Content-Type", "application/json")])
    try:
        yield Exchange(DIALECTS[api], route, route, transport, model=None)
        assert transport.statistics().active == 0
    finally:
        await transport.aclose()


async def unread(exchange: Exchange, *, reads: bool = False, **options: Any) -> Any:
    """The result of a stream that nobody reads, or that is read chunk by chunk."""
    source = await exchange.open_or_ask(PROMPT, CallOptions(**{"max_tokens": 12, **options}))
    first = await source.receive()
    return await (read_rest(source, first) if reads else source.rest(first))


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("options", [{}, {"logprobs": 2}, {"stop": ["a"]}], ids=str)
async def test_the_result_is_that_of_reading(api, coalesce, options):
    async with FakeEndpoint(coalesce=coalesce) as endpoint, at(endpoint.url, api) as exchange:
        results = [await unread(exchange, reads=reads, **options) for reads in (False, True, False)]
        assert results[0].text
        assert results[0].generations == results[1].generations == results[2].generations
        assert results[0].usage == results[1].usage
        assert endpoint.connections == 1 or options.get("stop")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.error_event(after_events=3), GenerationError),
        (Fault.truncate(after_events=3), TruncatedStreamError),
        (Fault.disconnect(after_bytes=700), ReadError),
        (Fault.garbage(after_events=3), ProtocolError),
    ],
    ids=str,
)
async def test_what_goes_wrong_midway_is_raised_as_it_is(endpoint, api, fault, expected):
    async with at(endpoint.url, api) as exchange:
        for reads in (False, True):
            endpoint.fail(fault)
            with pytest.raises(expected) as caught:
                await unread(exchange, reads=reads, max_tokens=50)
            assert caught.value.provider == "127.0.0.1"
        assert (await unread(exchange)).text


@pytest.mark.parametrize("anyio_backend", manual_backends())
@pytest.mark.parametrize(
    ("script", "deadline"),
    [
        (chat_events("one", " two"), "idle"),
        ([*chat_events("one", " two"), *[b": ping\n\n"] * 30], "idle"),
        (chat_events(*["tick"] * 200), "total"),
    ],
    ids=["silence", "only comments", "never ends"],
)
async def test_deadlines(script, deadline):
    seconds = {"first_token": 30.0, "idle": 20.0, "total": 97.0}
    transport = ScriptedTransport(Answer.stream(script, every=5.0))
    source = await exchange_at(transport).open_or_ask(PROMPT, CallOptions(deadlines=Deadlines(**seconds)))
    source.end_at(monotonic() + 97, 97.0)
    with pytest.raises(DeadlineError, match=deadline) as caught:
        await source.rest(await source.receive())
    assert (caught.value.deadline, caught.value.seconds) == (deadline, seconds[deadline])
    assert transport.open_bodies == 0


async def test_only_comments_are_silence():
    """On a real connection, where a comment is a piece as any other."""

    async def talk(peer):
        await peer.request()
        await peer.send(chunked(*chat_events("one"), headers=[b"content-type: text/event-stream"], end=b""))
        while True:
            await anyio.sleep(0.01)
            await peer.send(b"8\r\n: ping\n\n\r\n")

    async with serve(talk) as server, at(server.url) as exchange:
        with pytest.raises(DeadlineError) as caught:
            await unread(exchange, deadlines=Deadlines(idle=0.1))
        assert (caught.value.deadline, caught.value.seconds) == ("idle", 0.1)


async def test_cancellation_closes_the_connection():
    async with FakeEndpoint(faults=[Fault.stall(after_events=2)]) as endpoint, at(endpoint.url) as exchange:
        with anyio.move_on_after(0.05):
            await unread(exchange)
        await endpoint.wait_for(lambda: endpoint.in_flight == 0)


STARTING = Answer.json({"error": "503 Service Unavailable"}, 503)


def held_for(transport: ScriptedTransport) -> list[bytes | None]:
    """The seconds for which each request asks to be held."""
    return [dict(request.route.headers).get(b"x-scale-up-timeout") for request in transport.requests]


async def fails(exchange: Exchange, **options: Any) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await exchange.open_or_ask(PROMPT, CallOptions(**options))
    return caught.value


async def test_after_a_503_of_an_endpoint_without_replicas_requests_are_held_until_one_is_up():
    transport = ScriptedTransport(STARTING, STARTING, STREAMED, STREAMED)
    exchange = exchange_at(transport, scales_to_zero=True)
    for _ in range(2):
        error = await fails(exchange, deadlines=Deadlines(first_token=10, idle=20, total=300))
        assert (type(error), error.kind, error.status_code) == (ModelLoadingError, "scaling", 503)
        assert "503 Service Unavailable" in str(error)
    for _ in range(2):
        await (await exchange.open_or_ask(PROMPT, CallOptions())).leave()
    assert held_for(transport) == [None, b"300", b"600", None]
    assert [request.timeouts.read for request in transport.requests] == [20, 300, 600, 120]


@pytest.mark.parametrize(
    ("refused", "held"),
    [
        (Answer.json({"error": "Model x is currently loading", "estimated_time": 20}, 503), True),
        (Answer(503, {}, [b"<html>503</html>"], 0.0, stalls=False), True),
        (Answer.json({"error": "busy"}, 503, retry_after="3"), False),
        (Answer.json({"error": {"message": "The engine is busy", "type": "ServiceUnavailableError"}}, 503), False),
        (Answer.json({"error": "too many requests"}, 429), False),
        (Answer.json({"error": "bad gateway"}, 502), False),
    ],
)
async def test_which_refusals_say_that_a_replica_is_started(refused, held):
    for scales in (True, False):
        transport = ScriptedTransport(refused, PLAIN)
        exchange = exchange_at(transport, scales_to_zero=scales)
        assert ((await fails(exchange)).kind == "scaling") is (held and scales)
        await exchange.ask(PROMPT, CallOptions(deadlines=Deadlines(total=None)))
        assert held_for(transport) == [None, b"600" if held and scales else None]


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_the_first_token_has_the_time_that_a_replica_takes():
    late = Answer.stream(chat_events("one", end=True), every=100.0, stalls=False)
    transport = ScriptedTransport(STARTING, late, late)
    exchange = exchange_at(transport, scales_to_zero=True)
    options = {"deadlines": Deadlines(first_token=50, idle=None, total=None)}
    await fails(exchange, **options)
    source = await exchange.open_or_ask(PROMPT, CallOptions(**options))
    assert (await source.rest(await source.receive())).text == "one"
    with pytest.raises(DeadlineError, match="first_token"):
        await exchange.open_or_ask(PROMPT, CallOptions(**options))


async def test_how_long_to_hold_is_up_to_whoever_has_said_it():
    transport = ScriptedTransport(STARTING, PLAIN)
    route = Route("POST", Origin("http", "llm.invalid", 80), "/", [("X-Scale-Up-Timeout", "7")])
    exchange = Exchange(DIALECTS["chat"], route, route, transport, model=None, scales_to_zero=True)
    await fails(exchange)
    await exchange.ask(PROMPT, CallOptions())
    assert [request.route.head.lower().count(b"x-scale-up-timeout") for request in transport.requests] == [1, 1]
