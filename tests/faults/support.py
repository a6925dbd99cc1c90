"""A model that is asked at a server that fails, and what must be true then."""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import anyio
import pytest
import trio

from millstream import AsyncCaller, DeadlineError, Deadlines, HuggingFaceInference, MillstreamError
from millstream.callbacks._recording import RecordingCallbackHandler

from ..conftest import manual_socket_backends
from ..support.clock import ManualLoop
from ..support.fault_server import ANSWER, FaultServer, open_sockets
from ..support.quiet import assert_quiet
from .table import End, Row

MANUAL = pytest.mark.parametrize("anyio_backend", manual_socket_backends())
WAYS = ("plain", "adaptive", "stream")
CLOSE_ENOUGH = 1e-3


def rows(of: dict[str, Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", of.values(), ids=of.keys())


class Diary(RecordingCallbackHandler):
    """All events, and the times of the attempts."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[float] = []
        self.before_attempt: Callable[[int], None] = lambda number: None

    def on_attempt(self, event: Any, /) -> None:
        super().on_attempt(event)
        self.attempts.append(anyio.current_time())
        self.before_attempt(event.attempt)

    def forget(self) -> None:
        """Begin anew."""
        self.events.clear()
        self.attempts.clear()

    def of_kind(self, kind: str) -> list[Any]:
        return [event for event, name in zip(self.events, self.kinds(), strict=True) if name == kind]


class Asker:
    """A model at a server, and one way to ask it."""

    def __init__(
        self, server: FaultServer, way: str, url: str, total: float, chance: float = 0.5, **options: Any
    ) -> None:
        self.server = server
        self.way = way
        self.host = urlsplit(url).hostname
        self.prompt = "x"
        self.diary = Diary()
        self.llm = HuggingFaceInference(
            endpoint_url=url,
            api="chat",
            caller=AsyncCaller(max_concurrency=4 if way == "plain" else "auto", random=lambda: chance),
            callbacks=[self.diary],
            deadlines=Deadlines(total=total),
            **options,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.llm.aclose()
        await self.llm.caller.aclose()

    async def ask(self) -> str:
        if self.way == "stream":
            return (await self.llm.stream(self.prompt).result()).text
        return await self.llm.call(self.prompt)

    async def assert_nothing_left(self) -> None:
        await assert_quiet(self.llm)
        self.diary.assert_paired()
        await self.llm.aclose()
        pause = 0.001
        while self.server.open:  # a script may still be in a pause
            await anyio.sleep(pause)
            pause *= 2
            assert pause < 1000, "the server was not left"


def end_of(row: Row, way: str) -> End:
    return {"plain": row.plain, "stream": row.stream}.get(way) or row.end


def expected_times(end: End, total: float) -> tuple[list[float], bool]:
    """When the attempts begin, and whether the last one is cut short by the deadline."""
    times, now = [0.0], 0.0
    for wait in end.waits:
        now += end.lasts
        if now + wait >= total:
            break
        now += wait
        times.append(now)
    return times, times[-1] + end.lasts > total


def assert_times(diary: Diary, began: float, expected: list[float]) -> None:
    assert [at - began for at in diary.attempts] == pytest.approx(expected, abs=CLOSE_ENOUGH)


def assert_retries_told(diary: Diary, end: End, number: int) -> None:
    """One retry event each, with its delay; and why the endpoint is waited for, where it is."""
    retries = diary.of_kind("retry")
    waits = list(itertools.islice(end.waits, number))
    assert [event.attempt for event in retries] == list(range(1, number + 1))
    assert [event.delay for event in retries] == pytest.approx(waits, abs=CLOSE_ENOUGH)
    assert {event.status_code for event in retries} <= {end.status}
    limits = diary.of_kind("rate_limit")
    assert [event.kind for event in limits] == [end.kind] * (number if end.kind else 0)
    assert {event.status_code for event in limits} <= {end.status}
    assert {event.retry_after for event in limits} <= {end.told}


async def check_answered(asker: Asker, end: End, failures: int, total: float) -> None:
    """It failed a few times; then there is the answer."""
    times, _ = expected_times(end, total)
    began = anyio.current_time()
    assert await asker.ask() == ANSWER
    assert_times(asker.diary, began, times[: failures + 1])
    assert_retries_told(asker.diary, end, failures)
    assert asker.diary.kinds()[-1] == "llm_end"
    await asker.assert_nothing_left()


async def check_failed(asker: Asker, end: End, total: float) -> None:
    """It never succeeded: the last attempt's error, with all that is known."""
    times, cut = expected_times(end, total)
    if cut:
        end = end._replace(error=DeadlineError, deadline="total")
    began = anyio.current_time()
    error = await failure_of(asker)
    assert anyio.current_time() - began == pytest.approx(total if cut else times[-1] + end.lasts, abs=CLOSE_ENOUGH)
    assert_explained(asker, error, end)
    assert_times(asker.diary, began, times)
    assert_retries_told(asker.diary, end, len(times) - 1)
    waited = sum(itertools.islice(end.waits, len(times) - 1))
    assert (error.attempts, error.waited) == (len(times), pytest.approx(waited, abs=CLOSE_ENOUGH))
    await asker.assert_nothing_left()


async def failure_of(asker: Asker) -> MillstreamError:
    with pytest.raises(MillstreamError) as caught:
        await asker.ask()
    return caught.value


def assert_explained(asker: Asker, error: MillstreamError, end: End) -> None:
    """It is what is expected, tells whom it is about, and is what the run's last event tells."""
    assert type(error) is end.error, repr(error)
    assert getattr(error, "deadline", None) == end.deadline
    assert error.partial == end.partial
    if end.deadline is None:
        assert getattr(error, "status_code", None) == end.status
    if end.deadline != "total":
        assert getattr(error, "retry_after", None) == end.told
        assert f"from {asker.host}" in str(error)
    assert asker.diary.events[-1].kind == type(error).__name__  # type: ignore[attr-defined]


def bearable(row: Row, end: End) -> int:
    """Failures after which a call still gets its answer; two show as much as more."""
    return min(2, len(expected_times(end, row.total)[0]) - 1)


@asynccontextmanager
async def fault_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultServer]:
    """A server, and after it no more open sockets than before."""
    before = open_sockets()
    async with FaultServer(tls) as server:
        yield server
    await anyio.sleep(0.001)  # in which the event loop closes what was aborted
    assert open_sockets() <= before


async def check(asker: Asker, end: End, failures: float, total: float) -> None:
    if failures == math.inf:
        await check_failed(asker, end, total)
    elif failures:
        await check_answered(asker, end, int(failures), total)


def resolve_as(resolve: Callable[[str], str]) -> None:
    """Have the running event loop ask `resolve` for the addresses of names."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        trio.socket.set_custom_hostname_resolver(_TrioResolver(resolve))
        return
    assert isinstance(loop, ManualLoop)
    loop.resolve = resolve


class _TrioResolver(trio.abc.HostnameResolver):
    def __init__(self, resolve: Callable[[str], str]) -> None:
        self._resolve = resolve

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, kind: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        address = self._resolve(host.decode() if isinstance(host, bytes) else host)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError
