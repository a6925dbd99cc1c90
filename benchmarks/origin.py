"""A server that costs next to nothing: static answers, so that what is measured is the client.

`python -m benchmarks.origin` prints one line of JSON, the port of each behaviour, and serves until its input ends.
Every port answers requests that do not stream at once; they differ in how they stream:

- ``coalesced``: everything in one write;
- ``spaced``: one write a token, `--gap` seconds apart;
- ``sparse``: the same 16 times as far apart, so that 1024 streams bring as many tokens a second as 64 that are spaced;
- ``first``: the first token at once, all others in one write a moment later;
- ``held``: the first token, and then nothing until the client leaves.

and in how they answer requests that do not stream (the others do so at once, as they all do where a ``/models/...`` is
asked for a text-generation task):

- ``silent``: not before they are told to; they are asked how many wait (`control.py`);
- ``late``: after `--late` seconds; they are asked when the requests came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from time import perf_counter
from typing import Any, ClassVar, cast

from .answers import ANSWER, GENERATED, STREAM_HEAD, STREAM_PIECES
from .machine import allow_many_files, new_loop, pin

_STREAM = b'"stream":true'
_STREAM_SPACED = b'"stream": true'
_TASK = b"POST /models/"
_WHOLE_STREAM = STREAM_HEAD + b"".join(STREAM_PIECES)
_FIRST_OF_STREAM = STREAM_HEAD + STREAM_PIECES[0]
_REST_OF_STREAM = b"".join(STREAM_PIECES[1:])
_SPARSE = 16


class Coalesced(asyncio.Protocol):
    """Understands just as much HTTP as it must: where a request ends, and whether it asks for a stream."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            self._received = data
            return
        body_start = head_end + 4
        if len(data) < body_start + _content_length(data, head_end):
            self._received = data
            return
        self._received = b""
        transport = self._transport
        assert transport is not None
        if not data.startswith(b"POST "):
            transport.write(json.dumps(self.told(data[:head_end].decode())).encode() + b"\n")
        elif data.startswith(_TASK):
            transport.write(GENERATED)
        elif data.find(_STREAM, body_start) < 0 and data.find(_STREAM_SPACED, body_start) < 0:
            self.answer(transport)
        else:
            self.stream(transport)

    def told(self, word: str) -> Any:
        """The answer to a word of the measurement."""
        return f"{word!r} means nothing here"

    def answer(self, transport: asyncio.Transport) -> None:
        transport.write(ANSWER)

    def stream(self, transport: asyncio.Transport) -> None:
        transport.write(_WHOLE_STREAM)


def _write(transport: asyncio.Transport, data: bytes) -> None:
    """Unless the client has left: uvloop's transports raise then."""
    if not transport.is_closing():
        transport.write(data)


def _content_length(data: bytes, head_end: int) -> int:
    start = data.find(b"ontent-", 0, head_end)
    while start >= 0 and data[start + 7 : start + 14].lower() != b"length:":
        start = data.find(b"ontent-", start + 7, head_end)
    if start < 0:
        return 0
    end = data.find(b"\r", start)
    return int(data[start + 14 : end])


class Held(Coalesced):
    def stream(self, transport: asyncio.Transport) -> None:
        transport.write(_FIRST_OF_STREAM)


class First(Coalesced):
    def stream(self, transport: asyncio.Transport) -> None:
        transport.write(_FIRST_OF_STREAM)
        asyncio.get_running_loop().call_later(0.001, _write, transport, _REST_OF_STREAM)


class Silent(Coalesced):
    waiting: ClassVar[set[Silent]] = set()

    def answer(self, transport: asyncio.Transport) -> None:
        self.waiting.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.waiting.discard(self)  # a client that was given up does not wait

    def told(self, word: str) -> Any:
        """``waiting``: how many; ``release``: answer them all."""
        count = len(self.waiting)
        if word == "release":
            for each in self.waiting:
                if each._transport is not None:
                    each._transport.write(ANSWER)
            self.waiting.clear()
        return count


class Late(Coalesced):
    seconds: ClassVar[float] = 2.0
    arrivals: ClassVar[list[float]] = []
    queue: ClassVar[deque[tuple[float, asyncio.Transport]]] = deque()

    def answer(self, transport: asyncio.Transport) -> None:
        now = perf_counter()
        self.arrivals.append(now)
        self.queue.append((now + self.seconds, transport))
        if len(self.queue) == 1:
            asyncio.get_running_loop().call_later(self.seconds, self._answer_due)

    @classmethod
    def _answer_due(cls) -> None:
        """One timer for all: who asked first is answered first."""
        now = perf_counter()
        while cls.queue and cls.queue[0][0] <= now:
            _write(cls.queue.popleft()[1], ANSWER)
        if cls.queue:
            asyncio.get_running_loop().call_later(cls.queue[0][0] - now, cls._answer_due)

    def told(self, word: str) -> Any:
        """``arrivals``: the latency, and when each request came since this was last asked."""
        arrivals = self.arrivals.copy()
        self.arrivals.clear()
        return {"seconds": self.seconds, "arrivals": arrivals}


class Metronome:
    """Gives each open stream its next piece at each tick: one timer for all of them, in groups spread over the gap.

    Streams that all got their token in the same moment would let a client handle 64 of them in one turn of its loop.
    More groups than milliseconds in the gap would not help: that is how fine uvloop's timers are.
    """

    def __init__(self, gap: float, groups: int) -> None:
        self._interval = gap / groups
        self._groups: list[dict[Spaced, int]] = [{} for _ in range(groups)]
        self._turn = 0
        self._next = 0.0
        self._running = False

    def add(self, stream: Spaced) -> None:
        min(self._groups, key=len)[stream] = 0
        if not self._running:
            self._running = True
            loop = asyncio.get_running_loop()
            self._next = loop.time() + self._interval
            loop.call_at(self._next, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._next <= now:
            group = self._groups[self._turn]
            self._turn = (self._turn + 1) % len(self._groups)
            self._next += self._interval
            for stream, position in list(group.items()):
                if stream.send(position):
                    group[stream] = position + 1
                else:
                    del group[stream]
        if any(self._groups):
            loop.call_at(self._next, self._tick)
        else:
            self._running = False


class Spaced(Coalesced):
    metronome: Metronome

    def stream(self, transport: asyncio.Transport) -> None:
        transport.write(STREAM_HEAD)
        self.metronome.add(self)

    def send(self, position: int) -> bool:
        """Write the piece at `position`; whether there are more."""
        if self._transport is None:
            return False
        self._transport.write(STREAM_PIECES[position])
        return position + 1 < len(STREAM_PIECES)


class Sparse(Spaced):
    pass


async def serve(gap: float, late: float) -> None:
    Spaced.metronome = Metronome(gap, groups=2)
    Sparse.metronome = Metronome(gap * _SPARSE, groups=2 * _SPARSE)
    Late.seconds = late
    loop = asyncio.get_running_loop()
    ports: dict[str, int] = {}
    for behaviour in (Coalesced, Spaced, Sparse, First, Held, Silent, Late):
        server = await loop.create_server(behaviour, "127.0.0.1", 0, backlog=4096)
        ports[behaviour.__name__.lower()] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--core", type=int, help="the core to stay on")
    parser.add_argument("--gap", type=float, default=0.002, help="seconds between two tokens of a spaced stream")
    parser.add_argument("--late", type=float, default=2.0, help="seconds until a late answer")
    options = parser.parse_args()
    pin(options.core)
    allow_many_files()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(options.gap, options.late))


if __name__ == "__main__":
    main()
