"""Where event loops, processes and limits meet: each of these once hung, leaked or was counted wrongly."""

from __future__ import annotations

import asyncio
import gc
import os

import anyio
import pytest

from millstream import LLM, BaseCallbackHandler, WindowEvent
from millstream import _errors as errors
from millstream._caller import AsyncCaller, CallerOptions
from millstream._config import Deadlines
from millstream._control import Window
from millstream._headers import StatedLimits
from millstream.limiters import LocalLimiter
from tests.conftest import manual_backends

from .test_admission import run_manually

manual = pytest.mark.parametrize("anyio_backend", manual_backends())


async def one() -> int:
    return 1


class Echo(LLM):
    async def _call(self, prompt, options, run):
        return prompt


@pytest.mark.filterwarnings("ignore:.*fork")
def test_waiters_of_the_parent_are_none_of_the_forked_process():
    caller = AsyncCaller(max_concurrency=1)

    async def child() -> None:
        gc.collect()  # the parent's waiting coroutines end here
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(caller.call, anyio.sleep, 0.001)
        assert (caller.statistics().in_flight, caller.statistics().waiting) == (0, 0)

    async def parent() -> None:
        tasks = [asyncio.create_task(caller.call(anyio.sleep, 100)) for _ in range(2)]
        while caller.statistics().waiting < 1:
            await asyncio.sleep(0)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                tasks.clear()
                asyncio._set_running_loop(None)
                asyncio.run(child())
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222 - nothing else runs here
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(parent())


def test_a_lease_that_ends_outside_of_any_event_loop_gives_everything_back():
    caller = AsyncCaller(max_concurrency=1, requests_per_minute=100, tokens_per_minute=1000)
    loop = asyncio.new_event_loop()
    try:
        lease = loop.run_until_complete(caller.open(CallerOptions(tokens=10), one))
        waiting = loop.create_task(caller.call(one))
        loop.run_until_complete(asyncio.sleep(0))
        assert caller.statistics().waiting == 1
        lease.release(5)  # as the finaliser of a stream does it
        assert loop.run_until_complete(asyncio.wait_for(waiting, 30)) == 1
    finally:
        loop.close()
    assert caller.statistics().in_flight == 0


@manual
async def test_more_requests_than_the_limit_are_an_error():
    limiter = LocalLimiter(requests_per_minute=10)
    for ask in (limiter.acquire(11), limiter.acquire(0)):
        with pytest.raises(errors.OptionValueError, match="at least 1 and at most 10"):
            await ask
    await limiter.acquire(10)
    assert limiter.acquire_nowait() is None


def test_a_limiter_by_itself_serves_one_event_loop_after_the_other():
    limiter = LocalLimiter(requests_per_minute=1000)

    async def ask() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(limiter.acquire)

    for backend in ("asyncio", "trio", "asyncio"):
        run_manually(backend, ask)


@manual
async def test_statistics_tell_of_no_endpoint_that_was_not_used():
    caller = AsyncCaller()
    assert list(caller.statistics().windows) == [""]
    caller.width(("a", "b")).now()
    await caller.call_with_options(CallerOptions(lanes=("a", "b")), one)
    now = caller.statistics()
    assert (list(now.windows), now.limit) == (["a", "b"], 16)


@manual
async def test_no_lanes_are_an_error_and_not_a_wait():
    with pytest.raises(errors.OptionValueError, match="at least one endpoint"):
        await AsyncCaller(deadlines=Deadlines(total=None)).call_with_options(CallerOptions(lanes=()), one)


@manual
async def test_a_change_of_the_window_is_told_to_the_next_who_listens():
    class Windows(BaseCallbackHandler):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_window(self, event: WindowEvent, /) -> None:
            self.heard.append(event.reason)

    caller, listener = AsyncCaller(), Windows()
    deaf, hearing = Echo(caller=caller), Echo(caller=caller, callbacks=[listener])
    await deaf.call("x")
    caller.stated(StatedLimits(concurrency=3))
    await deaf.generate(["x", "y"])
    await hearing.call("z")
    assert listener.heard == ["stated"]


@manual
async def test_what_fails_before_anything_is_sent_says_nothing_of_the_address():
    caller = AsyncCaller(random=lambda: 0.5)
    attempts = 0

    async def unreachable() -> None:
        nonlocal attempts
        attempts += 1
        raise errors.ConnectError("nobody there")

    async def broken() -> None:
        raise ValueError("before anything is sent")

    with pytest.raises(ValueError, match="before"):
        await caller.call(broken)
    with pytest.raises(errors.ConnectError):
        await caller.call(unreachable)
    assert attempts == 4, "an address where nobody ever answered is given up after three retries"


def test_one_prober_at_a_time_whatever_ends_beside_it():
    window = Window(start=50, random=lambda: 0.5)
    for _ in range(20):
        window.send(0.0)
    for _ in range(20):
        window.first_token(1.0, 1.0)
    window.send(2.0)
    window.rejected(2.0, "loading", None, sent_at=2.0, waiting=True)
    now, probers = window.cool_until + 0.01, 0
    for _ in range(10):
        window.done(now, waiting=False, sent_at=0.0)  # one of before
        while window.in_flight < window.limit and window.ready_at(now) <= now:
            window.send(now)
            probers += 1
        now += 0.1
    assert probers == 1


def test_a_prober_keeps_to_the_ceiling_that_headers_tell():
    window = Window(random=lambda: 0.5)
    window.stated(0.0, StatedLimits(concurrency=2))
    for _ in range(3):
        window.send(0.0)
    window.rejected(1.0, "loading", None, sent_at=0.5, waiting=True)
    assert (window.in_flight, window.limit) == (2, 2)
