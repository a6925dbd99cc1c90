"""What the origin answers, and what a client must have understood of it."""

from __future__ import annotations

import json

TOKENS = tuple(f" word{number}" for number in range(64))
"""The tokens of one stream, one a chunk."""
STREAM_TEXT = "".join(TOKENS)

ANSWER_TEXT = (
    "The sky is blue because air scatters short waves more than long ones: by the fourth power of the frequency, so "
    "that of the sunlight which misses us, the blue part comes down from everywhere."
)

_CREATED = 1_760_000_000
_MODEL = "static-1b"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _completion() -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": ANSWER_TEXT},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 19, "completion_tokens": 38, "total_tokens": 57}
    return _json(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion",
            "created": _CREATED,
            "model": _MODEL,
            "system_fingerprint": "1.0-static",
            "choices": [choice],
            "usage": usage,
        }
    )


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": _MODEL,
        "system_fingerprint": "1.0-static",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
    }
    return b"data: " + _json(chunk) + b"\n\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_BODY = _completion()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nserver: static\r\ncontent-type: application/json\r\nx-request-id: 0123456789abcdef\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)
"""A whole answer to a request that does not stream."""

_GENERATED = _json([{"generated_text": ANSWER_TEXT}])
GENERATED = (
    b"HTTP/1.1 200 OK\r\nserver: static\r\ncontent-type: application/json\r\nx-request-id: 0123456789abcdef\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_GENERATED), _GENERATED)
)
"""The same as the text-generation task has it."""

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: static\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\nx-request-id: 0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_EVENTS = (
    *(_event({"role": "assistant", "content": token}) for token in TOKENS),
    _event({}, "stop"),
    b"data: [DONE]\n\n",
)
"""The body of a streamed answer: one event a token, then the finish reason, then the end."""
STREAM_PIECES = (*map(_chunked, STREAM_EVENTS[:-1]), _chunked(STREAM_EVENTS[-1]) + b"0\r\n\r\n")
"""The same as it is sent: one HTTP chunk an event."""
