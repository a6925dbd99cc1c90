"""`response_format`: a type, a JSON schema or a wire's own shape, as each dialect writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from millstream._errors import OptionTypeError, OptionValueError

__all__ = ["grammar", "openai_response_format", "tgi_response_format"]

_WIRE_TYPES = frozenset({"text", "json", "json_object", "json_schema", "regex", "grammar", "structural_tag"})
"""The ``type`` of a wire's own shape; none of them is a type of JSON schema."""

_REFERENCES = "#/$defs/{name}"


def openai_response_format(value: Any) -> dict[str, Any]:
    """The ``response_format`` of the OpenAI-compatible dialects.

    Raises:
        OptionTypeError: a type that has no JSON schema.
    """
    if isinstance(value, Mapping):
        if not _is_wire_shape(value):
            return _openai_schema(_name_of(value.get("title")), dict(value))
        if value["type"] == "json" and isinstance(value.get("value"), Mapping):  # as text-generation has it
            return _openai_schema("response", dict(value["value"]))
        return dict(value)
    return _openai_schema(_name_of(value.__name__), _schema_of(value))


def grammar(value: Any) -> dict[str, Any] | None:
    """The ``grammar`` of the text-generation dialect; None for plain text.

    Raises:
        OptionTypeError: a type that has no JSON schema.
        OptionValueError: a shape without the schema that this dialect needs.
    """
    if not isinstance(value, Mapping):
        return {"type": "json", "value": _schema_of(value)}
    if not _is_wire_shape(value):
        return {"type": "json", "value": dict(value)}
    if value["type"] == "text":
        return None
    if "value" in value:
        return dict(value)
    named = value.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else value.get("schema")
    if not isinstance(schema, Mapping):
        raise OptionValueError(
            f"a text-generation endpoint needs the schema itself, response_format={dict(value)!r} has none; "
            "give a JSON schema with 'properties', or a msgspec.Struct type"
        )
    return {"type": "json", "value": dict(schema)}


def tgi_response_format(value: Any) -> dict[str, Any] | None:
    """OpenAI's ``response_format`` with a schema as TGI writes it, None for any other."""
    schema = value.get("json_schema") if isinstance(value, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(schema.get("schema"), Mapping):
        return None
    return {"type": "json_object", "value": dict(schema["schema"])}


def _is_wire_shape(value: Mapping[str, Any]) -> bool:
    kind = value.get("type")
    return isinstance(kind, str) and kind in _WIRE_TYPES


def _openai_schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def _name_of(title: Any) -> str:
    """A name that every server takes: letters, digits, ``_`` and ``-``, at most 64."""
    return (
        re.sub(r"[^A-Za-z0-9_-]+", "_", title)[:64].strip("_") or "response" if isinstance(title, str) else "response"
    )


@lru_cache(maxsize=128)
def _schema_of(kind: type[Any]) -> dict[str, Any]:
    """The schema with the type's own properties at the top: TGI refuses one that begins with a reference."""
    try:
        (top,), definitions = msgspec.json.schema_components((kind,), ref_template=_REFERENCES)
    except TypeError as error:
        raise OptionTypeError(f"response_format: {kind.__name__} has no JSON schema: {error}") from None
    for definition in definitions.values():
        _forbid_unknown(definition)
    reference: str | None = top.get("$ref")
    if reference is None:
        return top
    own = reference.rpartition("/")[2]
    schema = dict(definitions[own])
    if not _refers_to(definitions, reference):
        del definitions[own]
    return {**schema, "$defs": definitions} if definitions else schema


def _forbid_unknown(schema: dict[str, Any]) -> None:
    """``strict`` servers ask for it, and an object of a known type has no other fields."""
    if schema.get("type") == "object" and "properties" in schema:
        schema.setdefault("additionalProperties", False)


def _refers_to(value: Any, reference: str) -> bool:
    if isinstance(value, dict):
        return value.get("$ref") == reference or any(_refers_to(item, reference) for item in value.values())
    return isinstance(value, list) and any(_refers_to(item, reference) for item in value)
