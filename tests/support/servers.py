"""A server on loopback that does what a script says, byte by byte: for everything that a well-behaved one never does."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import Enum
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from millstream._transport import Origin, Request, Route


async def read_request(stream: ByteStream) -> tuple[bytes, bytes]:
    """The head and the body of the next request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    wanted = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < wanted:
        body += await stream.receive()
    return head, body


class Act(Enum):
    CLOSE = "close"
    RESET = "reset"
    STALL = "stall"


CLOSE, RESET, STALL = Act.CLOSE, Act.RESET, Act.STALL

Script = Callable[["Peer"], Awaitable[None]]
Steps = Sequence[bytes | Act]


def answer(body: bytes = b"{}", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole response with a length."""
    lines = [b"HTTP/1.1 " + status, *headers, b"content-length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*pieces: bytes, headers: Sequence[bytes] = (), end: bytes = b"0\r\n\r\n") -> bytes:
    """A whole chunked response, one chunk a piece."""
    head = b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"transfer-encoding: chunked"]) + b"\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


class Peer:
    """The server's end of one connection."""

    def __init__(self, stream: ByteStream, server: ScriptedServer) -> None:
        self.stream = stream
        self.server = server
        self.number = server.connections
        self._buffer = b""

    async def request(self) -> bytes:
        """The next request, head and body; empty once the client has closed."""
        while b"\r\n\r\n" not in self._buffer:
            if not await self._more():
                return b""
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(rest) < length:
            if not await self._more():
                return b""
            rest = self._buffer.partition(b"\r\n\r\n")[2]
        self._buffer = rest[length:]
        request = head + b"\r\n\r\n" + rest[:length]
        self.server.requests.append(request)
        return request

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        self._buffer += data
        return True

    async def send(self, data: bytes) -> None:
        """Send; that the client has gone is no error here."""
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.stream.send(data)

    async def play(self, steps: Steps) -> bool:
        """Do one step after the other; False once the connection is over."""
        for step in steps:
            if isinstance(step, bytes):
                await self.send(step)
                await anyio.sleep(0)
            elif step is STALL:
                await self.gone()
            elif step is RESET:
                await self.reset()
                return False
            else:
                await self.close()
                return False
        return True

    async def gone(self) -> None:
        """Wait until the client has closed."""
        while await self._more():
            pass

    async def close(self) -> None:
        await self.stream.aclose()

    async def reset(self) -> None:
        """Close with RST: what was not read yet is lost on both sides."""
        raw: Any = self.stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await anyio.aclose_forcefully(self.stream)


class ScriptedServer:
    """What the tests see of the server."""

    def __init__(self, port: int, scheme: str) -> None:
        self.origin = Origin(scheme, "127.0.0.1", port)
        self.connections = 0
        """Accepted so far."""
        self.open = 0
        """Whose script is still running."""
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return str(self.origin)

    def request(self, body: bytes = b'{"inputs":"x"}', *, method: str = "POST", **options: Any) -> Request:
        return Request(Route(method, self.origin, "/generate"), body, **options)


def script(*steps: bytes | Act) -> Script:
    """For each request on a connection the same steps."""

    async def run(peer: Peer) -> None:
        while await peer.request():
            if not await peer.play(steps):
                return

    return run


def in_turn(*scripts: Script | Steps) -> Script:
    """The first connection gets the first script, and so on; the last one serves all further ones."""

    async def run(peer: Peer) -> None:
        chosen = scripts[min(peer.number, len(scripts)) - 1]
        await (chosen(peer) if callable(chosen) else script(*chosen)(peer))

    return run


@asynccontextmanager
async def serve(
    what: Script | Steps, *, tls: ssl.SSLContext | None = None, handshake_may_fail: bool = False
) -> AsyncIterator[ScriptedServer]:
    """Run a server for the length of the block. `what`: a function of the connection, or the steps for each request."""
    run = what if callable(what) else script(*what)
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET, backlog=1024)
    server = ScriptedServer(listener.extra(SocketAttribute.local_port), "https" if tls else "http")
    if tls is not None:
        listener = (
            _QuietTLSListener(listener, tls)
            if handshake_may_fail
            else TLSListener(listener, tls, standard_compatible=False)
        )

    async def handle(stream: ByteStream) -> None:
        server.connections += 1
        server.open += 1
        try:
            async with stream:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await run(Peer(stream, server))
        finally:
            server.open -= 1

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield server
        tasks.cancel_scope.cancel()


class _QuietTLSListener(TLSListener):
    """A handshake that fails is what the test wants, and no news."""

    def __init__(self, listener: Any, tls: ssl.SSLContext) -> None:
        super().__init__(listener, tls, standard_compatible=False)

    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: Any) -> None:
        await anyio.aclose_forcefully(stream)


def unused_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve_in_thread(response: bytes) -> Iterator[Origin]:
    """Answer every read with `response`, from a thread: for clients whose event loops come and go."""
    listener = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while connection.recv(65536):
                connection.sendall(response)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=handle, args=(connection,)))
                threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield Origin("http", "127.0.0.1", listener.getsockname()[1])
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join(2)
