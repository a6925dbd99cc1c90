"""Faults before a request is out, and of connections that were used before."""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Callable

import anyio
import pytest
import trustme

from millstream import CertificateError, ConnectError

from ..support.fault_server import ANSWER, CLOSE, RESET, Act, Fault
from . import table
from .support import MANUAL, WAYS, Asker, bearable, check, fault_server, resolve_as, rows
from .table import End, Row

LARGE = 5_000_000
"""Characters. More than the system takes before somebody reads them."""
READ_OR_WRITE = {"ReadError", "WriteError"}


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
            elif "queue" in name:
                server.fill_up()
            elif "name" in name:
                host = "model.invalid"
                resolve_as(name_that_appears(host, after=failures))
                server.listen()
            async with Asker(server, way, f"http://{host}:{server.port}", row.total) as asker:
                asker.diary.before_attempt = lambda number, last=failures: server.listen() if number > last else None
                await check(asker, row.end, failures, row.total)


@MANUAL
@pytest.mark.parametrize("way", WAYS)
async def test_an_endpoint_that_had_answered_is_waited_for(way: str) -> None:
    end = End(ConnectError, None, table.NO_CONNECTION)
    for failures in (2, math.inf):
        async with fault_server() as server:
            server.listen()
            async with Asker(server, way, f"http://127.0.0.1:{server.port}", 50) as asker:
                await asker.ask()
                asker.diary.forget()
                server.refuse()
                asker.diary.before_attempt = lambda number, last=failures: server.listen() if number > last else None
                await check(asker, end, failures, 50)


@MANUAL
@pytest.mark.parametrize("way", WAYS)
@rows(table.WRITES)
async def test_writing(row: Row, way: str) -> None:
    for failures in (2, math.inf):
        async with fault_server() as server:
            server.listen()
            server.fail(row.fault, failures)
            async with Asker(server, way, f"http://127.0.0.1:{server.port}", row.total) as asker:
                asker.prompt = "x" * LARGE
                await check(asker, row.end, failures, row.total)


@MANUAL
@pytest.mark.parametrize("way", WAYS)
async def test_a_reset_that_comes_before_the_request_is_got_over(way: str) -> None:
    """Whether writing or reading finds out first is nobody's choice; waits and counts differ by that."""
    async with fault_server() as server:
        server.listen()
        server.fail(Fault([RESET], at="accept"), 2)
        async with Asker(server, way, f"http://127.0.0.1:{server.port}", 50) as asker:
            assert await asker.ask() == ANSWER
            assert len(asker.diary.attempts) == 3
            assert {event.reason.partition(":")[0] for event in asker.diary.of_kind("retry")} <= READ_OR_WRITE
            assert anyio.current_time() - asker.diary.attempts[0] <= 0.375 + 1e-3
            await asker.assert_nothing_left()


@MANUAL
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", [RESET, CLOSE])
async def test_a_connection_that_went_stale_costs_no_attempt(way: str, end: Act) -> None:
    async with fault_server() as server:
        server.listen()
        async with Asker(server, way, f"http://127.0.0.1:{server.port}", 50) as asker:
            await asker.ask()
            asker.diary.forget()
            server.fail(Fault([end]), 1)
            began = anyio.current_time()
            assert await asker.ask() == ANSWER
            assert asker.diary.attempts == [pytest.approx(began)]
            assert [asked.connection for asked in server.asked] == [1, 1, 2]
            assert all(asked.time == pytest.approx(began, abs=1e-3) for asked in server.asked[1:])
            await asker.assert_nothing_left()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def tls_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@MANUAL
@pytest.mark.parametrize("way", WAYS)
@rows(table.TLS)
async def test_tls(row: Row, way: str, authority: trustme.CA, trusted: str) -> None:
    for failures in (bearable(row, row.end), math.inf):
        async with fault_server(tls_of(authority, "127.0.0.1")) as server:
            server.listen()
            server.fail(row.fault, failures)
            async with Asker(server, way, f"https://127.0.0.1:{server.port}", row.total, verify=trusted) as asker:
                await check(asker, row.end, failures, row.total)


@MANUAL
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["an unknown authority", "another name"])
async def test_a_certificate_that_is_not_accepted_stays_so(
    what: str, way: str, authority: trustme.CA, trusted: str
) -> None:
    unknown = what == "an unknown authority"
    tls = tls_of(trustme.CA(), "127.0.0.1") if unknown else tls_of(authority, "model.example")
    async with fault_server(tls) as server:
        server.listen()
        async with Asker(server, way, f"https://127.0.0.1:{server.port}", 50, verify=trusted) as asker:
            await check(asker, End(CertificateError), math.inf, 50)
            assert (server.asked, server.connections) == ([], 1)


def name_that_appears(name: str, after: float) -> Callable[[str], str]:
    """A resolver that knows one name, from the time on that it was asked so often. No name leaves this machine."""
    left = after

    def resolve(host: str) -> str:
        nonlocal left
        assert host == name
        left -= 1
        if left < 0:
            return "127.0.0.1"
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    return resolve
