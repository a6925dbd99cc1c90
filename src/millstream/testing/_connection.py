"""One connection of the fake endpoint: requests come in turn, and while one is answered its client is watched."""

from __future__ import annotations

import contextlib
import socket
import struct

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint

from millstream.testing._behaviour import Behaviour
from millstream.testing._engine import Ticket
from millstream.testing._http import NotHttpError, RawRequest, RequestParser
from millstream.testing._log import ClientLeft, Log
from millstream.testing._script import Close, Pause, Send, Slot, Stall, Step, Tokens
from millstream.testing._service import Service, decode_body

__all__ = ["Connection"]

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Closing(Exception):  # noqa: N818 - nothing failed
    """We close the connection."""


class Connection:
    """Reads requests from a stream and answers them until one side closes it."""

    def __init__(self, stream: SocketStream, behaviour: Behaviour, service: Service, log: Log) -> None:
        self._stream = stream
        self._behaviour = behaviour
        self._service = service
        self._log = log
        self._parser = RequestParser()
        self._outgoing = bytearray()

    async def run(self, number: int) -> None:
        """Serve; `number` is the connection's."""
        with contextlib.suppress(_Closing, ClientLeft):
            while True:
                raw = await self._next_request()
                body = decode_body(raw.body)
                self._log.record(raw, body, number, keep=self._behaviour.record)
                held = self._service.hold(raw)
                if held > 0:
                    with self._log.generation(Ticket()):  # of no queue: it is only counted
                        await self._perform([Pause(held)], None)
                steps, ticket = self._service.plan(raw, body)
                with self._log.generation(ticket) if ticket is not None else contextlib.nullcontext():
                    await self._perform(steps, ticket)
                if not (raw.keep_alive and self._behaviour.keep_alive):
                    return

    async def _next_request(self) -> RawRequest:
        with anyio.move_on_after(self._behaviour.idle_timeout):
            while not self._parser.requests:
                await self._receive()
        if not self._parser.requests:
            raise _Closing
        return self._parser.requests.popleft()

    async def _receive(self) -> None:
        try:
            self._parser.receive_data(await self._stream.receive())
        except NotHttpError:
            await self._send(_BAD_REQUEST)
            raise _Closing from None
        except _BROKEN:
            raise ClientLeft from None
        if self._parser.expects_continue:
            self._parser.expects_continue = False
            await self._send(_CONTINUE)

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except _BROKEN:
            raise ClientLeft from None

    async def _perform(self, steps: list[Step], ticket: Ticket | None) -> None:
        if self._is_immediate(steps, ticket):
            last = steps[-1]
            if ticket is not None and not isinstance(last, Close):
                self._log.finish(ticket)
            await self._send(b"".join(step.data for step in steps if isinstance(step, Send)))
            if isinstance(last, Close):
                self._close(last)
            return
        ended: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal ended
                try:
                    while True:
                        await self._receive()
                except (ClientLeft, _Closing) as end:
                    ended = end
                    tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            try:
                await self._play(steps, ticket)
            except (ClientLeft, _Closing) as end:
                ended = end
            tasks.cancel_scope.cancel()
        if ended is not None:
            raise ended

    def _is_immediate(self, steps: list[Step], ticket: Ticket | None) -> bool:
        """Whether nothing is waited for: then one write does it, and nobody has to be watched."""
        behaviour = self._behaviour
        if ticket is not None and not (ticket.holds and behaviour.latency.zero and behaviour.coalesce):
            return False
        return not any(isinstance(step, Pause | Stall) for step in steps)

    async def _play(self, steps: list[Step], ticket: Ticket | None) -> None:
        for step in steps:
            if isinstance(step, Send):
                self._outgoing += step.data
                if not self._behaviour.coalesce and step is not steps[-1]:
                    await self._flush()
            elif isinstance(step, Tokens) and self._behaviour.latency.zero:
                continue
            else:
                await self._flush()
                await self._wait(step, ticket)
        if ticket is not None:
            self._log.finish(ticket)
        await self._flush()

    async def _wait(self, step: Step, ticket: Ticket | None) -> None:
        match step:
            case Slot() if ticket is not None and not ticket.holds:
                await ticket.wait()
                self._log.changed()
            case Tokens(count, first) if ticket is not None:
                await self._service.engine.generate(ticket, count, first=first)
            case Pause(seconds):
                await anyio.sleep(seconds)
            case Stall():
                await anyio.sleep_forever()
            case Close():
                self._close(step)
            case _:
                pass

    async def _flush(self) -> None:
        if self._outgoing:
            data = bytes(self._outgoing)
            self._outgoing.clear()
            await self._send(data)
            await checkpoint()

    def _close(self, step: Close) -> None:
        if step.reset:
            raw: socket.socket = self._stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - no database here
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Closing
