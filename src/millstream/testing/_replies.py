"""A generation in a server's own form: the text-generation task here, the OpenAI-compatible APIs beside. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from millstream.testing._asked import Asked
from millstream.testing._text import EOS, Output, draw_words, logprob, split_tokens, token_id

__all__ = ["DONE", "StreamEvent", "data", "text_generation_events", "text_generation_whole"]

_FINISH = {"length": "length", "eos": "eos_token", "stop": "stop_sequence"}


class StreamEvent(NamedTuple):
    """One server-sent event."""

    data: bytes
    """Ready for the wire, blank line included."""
    step: int
    """The number of the token with which it goes out, from 1."""
    text: bool = True
    """Whether it carries a token (a fault's ``after_events`` counts these)."""


DONE = b"data: [DONE]\n\n"


def data(value: Any) -> bytes:
    """An event that carries this as JSON."""
    return b"data: %b\n\n" % msgspec.json.encode(value)


def text_generation_whole(asked: Asked, outputs: list[Output]) -> Any:
    """The body of an answer that is no stream."""
    output = outputs[0]
    body: dict[str, Any] = {"generated_text": _full_text(asked, output)}
    if asked.details:
        details = _sequence(asked, output)
        if asked.best_of > 1:
            details["best_of_sequences"] = [{"generated_text": body["generated_text"], **_sequence(asked, output)}]
        body["details"] = details
    return [body] if asked.as_list else body


def text_generation_events(asked: Asked, output: Output) -> list[StreamEvent]:
    """The events of a stream: one a token, the end-of-sequence token included."""
    tokens = _tokens(output)
    events: list[StreamEvent] = []
    for index, token in enumerate(tokens, start=1):
        event: dict[str, Any] = {"index": index, "token": token}
        if asked.top_logprobs:
            event["top_tokens"] = _top(token, asked.top_logprobs)
        last = index == len(tokens)
        event["generated_text"] = _full_text(asked, output) if last else None
        event["details"] = _stream_details(asked, output) if last and asked.details else None
        events.append(StreamEvent(data(event), index))
    return events


def _full_text(asked: Asked, output: Output) -> str:
    return asked.prompts[0] + output.text if asked.full_text else output.text


def _seed(asked: Asked) -> int | None:
    if asked.seed is not None:
        return asked.seed
    return None if not asked.do_sample else token_id(asked.prompts[0])


def _stream_details(asked: Asked, output: Output) -> dict[str, Any]:
    return {
        "finish_reason": _FINISH[output.finish],
        "generated_tokens": output.count,
        "seed": _seed(asked),
        "input_length": len(split_tokens(asked.prompts[0])),
    }


def _sequence(asked: Asked, output: Output) -> dict[str, Any]:
    tokens = _tokens(output)
    details: dict[str, Any] = {
        "finish_reason": _FINISH[output.finish],
        "generated_tokens": output.count,
        "seed": _seed(asked),
        "prefill": _prefill(asked.prompts[0]) if asked.prefill else [],
        "tokens": tokens,
    }
    if asked.top_logprobs:
        details["top_tokens"] = [_top(token, asked.top_logprobs) for token in tokens]
    return details


def _tokens(output: Output) -> list[dict[str, Any]]:
    tokens = [_token(token) for token in output.tokens]
    if output.finish == "eos":
        tokens.append(_token(EOS, special=True))
    return tokens


def _token(text: str, *, special: bool = False) -> dict[str, Any]:
    return {"id": token_id(text), "text": text, "logprob": logprob(text), "special": special}


def _top(token: dict[str, Any], count: int) -> list[dict[str, Any]]:
    others = [
        {**_token(word), "logprob": token["logprob"] - rank}
        for rank, word in enumerate(draw_words(token["text"], count - 1), start=1)
    ]
    return [token, *others]


def _prefill(prompt: str) -> list[dict[str, Any]]:
    tokens = [{"id": token_id(t), "text": t, "logprob": logprob(t)} for t in split_tokens(prompt)]
    return [{"id": 1, "text": "<s>", "logprob": None}, *tokens]
