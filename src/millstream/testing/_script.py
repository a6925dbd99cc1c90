"""What happens on the wire for one generation, step by step, faults included. Pure: the endpoint only performs it.

Every fault is a change to the list of steps, so that each can be read, and tested, without a socket.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

from millstream.testing._answers import Answer, chunk, error_body, event_error, head, json_answer
from millstream.testing._asked import Asked
from millstream.testing._behaviour import Server
from millstream.testing._faults import Fault
from millstream.testing._replies import DONE, StreamEvent, data
from millstream.testing._text import split_tokens

__all__ = ["Close", "Pause", "Send", "Slot", "Stall", "Step", "Tokens", "answer_script", "generation_script"]

Pairs = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes."""

    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """Wait for a slot."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """Wait until this many tokens more have been generated."""

    count: int
    first: bool = False
    """Whether the first of them is the first of all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Stall:
    """Do nothing until the client leaves."""


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    """Close the connection; nothing comes after."""

    reset: bool = False


Step: TypeAlias = "Send | Slot | Tokens | Pause | Stall | Close"

_LAST_CHUNK = b"0\r\n\r\n"
_GENERATION_FAILED = "Request failed during generation: Server error: CUDA out of memory"


@dataclasses.dataclass(slots=True, kw_only=True)
class Wire:
    """How the answer is framed."""

    server: Server
    extra: Pairs
    keep_alive: bool


def answer_script(answer: Answer, wire: Wire, fault: Fault | None = None) -> list[Step]:
    """A complete answer at once."""
    steps: list[Step] = [Send(answer.encode(wire.extra, keep_alive=wire.keep_alive))]
    return _strike_bytes(steps, fault)


def generation_script(
    asked: Asked, wire: Wire, fault: Fault | None, whole: Any, events: list[StreamEvent], tokens: int
) -> list[Step]:
    """A generation of so many tokens: `whole` is its body if it is not streamed, else `events` are."""
    kind = fault.kind if fault is not None else None
    if kind == "stall" and fault is not None and fault.after_events is None:
        return [Stall()]
    steps = _stream(asked, wire, fault, events) if asked.stream else _whole(asked, wire, fault, whole, tokens)
    if fault is not None and kind == "slow":
        steps.insert(0, Pause(fault.seconds))
    return _strike_bytes(steps, fault)


def early_fault(server: Server, fault: Fault) -> Answer | None:
    """The answer of a fault that strikes before anything else; None if it strikes later."""
    if fault.kind == "status":
        body = fault.body if fault.body is not None else error_body(server, fault.status_code, _says(fault.status_code))
        return json_answer(fault.status_code, body, fault.headers)
    if fault.kind == "error_in_200":
        default = {"error": {"message": "Provider returned error", "code": 502}}
        return json_answer(200, fault.body if fault.body is not None else default)
    return None


def late_refusal(asked_api: str, wire: Wire, status: int, message: str, error_type: str) -> list[Step]:
    """Tgi's refusal of a streaming request: a 200 with one error event."""
    openai = asked_api != "text-generation"
    event = data(event_error(wire.server, status, message, error_type, openai=openai))
    body = chunk(event) + (chunk(DONE) if openai else b"") + _LAST_CHUNK
    return [Send(_stream_head(wire) + body)]


def _whole(asked: Asked, wire: Wire, fault: Fault | None, whole: Any, tokens: int) -> list[Step]:
    kind = fault.kind if fault is not None else None
    answer = json_answer(200, whole)
    if kind == "error_event" and fault is not None:
        status = 424 if wire.server == "tgi" else 500
        answer = json_answer(status, error_body(wire.server, status, fault.message or _GENERATION_FAILED))
    elif kind == "garbage":
        answer.body = b'{"generated_text": <<<garbage>>>'
    elif kind == "truncate":
        answer.body = answer.body[: len(answer.body) // 2]
    steps: list[Step] = [Slot(), Tokens(tokens, first=True)]
    raw = answer.encode(_compute_headers(wire, asked, tokens), keep_alive=wire.keep_alive)
    if kind == "stall":
        cut = len(raw) - len(answer.body) // 2
        return [*steps, Send(raw[:cut]), Stall()]
    return [*steps, Send(raw)]


def _stream(asked: Asked, wire: Wire, fault: Fault | None, events: list[StreamEvent]) -> list[Step]:
    opening = Send(_stream_head(wire))
    # llama.cpp says nothing, not even its head, to a request that queues
    steps: list[Step] = [Slot(), opening] if wire.server == "llamacpp" else [opening, Slot()]
    strikes = fault is not None and fault.kind in {"stall", "truncate", "error_event", "garbage"}
    limit = fault.after_events if strikes and fault is not None else None
    sent = step = 0
    for event in events:
        if limit is not None and sent >= limit:
            break
        if event.step > step:
            steps.append(Tokens(event.step - step, first=step == 0))
            step = event.step
        steps.append(Send(chunk(event.data)))
        sent += event.text
    if strikes and fault is not None:
        if step == 0 and fault.kind != "stall":
            steps.append(Tokens(1, first=True))
        return steps + _ending(asked, wire, fault)
    # one piece: a client may leave as soon as it has the last event, and has then missed nothing
    steps[-1] = Send(chunk(events[-1].data) + _LAST_CHUNK)
    return steps


def _ending(asked: Asked, wire: Wire, fault: Fault) -> list[Step]:
    if fault.kind == "stall":
        return [Stall()]
    if fault.kind == "garbage":
        return [Send(chunk(b"data: {<<<garbage>>>\n\n")), Send(_LAST_CHUNK)]
    if fault.kind == "error_event":
        openai = asked.api != "text-generation"
        status = 424 if wire.server == "tgi" else 500
        error_type = "generation" if wire.server == "tgi" else ""
        event = event_error(wire.server, status, fault.message or _GENERATION_FAILED, error_type, openai=openai)
        done: list[Step] = [Send(chunk(DONE))] if openai and wire.server != "llamacpp" else []
        return [Send(chunk(data(event))), *done, Send(_LAST_CHUNK)]
    return [Send(_LAST_CHUNK)]


def _strike_bytes(steps: list[Step], fault: Fault | None) -> list[Step]:
    """Cut the connection after so many bytes."""
    if fault is None or fault.kind != "disconnect":
        return steps
    if fault.after_bytes is None:
        return [Close(fault.reset)]
    left = fault.after_bytes
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Send):
            kept.append(Send(step.data[:left]))
            left -= len(step.data)
            if left <= 0:
                break
        else:
            kept.append(step)
    return [*kept, Close(fault.reset)]


def _stream_head(wire: Wire) -> bytes:
    headers = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked"), ("cache-control", "no-cache")]
    if wire.server == "tgi":
        headers += [("x-accel-buffering", "no"), ("x-compute-type", "fake")]
    elif wire.server == "vllm":
        headers[0] = ("content-type", "text/event-stream; charset=utf-8")
    return head(200, headers, wire.extra, keep_alive=wire.keep_alive)


def _compute_headers(wire: Wire, asked: Asked, tokens: int) -> Pairs:
    if wire.server != "tgi":
        return wire.extra
    characters = sum(map(len, asked.prompts))
    prompt_tokens = sum(len(split_tokens(prompt)) for prompt in asked.prompts)
    own = [
        ("x-compute-type", "fake"),
        ("x-compute-characters", str(characters)),
        ("x-prompt-tokens", str(prompt_tokens)),
        ("x-generated-tokens", str(tokens)),
    ]
    return [*own, *wire.extra]


def _says(status: int) -> str:
    return {429: "Too many requests", 500: "Internal error", 502: "Bad gateway", 504: "Gateway timeout"}.get(
        status, "Service unavailable" if status >= 500 else "Refused"
    )
