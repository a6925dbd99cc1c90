"""The fake endpoint: real sockets, and what a test sees of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal

from millstream.testing._behaviour import Behaviour, FakeRequest
from millstream.testing._connection import Connection
from millstream.testing._faults import Fault
from millstream.testing._log import Log
from millstream.testing._service import Service

__all__ = ["FakeEndpoint"]

_BACKLOG = 1024


@dataclasses.dataclass(kw_only=True, eq=False)
class FakeEndpoint(Behaviour):
    """An LLM endpoint for tests and trials: real HTTP on a loopback port, no model, no key, no network.

        async with FakeEndpoint(reply="Hello world") as endpoint:
            async with HuggingFaceInference(endpoint_url=endpoint.url) as llm:
                assert await llm.call("Hi") == "Hello world"
        assert endpoint.served == 1

    It speaks the text-generation task, ``/v1/completions`` and ``/v1/chat/completions`` in the dialect of a real server
    (`server`), with that server's checks, errors and quirks; what it generates is the same every time. It runs on
    asyncio and trio; in sync code, ``with FakeEndpoint() as endpoint:`` runs it in a thread of its own. All options
    are keywords, described with the fields of `Behaviour`. One object is entered once.

    Tokens are words with the white space before them, in texts, limits and usage alike; an end that no limit and no
    stop sequence brings about is one token more.
    """

    def __post_init__(self) -> None:
        self._service = Service(self)
        self._log = Log(self._service.engine)
        self._bound: int | None = None
        self._tasks: TaskGroup | None = None
        self._portal: BlockingPortal | None = None
        self._thread = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The address, for example ``http://127.0.0.1:40321``. It stays the same after the end.

        Raises:
            RuntimeError: it has not been started.
        """
        if self._bound is None:
            raise RuntimeError("this endpoint has no address yet: enter it, `async with FakeEndpoint() as endpoint:`")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._bound}"

    @property
    def requests(self) -> list[FakeRequest]:
        """Every request that arrived, in order, also those that were refused."""
        return self._log.requests

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return self._log.connections

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return self._log.open_connections

    @property
    def in_flight(self) -> int:
        """Generation requests that are held (`scale_up`), queued or generating now."""
        return self._log.in_flight

    @property
    def generating(self) -> int:
        """Generation requests that have a slot now."""
        return self._service.engine.running

    @property
    def queued(self) -> int:
        """Generation requests that wait for a slot now."""
        return self._service.engine.waiting

    @property
    def served(self) -> int:
        """Generation requests that were answered to the end; not those that were refused or cut off."""
        return self._log.served

    @property
    def cancelled(self) -> int:
        """Generation requests whose client left before the end."""
        return self._log.cancelled

    def fail(self, *faults: Fault) -> None:
        """Queue faults: each strikes the next generation requests, as many as its ``times`` says."""
        self._service.fail(faults)

    def outage(self, seconds: float, fault: Fault | None = None) -> None:
        """From now on and for so long, let every generation request that arrives have this fault.

        It goes before all other faults and limits. A second outage replaces the first: ``outage(0)`` ends it. Only
        from the event loop that the endpoint runs in, or where it runs in a thread.

        Args:
            seconds: on the event loop's clock; ``math.inf``: until the next `outage`.
            fault: what goes wrong; its ``times`` does not count. None: ``Fault.status(503)``.
        """
        if self._portal is not None:
            self._portal.call(self._service.begin_outage, seconds, fault)
        else:
            self._service.begin_outage(seconds, fault)

    def resize(self, slots: int | None) -> None:
        """Change the number of slots while it runs; who has one keeps it. None: no bound."""
        self.slots = slots
        if self._portal is not None:
            self._portal.call(self._service.engine.admit)
        else:
            self._service.engine.admit()

    async def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` is true: it is asked whenever something happens here, without polling.

            with anyio.fail_after(1):
                await endpoint.wait_for(lambda: endpoint.cancelled == 1)

        Only from the event loop that the endpoint runs in.
        """
        await self._log.wait_for(condition)

    async def serve_forever(self) -> None:
        """Run until cancelled; `host` and `port` say where."""
        async with self:
            await anyio.sleep_forever()

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a FakeEndpoint is entered once: make another one")
        listener = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port, backlog=_BACKLOG)
        self._bound = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no database here
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
        self._tasks.cancel_scope.cancel()
        # An error of the body must reach the caller as it is: a task group that knows of it would wrap it.
        if isinstance(error, Exception):
            kind = error = trace = None
        await self._tasks.__aexit__(kind, error, trace)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(self))
            self._portal = portal
            self._thread = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal = None
        self._thread.close()

    async def _serve(self, stream: SocketStream) -> None:
        with self._log.connection() as number:
            async with stream:
                await Connection(stream, self, self._service, self._log).run(number)
