"""Answers that are no generation: errors in each server's words, and HTTP's bytes. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from millstream.testing._behaviour import Server

__all__ = ["Answer", "Refusal", "error", "json_answer", "text_answer"]

Pairs = tuple[tuple[str, str], ...]


@dataclasses.dataclass(slots=True)
class Answer:
    """A complete answer."""

    status: int
    body: bytes = b""
    headers: Pairs = ()

    def encode(self, extra: Iterable[tuple[str, str]], *, keep_alive: bool, bodyless: bool = False) -> bytes:
        """The bytes on the wire; `bodyless`: those for a HEAD request."""
        headers = (*self.headers, ("content-length", str(len(self.body))))
        return head(self.status, headers, extra, keep_alive=keep_alive) + (b"" if bodyless else self.body)


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """Stops the handling of a request with an answer.

    ``late`` marks what the real server finds only after a stream's head is out (tgi): the answer to a streaming
    request is then a 200 with an error event.
    """

    def __init__(self, answer: Answer, message: str = "", error_type: str = "", *, late: bool = False) -> None:
        super().__init__(message)
        self.answer = answer
        self.message = message
        self.error_type = error_type
        self.late = late


def head(
    status: int, headers: Iterable[tuple[str, str]], extra: Iterable[tuple[str, str]], *, keep_alive: bool
) -> bytes:
    """Status line and header lines; `extra` replaces headers of the same name."""
    merged = {name.lower(): value for name, value in (*headers, *extra)}
    if not keep_alive:
        merged["connection"] = "close"
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = "".join(f"{name}: {value}\r\n" for name, value in merged.items())
    return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1", "replace")


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def json_answer(status: int, body: Any, headers: Pairs = ()) -> Answer:
    """An answer with a JSON body; str and bytes are sent as they are, None is an empty body."""
    if body is None:
        return Answer(status, b"", headers)
    if isinstance(body, bytes | str):
        raw = body.encode() if isinstance(body, str) else body
        return Answer(status, raw, (("content-type", "text/plain; charset=utf-8"), *headers))
    return Answer(status, msgspec.json.encode(body), (("content-type", "application/json"), *headers))


def text_answer(status: int, text: str) -> Answer:
    """A plain text answer."""
    return Answer(status, text.encode(), (("content-type", "text/plain; charset=utf-8"),))


def error_body(server: Server, status: int, message: str, error_type: str = "", param: str | None = None) -> Any:
    """An error object as this server writes it; `error_type` "": the one that it uses for the status."""
    if server == "tgi":
        return {"error": message, "error_type": error_type or _TGI_TYPES.get(status, "generation")}
    if server == "vllm":
        kind = error_type or _phrase(status)
        return {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return {
        "error": {"code": status, "message": message, "type": error_type or _LLAMACPP_TYPES.get(status, "server_error")}
    }


def event_error(server: Server, status: int, message: str, error_type: str = "", *, openai: bool = True) -> Any:
    """The same inside a stream (tgi's OpenAI routes claim 422 for every error)."""
    if server == "tgi" and openai:
        return {"error": {"message": message, "http_status_code": 422}}
    return error_body(server, status, message, error_type)


def error(server: Server, status: int, message: str, error_type: str = "", *, param: str | None = None) -> Refusal:
    """A refusal in this server's words.

    tgi finds a bad value, or that its queue is full, only after the head of a stream is out.
    """
    body = error_body(server, status, message, error_type, param)
    return Refusal(
        json_answer(status, body),
        message,
        error_type,
        late=server == "tgi" and error_type in {"validation", "overloaded"},
    )


def missing_route(server: Server, *, wrong_method: bool = False) -> Refusal:
    """Unknown path, or known path and wrong method (which llama.cpp does not tell apart)."""
    status = 405 if wrong_method and server != "llamacpp" else 404
    if server == "tgi":
        return Refusal(Answer(status))
    if server == "vllm":
        return error(server, status, _phrase(status))
    return error(server, 404, "File Not Found")


def unauthorized(server: Server) -> Refusal:
    """No key, or the wrong one."""
    if server == "tgi":
        return Refusal(Answer(401))
    if server == "vllm":
        return Refusal(json_answer(401, {"error": "Unauthorized"}))
    return error(server, 401, "Invalid API Key")


def overloaded(server: Server) -> Refusal:
    """The queue is full."""
    if server == "tgi":
        return error(server, 429, "Model is overloaded", "overloaded")
    if server == "vllm":
        message = "The engine is currently busy and cannot accept new requests. Please try again later."
        return error(server, 503, message, "Service Unavailable")
    return error(server, 503, "No slot is free and the queue is full")


def scaled_to_zero() -> Refusal:
    """The replica is not up: what the proxy in front of a dedicated endpoint says."""
    return Refusal(json_answer(503, {"error": "503 Service Unavailable"}))


def loading(server: Server, model: str, seconds: float) -> Refusal:
    """The model is not loaded, and will be after so many seconds."""
    if server == "llamacpp":
        return error(server, 503, "Loading model")
    body = {"error": f"Model {model} is currently loading", "estimated_time": round(seconds, 1)}
    return Refusal(json_answer(503, body))


def rate_limited(server: Server) -> Refusal:
    """Too many requests in this window: what a gateway in front of the server says."""
    message = "Rate limit reached. Please slow down."
    return Refusal(json_answer(429, {"error": message} if server == "tgi" else error_body(server, 429, message)))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


_TGI_TYPES = {422: "validation", 424: "generation", 429: "overloaded", 500: "incomplete_generation", 503: "healthcheck"}
_LLAMACPP_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
