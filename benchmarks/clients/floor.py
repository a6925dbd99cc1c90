"""The floor: an `asyncio.Protocol` that sends ready-made bytes and only looks for the end of what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import cast

from benchmarks.answers import ANSWER, ANSWER_TEXT, STREAM_HEAD, STREAM_PIECES, STREAM_TEXT
from benchmarks.client import Client, payload

_WHOLE_STREAM = STREAM_HEAD + b"".join(STREAM_PIECES)
_PROMPT = "Why is the sky blue, and why is it red in the evening? This is question number 1000."


class _Connection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[bytes] | None = None
        self._received = b""
        self._lost = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None:
            self._received += data
        else:
            self._waiter = None
            waiter.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionResetError("the origin closed the connection"))

    def send(self, request: bytes) -> None:
        if self.transport is None or self._lost:
            raise ConnectionResetError("the origin closed the connection")
        self.transport.write(request)

    async def receive(self) -> bytes:
        """What has come, or else the next piece."""
        if self._received:
            data, self._received = self._received, b""
            return data
        waiter = self._waiter = self._loop.create_future()
        return await waiter


class Bench(Client):
    label = "floor: asyncio, no parsing"
    module = "asyncio"

    def __init__(self, port: int, concurrency: int) -> None:
        super().__init__(port, concurrency)
        self._request = _encode(port, stream=False)
        self._stream_request = _encode(port, stream=True)
        self._idle: list[_Connection] = []

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.abort()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(loop), "127.0.0.1", self.port)
        return connection

    async def ask(self, prompt: str) -> str:
        connection = self._idle.pop() if self._idle else await self._connect()
        connection.send(self._request)
        data = await connection.receive()
        while len(data) < len(ANSWER):
            data += await connection.receive()
        self._idle.append(connection)
        return ANSWER_TEXT if data == ANSWER else ""

    async def read(self, prompt: str) -> str:
        connection = self._idle.pop() if self._idle else await self._connect()
        connection.send(self._stream_request)
        pieces = [await connection.receive()]
        while not pieces[-1].endswith(b"0\r\n\r\n"):
            pieces.append(await connection.receive())
        self._idle.append(connection)
        return STREAM_TEXT if b"".join(pieces) == _WHOLE_STREAM else ""

    async def first(self, prompt: str, arrived: Callable[[], None]) -> str:
        connection = self._idle.pop() if self._idle else await self._connect()
        connection.send(self._stream_request)
        pieces = [await connection.receive()]
        arrived()
        while not pieces[-1].endswith(b"0\r\n\r\n"):
            pieces.append(await connection.receive())
        self._idle.append(connection)
        return STREAM_TEXT if b"".join(pieces) == _WHOLE_STREAM else ""

    async def hold(self, prompt: str, arrived: Callable[[], None], release: asyncio.Event) -> None:
        connection = await self._connect()
        connection.send(self._stream_request)
        await connection.receive()
        arrived()
        await release.wait()
        assert connection.transport is not None
        connection.transport.abort()


def _encode(port: int, *, stream: bool) -> bytes:
    body = json.dumps(payload(_PROMPT, stream=stream)).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (port, len(body), body)
    )
