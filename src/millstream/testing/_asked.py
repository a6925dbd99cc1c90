"""What a generation request asks for, the same for all APIs; the reading and checking of values. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from millstream.testing._answers import Refusal, error, text_answer
from millstream.testing._behaviour import Api, Server

__all__ = ["Asked", "Reader"]


@dataclasses.dataclass(slots=True, kw_only=True)
class Asked:
    """A checked generation request."""

    api: Api
    model: str
    prompts: list[str]
    stream: bool = False
    max_tokens: int | None = None
    stop: list[str] = dataclasses.field(default_factory=list[str])
    n: int = 1
    seed: int | None = None
    sampling: tuple[Any, ...] = ()
    """Whatever else changes the drawn words."""
    logprobs: bool = False
    top_logprobs: int = 0
    usage: bool = False
    """Whether a stream was asked to report usage."""
    continuous_usage: bool = False
    tools: bool = False
    echo: bool = False
    details: bool = False
    prefill: bool = False
    full_text: bool = False
    as_list: bool = False
    best_of: int = 1
    do_sample: bool = True


_RUST_NAMES = {bool: "a boolean", int: "u32", float: "f32", str: "a string", list: "a sequence", dict: "a map"}


class Reader:
    """Reads values from a request's body, and refuses wrong types in the words of one server."""

    def __init__(self, server: Server, body: dict[str, Any], size: int, *, path: str = "") -> None:
        self.server: Server = server
        self.body = body
        self.size = size
        self.path = path

    def get(self, name: str, kind: type, *, nullable: bool = True) -> Any:
        """The value of this name; None where it is missing, or null.

        Raises:
            Refusal: it has another type (an int is a float, a bool is neither).
        """
        value = self.body.get(name)
        if value is None:
            if name in self.body and not nullable and self.server == "tgi":
                raise self.wrong_type(name, value, kind)
            return None
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong_type(name, value, kind)
        return value

    def missing(self, name: str) -> Refusal:
        """The field is required."""
        if self.server == "tgi":
            return self.undecodable(f"missing field `{name}`")
        if self.server == "vllm":
            return error(
                self.server, 400, f"1 validation error: Field required: {name}", "Bad Request", param=f"body.{name}"
            )
        return error(self.server, 400, f"[json.exception.out_of_range.403] key '{name}' not found")

    def wrong_type(self, name: str, value: Any, kind: type) -> Refusal:
        """The field has a value of another type."""
        if self.server == "tgi":
            shown = "null" if value is None else f"{_json_name(value)}"
            return self.undecodable(f"{self.path}{name}: invalid type: {shown}, expected {_RUST_NAMES[kind]}")
        if self.server == "vllm":
            text = f"1 validation error: Input should be a valid {_json_name(kind())}: {name}"
            return error(self.server, 400, text, "Bad Request", param=f"body.{name}")
        text = f"[json.exception.type_error.302] type must be {_json_name(kind())}, but is {_json_name(value)}"
        return error(self.server, 400, f"Field '{name}': {text}")

    def undecodable(self, why: str) -> Refusal:
        """What axum says about JSON of the wrong shape: plain text."""
        prefix = "Failed to deserialize the JSON body into the target type"
        return Refusal(text_answer(422, f"{prefix}: {why} at line 1 column {self.size}"))

    def invalid(self, message: str, error_type: str = "validation", *, param: str | None = None) -> Refusal:
        """A value that is not possible."""
        if self.server == "tgi":
            prefix = "Input validation error: " if error_type == "validation" else ""
            return error(self.server, 422, prefix + message, error_type)
        own = "" if error_type == "validation" else error_type
        return error(self.server, 400, message, own, param=param)


def _json_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "null" if value is None else "array" if isinstance(value, list) else "object"
