"""The workers of one `for_each`: a shield inside one holds, and whoever cancels from outside is heeded."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from millstream._fanout import for_each

from ..conftest import manual_backends
from ..support.clock import ManualLoop

manual = pytest.mark.parametrize("anyio_backend", manual_backends())


class Wide:
    """Room for all."""

    def now(self) -> int:
        return 100

    def on_growth(self, listener):
        return lambda: None


class Work:
    """The first value fails after a second; the others wait, and then clean up for two more behind a shield."""

    def __init__(self) -> None:
        self.began = 0
        self.cleaned = 0

    async def __call__(self, value, one_more):
        self.began += 1
        if value == "fails":
            await anyio.sleep(1)
            raise ValueError(value)
        try:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
            await anyio.sleep_forever()
        finally:
            self.cleaned += 1


@manual
async def test_results_come_in_order():
    async def double(value, one_more):
        await anyio.sleep(10 - value)
        return 2 * value

    assert await for_each(range(10), double, width=Wide()) == ([2 * value for value in range(10)], None)
    assert await for_each([], double, width=Wide()) == ([], None)


@manual
async def test_an_error_cancels_the_others_but_not_what_they_shield():
    work, began = Work(), anyio.current_time()
    _, failure = await for_each(["waits", "fails", "waits"], work, width=Wide())
    assert failure is not None
    assert (failure[0], str(failure[1])) == (1, "fails")
    assert work.cleaned == 2
    assert anyio.current_time() - began == pytest.approx(3)


@manual
async def test_a_scope_around_cancels_all_of_them_and_gets_its_cancellation():
    work, began = Work(), anyio.current_time()
    with anyio.move_on_after(2) as scope:
        await for_each(["waits"] * 5, work, width=Wide())
    assert scope.cancelled_caught
    assert (work.began, work.cleaned) == (5, 5)
    assert anyio.current_time() - began == pytest.approx(3)


@manual
async def test_what_is_no_exception_of_work_is_raised_after_the_others_ended():
    work = Work()

    class Stop(BaseException):
        pass

    async def stop(value, one_more):
        if value == "stops":
            raise Stop
        return await work(value, one_more)

    with pytest.raises(BaseExceptionGroup) as caught:
        await for_each(["waits", "stops"], stop, width=Wide())
    assert [type(error) for error in caught.value.exceptions] == [Stop]
    assert work.began == work.cleaned


@pytest.mark.parametrize("times", [1, 2])
def test_who_cancels_the_task_is_heeded(times):
    async def main() -> None:
        work = Work()
        task = asyncio.ensure_future(for_each(["waits"] * 3, work, width=Wide()))
        for _ in range(times):
            await asyncio.sleep(1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.cleaned == 3

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        runner.run(main())
