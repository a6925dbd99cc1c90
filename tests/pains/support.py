"""A transport without sockets, for what happens over minutes: it goes with the manual clock."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from millstream import AsyncCaller, DeadlineError, HuggingFaceInference
from millstream._transport._seam import Request, Response
from tests.conftest import manual_backends

URL = "http://127.0.0.1:9/v1"
"""Where models with a `MemoryTransport` believe to be; nobody listens there."""

MANUAL_CLOCK = {"argnames": "anyio_backend", "argvalues": manual_backends()}
"""``@pytest.mark.parametrize(**MANUAL_CLOCK)``: minutes pass at once, and to the microsecond."""


@contextmanager
def new_objects() -> Iterator[Callable[[], int]]:
    """Gives a function that counts the objects made since, which are still there."""
    gc.collect()
    gc.freeze()  # what was there before is passed over, which is also quick

    def count() -> int:
        gc.collect()
        # asyncio keeps up to a hundred timers that were cancelled, and then clears them away.
        return sum(type(thing).__name__ not in {"TimerHandle", "Context"} for thing in gc.get_objects())

    try:
        yield count
    finally:
        gc.unfreeze()


def impatient(**settings: Any) -> AsyncCaller:
    """A caller whose computed waits are all 0 s: for retries over sockets."""
    return AsyncCaller(**{"random": lambda: 0.0, **settings})


def chat(text: str = "fine", *, prompt_tokens: int = 3, output_tokens: int = 2) -> Response:
    """A whole answer of ``/v1/chat/completions``."""
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens},
    }
    return Response(200, ((b"content-type", b"application/json"),), json.dumps(body).encode())


def refusal(status: int, message: str = "no", **headers: str) -> Response:
    """An error answer; ``retry_after="2"`` becomes a header."""
    lines = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    body = json.dumps({"error": {"message": message}}).encode()
    return Response(status, ((b"content-type", b"application/json"), *lines), body)


def event(delta: str | None = None, *, finish: str | None = None) -> bytes:
    """One event of a chat's stream."""
    content = {} if delta is None else {"content": delta}
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": content, "finish_reason": finish}]}).encode()


DONE = b"data: [DONE]\n\n"


class MemoryStream:
    """A body that comes piece by piece: bytes at once, numbers are seconds of silence. It ends, or is silent for ever."""

    def __init__(self, pieces: Iterable[bytes | float]) -> None:
        self._pieces = iter(pieces)
        self.closed = self.aborted = False
        self.read: float | None = None
        """`Timeouts.read` of the request, which holds for each piece."""

    async def receive(self, deadline: float = math.inf) -> bytes:
        if self.read is not None:
            deadline = min(deadline, anyio.current_time() + self.read)
        for piece in self._pieces:
            if isinstance(piece, bytes):
                return piece
            with anyio.CancelScope(deadline=min(deadline, anyio.current_time() + piece)):
                await anyio.sleep_forever()
            if anyio.current_time() >= deadline:
                raise DeadlineError(deadline="read")
        return b""

    async def aclose(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def stream_of(*pieces: bytes | float, endless: Iterable[bytes | float] = ()) -> Response:
    """An answer that is an event stream."""

    def all_pieces() -> Iterable[bytes | float]:
        yield from pieces
        yield from endless

    return Response(200, ((b"content-type", b"text/event-stream"),), stream=MemoryStream(all_pieces()))


Answer = Callable[[int, dict[str, Any]], Awaitable[Response]]
"""What answers request number n (from 0), given its JSON."""


class MemoryTransport:
    """Carries requests nowhere; remembers when each began, and how many were under way at most."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.began: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0

    async def send(self, request: Request) -> Response:
        number = len(self.began)
        self.began.append(anyio.current_time())
        self.bodies.append(json.loads(request.body))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + (request.timeouts.read or math.inf)):
                response = await self._answer(number, self.bodies[number])
                if request.stream and response.stream is None:
                    response.stream = MemoryStream([response.body])
                if isinstance(response.stream, MemoryStream):
                    response.stream.read = request.timeouts.read
                return response
            raise DeadlineError(deadline="read", seconds=request.timeouts.read)
        finally:
            self.in_flight -= 1

    async def aclose(self) -> None:
        """Nothing is open."""

    def waits(self) -> list[float]:
        """Seconds from each request to the next."""
        return [round(later - earlier, 6) for earlier, later in zip(self.began, self.began[1:], strict=False)]


def model_at(answer: Answer, **options: Any) -> tuple[HuggingFaceInference, MemoryTransport]:
    """A chat model whose requests `answer` answers."""
    transport = MemoryTransport(answer)
    return HuggingFaceInference(**{"endpoint_url": URL, "api": "chat", "transport": transport, **options}), transport


def prompt_of(body: dict[str, Any]) -> str:
    """The text of the last message that a request asked about."""
    return str(body["messages"][-1]["content"])
