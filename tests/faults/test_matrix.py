"""Each fault through real sockets: the attempts and their times, the answer or the error, the events, what is left."""

from __future__ import annotations

import math

import anyio
import pytest

from millstream import ModelLoadingError

from ..conftest import EVENT_LOOPS
from ..support.fault_server import ANSWER, CLOSE, LAST_CHUNK, Fault, chunk, healthy, stream_head
from ..support.transports import chat_events
from . import table
from .support import (
    CLOSE_ENOUGH,
    MANUAL,
    WAYS,
    Asker,
    assert_explained,
    bearable,
    check,
    end_of,
    expected_times,
    failure_of,
    fault_server,
    resolve_as,
    rows,
)
from .table import End, Row, slowly

HOST = "model.example"
"""No more is believed of it than of any other host; no name is looked up."""
DEDICATED = "name.region.endpoints.huggingface.cloud"


@MANUAL
@pytest.mark.parametrize("way", WAYS)
@rows({**table.BYTES, **table.ERRORS_IN_200, **table.STATUSES})
async def test_answers(row: Row, way: str) -> None:
    await check_requests(row, way)


@MANUAL
@pytest.mark.parametrize("way", WAYS[:2])
@rows(table.RATES)
async def test_rates(row: Row, way: str) -> None:
    await check_requests(row, way)


@MANUAL
@pytest.mark.parametrize("way", WAYS[1:])
@rows(table.STREAMS)
async def test_streams(row: Row, way: str) -> None:
    await check_requests(row, way)


@MANUAL
@pytest.mark.parametrize("way", WAYS)
async def test_what_comes_slowly_is_waited_for(way: str) -> None:
    async with fault_server() as server:
        server.listen()
        server.fail(Fault(lambda streams: slowly(b"".join(healthy(streams)), every=2, size=10)))
        async with Asker(server, way, f"http://127.0.0.1:{server.port}", 600) as asker:
            assert await asker.ask() == ANSWER
            assert len(asker.diary.attempts) == len(server.asked) == 1
            await asker.assert_nothing_left()


@MANUAL
@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("missing", ["the end mark", "the last chunk"])
async def test_a_stream_that_said_how_it_ended_is_whole(missing: str, way: str) -> None:
    events = chat_events("fi", "ne", end=True)
    ends = {"the end mark": [*map(chunk, events[:-1]), LAST_CHUNK], "the last chunk": [*map(chunk, events), CLOSE]}
    async with fault_server() as server:
        server.listen()
        server.fail(Fault([stream_head(), *ends[missing]]))
        async with Asker(server, way, f"http://127.0.0.1:{server.port}", 50) as asker:
            assert await asker.ask() == ANSWER
            assert len(server.asked) == 1
            await asker.assert_nothing_left()


@MANUAL
@pytest.mark.parametrize("way", WAYS)
async def test_a_dedicated_endpoint_that_is_scaled_to_zero_is_started(way: str) -> None:
    """A bare 503 is no room anywhere else; here the next request is held until a replica is up."""
    end = End(ModelLoadingError, 503, table.NO_ROOM, "loading")
    for failures in (2, math.inf):
        async with fault_server() as server:
            server.listen()
            server.fail(table.says("503 Service Unavailable", {"error": "503 Service Unavailable"}), failures)
            resolve_as(lambda name: "127.0.0.1")
            url = f"http://{DEDICATED}:{server.port}"
            async with Asker(server, way, url, 30, api_key="hf_nobodys", allow_http_key=True) as asker:
                await check(asker, end, failures, 30)
                held = [b"x-scale-up-timeout" in asked.received for asked in server.asked]
                assert held == [False, *[True] * (len(held) - 1)]


def ends_soon(row: Row) -> bool:
    """Whether no time passes in it, where chance always gives the least."""
    return row.end.kind is None and not row.end.lasts and row.end.told is None


UVLOOP = pytest.mark.parametrize("anyio_backend", [EVENT_LOOPS["uvloop"]], ids=["uvloop"])
SOON = {name: row for name, row in {**table.BYTES, **table.ERRORS_IN_200, **table.STATUSES}.items() if ends_soon(row)}


@UVLOOP
@pytest.mark.parametrize("way", WAYS)
@rows(SOON)
async def test_uvloop_does_the_same(row: Row, way: str) -> None:
    """It has no manual clock: what needs no time is asked of it, and times are not."""
    end = end_of(row, way)
    async with fault_server() as server:
        server.listen()
        server.fail(row.fault)
        async with Asker(server, way, f"http://127.0.0.1:{server.port}", 50, chance=0.0) as asker:
            error = await failure_of(asker)
            assert_explained(asker, error, end)
            assert error.attempts == len(server.asked) == len(expected_times(end, row.total)[0])
            await asker.assert_nothing_left()


async def check_requests(row: Row, way: str) -> None:
    end = end_of(row, way)
    for failures in (bearable(row, end), math.inf):
        async with fault_server() as server:
            server.listen()
            resolve_as(lambda name: "127.0.0.1")
            server.fail(row.fault, failures)
            async with Asker(server, way, f"http://{HOST}:{server.port}", row.total) as asker:
                began = anyio.current_time()
                await check(asker, end, failures, row.total)
                # What the caller calls an attempt is what the server has seen, and when.
                seen = [asked.time - began for asked in server.asked]
                assert seen == pytest.approx([at - began for at in asker.diary.attempts], abs=CLOSE_ENOUGH)
                assert all(asked.streams == (way != "plain") for asked in server.asked)
