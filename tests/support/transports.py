"""A transport whose answers are written in the test: for whatever needs the manual clock, where sockets can't be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec

from millstream._errors import DeadlineError
from millstream._transport._seam import Request, Response


def chat_events(*texts: str, end: bool = False) -> list[bytes]:
    """Each text as an event of a streamed chat, with the end that belongs to it if `end` is set."""

    def event(choice: dict[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode({"choices": [{"index": 0, **choice}]}) + b"\n\n"

    events = [event({"delta": {"content": text}, "finish_reason": None}) for text in texts]
    return [*events, event({"delta": {}, "finish_reason": "stop"}), b"data: [DONE]\n\n"] if end else events


class Answer:
    """One answer of a `ScriptedTransport`."""

    def __init__(
        self, status: int, headers: dict[str, str], pieces: Sequence[bytes], every: float, stalls: bool
    ) -> None:
        self.status = status
        self.headers = tuple((name.encode(), value.encode()) for name, value in headers.items())
        self.pieces = pieces
        self.every = every
        self.stalls = stalls

    @classmethod
    def json(cls, value: Any, status: int = 200, after: float = 0.0, **headers: str) -> Answer:
        """A whole answer, `after` so many seconds."""
        named = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return cls(status, named, [msgspec.json.encode(value)], after, stalls=False)

    @classmethod
    def stream(cls, pieces: Sequence[bytes], every: float = 0.0, *, stalls: bool = True) -> Answer:
        """A stream, one piece `every` so many seconds; then silence (`stalls`) or the end of the connection."""
        return cls(200, {"content-type": "text/event-stream"}, pieces, every, stalls)

    @classmethod
    def chat(cls, text: str, after: float = 0.0) -> Answer:
        """A whole chat answer."""
        return cls.json({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}, after=after)


class ScriptedTransport:
    """Gives the answers in order, the last one for ever; errors among them are raised. Keeps the requests."""

    def __init__(self, *answers: Answer | Exception | Callable[[Request], Answer]) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.open_bodies = 0
        self.closed = False

    async def send(self, request: Request) -> Response:
        self.requests.append(request)
        self.times.append(anyio.current_time())
        answer: Any = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            await anyio.sleep(0)
            raise answer
        if not isinstance(answer, Answer):
            answer = answer(request)
        if request.stream:
            return Response(answer.status, answer.headers, stream=_Body(self, answer))
        await anyio.sleep(answer.every)
        return Response(answer.status, answer.headers, b"".join(answer.pieces))

    async def aclose(self) -> None:
        self.closed = True

    @property
    def bodies(self) -> list[Any]:
        """The requests' bodies, decoded."""
        return [msgspec.json.decode(request.body) for request in self.requests]


class _Body:
    def __init__(self, owner: ScriptedTransport, answer: Answer) -> None:
        self._owner = owner
        self._answer = answer
        self._left = list(answer.pieces)
        self._open = True
        owner.open_bodies += 1

    async def receive(self, deadline: float = math.inf) -> bytes:
        with anyio.CancelScope(deadline=deadline):
            if self._left or not self._answer.stalls:
                await anyio.sleep(self._answer.every)
                return self._left.pop(0) if self._left else b""
            await anyio.sleep_forever()
        raise DeadlineError(deadline="read")

    async def aclose(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._owner.open_bodies -= self._open
        self._open = False
