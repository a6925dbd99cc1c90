"""Bytes to requests: one HTTP/1.1 connection, without a socket."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import httptools

__all__ = ["NotHttpError", "RawRequest", "RequestParser"]

_MAX_BODY = 64 * 1024 * 1024  # a client under test may run wild; this much is never meant


class NotHttpError(Exception):
    """The bytes are no HTTP request."""


@dataclasses.dataclass(slots=True)
class RawRequest:
    """A complete request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class RequestParser:
    """`receive_data` takes whatever arrives; complete requests collect in `requests`."""

    def __init__(self) -> None:
        self.requests: deque[RawRequest] = deque()
        self.expects_continue = False
        """The client waits for ``100 Continue`` before it sends its body."""
        self._parser: Any = httptools.HttpRequestParser(self)
        self._clear()

    def _clear(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0

    def receive_data(self, data: bytes) -> None:
        """Take more bytes.

        Raises:
            NotHttpError: they are no HTTP request, or one with a huge body.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise NotHttpError("no upgrades here") from None
        except httptools.HttpParserError as error:
            raise NotHttpError(str(error)) from None
        if self._size > _MAX_BODY:
            raise NotHttpError("body too large")

    # called by the parser

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.expects_continue = self._headers.get("expect", "").lower() == "100-continue"

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        self.expects_continue = False
        method = self._parser.get_method().decode("latin-1")
        keep_alive = self._parser.should_keep_alive()
        target = self._target.decode("latin-1")
        self.requests.append(RawRequest(method, target, self._headers, b"".join(self._body), keep_alive))
        self._clear()
