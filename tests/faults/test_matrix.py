"""Each fault through real sockets: the attempts and their times, the answer or the error, the events, what is left."""

from __future__ import annotations

import math

import anyio
import pytest

from . import table
from .support import CLOSE_ENOUGH, MANUAL, WAYS, Asker, bearable, check, end_of, fault_server, rows
from .table import Row


@MANUAL
@pytest.mark.parametrize("way", WAYS)
@rows({**table.BYTES, **table.ERRORS_IN_200, **table.STATUSES, **table.RATES})
async def test_answers(row: Row, way: str) -> None:
    await check_requests(row, way)


@MANUAL
@pytest.mark.parametrize("way", WAYS[1:])
@rows(table.STREAMS)
async def test_streams(row: Row, way: str) -> None:
    await check_requests(row, way)


async def check_requests(row: Row, way: str) -> None:
    end = end_of(row, way)
    for failures in (bearable(row, end), math.inf):
        async with fault_server() as server:
            server.listen()
            server.fail(row.fault, failures)
            async with Asker(server, way, f"http://127.0.0.1:{server.port}", row.total) as asker:
                began = anyio.current_time()
                await check(asker, end, failures, row.total)
                # What the caller calls an attempt is what the server has seen, and when.
                seen = [asked.time - began for asked in server.asked]
                assert seen == pytest.approx([at - began for at in asker.diary.attempts], abs=CLOSE_ENOUGH)
                assert all(asked.streams == (way != "plain") for asked in server.asked)
