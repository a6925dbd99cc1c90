"""The fault matrix: what an endpoint may do to a call, and what is made of it. One row a fault."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from millstream import (
    AuthenticationError,
    BadRequestError,
    ConnectError,
    DeadlineError,
    GenerationError,
    ModelLoadingError,
    NotFoundError,
    OverloadedError,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    ReadError,
    ServerError,
    StreamInterruptedError,
    TruncatedStreamError,
    WriteError,
)

from ..support.fault_server import CLOSE, LAST_CHUNK, RESET, STALL, Fault, Steps, chunk, reply, stream_head
from ..support.transports import chat_events

Kind = Literal["rate", "overload", "loading"]


class End(NamedTuple):
    """What a call ends with that fails again and again, and how it comes there."""

    error: type[Exception]
    status: int | None = None
    waits: Iterable[float] = ()
    """Seconds between one attempt's end and the next one's beginning, in turn; none: there is no other attempt."""
    kind: Kind | None = None
    """Of the rate limit event that goes with each retry; None: there is none."""
    lasts: float = 0.0
    """Seconds that an attempt takes to fail."""
    told: float | None = None
    """What `retry_after` says of the error."""
    partial: str | None = None
    deadline: str | None = None
    """Which one was over, for a `DeadlineError`."""


class Row(NamedTuple):
    fault: Fault
    end: End
    plain: End | None = None
    """Where it is another one for answers that are not streamed on the wire,"""
    stream: End | None = None
    """and for streams, of which somebody may have seen the beginning."""
    total: float = 30.0
    """The deadline of the whole call. Retries that cost nothing end by it."""


# -- waits, where chance always gives a half -------------------------------------------------------------------------

FINAL: tuple[float, ...] = ()
BACKOFF = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of what may have been paid for: a quarter of a second, doubled each time, six times, the half of it."""
DROPPED = (0.0, *BACKOFF[1:])
"""Of a connection that broke before any answer: once at once."""
ONCE = BACKOFF[:1]
WRONG_ADDRESS = BACKOFF[:3]
"""Of an endpoint that has never answered."""


class Forever:
    """Waits of what costs nothing: the last one again and again, until the deadline."""

    def __init__(self, *waits: float) -> None:
        self.waits = waits

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(self.waits[:-1], itertools.repeat(self.waits[-1]))


UNPROCESSED = Forever(*BACKOFF)
NO_CONNECTION = Forever(*BACKOFF, 4.0, 4.0, 6.0, 7.5)
"""Of an endpoint that has answered before. After five in a row there is a cool-down beside, for all calls."""
COOL_DOWN = (0.375, 0.75, 1.5, 3.0, 6.0, 7.5)
"""Of a server without room that names no time: half a second, doubled up to ten, three quarters of it."""


NO_ROOM = Forever(*COOL_DOWN)
RATE_COOL_DOWN = tuple(min(wait, 3.0) for wait in COOL_DOWN)
"""Of a quota that names no time: four at the longest, since its window may begin anew at any moment."""


def told(seconds: float) -> float:
    """A told time is never cut short, and spread by half a second or a twentieth."""
    return seconds + 0.5 * max(0.5, 0.05 * seconds)


def told_again(seconds: float, *, least: float = 0.0) -> Forever:
    """Who told a time that was too short is not believed for ever: the usual cool-down is the least from then on."""
    return Forever(told(seconds), *(max(told(seconds), wait, least) for wait in RATE_COOL_DOWN[1:]))


PACE = 1.0
"""Seconds between two requests, once the second was refused for its rate as the first was."""
LIMITED = Forever(COOL_DOWN[0], *(max(wait, PACE) for wait in RATE_COOL_DOWN[1:]))


# -- faults ------------------------------------------------------------------------------------------------------------


def says(status: str, body: Any = b"", **headers: str) -> Fault:
    return Fault([reply(status, body, **headers)])


def error_body(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def streamed(*steps: bytes | float | Any) -> Fault:
    """The beginning of a stream; of a whole answer, that of its body."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"

    def play(streams: bool) -> Steps:
        if streams:
            return [stream_head(), *(chunk(step) if isinstance(step, bytes) else step for step in steps)]
        return [head, *(b'{"choices": [' if isinstance(step, bytes) else step for step in steps)]

    return Fault(play)


def in_200(error: dict[str, Any], *before: bytes) -> Fault:
    """An error event after those events; an error body where no stream was asked for."""

    def play(streams: bool) -> Steps:
        if not streams:
            return [reply(body=error)]
        event = reply(body=error).partition(b"\r\n\r\n")[2]
        return [stream_head(), *map(chunk, before), chunk(b"data: " + event + b"\n\n"), LAST_CHUNK]

    return Fault(play)


def ended(*events: bytes) -> Fault:
    """A stream that ends in good order after those events."""
    return Fault([stream_head(), *map(chunk, events), LAST_CHUNK])


def slowly(data: bytes, every: float, size: int = 1) -> Steps:
    """So many bytes at a time, with a pause after each."""
    return [step for at in range(0, len(data), size) for step in (data[at : at + size], every)]


TOKEN = chat_events("fi")[0]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
LOADING = {"error": "Model gpt2 is currently loading", "estimated_time": 20.0}
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
IN_9_SECONDS = "Sun, 06 Nov 1994 08:49:46 GMT"
QUOTA = error_body("You exceeded your current quota, please check your plan", code="insufficient_quota")


# -- the rows: what it is, what happens, what it ends with -------------------------------------------------------------

_failed = End(ServerError, 500, BACKOFF)
_broken_off = End(ReadError, None, BACKOFF)
_interrupted = End(StreamInterruptedError, partial="fi")
_too_slow = End(DeadlineError, None, COOL_DOWN, "overload", lasts=120, deadline="first_token")
_too_slow_whole = End(DeadlineError, None, FINAL, lasts=600, deadline="total")
# A first token tells that the endpoint works: each time it is the first failure again.
_silent = End(DeadlineError, None, [COOL_DOWN[0]] * 6, "overload", lasts=60, deadline="idle")
_silenced = _silent._replace(waits=FINAL, kind=None, partial="fi")
_garbage = End(ProtocolError, 200, ONCE)

CONNECTIONS = {
    "refused": Row(Fault(at="listen"), End(ConnectError, None, WRONG_ADDRESS)),
    "no such name": Row(Fault(at="listen"), End(ConnectError, None, WRONG_ADDRESS)),
    "a full queue of connections": Row(
        Fault(at="listen"), End(DeadlineError, None, WRONG_ADDRESS, lasts=5, deadline="connect")
    ),
    "closed when connected": Row(Fault([CLOSE], at="accept"), End(ReadError, None, DROPPED)),
}

TLS = {
    "handshake cut": Row(Fault([CLOSE], at="accept"), End(ConnectError, None, WRONG_ADDRESS)),
    "handshake reset": Row(Fault([RESET], at="accept"), End(ConnectError, None, WRONG_ADDRESS)),
    "handshake without an answer": Row(
        Fault([STALL], at="accept"), End(DeadlineError, None, WRONG_ADDRESS, lasts=5, deadline="connect")
    ),
    "speaks no TLS": Row(Fault([reply("400 Bad Request"), CLOSE], at="accept"), End(ConnectError)),
}

WRITES = {
    "reset amid the request": Row(Fault([1.0, RESET], at="accept"), End(WriteError, None, UNPROCESSED, lasts=1)),
    "a request that is not read": Row(
        Fault([40.0, RESET], at="accept"), End(DeadlineError, None, UNPROCESSED, lasts=30, deadline="write"), total=150
    ),
}

BYTES = {
    "reset before the head": Row(Fault([RESET]), End(ReadError, None, DROPPED)),
    "closed before the head": Row(Fault([CLOSE]), End(ReadError, None, DROPPED)),
    "reset in the head": Row(Fault([HEAD, RESET]), _broken_off),
    "closed in the head": Row(Fault([HEAD, CLOSE]), _broken_off),
    "reset after the head": Row(streamed(RESET), _broken_off),
    "closed after the head": Row(streamed(CLOSE), _broken_off),
    "reset in the body": Row(streamed(TOKEN, RESET), _broken_off, stream=_interrupted),
    "closed in the body": Row(streamed(TOKEN, CLOSE), _broken_off, stream=_interrupted),
    "silence before the head": Row(Fault([STALL]), _too_slow, _too_slow_whole, total=600),
    "silence after the head": Row(streamed(STALL), _too_slow, _too_slow_whole, total=600),
    "silence in the body": Row(streamed(TOKEN, STALL), _silent, _too_slow_whole, _silenced, 600),
    "comments only": Row(streamed(*[b": wait\n\n", 25.0] * 40, STALL), _too_slow, _too_slow_whole, total=600),
    "comments after a token": Row(
        streamed(TOKEN, *[b": wait\n\n", 25.0] * 40, STALL),
        _silent,
        _too_slow_whole,
        _silenced,
        600,
    ),
    "a head without end": Row(Fault(slowly(HEAD * 20, 25)), _too_slow, _too_slow_whole, total=600),
    "no HTTP": Row(Fault([b"\x00\x01\x02 what is this?\r\n\r\n", CLOSE]), End(ProtocolError, None, BACKOFF)),
    "no JSON": Row(says("200 OK", b"I am fine"), _garbage),
    "a page": Row(says("200 OK", b"<html>Log in</html>"), _garbage),
    "other JSON": Row(says("200 OK", {"status": "fine"}), _garbage),
    "nothing": Row(says("200 OK"), _garbage),
}

STREAMS = {
    "ends before a token": Row(ended(), End(TruncatedStreamError, 200, BACKOFF)),
    "ends after a token": Row(
        ended(TOKEN), End(TruncatedStreamError, 200, BACKOFF), stream=End(TruncatedStreamError, 200, partial="fi")
    ),
    "no JSON in an event": Row(ended(b"data: {oops\n\n"), _garbage),
    "no JSON in an event, later": Row(
        ended(TOKEN, b"data: {oops\n\n"), _garbage, stream=End(ProtocolError, 200, partial="fi")
    ),
}

ERRORS_IN_200 = {
    "error": Row(in_200(error_body("it broke")), _failed),
    "error, later": Row(in_200(error_body("it broke"), TOKEN), _failed, stream=End(ServerError, 500, partial="fi")),
    "no room": Row(
        in_200({"error": "Model is overloaded", "error_type": "overloaded"}),
        End(OverloadedError, 429, NO_ROOM, "overload"),
    ),
    "no room, later": Row(
        in_200({"error": "Model is overloaded", "error_type": "overloaded"}, TOKEN),
        End(OverloadedError, 429, COOL_DOWN[:1] * 6, "overload"),  # it had begun to answer: that counts
        plain=End(OverloadedError, 429, NO_ROOM, "overload"),
        stream=End(OverloadedError, 429, partial="fi"),
    ),
    "generation failed": Row(
        in_200({"error": "Request failed during generation: oom", "error_type": "generation"}),
        End(GenerationError, 424, ONCE),
    ),
    "not valid": Row(
        in_200({"error": "Input validation error", "error_type": "validation"}), End(BadRequestError, 422)
    ),
}

STATUSES = {
    "400": Row(says("400 Bad Request", error_body("temperature")), End(BadRequestError, 400)),
    "401": Row(says("401 Unauthorized", error_body("who?")), End(AuthenticationError, 401)),
    "402": Row(says("402 Payment Required", error_body("pay")), End(PaymentRequiredError, 402)),
    "403": Row(says("403 Forbidden", error_body("no")), End(PermissionDeniedError, 403)),
    "404": Row(says("404 Not Found", error_body("what?")), End(NotFoundError, 404)),
    "408": Row(says("408 Request Timeout"), End(ServerError, 408, BACKOFF)),
    "408 that closes": Row(says("408 Request Timeout", connection="close"), End(ServerError, 408, BACKOFF)),
    "409": Row(says("409 Conflict"), End(ServerError, 409, BACKOFF)),
    "413": Row(says("413 Content Too Large"), End(BadRequestError, 413)),
    "422": Row(says("422 Unprocessable", {"detail": "no"}), End(BadRequestError, 422)),
    "424": Row(
        says("424 Failed Dependency", {"error": "Request failed during generation", "error_type": "generation"}),
        End(GenerationError, 424, ONCE),
    ),
    "425": Row(says("425 Too Early"), End(ServerError, 425, BACKOFF)),
    "451": Row(says("451 Unavailable For Legal Reasons"), End(BadRequestError, 451)),
    "307": Row(says("307 Temporary Redirect", location="https://elsewhere.example/"), End(BadRequestError, 307)),
    "500": Row(says("500 Internal Server Error", error_body("oom")), _failed),
    "500 that names a time": Row(
        says("500 Internal Server Error", retry_after="3"), _failed._replace(waits=[told(3)] * 6, told=3)
    ),
    "501": Row(says("501 Not Implemented"), End(ServerError, 501)),
    "502": Row(says("502 Bad Gateway", HTML), End(ServerError, 502, BACKOFF)),
    "503 without a word": Row(says("503 Service Unavailable"), End(OverloadedError, 503, NO_ROOM, "overload")),
    "503 busy": Row(
        says("503 Service Unavailable", {"error": "Model too busy"}), End(OverloadedError, 503, NO_ROOM, "overload")
    ),
    "503 that names a time": Row(
        says("503 Service Unavailable", retry_after="7"),
        End(OverloadedError, 503, told_again(7), "overload", told=7),
    ),
    "503 that names too long a time": Row(
        says("503 Service Unavailable", retry_after="61"), End(OverloadedError, 503, told=61)
    ),
    "503 loading": Row(
        says("503 Service Unavailable", LOADING),
        End(ModelLoadingError, 503, told_again(20), "loading", told=20),
    ),
    "503 loading for longer": Row(  # a guess: it is looked at again after a minute
        says("503 Service Unavailable", {**LOADING, "estimated_time": 300.0}),
        End(ModelLoadingError, 503, told_again(60), "loading", told=300),
        total=130,
    ),
    "503 loading, no time": Row(
        says("503 Service Unavailable", error_body("Loading model", type="unavailable_error", code=503)),
        End(ModelLoadingError, 503, NO_ROOM, "loading"),
    ),
    "504": Row(says("504 Gateway Timeout"), End(ServerError, 504, COOL_DOWN[:2], "overload")),
    "520": Row(says("520 Web Server Returned an Unknown Error"), End(ServerError, 520, BACKOFF)),
    "524": Row(says("524 A Timeout Occurred"), End(ServerError, 524, COOL_DOWN[:2], "overload")),
    "529": Row(says("529 Overloaded"), End(OverloadedError, 529, NO_ROOM, "overload")),
    "530": Row(says("530 Site Is Frozen"), End(OverloadedError, 530, NO_ROOM, "overload")),
}


def _limited(seconds: float | None, body: Any = b"", **headers: str) -> Row:
    waits = LIMITED if seconds is None else told_again(seconds, least=PACE)
    end = End(RateLimitError, 429, waits, "rate", told=seconds)
    return Row(says("429 Too Many Requests", body, **headers), end)


RATES = {
    "no time": _limited(None),
    "Retry-After": _limited(2, retry_after="2"),
    "Retry-After, a fraction": _limited(1.5, retry_after="1.5"),
    "Retry-After, long": _limited(25, retry_after="25"),
    "Retry-After, a date": _limited(9, retry_after=IN_9_SECONDS, date=DATE),
    "Retry-After, nonsense": _limited(None, retry_after="soon"),
    "Retry-After, negative": _limited(None, retry_after="-1"),
    "retry-after-ms": _limited(0.25, retry_after_ms="250"),
    "Retry-After before the others": _limited(3, retry_after="3", retry_after_ms="9", ratelimit='"a";r=0;t=8'),
    "RateLimit": _limited(5, ratelimit='"api";r=0;t=5', ratelimit_policy='"api";q=10;w=60'),
    "RateLimit, the one that is used up": _limited(5, ratelimit='"day";r=50;t=3600, "min";t=5;r=0'),
    "RateLimit without a time": _limited(None, ratelimit='"api";r=0'),
    "x-ratelimit of requests": _limited(6, x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="6s"),
    "x-ratelimit of tokens": _limited(
        2.5,
        x_ratelimit_remaining_requests="9",
        x_ratelimit_reset_requests="1s",
        x_ratelimit_remaining_tokens="0",
        x_ratelimit_reset_tokens="2500ms",
    ),
    "anthropic-ratelimit": _limited(
        8,
        date=DATE,
        anthropic_ratelimit_requests_remaining="0",
        anthropic_ratelimit_requests_reset="1994-11-06T08:49:45Z",
    ),
    "too long": Row(says("429 Too Many Requests", retry_after="61"), End(RateLimitError, 429, told=61)),
    "longer than the call may take": Row(
        says("429 Too Many Requests", retry_after="20"), End(RateLimitError, 429, told=20), total=15
    ),
    "a full queue": Row(
        says("429 Too Many Requests", {"error": "Model is overloaded", "error_type": "overloaded"}),
        End(OverloadedError, 429, NO_ROOM, "overload"),
    ),
    "a quota": Row(says("429 Too Many Requests", QUOTA), End(PaymentRequiredError, 429)),
}
