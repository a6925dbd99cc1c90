"""One quota for several limiters on one Redis server."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import anyio
import pytest

from millstream._errors import OptionValueError
from millstream._secret import Secret
from millstream.limiters._redis import RedisLimiter, limiter_key

from ..conftest import EVENT_LOOPS
from .redis_server import Server, needs_server, running_server

pytestmark = needs_server
once = pytest.mark.parametrize("anyio_backend", [EVENT_LOOPS["uvloop"]], ids=["uvloop"])


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest):
    return EVENT_LOOPS[request.param]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return request.node.name


def counted(server: Server, key: str, seconds: int = 60) -> int:
    """Requests that the server counts as used."""
    return int(server.hash(key, "counts", seconds)["ur"])


class Uses:
    """When something was used: between two moments, so that a machine that is busy elsewhere makes no false alarm."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float, int]] = []

    def take(self, limiter: RedisLimiter, tokens: int = 0):
        before = time.monotonic()
        taken = limiter.acquire_nowait(1, tokens)
        if taken is not None:
            self.times.append((before, time.monotonic(), tokens or 1))
        return taken

    def most_within(self, seconds: float) -> int:
        """What was certainly used within some window of so many seconds."""
        times, most, used, first = sorted(self.times), 0, 0, 0
        for _, after, amount in times:
            used += amount
            while after - times[first][0] >= seconds:
                used -= times[first][2]
                first += 1
            most = max(most, used)
        return most


async def take_until(limiter: RedisLimiter, uses: Uses, end: float, *, chance: random.Random | None = None) -> int:
    taken = 0
    with anyio.move_on_at(end):
        while True:
            if uses.take(limiter) is None:
                await limiter.wait()
                continue
            taken += 1
            if chance is not None and chance.random() < 0.2:
                await anyio.sleep(chance.random() * 0.05)
    return taken


async def test_the_limit_holds_in_every_window_whatever_the_timing(server: Server, key: str):
    uses, chance = Uses(), random.Random(len(key))
    limiters = [RedisLimiter(server.url, requests_per_minute=12000, period=0.3, key=key) for _ in range(5)]
    end = anyio.current_time() + 0.7
    async with anyio.create_task_group() as tasks:
        for limiter in limiters:
            tasks.start_soon(lambda each: take_until(each, uses, end, chance=chance), limiter)
    for limiter in limiters:
        assert not limiter.degraded
        await limiter.aclose()
    assert uses.most_within(0.3) <= 60
    assert len(uses.times) > 20


@once
async def test_two_who_want_all_get_the_same_even_if_one_is_slow(server: Server, key: str):
    uses, end = Uses(), anyio.current_time() + 1.3
    got = [0, 0]

    async def use(index: int) -> None:
        async with RedisLimiter(server.url, requests_per_minute=20000, period=0.6, key=key) as limiter:
            while anyio.current_time() < end:
                with anyio.move_on_at(end):
                    while uses.take(limiter) is None:
                        await limiter.wait()
                    got[index] += 1
                    if index:
                        await anyio.sleep(0.0005)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use, 0)
        tasks.start_soon(use, 1)
    assert sum(got) >= 400
    assert abs(got[0] - got[1]) <= 0.1 * sum(got)
    assert uses.most_within(0.6) <= 200


async def test_a_lease_is_used_without_the_server_and_what_is_left_goes_back(server: Server, key: str):
    async with RedisLimiter(server.url, requests_per_minute=6000, key=key) as other:
        async with RedisLimiter(server.url, requests_per_minute=6000, key=key) as limiter:
            for _ in range(40):
                await limiter.acquire()
            calls = int(server.hash(key, "members").popitem()[1].split()[5])
            assert calls < 12
            assert limiter.acquire_nowait() is not None
            assert int(server.hash(key, "members").popitem()[1].split()[5]) == calls
        await other.wait()
        assert other.processes == 1  # the other one has left
        assert counted(server, key) == 41 + 1


async def test_a_lease_that_nobody_uses_ends(server: Server, key: str):
    async with RedisLimiter(server.url, requests_per_minute=600, period=1, key=key) as limiter:
        await limiter.wait()
        await anyio.sleep(0.06)  # valid for a twentieth of the period
        assert limiter.acquire_nowait() is None
        for _ in range(10):  # and costs nothing of the ten
            with anyio.fail_after(0.5):
                await limiter.acquire()


@once
async def test_first_come_first_served_in_one_process(server: Server, key: str):
    order: list[int] = []
    async with RedisLimiter(server.url, requests_per_minute=1200, period=0.25, key=key) as limiter:

        async def one(number: int) -> None:
            await limiter.acquire()
            order.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(one, number)
    assert order == list(range(8))


@once
async def test_tokens_are_reserved_and_settled(server: Server, key: str):
    async with (
        RedisLimiter(server.url, tokens_per_minute=10_000, period=6, key=key) as limiter,
        RedisLimiter(server.url, tokens_per_minute=10_000, period=6, key=key) as other,
    ):
        first = await limiter.acquire(1, 900)
        with anyio.move_on_after(0.05) as scope:
            await other.acquire(1, 200)
        assert scope.cancelled_caught
        limiter.settle(first, 100)
        await limiter.acquire(1, 50)  # tells it, too
        with anyio.fail_after(1.5):
            second = await other.acquire(1, 200)
        other.settle(second, 800)  # more than the estimate: it counts
        with anyio.move_on_after(0.05) as scope:
            await other.acquire(1, 60)
        assert scope.cancelled_caught
        await other.acquire(1, 50)


async def test_who_waits_for_tokens_is_woken_by_what_is_given_back(server: Server, key: str):
    async with RedisLimiter(server.url, tokens_per_minute=1000, key=key) as limiter:
        first = await limiter.acquire(1, 1000)

        async def end() -> None:
            await anyio.sleep(0.05)
            limiter.give_back(first)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end)
            with anyio.fail_after(0.5):
                await limiter.acquire(1, 1000)


async def test_a_request_that_was_not_sent_counts_nowhere(server: Server, key: str):
    async with RedisLimiter(server.url, requests_per_minute=5, key=key) as limiter:
        taken = [await limiter.acquire() for _ in range(5)]
        for each in taken:
            limiter.give_back(each)
            limiter.give_back(each)  # the second time it gives nothing
        for _ in range(5):
            with anyio.fail_after(1):
                await limiter.acquire()
        with anyio.move_on_after(0.1) as scope:
            await limiter.acquire()
        assert scope.cancelled_caught


@once
async def test_a_refusal_that_one_has_seen_stops_all(server: Server, key: str):
    async with (
        RedisLimiter(server.url, requests_per_minute=6000, key=key) as limiter,
        RedisLimiter(server.url, requests_per_minute=6000, key=key) as other,
    ):
        await limiter.acquire()
        await other.acquire()
        pushed = time.monotonic()
        limiter.push_back(0.5)
        limiter.push_back(0.1)  # never moves back
        assert limiter.acquire_nowait() is None
        await anyio.sleep(0.05)
        while other.acquire_nowait() is not None:
            pass  # what was leased before
        await other.acquire()
        assert time.monotonic() - pushed >= 0.5
        await limiter.acquire()
        assert time.monotonic() - pushed < 2


@pytest.mark.parametrize("patience", range(6))
async def test_who_stops_waiting_takes_nothing(server: Server, key: str, patience: int):
    async with RedisLimiter(server.url, requests_per_minute=20, key=key) as limiter:
        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(limiter.wait)
                tasks.start_soon(limiter.acquire) if patience % 2 else None
                for _ in range(patience):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        for _ in range(10 if patience % 2 else 20):  # what `acquire` took before it was cancelled is taken
            with anyio.fail_after(2):
                await limiter.acquire()
        if patience % 2 == 0:
            with anyio.move_on_after(0.02) as scope:
                await limiter.acquire()
            assert scope.cancelled_caught


async def test_an_unhandled_cancellation_of_asyncio_loses_nothing_either(server: Server, key: str):
    async with RedisLimiter(server.url, requests_per_minute=5, key=key) as limiter:
        for turns in range(12):
            task = asyncio.get_running_loop().create_task(limiter.wait())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        for _ in range(5):
            with anyio.fail_after(1):
                await limiter.acquire()


@once
async def test_a_server_that_starts_anew_is_told_what_was_used(own_server: Server, key: str, caplog):
    caplog.set_level(logging.INFO, "millstream")
    uses, end = Uses(), anyio.current_time() + 2.6
    limiters = [RedisLimiter(own_server.url, requests_per_minute=4000, period=0.9, key=key) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        for limiter in limiters:
            tasks.start_soon(lambda each: take_until(each, uses, end), limiter)
        await anyio.sleep(0.6)
        own_server.stop()
        await anyio.sleep(0.3)
        assert all(limiter.degraded for limiter in limiters)
        own_server.start()
        await anyio.sleep(1.2)
        assert not any(limiter.degraded for limiter in limiters)
    for limiter in limiters:
        await limiter.aclose()
    assert uses.most_within(0.9) <= 60
    assert len(uses.times) > 100
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2  # one for each
    assert "1/2 of the limits" in warnings[0].getMessage()
    assert "127.0.0.1" not in caplog.text


@once
async def test_lost_counts_are_counted_again(server: Server, key: str):
    uses, end = Uses(), anyio.current_time() + 1.2
    limiters = [RedisLimiter(server.url, requests_per_minute=9000, period=0.4, key=key) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for limiter in limiters:
            tasks.start_soon(lambda each: take_until(each, uses, end), limiter)
        for seconds in (0.2, 0.3):
            await anyio.sleep(seconds)
            server.command("FLUSHALL")
            server.command("SCRIPT", "FLUSH")
        await anyio.sleep(0.2)
        assert not any(limiter.degraded for limiter in limiters)
    for limiter in limiters:
        await limiter.aclose()
    assert uses.most_within(0.4) <= 60
    assert len(uses.times) >= 110


@once
async def test_after_a_loss_the_quota_of_those_who_used_little_is_whole_again(server: Server, key: str):
    async with (
        RedisLimiter(server.url, requests_per_minute=1000, period=6, key=key) as limiter,
        RedisLimiter(server.url, requests_per_minute=1000, period=6, key=key) as other,
    ):
        for each in (limiter, other, limiter):
            await each.acquire()
            await anyio.sleep(0)
        server.command("FLUSHALL")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limiter.acquire, 45)
            tasks.start_soon(other.acquire, 45)
            await anyio.sleep(0.01)
        assert 93 <= counted(server, key, 6) <= 100


@once
async def test_what_was_given_back_is_not_in_a_recount(server: Server, key: str):
    async with RedisLimiter(server.url, requests_per_minute=1000, key=key) as limiter:
        taken = [await limiter.acquire() for _ in range(50)]
        await limiter.wait(200)  # ends the lease
        for each in taken[:40]:
            limiter.give_back(each)
        server.command("FLUSHALL")
        await limiter.wait(300)
        assert counted(server, key) == 10 + 300


@once
async def test_a_large_request_is_not_overtaken_for_ever(server: Server, key: str):
    small, large = (RedisLimiter(server.url, requests_per_minute=40_000, period=0.5, key=key) for _ in range(2))
    for _ in range(50):  # so that what comes up again comes up bit by bit
        await small.acquire(6)
        await anyio.sleep(0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_until, small, Uses(), anyio.current_time() + 3)
        with anyio.fail_after(1.2):
            await large.acquire(200)
        tasks.cancel_scope.cancel()
    await small.aclose()
    await large.aclose()


class Unlucky:
    """A client whose answers are lost on their way, one after each that arrives."""

    def __init__(self, client) -> None:
        self._client = client
        self.lost = 0

    def register_script(self, text: str):
        script = self._client.register_script(text)

        async def call(*, keys: list[str], args: list[str]):
            reply = await script(keys=keys, args=args)
            self.lost += 1
            if self.lost % 2 == 0:
                raise TimeoutError
            return reply

        return call


@once
async def test_a_report_whose_answer_was_lost_counts_once(server: Server, key: str):
    from redis.asyncio import Redis

    async with Redis(port=server.port) as client:
        limiter = RedisLimiter(Unlucky(client), tokens_per_minute=10_000, key=key)
        limiter.settle(await limiter.acquire(1, 10), 1010)
        await limiter.wait(1, 20)  # tells of the 1000; the answer is lost
        assert limiter.degraded
        limiter.settle(limiter.acquire_nowait(1, 20), 20)
        await anyio.sleep(0.6)
        while limiter.degraded:
            limiter.acquire_nowait()
            await anyio.sleep(0.02)
        await limiter.aclose()
        # 10 and 1000 once, a small lease whose grant was lost, and what was used without the server.
        assert 1010 <= int(server.hash(key, "counts")["ut"]) < 1100


@once
async def test_a_key_that_holds_something_else_fails_no_call(server: Server, key: str):
    server.command("SET", f"millstream:{{{key}}}:60/60:counts", "a text")
    async with RedisLimiter(server.url, requests_per_minute=600, key=key) as limiter:
        with anyio.fail_after(0.5):
            await limiter.acquire()
        assert limiter.degraded
        server.command("DEL", f"millstream:{{{key}}}:60/60:counts")
        with anyio.fail_after(3):
            while limiter.degraded:
                await limiter.acquire()
                await anyio.sleep(0.02)
        await limiter.acquire()
        assert counted(server, key) >= 2  # those before, too


@once
async def test_a_slow_server_holds_nobody_for_more_than_a_second(own_server: Server, key: str):
    async with RedisLimiter(own_server.url, requests_per_minute=600, key=key) as limiter:
        await limiter.acquire()
        own_server.command("CLIENT", "PAUSE", "1300", "ALL")
        await anyio.sleep(0)
        began = time.monotonic()
        for _ in range(30):
            await limiter.acquire()
        assert limiter.degraded
        assert 0.5 < time.monotonic() - began < 1.5
        with anyio.fail_after(4):
            while limiter.degraded:
                await limiter.acquire()
                await anyio.sleep(0.02)


@once
async def test_where_nobody_answers_a_process_keeps_to_its_share(key: str, caplog):
    async with RedisLimiter(
        "redis://user:password@127.0.0.1:1", requests_per_minute=60, tokens_per_minute=1000, key=key, processes=3
    ) as limiter:
        for _ in range(20):
            with anyio.fail_after(1):
                await limiter.acquire(1, 5)
        assert limiter.degraded
        assert limiter.processes == 3
        with anyio.move_on_after(0.1) as scope:
            await limiter.acquire()
        assert scope.cancelled_caught
        assert limiter.acquire_nowait(1, 5) is None
        limiter.push_back(1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "password" not in caplog.text


@once
async def test_a_process_killed_with_a_lease_stops_nobody_for_long(server: Server, key: str):
    dead = RedisLimiter(server.url, requests_per_minute=2400, period=0.5, key=key)
    for _ in range(20):
        await dead.acquire()
    with anyio.move_on_after(0.02):
        await dead.wait()  # it is the first in the queue, and never comes back
    async with RedisLimiter(server.url, requests_per_minute=2400, period=0.5, key=key) as limiter:
        with anyio.fail_after(2):
            for _ in range(20):
                await limiter.acquire()
    await dead.aclose()


@once
async def test_a_client_of_ones_own_is_not_closed(server: Server, key: str):
    from redis.asyncio import Redis

    for decode in (False, True):
        async with Redis(port=server.port, decode_responses=decode) as client:
            async with RedisLimiter(client, requests_per_minute=600, key=key) as limiter:
                await limiter.acquire()
                assert not limiter.degraded
            assert await client.ping()


@once
async def test_what_can_never_pass_is_refused(server: Server, key: str):
    async with RedisLimiter(server.url, requests_per_minute=600, tokens_per_minute=600, period=1, key=key) as limiter:
        with pytest.raises(OptionValueError, match="tokens_per_minute=600 .at most 10 within 1 s."):
            await limiter.acquire(1, 11)
        with pytest.raises(OptionValueError, match="at least 0"):
            limiter.acquire_nowait(1, -1)
        with pytest.raises(OptionValueError, match="at most 10"):
            await limiter.wait(11)
        await limiter.acquire(10, 10)


@once
async def test_no_credential_is_in_redis(server: Server):
    secret = Secret("hf_CANARYCANARYCANARY")
    key = limiter_key("https://router.huggingface.co/v1?api_key=hf_CANARYCANARYCANARY", secret)
    async with RedisLimiter(server.url, requests_per_minute=600, key=key) as limiter:
        await limiter.acquire()
        with server.client() as client:
            stored = [(name, client.hgetall(name)) for name in client.scan_iter() if secret.fingerprint() in name]
    assert len(stored) == 2
    assert "CANARY" not in repr(stored)


_ONE_PROCESS = """
import asyncio, json, sys, time
from millstream.limiters._redis import RedisLimiter

async def main(url, key):
    got = []
    async with RedisLimiter(url, requests_per_minute=7500, period=0.8, key=key) as limiter:
        await limiter.wait()  # connects
        print("ready", flush=True)
        begin = float(sys.stdin.readline())
        end = begin + 1.9
        await asyncio.sleep(begin - time.monotonic())
        while time.monotonic() < end:
            before = time.monotonic()
            if limiter.acquire_nowait() is None:
                try:
                    async with asyncio.timeout(max(0, end - time.monotonic())):
                        await limiter.wait()
                except TimeoutError:
                    break
            else:
                got.append((before, time.monotonic(), 1))
        assert not limiter.degraded
    print(json.dumps(got))

asyncio.run(main(*sys.argv[1:]))
"""


def test_two_processes_share_one_quota(server: Server, key: str):
    command = [sys.executable, "-c", _ONE_PROCESS, server.url, key]
    uses, counts = Uses(), []
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    begin = time.monotonic() + 0.1
    for process in processes:
        process.stdin.write(f"{begin}\n")
        process.stdin.flush()
    for process in processes:
        told, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        times = json.loads(told)
        counts.append(len(times))
        uses.times += map(tuple, times)
    assert uses.most_within(0.8) <= 100
    assert sum(counts) >= 0.97 * 300
    assert abs(counts[0] - counts[1]) <= 0.1 * sum(counts)
