"""Streams and models that are left early, closed twice, forgotten, or closed by somebody else."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from millstream import (
    LLM,
    AsyncCaller,
    BaseCallbackHandler,
    ClosedError,
    Deadlines,
    GenerationChunk,
    HuggingFaceInference,
    UsageError,
)
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint, Fault, Latency

from ..support.quiet import assert_idle, assert_quiet

REPLY = "one two three four"
SLOW = Latency(inter_token=60)


@pytest.fixture
async def endpoint() -> AsyncIterator[FakeEndpoint]:
    async with FakeEndpoint(reply=REPLY, coalesce=False) as endpoint:
        yield endpoint


@pytest.fixture
def listener() -> RecordingCallbackHandler:
    return RecordingCallbackHandler()


@pytest.fixture
async def llm(endpoint: FakeEndpoint, listener: RecordingCallbackHandler) -> AsyncIterator[HuggingFaceInference]:
    async with HuggingFaceInference(endpoint_url=endpoint.url, api="chat", callbacks=[listener]) as llm:
        yield llm
        await assert_quiet(llm, endpoint, sole=True)
        listener.assert_paired()


async def test_a_break_without_a_block_ends_all_at_once(llm, endpoint, listener):
    endpoint.latency = SLOW
    async for chunk in llm.stream("x"):
        assert chunk.text
        break
    assert_idle(llm)
    listener.assert_paired()
    assert listener.events[-1].kind == "cancelled"
    await assert_quiet(llm, endpoint, sole=True)
    assert endpoint.cancelled == 1


@pytest.mark.filterwarnings("ignore:.*a streamed answer was never closed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_stream_that_was_forgotten(llm, endpoint, listener):
    endpoint.latency = SLOW
    stream = llm.stream("x")
    await anext(stream)
    stream.itself = stream  # a cycle: only the garbage collector frees it
    del stream
    assert llm.caller.statistics().in_flight == 1
    gc.collect()
    assert_idle(llm)
    listener.assert_paired()


async def test_a_stream_that_was_never_begun(llm, endpoint):
    stream = llm.stream("x")
    await stream.aclose()
    assert [chunk async for chunk in stream] == []
    with pytest.raises(UsageError, match="closed before its end"):
        await stream.result()
    llm.stream("y")
    assert endpoint.requests == []


async def test_closing_twice(llm, endpoint):
    endpoint.latency = SLOW
    stream = llm.stream("x")
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    assert_idle(llm)
    assert [chunk async for chunk in stream] == []
    assert stream.text == "one"


async def test_two_tasks_read_one_stream(llm, endpoint):
    endpoint.latency = SLOW
    stream = llm.stream("x")
    await anext(stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anext, stream)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(UsageError, match="two tasks"):
            await anext(stream)
        tasks.cancel_scope.cancel()
    assert_idle(llm)


@pytest.mark.parametrize("pieces", [0, 1])
async def test_a_stream_that_another_task_closes(llm, endpoint, listener, pieces):
    endpoint.latency = Latency(first_token=60) if pieces == 0 else SLOW
    stream = llm.stream("x")
    raised: list[BaseException] = []

    async def read() -> None:
        try:
            async for _ in stream:
                pass
        except ClosedError as error:
            raised.append(error)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await endpoint.wait_for(lambda: endpoint.generating == 1)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()
    assert len(raised) == 1
    assert_idle(llm)
    listener.assert_paired()


# -- a model's own generator -------------------------------------------------------------------------------------------


class Streamer(LLM):
    def __init__(self, *, waits: float = 0.0) -> None:
        super().__init__()
        self.waits = waits
        self.cleaned_up: list[str] = []

    async def _call(self, prompt, options, run):
        return prompt

    async def _stream(self, prompt, options, run):
        try:
            while True:
                yield GenerationChunk("a")
                await anyio.lowlevel.checkpoint()
        finally:
            self.cleaned_up.append("begun")
            if self.waits:
                await anyio.sleep(self.waits)
                self.cleaned_up.append("ended")


async def test_a_generator_is_closed_by_a_block():
    llm = Streamer(waits=0.001)
    async with llm.stream("x") as stream:
        await anext(stream)
    assert llm.cleaned_up == ["begun", "ended"]
    await assert_quiet(llm)


async def test_a_generator_is_closed_by_a_break():
    llm = Streamer()
    async for _ in llm.stream("x"):
        break
    assert llm.cleaned_up == ["begun"]
    await assert_quiet(llm)


async def test_a_generator_that_another_task_closes():
    llm = Streamer()
    stream = llm.stream("x")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(ClosedError):
                    async for _ in stream:
                        pass

            tasks.start_soon(read)
            while not stream.text:
                await anyio.lowlevel.checkpoint()
            await stream.aclose()
    assert llm.cleaned_up == ["begun"]
    await assert_quiet(llm)


# -- closing the model -------------------------------------------------------------------------------------------------

UNDER_WAY = {
    "a call": lambda llm: llm.call("x"),
    "many": lambda llm: llm.generate(["x"] * 5),
    "a stream": lambda llm: llm.stream("x").result(),
}


@pytest.mark.parametrize("what", UNDER_WAY)
@pytest.mark.parametrize("where", ["on the wire", "opening", "waiting for a retry", "waiting for a slot", "amid"])
async def test_closing_the_model_ends_calls_under_way(endpoint, listener, what, where):
    endpoint.latency = Latency(first_token=60) if where != "amid" else SLOW
    options = {"max_concurrency": 1 if where == "waiting for a slot" else 9}
    if where == "waiting for a retry":
        endpoint.fail(Fault.status(503, headers={"retry-after": "50"}, times=9))
    llm = HuggingFaceInference(endpoint_url=endpoint.url, api="chat", callbacks=[listener], **options)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                with pytest.raises(ClosedError):
                    await UNDER_WAY[what](llm)

            if where == "waiting for a slot":
                tasks.start_soon(ask)
            tasks.start_soon(ask)
            if where == "waiting for a retry":
                while llm.caller.statistics().waiting < (5 if what == "many" else 1):
                    await anyio.sleep(0.001)
            elif where != "opening":
                await endpoint.wait_for(lambda: endpoint.generating > 0)
            else:
                await anyio.lowlevel.checkpoint()
            await llm.aclose()
            await llm.aclose()
    listener.assert_paired()
    await assert_quiet(llm, endpoint, sole=True)
    with pytest.raises(ClosedError):
        await llm.call("x")


async def test_a_caller_that_was_brought_stays_open(endpoint):
    caller = AsyncCaller()
    async with HuggingFaceInference(endpoint_url=endpoint.url, caller=caller) as llm:
        assert await llm.call("x") == REPLY
    async with HuggingFaceInference(endpoint_url=endpoint.url, caller=caller) as other:
        assert await other.call("x") == REPLY


# -- what is worse than an error ---------------------------------------------------------------------------------------


class Stop(BaseException):
    """As KeyboardInterrupt, but nobody else catches it."""


class Interrupting(BaseCallbackHandler):
    def __init__(self, hook: str) -> None:
        def stop(event):
            raise Stop

        setattr(self, hook, stop)


@pytest.mark.parametrize("hook", ["on_llm_start", "on_attempt", "on_llm_new_token", "on_llm_end"])
@pytest.mark.parametrize("what", ["a call", "a stream"])
async def test_a_handler_that_stops_the_program(llm, endpoint, hook, what):
    if (hook, what) == ("on_llm_new_token", "a call"):
        assert await llm.call("x", callbacks=[Interrupting(hook)]) == REPLY
        return
    with pytest.raises(Stop):
        if what == "a call":
            await llm.call("x", callbacks=[Interrupting(hook)])
        else:
            await llm.stream("x", callbacks=[Interrupting(hook)]).result()


@pytest.mark.parametrize("hook", ["on_llm_start", "on_attempt", "on_llm_end"])
async def test_a_handler_that_stops_many(llm, endpoint, hook):
    with pytest.raises(BaseExceptionGroup) as caught:
        await llm.generate(["x", "y", "z"], callbacks=[Interrupting(hook)])
    assert caught.group_contains(Stop)
    with pytest.raises(BaseExceptionGroup):
        async with llm.map(["x", "y", "z"], callbacks=[Interrupting(hook)]) as outcomes:
            async for _ in outcomes:
                pass


# -- bounded clean-up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.stall(), Fault.stall(0), Fault.stall(1)])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_server_that_stalls_does_not_hold_up_a_cancellation(llm, endpoint, listener, fault, streamed):
    endpoint.fail(fault)
    began = time.monotonic()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: llm.stream("x").result() if streamed else llm.call("x"))
            await endpoint.wait_for(lambda: endpoint.in_flight == 1)
            scope.cancel()
    assert time.monotonic() - began < 1.0
    assert_idle(llm)


class Endless(BaseCallbackHandler):
    async def on_llm_error(self, event, /):
        await anyio.sleep_forever()


async def test_a_handler_that_never_ends_is_left_after_a_second(llm, endpoint, caplog):
    endpoint.fail(Fault.stall())
    began = time.monotonic()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: llm.call("x", callbacks=[Endless()]))
            await endpoint.wait_for(lambda: endpoint.in_flight == 1)
            scope.cancel()
    assert 0.9 < time.monotonic() - began < 2.0
    assert_idle(llm)


# -- one model, several event loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loops", ["asyncio asyncio", "asyncio trio", "trio asyncio", "trio trio"])
@pytest.mark.parametrize("left", ["answered", "amid a stream", "cancelled"])
def test_one_model_in_one_loop_after_another(loops, left):
    with FakeEndpoint(reply=REPLY, coalesce=False) as endpoint:
        llm = HuggingFaceInference(endpoint_url=endpoint.url, api="chat", max_concurrency=1)

        async def main() -> None:
            assert await llm.call("x") == REPLY
            if left == "amid a stream":
                async with llm.stream("x") as stream:
                    await anext(stream)
            elif left == "cancelled":
                with anyio.move_on_after(0):
                    await llm.call("x")

        for loop in loops.split():
            anyio.run(main, backend=loop)
            assert_idle(llm)
        anyio.run(llm.aclose)


def test_a_loop_that_ended_amid_calls():
    with FakeEndpoint(reply=REPLY, latency=Latency(first_token=0.01)) as endpoint:
        llm = HuggingFaceInference(endpoint_url=endpoint.url, api="chat", max_concurrency=2)

        async def leave() -> None:
            background = [asyncio.create_task(llm.call(str(number))) for number in range(5)]
            await asyncio.wait(background, return_when="FIRST_COMPLETED")

        async def again() -> list[str]:
            return (await llm.generate(["x", "y", "z"])).texts

        for _ in range(3):
            asyncio.run(leave())
            assert_idle(llm)
            assert asyncio.run(again()) == [REPLY] * 3
        asyncio.run(llm.aclose())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own():
    with FakeEndpoint(reply=REPLY) as endpoint:
        llm = HuggingFaceInference(
            endpoint_url=endpoint.url, api="chat", deadlines=Deadlines(connect=5, first_token=5, total=5)
        )

        async def ask() -> str:
            return await llm.call("x")

        assert asyncio.run(ask()) == REPLY
        child = os.fork()
        if child == 0:
            os._exit(0 if asyncio.run(ask()) == REPLY else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert asyncio.run(ask()) == REPLY
        assert endpoint.connections == 3
        asyncio.run(llm.aclose())
