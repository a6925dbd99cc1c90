from __future__ import annotations

import io
import logging

import pytest

from millstream._control import WindowChange
from millstream._errors import ReadError
from millstream._results import GenerationChunk, LLMResult, Usage
from millstream.callbacks import CallbackManager, ConsoleCallbackHandler, LoggingCallbackHandler
from millstream.callbacks._recording import RecordingCallbackHandler

from .handlers import LLM


async def tell_everything(handler, prompt="the prompt", answer="the answer"):
    manager = CallbackManager([handler])
    failed, run = manager.on_llm_start(LLM, [prompt, prompt])
    await failed.on_rate_limit(429, 2.5)
    await failed.on_rate_limit(None, None, "overload")
    change = WindowChange(before=8, limit=6, reason="overload", pace=None, cool_for=0.5)
    await failed.on_window("", change, 5.0)
    await failed.on_retry(1, 0.25, ReadError("cut off: the prompt"))
    await failed.on_llm_error(ReadError("cut off: the prompt"))
    await run.on_attempt(1)
    await run.on_cache_hit(shared=False)
    await run.on_text("some text")
    await run.on_llm_new_token(GenerationChunk(answer))
    await run.on_llm_end(LLMResult.of(answer, usage=Usage(3, 4)))
    return failed.run_id, run.run_id


async def test_the_console_tells_prompts_answers_and_failures():
    out = io.StringIO()
    failed, run = await tell_everything(ConsoleCallbackHandler(out))
    assert out.getvalue().splitlines() == [
        f"[{failed[:8]}] prompt: the prompt",
        f"[{run[:8]}] prompt: the prompt",
        f"[{failed[:8]}] attempt 1 failed, next in 0.2 s: ReadError: cut off: the prompt",
        f"[{failed[:8]}] ReadError: cut off: the prompt",
        f"[{run[:8]}] cached",
        f"[{run[:8]}] text: some text",
        f"[{run[:8]}] answer (stop): the answer",
    ]


async def test_the_console_is_stdout_as_it_is_then(capsys):
    manager = CallbackManager.configure(verbose=True)
    (run,) = manager.on_llm_start(LLM, ["the prompt"])
    await run.on_llm_end(LLMResult.of("the answer"))
    assert "the prompt" in (printed := capsys.readouterr().out)
    assert "the answer" in printed


async def test_a_models_text_can_not_drive_the_terminal():
    out = io.StringIO()
    await tell_everything(ConsoleCallbackHandler(out), answer="a\x1b]0;title\x07\r\x9b2J\n\tb é 雪\u2028")
    assert "answer (stop): a\\x1b]0;title\\x07\\x0d\\x9b2J\n\tb é 雪\u2028\n" in out.getvalue()
    assert not set(out.getvalue()) & set("\x1b\x07\r\x9b")


async def test_a_console_that_is_gone_breaks_nothing(caplog):
    out = io.StringIO()
    out.close()
    await tell_everything(ConsoleCallbackHandler(out))
    assert "console: on_llm_start raised ValueError" in caplog.text


async def test_logs_have_no_text_unless_asked(caplog):
    caplog.set_level(logging.DEBUG)
    failed, run = await tell_everything(LoggingCallbackHandler())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", f"run {failed}: start"),
        ("DEBUG", f"run {run}: start"),
        ("INFO", f"run {failed}: the server answered 429 (rate), asks to wait 2.5 s"),
        ("INFO", f"run {failed}: the server did not answer in time (overload)"),
        ("INFO", "window: 8 -> 6 in flight (overload), nothing for 0.50 s"),
        ("INFO", f"run {failed}: attempt 1 failed by ReadError, next in 0.25 s"),
        ("INFO", f"run {failed}: ReadError"),
        ("DEBUG", f"run {run}: attempt 1"),
        ("DEBUG", f"run {run}: cached"),
        ("DEBUG", f"run {run}: text"),
        ("INFO", f"run {run}: end, 3 tokens in, 4 out"),
    ]
    assert {record.name for record in caplog.records} == {"millstream.runs"}


async def test_logs_quote_and_cut_texts_where_asked(caplog):
    caplog.set_level(logging.DEBUG, "mine")
    handler = LoggingCallbackHandler(logging.getLogger("mine"), texts=True)
    await tell_everything(handler, prompt="a\nINFO forged line", answer="x" * 300)
    told = [record.getMessage() for record in caplog.records]
    assert r"start: 'a\nINFO forged line'" in told[0]
    assert told[-1].endswith(f"out: '{'x' * 200}'")
    assert all("\n" not in line for line in told)


async def test_the_recording_finds_runs_that_are_not_paired():
    handler = RecordingCallbackHandler()
    (run,) = CallbackManager([handler]).on_llm_start(LLM, ["p"])
    with pytest.raises(AssertionError, match="did not end"):
        handler.assert_paired()
    await run.on_llm_end(LLMResult.of("x"))
    handler.assert_paired()
    start, end = handler.events
    for wrong in ([end], [end, start], [start, end, end], [start, start, end], [start, end, start]):
        handler.events = wrong
        with pytest.raises(AssertionError, match="its one"):
            handler.assert_paired()
