"""What can go wrong between an endpoint and its client, and how long things take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["Fault", "FaultKind", "Latency"]

FaultKind = Literal["status", "disconnect", "stall", "truncate", "error_event", "garbage", "error_in_200", "slow"]


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """How long generation takes, in seconds. All zero (the default) means that nothing is waited for at all."""

    first_token: float = 0.0
    """From the moment a request has a slot to its first token."""
    inter_token: float = 0.0
    """From one token to the next."""
    jitter: float = 0.0
    """Up to this much more, evenly drawn with the endpoint's seed, before each first token."""
    load: float = 0.0
    """Added to `inter_token` for every other request that is generating: a batch that grows makes each token slower."""

    @property
    def zero(self) -> bool:
        """Whether nothing is waited for."""
        return not (self.first_token or self.inter_token or self.jitter or self.load)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, made by one of the constructors below. It strikes generation requests only.

    ``times`` is the number of requests in a row that it strikes when it is queued (`FakeEndpoint.fail`). Where a
    constructor takes ``after_events``, that many pieces of text are sent first (the events of a stream that open or
    close it are not counted); for an answer that is not streamed, the fault strikes in the middle of the body.
    """

    kind: FaultKind
    times: int = 1
    status_code: int = 200
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    after_events: int | None = None
    after_bytes: int | None = None
    seconds: float = 0.0
    reset: bool = False
    message: str = ""

    @classmethod
    def status(
        cls, status_code: int = 503, *, body: Any = None, headers: Mapping[str, str] | None = None, times: int = 1
    ) -> Fault:
        """Answer with this status instead of generating.

        Args:
            status_code: the HTTP status.
            body: str or bytes are sent as they are, anything else as JSON; None: what the server would say.
            headers: in addition to those that belong to the body, for example ``{"retry-after": "2"}``.
            times: how many requests it strikes.
        """
        return cls(kind="status", status_code=status_code, body=body, headers=_pairs(headers), times=times)

    @classmethod
    def html(cls, status_code: int = 502, *, times: int = 1) -> Fault:
        """Answer as a proxy in front of the server does: an HTML page."""
        title = f"<title>{status_code}</title>"
        page = f"<html>\r\n<head>{title}</head>\r\n<body><h1>{status_code} ERROR</h1></body>\r\n</html>"
        headers = (("content-type", "text/html"),)
        return cls(kind="status", status_code=status_code, body=page, headers=headers, times=times)

    @classmethod
    def disconnect(cls, after_bytes: int | None = None, *, reset: bool = False, times: int = 1) -> Fault:
        """Close the connection.

        Args:
            after_bytes: after that many bytes of the answer, counted from its status line; None: before the first.
            reset: with a TCP reset instead of an orderly end.
            times: how many requests it strikes.
        """
        return cls(kind="disconnect", after_bytes=after_bytes, reset=reset, times=times)

    @classmethod
    def stall(cls, after_events: int | None = None, *, times: int = 1) -> Fault:
        """Go silent until the client leaves; None: before the first byte. 0: after the head of a stream."""
        return cls(kind="stall", after_events=after_events, times=times)

    @classmethod
    def truncate(cls, after_events: int = 1, *, times: int = 1) -> Fault:
        """End a stream in good order, but without its finish; a whole answer loses the second half of its JSON."""
        return cls(kind="truncate", after_events=after_events, times=times)

    @classmethod
    def error_event(cls, after_events: int = 1, *, message: str = "", times: int = 1) -> Fault:
        """Fail in the middle of a stream, with the server's own error event; a whole answer becomes an error status.

        Args:
            after_events: pieces of text that are sent first.
            message: "": what the server says when its backend broke.
            times: how many requests it strikes.
        """
        return cls(kind="error_event", after_events=after_events, message=message, times=times)

    @classmethod
    def garbage(cls, after_events: int = 0, *, times: int = 1) -> Fault:
        """Send bytes that are no JSON where JSON belongs: an event of a stream, or the whole body."""
        return cls(kind="garbage", after_events=after_events, times=times)

    @classmethod
    def error_in_200(cls, *, body: Any = None, times: int = 1) -> Fault:
        """Answer 200 with an error object, also where a stream was asked for; None: a generic one."""
        return cls(kind="error_in_200", body=body, times=times)

    @classmethod
    def slow(cls, seconds: float, *, times: int = 1) -> Fault:
        """Wait that long before the first token, then answer as usual."""
        return cls(kind="slow", seconds=seconds, times=times)


def _pairs(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple((headers or {}).items())
