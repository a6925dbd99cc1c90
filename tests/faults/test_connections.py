"""Faults before a request is out, and of connections that were used before."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

from ..support.clock import ManualLoop
from . import table
from .support import MANUAL, WAYS, Asker, bearable, check, fault_server, rows
from .table import Row


@MANUAL
@pytest.mark.parametrize("way", WAYS)
@rows(table.CONNECTIONS)
async def test_connections(row: Row, way: str, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    for failures in (bearable(row, row.end), math.inf):
        async with fault_server() as server:
            host = "127.0.0.1"
            if row.fault.at == "accept":
                server.listen()
                server.fail(row.fault, failures)
            elif "no answer" in name:
                server.fill_up()
            elif "name" in name:
                host = "model.invalid"
                resolve_as(name_that_appears(host, after=failures))
                server.listen()
            async with Asker(server, way, f"http://{host}:{server.port}", row.total) as asker:
                asker.diary.before_attempt = lambda number, last=failures: server.listen() if number > last else None
                await check(asker, row.end, failures, row.total)


def name_that_appears(name: str, after: float) -> Callable[[str], str]:
    """A resolver that knows one name, from the time on that it was asked so often. No name leaves this machine."""
    left = after

    def resolve(host: str) -> str:
        nonlocal left
        left -= host == name
        if left < 0:
            return "127.0.0.1"
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    return resolve


def resolve_as(resolve: Callable[[str], str]) -> None:
    """Have the running event loop ask `resolve` for the addresses of names."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        trio.socket.set_custom_hostname_resolver(_TrioResolver(resolve))
        return
    assert isinstance(loop, ManualLoop)
    loop.resolve = lambda host: host if host[0].isdigit() else resolve(host)


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
