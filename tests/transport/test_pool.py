"""Connections are used again, bounded, handed over in order, and left behind where their event loop is."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings

import anyio
import pytest

from millstream._errors import ClosedError, DeadlineError, OptionTypeError, OptionValueError
from millstream._transport import PoolTransport, Request, Route, Timeouts

from ..support.servers import CLOSE, STALL, answer, chunked, in_turn, script, serve, serve_in_thread
from .quiet import settle

OK = script(answer(b'{"a":1}', b"content-type: application/json"))


async def test_a_request_and_its_answer(pool):
    async with serve(OK) as server, pool() as transport:
        response = await transport.send(server.request(b'{"inputs":"x"}'))
        assert (response.status, response.body, response.stream) == (200, b'{"a":1}', None)
        assert response.header(b"content-type") == "application/json"
        assert (response.reason, response.http_version) == (b"OK", b"1.1")
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:")
        assert body == b'{"inputs":"x"}'


async def test_one_connection_serves_many_requests(pool):
    async with serve(OK) as server, pool() as transport:
        for _ in range(20):
            await transport.send(server.request())
        assert server.connections == 1
        now = transport.statistics()
        assert (now.open, now.idle, now.opened_total, now.requests_total) == (1, 1, 1, 20)


async def test_many_at_once(pool):
    async def echo(peer):
        while request := await peer.request():
            await peer.send(answer(request.partition(b"\r\n\r\n")[2]))

    async with serve(echo) as server, pool() as transport:
        got = {}

        async def one(number):
            for turn in range(3):
                body = b"%d-%d" % (number, turn)
                got[number, turn] = (await transport.send(server.request(body))).body == body

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(one, number)
        assert len(got) == 180
        assert all(got.values())
        assert server.connections <= 60
        assert transport.statistics().idle == server.connections


async def test_the_last_used_is_used_first_and_the_others_grow_old(pool):
    async with serve(OK) as server, pool(keepalive_expiry=0.03) as transport:
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(transport.send, server.request())
        assert transport.statistics().idle == server.connections >= 2
        for _ in range(8):
            await anyio.sleep(0.01)
            await transport.send(server.request())
        assert transport.statistics().idle == 1


@pytest.mark.parametrize(
    ("headers", "connections"),
    [
        ([b"connection: close"], 3),
        ([b"keep-alive: timeout=0"], 3),
        ([b"keep-alive: max=0"], 3),
        ([b"keep-alive: timeout=5, max=7"], 1),
        ([], 1),
    ],
)
async def test_what_the_server_says_about_keeping_is_heeded(pool, headers, connections):
    async with serve(script(answer(b"{}", *headers))) as server, pool() as transport:
        for _ in range(3):
            await transport.send(server.request())
        assert server.connections == connections


async def test_bytes_after_an_answer_end_the_connection(pool):
    async with serve([answer(b"{}") + answer(b"poison")]) as server, pool() as transport:
        assert [(await transport.send(server.request())).body for _ in range(2)] == [b"{}", b"{}"]
        assert server.connections == 2


async def test_bytes_on_an_idle_connection_end_it(pool):
    async def late(peer):
        await peer.request()
        await peer.send(answer(b"{}"))
        await anyio.sleep(0.003)
        await peer.send(answer(b"poison"))
        await peer.gone()

    async with serve(late) as server, pool() as transport:
        await transport.send(server.request())
        await anyio.sleep(0.02)
        assert (await transport.send(server.request())).body == b"{}"
        assert server.connections == 2


async def test_max_idle(pool):
    async with serve(OK) as server, pool(max_idle=2) as transport:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(transport.send, server.request())
        assert transport.statistics().idle <= 2


async def test_max_connections_is_kept_and_waiters_come_in_order(pool):
    most = 0

    gate = anyio.Event()

    async def watch(peer):
        nonlocal most
        while await peer.request():
            most = max(most, server.open)
            await gate.wait()
            await peer.send(answer())

    order = []
    async with serve(watch) as server, pool(max_connections=1) as transport:

        async def one(number):
            await transport.send(server.request())
            order.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(one, number)
                await settle(lambda: server.requests and transport.statistics().waiting == number)
            gate.set()
        assert server.connections == most == 1
        assert order == list(range(12))


async def test_no_more_connections_than_allowed(pool):
    async with serve(OK) as server, pool(max_connections=3) as transport:
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(transport.send, server.request())
        assert server.connections == 3


async def test_a_waiter_opens_a_connection_where_one_was_closed(pool):
    async with serve([answer(b"{}", b"connection: close"), CLOSE]) as server, pool(max_connections=1) as transport:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(transport.send, server.request())
        assert server.connections == 5


async def test_waiting_for_a_connection_has_a_deadline(pool):
    async with serve([STALL]) as server, pool(max_connections=1) as transport, anyio.create_task_group() as tasks:
        tasks.start_soon(transport.send, server.request())
        await settle(lambda: server.requests)
        with pytest.raises(DeadlineError, match=r"0\.01 s .*pool") as caught:
            await transport.send(server.request(timeouts=Timeouts(pool=0.01)))
        assert caught.value.deadline == "pool"
        assert transport.statistics().waiting == 0
        tasks.cancel_scope.cancel()


async def test_a_stale_connection_is_replaced_silently(pool):
    async with serve([answer(b"{}"), CLOSE]) as server, pool() as transport:
        for _ in range(4):
            assert (await transport.send(server.request())).status == 200
        assert server.connections == 4
        assert len(server.requests) == 4


async def test_a_request_that_met_the_end_of_an_idle_connection_is_sent_once_more(pool):
    async def once_then_close_on_request(peer):
        await peer.request()
        await peer.send(answer(b"{}"))
        await peer.request()  # taken, and never answered

    async with serve(once_then_close_on_request) as server, pool(max_connections=1) as transport:
        assert (await transport.send(server.request())).status == 200
        assert (await transport.send(server.request(b"again"))).status == 200
        assert server.connections == 2
        assert transport.statistics().resent_total == 1
        assert [r.endswith(b"again") for r in server.requests] == [False, True, True]


async def test_a_lost_idle_connection_is_noticed(pool, kind):
    async with serve([answer(b"{}"), CLOSE]) as server, pool() as transport:
        await transport.send(server.request())
        if kind in {"trio", "generic"}:
            pytest.skip("noticed when it is asked for")
        await settle(lambda: transport.statistics().open == 0)


async def test_closing_ends_what_is_under_way(pool):
    async with serve([STALL]) as server, pool(max_connections=2) as transport:
        errors = []

        async def one(**options):
            with pytest.raises(ClosedError) as caught:
                await transport.send(server.request(**options))
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(one)
            await settle(lambda: len(server.requests) == 2)
            for _ in range(2):
                tasks.start_soon(one)
            await settle(lambda: transport.statistics().waiting == 2)
            await transport.aclose()
            await transport.aclose()
        assert len(errors) == 4
        with pytest.raises(ClosedError):
            await transport.send(server.request())


async def test_closing_ends_a_stream_and_a_large_request(pool):
    async with (
        serve(in_turn([chunked(b"a", end=b""), STALL], lambda _peer: anyio.sleep_forever())) as server,
        pool() as transport,
    ):
        response = await transport.send(server.request(stream=True))
        assert await response.stream.receive() == b"a"
        async with anyio.create_task_group() as tasks:

            async def receive():
                with pytest.raises(ClosedError):
                    await response.stream.receive()

            async def upload():
                with pytest.raises(ClosedError):
                    await transport.send(server.request(b"x" * 20_000_000))

            tasks.start_soon(receive)
            tasks.start_soon(upload)
            await settle(lambda: server.connections == 2)
            await anyio.sleep(0.01)
            await transport.aclose()


async def test_a_transport_that_was_never_used_closes(pool):
    async with pool() as transport:
        pass
    with pytest.raises(ClosedError):
        await transport.send(None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_connections": 0}, OptionValueError),
        ({"max_connections": 1.5}, OptionTypeError),
        ({"keepalive_expiry": -1}, OptionValueError),
        ({"max_idle": -1}, OptionValueError),
        ({"max_body_bytes": 0}, OptionValueError),
    ],
)
def test_figures_that_are_not_possible(options, error):
    with pytest.raises(error):
        PoolTransport(**options)


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_event_loop_begins_anew(anyio_backend, stream):
    transport = PoolTransport()
    name, options = anyio_backend
    streams = []

    async def use(origin):
        response = await transport.send(Request(Route("POST", origin, "/"), stream=stream))
        assert response.status == 200
        streams.append(response.stream)
        return transport.statistics().opened_total

    async def close():
        await transport.aclose()
        await transport.aclose()

    with warnings.catch_warnings(), serve_in_thread(chunked(b"a", end=b"") if stream else answer()) as origin:
        # uvloop itself tells, when it is closed, that connections were left open.
        warnings.filterwarnings("ignore", message="unclosed resource", category=ResourceWarning)
        assert [anyio.run(use, origin, backend=name, backend_options=options) for _ in range(3)] == [1, 2, 3]
        assert transport.statistics().open == 1
        if stream:
            streams.pop().abort()
        anyio.run(close, backend=name, backend_options=options)
        for left in streams:
            if left is not None:
                left.abort()
        streams.clear()
        assert transport.statistics().open == 0
        gc.collect()


def test_two_event_loops_at_a_time_are_told_apart(anyio_backend):
    name, options = anyio_backend
    transport = PoolTransport()

    async def use(origin):
        first = await transport.send(Request(Route("POST", origin, "/"), stream=True))
        assert await first.stream.receive() == b"a"

        async def elsewhere():
            other = await transport.send(Request(Route("POST", origin, "/"), stream=True))
            other.stream.abort()

        await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=name, backend_options=options))
        with pytest.raises(ClosedError, match=r"another event loop.*one for each"):
            await first.stream.receive()
        await transport.aclose()
        await anyio.sleep(0)

    with serve_in_thread(chunked(b"a", end=b"")) as origin:
        anyio.run(use, origin, backend=name, backend_options=options)
        gc.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_the_connections_alone():
    async def main():
        async with serve(OK) as server:
            transport = PoolTransport()
            await transport.send(server.request())
            before = transport.statistics().open
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
                child = os.fork()
            if child == 0:
                os._exit(0 if transport.statistics().open == 0 else 1)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - it exits at once
            await transport.send(server.request())
            assert server.connections == 1
            await transport.aclose()
            return before, os.waitstatus_to_exitcode(status)

    assert asyncio.run(main()) == (1, 0)
