"""A server on loopback that fails as a script says, from refused connections to bytes that stop; and keeps a ledger."""

from __future__ import annotations

import math
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import anyio
import anyio.lowlevel
import msgspec

from .transports import chat_events


class Act(Enum):
    CLOSE = "close"
    RESET = "reset"
    STALL = "stall"


CLOSE, RESET, STALL = Act.CLOSE, Act.RESET, Act.STALL

Steps = Sequence[bytes | float | Act]
"""Bytes are sent, numbers are seconds of silence; an end that is not said is that of the answer."""


class Fault(NamedTuple):
    """What happens to one attempt."""

    steps: Steps | Callable[[bool], Steps] = ()
    """Or a function of whether a stream was asked for."""
    at: Literal["request", "accept", "listen"] = "request"
    """After the request was read; when the connection is accepted (before TLS); never, since none is."""


class Asked(NamedTuple):
    """One request."""

    time: float
    connection: int
    received: bytes
    """Head and body."""

    @property
    def streams(self) -> bool:
        return b'"stream":true' in self.received


def reply(status: str = "200 OK", body: Any = b"", **headers: str) -> bytes:
    """A whole answer; a body that is not bytes is written as JSON."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    kind = "text/html" if data.startswith(b"<") else "application/json"
    named = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, f"content-length: {len(data)}", "", ""]).encode() + data


def stream_head(**headers: str) -> bytes:
    """The head of a stream of events."""
    named = {"content-type": "text/event-stream", "transfer-encoding": "chunked", **headers}
    return "\r\n".join(["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in named.items()), "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
ANSWER = "fine"


def healthy(streams: bool) -> Steps:
    """A chat's answer, whole or streamed."""
    if streams:
        return [stream_head(), *map(chunk, chat_events("fi", "ne", end=True)), LAST_CHUNK]
    return [reply(body={"choices": [{"index": 0, "message": {"content": ANSWER}, "finish_reason": "stop"}]})]


class FaultServer:
    """Plays `fault` for as many attempts as `left` says, then answers.

    A connection counts as an attempt where the fault comes before its request, else each request does. Connections are
    refused until `listen`.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        """The ledger."""
        self.connections = 0
        """Accepted so far."""
        self.fault = Fault()
        self.left = 0.0
        self._tls = tls
        self._tasks = anyio.create_task_group()
        self._listener = _bound()
        self._fillers: list[socket.socket] = []
        self._peers: set[_Peer] = set()
        self._accepts = False

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def open(self) -> int:
        """Connections that the server has not yet closed."""
        return len(self._peers)

    def fail(self, fault: Fault, times: float = math.inf) -> None:
        """From now on `times` attempts end so."""
        self.fault, self.left = fault, times

    def listen(self) -> None:
        """Take connections; up to now they are refused."""
        if not self._accepts:
            self._accepts = True
            for filler in self._fillers:
                filler.close()
            self._listener.listen(100)
            self._tasks.start_soon(self._accept)

    def refuse(self) -> None:
        """Take no more connections, and end those that there are."""
        port = self.port
        for each in (self._listener, *(peer.socket for peer in self._peers)):
            anyio.notify_closing(each)
            each.close()
        self._listener = _bound(port)
        self._accepts = False

    def fill_up(self) -> None:
        """Listen without accepting, with a full queue: who connects hears nothing."""
        self._listener.listen(0)
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)

    def _turn(self, at: str) -> Fault | None:
        """The fault of this attempt, if it comes now."""
        if self.left < 1 or self.fault.at != at:
            return None
        self.left -= 1
        return self.fault

    async def _accept(self) -> None:
        listener = self._listener
        while True:
            try:
                await anyio.wait_readable(listener)
            except anyio.ClosedResourceError:
                return
            with suppress(BlockingIOError, ConnectionError):
                accepted = listener.accept()[0]
                accepted.setblocking(False)
                # Else the system would hold back what is sent in small pieces, in a time that is not that of the test.
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                peer = _Peer(accepted)
                self._peers.add(peer)
                self._tasks.start_soon(self._serve, peer, self.connections)

    async def _serve(self, peer: _Peer, number: int) -> None:
        try:
            fault = self._turn("accept")
            if fault is not None:
                await peer.play(fault.steps)
                return
            if self._tls is not None:
                await peer.secure(self._tls)
            while received := await peer.request():
                asked = Asked(anyio.current_time(), number, received)
                self.asked.append(asked)
                fault = self._turn("request")
                steps = healthy if fault is None else fault.steps
                if not await peer.play(steps(asked.streams) if callable(steps) else steps):
                    return
        except (OSError, anyio.ClosedResourceError):
            pass  # the client has gone, which is its right
        finally:
            self._peers.discard(peer)
            peer.close()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(*error)
        finally:
            for each in (*self._fillers, self._listener, *self._peers):
                each.close()


def _bound(port: int = 0) -> socket.socket:
    """A socket with an address of which nobody hears as yet."""
    bound = socket.socket()
    bound.setblocking(False)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # who does not read has soon enough of it
    bound.bind(("127.0.0.1", port))
    return bound


class _Peer:
    """The server's end of one connection."""

    def __init__(self, raw: socket.socket) -> None:
        self.socket = raw
        self._received = b""

    async def secure(self, tls: ssl.SSLContext) -> None:
        """Raises: OSError: the client does not want to."""
        self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        await self._when_ready(self.socket.do_handshake)  # type: ignore[attr-defined]

    async def request(self) -> bytes:
        """The next request, head and body; empty once the client has closed."""
        while b"\r\n\r\n" not in self._received:
            if not await self._more():
                return b""
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        while len(body) < length:
            if not await self._more():
                return b""
            body = self._received[len(head) + 4 :]
        self._received = body[length:]
        return head + b"\r\n\r\n" + body[:length]

    async def play(self, steps: Any) -> bool:
        """Do one step after the other; False once the connection is over."""
        for step in steps:
            if step is CLOSE:
                return False
            if step is RESET:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if step is STALL:
                while await self._more():
                    pass
            elif isinstance(step, bytes):
                left = memoryview(step)
                while left:
                    left = left[await self._when_ready(self.socket.send, left) :]
                await _let_the_client_look()
            else:
                await anyio.sleep(step)
        return True

    async def _more(self) -> bool:
        data: bytes = await self._when_ready(self.socket.recv, 65536)
        self._received += data
        return bool(data)

    async def _when_ready(self, function: Callable[..., Any], *args: Any) -> Any:
        writes = function == self.socket.send
        while True:
            try:
                return function(*args)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                writes = isinstance(error, ssl.SSLWantWriteError) or (writes and isinstance(error, BlockingIOError))
            await (anyio.wait_writable if writes else anyio.wait_readable)(self.socket)

    def close(self) -> None:
        self.socket.close()


async def _let_the_client_look() -> None:
    """What was sent is seen before what comes next, as it would be with a network between."""
    for _ in range(6):
        await anyio.lowlevel.checkpoint()


def open_sockets() -> int:
    """Sockets of this process; 0 where the system does not tell."""
    files = Path("/proc/self/fd")
    number = 0
    for file in files.iterdir() if files.is_dir() else ():
        with suppress(OSError):  # the directory itself was among them
            number += str(file.readlink()).startswith("socket:")
    return number
