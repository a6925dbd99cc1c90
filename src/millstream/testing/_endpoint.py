"""The fake endpoint: real sockets, and the life of its connections."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import checkpoint

from millstream.testing._behaviour import Behaviour, FakeRequest
from millstream.testing._engine import Ticket
from millstream.testing._faults import Fault
from millstream.testing._http import NotHttpError, RawRequest, RequestParser
from millstream.testing._script import Close, Pause, Send, Slot, Stall, Step, Tokens
from millstream.testing._service import Service, decode_body

__all__ = ["FakeEndpoint"]

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class _Over(Exception):  # noqa: N818 - it steers, nothing failed
    """The connection is over, by our own doing."""


class _Left(Exception):  # noqa: N818
    """The client left."""


@dataclasses.dataclass(kw_only=True, eq=False)
class FakeEndpoint(Behaviour):
    """An LLM endpoint for tests and trials: real HTTP on a loopback port, no model, no key, no network.

        async with FakeEndpoint(reply="Hello world") as endpoint:
            async with HuggingFaceInference(endpoint_url=endpoint.url) as llm:
                assert await llm.call("Hi") == "Hello world"
        assert endpoint.requests[0].body["inputs"] == "Hi"

    It speaks the text-generation task, ``/v1/completions`` and ``/v1/chat/completions`` in the dialect of a real server
    (`server`), with that server's checks, errors and quirks; what it generates is the same every time. It runs on
    asyncio and trio; in sync code, ``with FakeEndpoint() as endpoint:`` runs it in a thread of its own. All options
    are keywords and are described with the fields of `Behaviour`. One object is entered once.
    """

    requests: list[FakeRequest] = dataclasses.field(init=False, default_factory=list[FakeRequest], repr=False)
    """Every request that arrived, also those that were refused."""
    connections: int = dataclasses.field(init=False, default=0, repr=False)
    """Connections accepted so far."""
    open_connections: int = dataclasses.field(init=False, default=0, repr=False)
    """Connections that are open now."""
    in_flight: int = dataclasses.field(init=False, default=0, repr=False)
    """Generation requests that are queued or generating now."""
    cancelled: int = dataclasses.field(init=False, default=0, repr=False)
    """Generation requests whose client left before their end."""

    def __post_init__(self) -> None:
        self._service = Service(self)
        self._changed: list[anyio.Event] = []
        self._bound: int | None = None
        self._tasks: TaskGroup | None = None
        self._portal: BlockingPortal | None = None
        self._sync = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The address, for example ``http://127.0.0.1:40321``.

        Raises:
            RuntimeError: it is not running.

        """
        if self._bound is None:
            raise RuntimeError("this endpoint is not running: enter it with `async with FakeEndpoint() as endpoint:`")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._bound}"

    @property
    def served(self) -> int:
        """Generation requests that were answered to the end."""
        return self._service.served

    @property
    def generating(self) -> int:
        """Requests that have a slot now."""
        return self._service.engine.running

    @property
    def queued(self) -> int:
        """Requests that wait for a slot now."""
        return self._service.engine.waiting

    def fail(self, *faults: Fault) -> None:
        """Queue faults: each strikes the next generation requests, as many as its ``times`` says."""
        self._service.fail(faults)

    def resize(self, slots: int | None) -> None:
        """Change the number of slots while it runs; who has one keeps it."""
        self.slots = slots
        if self._portal is not None:
            self._portal.call(self._service.engine.admit)
        else:
            self._service.engine.admit()

    async def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` is true: it is asked whenever something happens here, without polling.

            await endpoint.wait_for(lambda: endpoint.cancelled == 1)

        Only in the event loop that the endpoint runs in. Set a bound with ``anyio.fail_after``.
        """
        while not condition():
            event = anyio.Event()
            self._changed.append(event)
            await event.wait()

    async def serve_forever(self) -> None:
        """Run until cancelled, for example with `host` and `port` set."""
        async with self:
            await anyio.sleep_forever()

    # life

    async def __aenter__(self) -> FakeEndpoint:
        if self._tasks is not None:
            raise RuntimeError("a FakeEndpoint is entered once: make another one")
        listener = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port, backlog=1024)
        self._bound = listener.extra(SocketAttribute.local_port)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()

        async def accept() -> None:
            async with listener:
                await listener.serve(self._serve, self._tasks)

        self._tasks.start_soon(accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        self._bound = None
        self._tasks.cancel_scope.cancel()
        # An error of the body must reach the caller as it is: a task group that knows of it would wrap it.
        if isinstance(error, Exception):
            kind = error = trace = None
        await self._tasks.__aexit__(kind, error, trace)

    def __enter__(self) -> FakeEndpoint:
        with contextlib.ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self))
            self._sync = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sync.close()
        self._portal = None

    def _notify(self) -> None:
        changed, self._changed = self._changed, []
        for event in changed:
            event.set()

    async def _serve(self, stream: SocketStream) -> None:
        self.connections += 1
        self.open_connections += 1
        self._notify()
        try:
            async with stream:
                await _Connection(self, stream, self.connections).run()
        except _BROKEN:
            pass
        finally:
            self.open_connections -= 1
            self._notify()

    def _record(self, raw: RawRequest, body: Any, connection: int) -> None:
        number = len(self.requests) + 1
        now = anyio.current_time()
        self.requests.append(FakeRequest(number, raw.method, raw.target, raw.headers, body, raw.body, now, connection))
        self._notify()

    @contextlib.contextmanager
    def _generating(self, ticket: Ticket | None) -> Iterator[None]:
        """Count a generation from its arrival to its end, however that comes."""
        if ticket is None:
            yield
            return
        self.in_flight += 1
        self._notify()
        try:
            yield
        except (_Left, *_BROKEN):
            self.cancelled += 1
            raise
        else:
            self._service.served += 1
        finally:
            self.in_flight -= 1
            self._service.engine.leave(ticket)
            self._notify()


class _Connection:
    """One connection: requests come in turn, and while one is answered the client is watched."""

    def __init__(self, endpoint: FakeEndpoint, stream: SocketStream, number: int) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._number = number
        self._parser = RequestParser()
        self._continued = False

    async def run(self) -> None:
        with contextlib.suppress(_Over, _Left):
            while True:
                raw = await self._next_request()
                body = decode_body(raw.body)
                self._endpoint._record(raw, body, self._number)  # noqa: SLF001 - the other half of one thing
                steps, ticket = self._endpoint._service.plan(raw, body)  # noqa: SLF001
                with self._endpoint._generating(ticket):  # noqa: SLF001
                    await self._perform(steps, ticket)
                if not (raw.keep_alive and self._endpoint.keep_alive):
                    return

    async def _next_request(self) -> RawRequest:
        while not self._parser.requests:
            with anyio.move_on_after(self._endpoint.idle_timeout):
                await self._receive()
                continue
            raise _Over
        return self._parser.requests.popleft()

    async def _receive(self) -> None:
        try:
            self._parser.receive_data(await self._stream.receive())
        except NotHttpError:
            with contextlib.suppress(*_BROKEN):
                await self._stream.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            raise _Left from None
        except _BROKEN:
            raise _Left from None
        if self._parser.expects_continue:
            self._parser.expects_continue = False
            await self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _perform(self, steps: list[Step], ticket: Ticket | None) -> None:
        if self._is_immediate(steps, ticket):
            await self._stream.send(b"".join(step.data for step in steps if isinstance(step, Send)))
            if isinstance(steps[-1], Close):
                self._close(steps[-1])
            return
        ended: type[_Over | _Left] | None = None
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal ended
                try:
                    while True:
                        await self._receive()
                except _Left:
                    ended = _Left
                    tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            try:
                await self._play(steps, ticket)
            except _BROKEN:
                ended = _Left
            except _Over:
                ended = _Over
            tasks.cancel_scope.cancel()
        if ended is not None:
            raise ended

    def _is_immediate(self, steps: list[Step], ticket: Ticket | None) -> bool:
        """Whether nothing is waited for: then one write does it, and nobody has to be watched."""
        endpoint = self._endpoint
        if ticket is not None and not (ticket.holds and endpoint.latency.zero and endpoint.coalesce):
            return False
        return not any(isinstance(step, Pause | Stall) for step in steps)

    async def _play(self, steps: list[Step], ticket: Ticket | None) -> None:
        engine = self._endpoint._service.engine  # noqa: SLF001
        coalesce = self._endpoint.coalesce
        outgoing = bytearray()

        async def flush() -> None:
            if outgoing:
                data = bytes(outgoing)
                outgoing.clear()
                await self._stream.send(data)
                await checkpoint()

        for step in steps:
            match step:
                case Send(data):
                    outgoing += data
                    if not coalesce:
                        await flush()
                case Slot():
                    if ticket is not None and not ticket.holds:
                        await flush()
                        await ticket.wait()
                        self._endpoint._notify()  # noqa: SLF001
                case Tokens(count, first):
                    if ticket is not None and not self._endpoint.latency.zero:
                        await flush()
                        await engine.generate(ticket, count, first=first)
                case Pause(seconds):
                    await flush()
                    await anyio.sleep(seconds)
                case Stall():
                    await flush()
                    await anyio.sleep_forever()
                case Close():
                    await flush()
                    self._close(step)
        await flush()

    def _close(self, step: Close) -> None:
        if step.reset:
            raw = self._stream.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Over
