"""Every run that starts ends once, and nothing that a handler does reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import logging
import time

import anyio
import anyio.lowlevel
import pytest
import trio

from millstream._errors import ReadError
from millstream._results import GenerationChunk, LLMResult
from millstream.callbacks import BaseCallbackHandler, CallbackManager
from millstream.callbacks._dispatch import is_cancellation
from millstream.callbacks._recording import RecordingCallbackHandler
from tests.conftest import EVENT_LOOPS, manual_backends

from .handlers import LLM, AsyncRecorder, handler_of, kind_of

RECORDERS = [RecordingCallbackHandler, AsyncRecorder]
asyncio_only = pytest.mark.parametrize("anyio_backend", [EVENT_LOOPS["asyncio"], EVENT_LOOPS["uvloop"]])


def begin(*handlers):
    (run,) = CallbackManager(handlers).on_llm_start(LLM, ["secret prompt"])
    return run


async def use(run, work):
    """What a model does with a run."""
    try:
        await run.start()
        await work()
    except BaseException as error:
        await run.on_llm_error(error)
        raise
    await run.on_llm_end(LLMResult.of("x"))


async def test_plain_methods_hear_the_start_before_anything_is_awaited():
    plain, awaited = RecordingCallbackHandler(), AsyncRecorder()
    run = begin(awaited, plain)
    assert (kind_of(plain), kind_of(awaited)) == ("start", "")
    await run.start()
    await run.start()
    assert kind_of(awaited) == "start"
    await run.on_llm_end(LLMResult.of("x"))
    assert kind_of(plain) == kind_of(awaited) == "start end"


async def test_a_start_that_was_not_awaited_is_told_before_what_comes_next():
    awaited = AsyncRecorder()
    run = begin(awaited)
    await run.on_llm_error(ReadError("broken"))
    assert kind_of(awaited) == "start error"


@pytest.mark.parametrize("recorder", RECORDERS)
async def test_only_the_first_end_counts(recorder):
    handler = recorder()
    run = begin(handler)
    await run.on_llm_error(ReadError("broken"))
    assert run.ended
    await run.on_llm_end(LLMResult.of("x"))
    await run.on_llm_error(ReadError("broken"))
    run.end_now(ReadError("broken"))
    await run.on_llm_new_token(GenerationChunk("x"))
    await run.on_attempt(1)
    await run.on_retry(1, 1.0, ReadError())
    await run.on_rate_limit(429)
    await run.on_text("x")
    await run.on_cache_hit()
    assert kind_of(handler) == "start error"
    event = handler.events[-1]
    assert (event.kind, event.message, str(event.error)) == ("ReadError", "broken", "broken")


@pytest.mark.parametrize("recorder", RECORDERS)
async def test_a_run_that_is_cancelled_ends(recorder):
    handler = recorder()
    with anyio.CancelScope() as scope:
        run = begin(handler)
        scope.cancel()
        await use(run, anyio.sleep_forever)
    assert scope.cancelled_caught
    handler.assert_paired()
    assert handler.events[-1].kind == "cancelled"


@pytest.mark.parametrize("recorder", RECORDERS)
async def test_cancelled_at_every_suspension(recorder):
    async def work(step):
        await step()
        await step()
        for _ in range(2):
            await run.on_llm_new_token(GenerationChunk("x"))
            await step()

    for k in range(1, 6):
        steps = 0
        handler = recorder()

        async def step():
            nonlocal steps
            steps += 1
            if steps == k:
                scope.cancel()
            await anyio.lowlevel.checkpoint()

        with anyio.CancelScope() as scope:
            run = begin(handler)
            await use(run, functools.partial(work, step))
        handler.assert_paired()
        assert scope.cancelled_caught == (k <= 4)
        assert (handler.events[-1].run_id, type(handler.events[-1]).__name__) == (
            run.run_id,
            "LLMErrorEvent" if k <= 4 else "LLMEndEvent",
        )


@asyncio_only
@pytest.mark.parametrize("ticks", range(12))
async def test_a_native_cancel_at_every_turn_of_the_loop(ticks, caplog):
    first, second = AsyncRecorder(), AsyncRecorder()

    async def work():
        await run.on_llm_new_token(GenerationChunk("x"))
        await asyncio.sleep(0)

    run = begin(first, second)
    task = asyncio.create_task(use(run, work))
    for _ in range(ticks):
        await asyncio.sleep(0)
    accepted = task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError) == accepted  # never swallowed
    if ticks == 0:  # the task never ran, so that nobody could end its run: the owner of the run does
        run.end_now(asyncio.CancelledError())
        assert first.events == []
    else:
        # A handler that was itself interrupted has no record of that event; the other one was told all the same.
        whole = max(first, second, key=lambda each: len(each.events))
        whole.assert_paired()
    assert "callback handler" not in caplog.text  # it is no failure of a handler


async def test_leaving_a_generator_early_is_an_end():
    handler = RecordingCallbackHandler()

    async def stream():
        run = begin(handler)
        try:
            yield 1
        except BaseException as error:
            await run.on_llm_error(error)
            raise

    generator = stream()
    assert await anext(generator) == 1
    await generator.aclose()
    assert handler.events[-1].kind == "cancelled"
    handler.assert_paired()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_an_interrupt_is_an_end_by_its_name(error):
    handler = AsyncRecorder()

    async def work():
        raise error

    with pytest.raises(type(error)):
        await use(begin(handler), work)
    assert handler.events[-1].kind == type(error).__name__


def test_end_now_tells_plain_methods_and_schedules_nothing():
    plain, awaited = RecordingCallbackHandler(), AsyncRecorder()
    run = begin(plain, awaited)
    run.end_now(GeneratorExit())
    run.end_now(GeneratorExit())
    gc.collect()  # a coroutine that nobody awaits would warn
    assert (kind_of(plain), kind_of(awaited)) == ("start error", "")
    assert plain.events[-1].kind == "cancelled"
    assert plain.events[-1].time >= plain.events[0].time > 0  # no loop is needed for it


def test_end_now_closes_what_a_hidden_async_method_began():
    async def hidden(event):
        raise AssertionError("is not run")

    run = begin(handler_of(lambda event: hidden(event)))
    run.end_now(GeneratorExit())
    gc.collect()


async def test_an_async_method_behind_a_plain_one_is_awaited():
    inner = AsyncRecorder()
    run = begin(handler_of(lambda event: inner._keep(event)))
    await run.start()
    await run.on_llm_new_token(GenerationChunk("x"))
    await run.on_llm_end(LLMResult.of("x"))
    assert kind_of(inner) == "start new_token end"


async def _raise_later(error, event):
    await anyio.lowlevel.checkpoint()
    raise error


def _raise_now(error, event):
    raise error


@pytest.mark.parametrize("how", [_raise_now, _raise_later])
async def test_a_handler_that_raises_is_isolated_and_logged_once(how, caplog):
    caplog.set_level(logging.DEBUG)
    before, after = RecordingCallbackHandler(), AsyncRecorder()
    odd = handler_of(
        functools.partial(how, KeyError("secret prompt")), "on_llm_start", "on_llm_new_token", "on_llm_end"
    )
    for _ in range(3):
        run = begin(before, odd, after)
        await run.start()
        for _ in range(3):
            await run.on_llm_new_token(GenerationChunk("x"))
        await run.on_llm_end(LLMResult.of("x"))
    for handler in (before, after):
        handler.assert_paired()
        assert len(handler.events) == 15
    assert [record.args[1] for record in caplog.records] == ["on_llm_start", "on_llm_new_token", "on_llm_end"]
    for record in caplog.records:
        assert record.name == "millstream"
        assert "KeyError at " in record.getMessage()
        assert "test_run.py:" in record.getMessage()
        assert record.exc_info is None
    assert "secret" not in caplog.text


def backend_cancellation():
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return asyncio.CancelledError()
    return trio.Cancelled._create(source="explicit")


@pytest.mark.parametrize("how", [_raise_now, _raise_later])
async def test_a_cancellation_of_the_handlers_own_is_isolated(how, caplog):
    odd, after = handler_of(functools.partial(how, backend_cancellation())), AsyncRecorder()
    run = begin(odd, after)
    await use(run, functools.partial(run.on_llm_new_token, GenerationChunk("x")))
    assert kind_of(after) == "start new_token end"
    assert "on_llm_end raised Cancelled" in caplog.text


async def test_a_handler_that_leaves_a_scope_of_its_own_disturbs_nothing(caplog):
    async def cancels_itself(event):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()

    run = begin(handler_of(cancels_itself))
    await use(run, functools.partial(anyio.sleep, 0))
    assert caplog.text == ""


@asyncio_only
async def test_a_handler_that_swallows_the_hosts_cancellation_does_not_keep_it():
    entered = asyncio.Event()

    async def swallows(event):
        entered.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)

    after = AsyncRecorder()
    run = begin(handler_of(swallows, "on_text"), after)
    task = asyncio.create_task(use(run, functools.partial(run.on_text, "x")))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    after.assert_paired()
    assert after.events[-1].kind == "cancelled"


@asyncio_only
async def test_a_handler_that_cancels_the_host_cancels_it_once():
    async def cancels(event):
        asyncio.current_task().cancel()

    async def host():
        with pytest.raises(asyncio.CancelledError):
            await run.on_text("x")
        await asyncio.sleep(0)  # it does not come a second time
        await run.on_llm_end(LLMResult.of("x"))

    after = AsyncRecorder()
    run = begin(handler_of(cancels, "on_text"))
    await asyncio.create_task(host())
    run = begin(handler_of(cancels, "on_text"), after)
    await asyncio.create_task(host())


@pytest.mark.parametrize("how", [_raise_now, _raise_later])
async def test_an_interrupt_in_a_handler_goes_through_when_all_were_told(how):
    plain, awaited = RecordingCallbackHandler(), AsyncRecorder()
    run = begin(handler_of(functools.partial(how, KeyboardInterrupt()), "on_llm_end"), plain, awaited)
    with pytest.raises(KeyboardInterrupt):
        await run.on_llm_end(LLMResult.of("x"))
    assert kind_of(plain) == kind_of(awaited) == "start end"


def test_an_interrupt_while_starting_ends_what_had_begun():
    plain, awaited, seen = RecordingCallbackHandler(), AsyncRecorder(), []

    def third(event):
        seen.append(event)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CallbackManager([plain, handler_of(third, "on_llm_start"), awaited]).on_llm_start(LLM, list("abcde"))
    plain.assert_paired()
    assert len(plain.runs()) == 3
    assert awaited.events == []


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_a_handler_that_blocks_has_a_second(caplog):
    async def blocks(event):
        called.append(type(event).__name__)
        await anyio.sleep_forever()

    called: list[str] = []
    after = AsyncRecorder()
    run = begin(handler_of(blocks), after)
    began = anyio.current_time()
    await run.start()
    assert anyio.current_time() - began == pytest.approx(1)
    for _ in range(100):  # it had its second: no token waits for it again
        await run.on_llm_new_token(GenerationChunk("x"))
    assert anyio.current_time() - began == pytest.approx(1)
    await run.on_llm_end(LLMResult.of("x"))
    assert anyio.current_time() - began == pytest.approx(2)
    assert called == ["LLMStartEvent", "LLMEndEvent"]
    after.assert_paired()
    assert len(after.events) == 102
    assert [record.getMessage().count("was cancelled after 1 s") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_a_cancelled_run_waits_a_second_for_a_handler_at_the_most():
    finished = []

    async def slow(seconds, event):
        await anyio.sleep(seconds)
        finished.append(seconds)

    began = anyio.current_time()
    with anyio.CancelScope() as scope:
        run = begin(
            handler_of(functools.partial(slow, 0.9), "on_llm_error"),
            handler_of(functools.partial(slow, 9), "on_llm_error"),
        )
        scope.cancel()
        await use(run, anyio.sleep_forever)
    assert finished == [0.9]
    assert anyio.current_time() - began == pytest.approx(1.9)


async def test_events_carry_the_steady_time():
    handler = RecordingCallbackHandler()
    before = time.monotonic()
    run = begin(handler)
    await run.on_llm_end(LLMResult.of("x"))
    assert before <= handler.events[0].time <= handler.events[1].time <= time.monotonic()


async def test_a_frozen_handler_is_isolated_too(caplog):
    @dataclasses.dataclass(frozen=True, slots=True)
    class Frozen(BaseCallbackHandler):
        answer: int

        def on_llm_end(self, event):
            raise ValueError

    run = begin(Frozen(1))
    await run.on_llm_end(LLMResult.of("x"))
    assert "Frozen: on_llm_end raised ValueError" in caplog.text


async def test_an_error_that_can_not_be_written_is_told():
    class BrokenError(Exception):
        def __str__(self):
            raise ValueError("no text")

    handler = RecordingCallbackHandler()
    run = begin(handler)
    await run.on_llm_error(BrokenError())
    assert (handler.events[-1].kind, handler.events[-1].message) == ("BrokenError", "")


async def test_what_is_a_cancellation():
    cancelled = backend_cancellation()
    assert is_cancellation(cancelled)
    assert is_cancellation(GeneratorExit())
    assert is_cancellation(BaseExceptionGroup("all", [cancelled, BaseExceptionGroup("in", [cancelled])]))
    assert not is_cancellation(BaseExceptionGroup("some", [cancelled, ValueError()]))
    assert not is_cancellation(KeyboardInterrupt())
    assert not is_cancellation(TimeoutError())
