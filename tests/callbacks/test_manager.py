from __future__ import annotations

import io

import pytest

from millstream._errors import OptionTypeError
from millstream._results import GenerationChunk, LLMResult
from millstream.callbacks import BaseCallbackHandler, CallbackManager, ConsoleCallbackHandler
from millstream.callbacks._base import HOOKS
from millstream.callbacks._recording import RecordingCallbackHandler

from .handlers import LLM, AsyncRecorder, handler_of, kind_of


@pytest.mark.parametrize("nothing", [None, [], (), CallbackManager(), [BaseCallbackHandler()]])
def test_nobody_listening_is_no_manager(nothing):
    assert CallbackManager.configure(nothing, None) is None
    assert CallbackManager.configure(None, nothing, tags=["a"], metadata={"b": 1}, parent_run_id="p") is None


def test_constructor_and_call_are_merged_without_duplicates():
    a, b, c = RecordingCallbackHandler(), RecordingCallbackHandler(), RecordingCallbackHandler()
    manager = CallbackManager.configure(
        CallbackManager([a, b], tags=["t", "u"], metadata={"k": 1, "l": 1}, parent_run_id="outer"),
        CallbackManager([b, c, c], tags=["u", "v"], metadata={"k": 2, "m": 2}),
        tags=["w", "t"],
        metadata={"m": 3},
    )
    assert manager is not None
    assert manager.handlers == (a, b, c)
    assert manager.tags == ("t", "u", "v", "w")
    assert manager.metadata == {"k": 2, "l": 1, "m": 3}
    assert manager.parent_run_id == "outer"


def test_the_calls_parent_goes_before_the_models():
    handlers = [RecordingCallbackHandler()]
    model, call = CallbackManager(handlers, parent_run_id="model"), CallbackManager(handlers, parent_run_id="call")
    assert CallbackManager.configure(model, call).parent_run_id == "call"
    assert CallbackManager.configure(model, call, parent_run_id="said").parent_run_id == "said"


def test_verbose_prints_once():
    assert [type(each) for each in CallbackManager.configure(verbose=True).handlers] == [ConsoleCallbackHandler]
    mine = ConsoleCallbackHandler(io.StringIO())
    assert CallbackManager.configure([mine], verbose=True).handlers == (mine,)


def test_handlers_that_compare_equal_or_have_no_hash_are_two():
    class Same(RecordingCallbackHandler):
        __hash__ = None

        def __eq__(self, other):
            return True

    assert len(CallbackManager.configure([Same(), Same()]).handlers) == 2


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (RecordingCallbackHandler(), r"put RecordingCallbackHandler into \[ \]|put recording into \[ \]"),
        ([RecordingCallbackHandler], "the class: make one of it"),
        ([print], "instance of a subclass"),
        ("console", "not str"),
        ({"a": 1}, "not dict"),
    ],
)
def test_what_is_no_handler_is_refused(wrong, hint):
    with pytest.raises(OptionTypeError, match=hint):
        CallbackManager.configure(wrong)
    with pytest.raises(OptionTypeError, match=hint):
        CallbackManager.configure(None, wrong)


def test_tags_that_are_one_text_are_refused():
    with pytest.raises(OptionTypeError, match=r"\['abc'\]"):
        CallbackManager([RecordingCallbackHandler()], tags="abc")
    with pytest.raises(OptionTypeError, match=r"\['abc'\]"):
        CallbackManager.configure([RecordingCallbackHandler()], tags="abc")


@pytest.mark.parametrize("hook", HOOKS)
def test_only_overridden_methods_are_called(hook):
    manager = CallbackManager([handler_of(lambda event: None, hook), BaseCallbackHandler()])
    assert [name for name in HOOKS if manager.wants(name)] == [hook]
    (run,) = manager.on_llm_start(LLM, ["p"])
    assert run.wants(hook)
    assert run.wants_tokens == (hook == "on_llm_new_token")
    run.end_now(ValueError())


def test_the_model_is_not_serialized_for_nobody():
    def serialize():
        raise AssertionError("nobody wants to know")

    (run,) = CallbackManager([handler_of(lambda event: None, "on_llm_end")]).on_llm_start(serialize, ["p"])
    run.end_now(ValueError())


async def test_tokens_cost_no_event_where_nobody_listens():
    (run,) = CallbackManager([handler_of(lambda event: None, "on_llm_end")]).on_llm_start(LLM, ["p"])
    with pytest.raises(StopIteration):  # it neither suspends nor looks at the chunk
        run.on_llm_new_token(None).send(None)
    await run.on_llm_end(LLMResult.of("x"))


async def test_a_run_keeps_the_audience_that_it_began_with():
    early, late = RecordingCallbackHandler(), RecordingCallbackHandler()
    manager = CallbackManager([early])
    (run,) = manager.on_llm_start(LLM, ["p"])
    manager.add_handler(late)
    manager.add_handler(late)
    manager.remove_handler(early)
    manager.remove_handler(BaseCallbackHandler())
    assert manager.handlers == (late,)
    await run.on_llm_end(LLMResult.of("x"))
    assert (kind_of(early), kind_of(late)) == ("start end", "")


def test_a_copy_is_added_to_alone():
    manager = CallbackManager([RecordingCallbackHandler()], tags=["t"], metadata={"a": 1}, parent_run_id="p")
    copy = manager.copy()
    copy.add_handler(RecordingCallbackHandler())
    copy.metadata["b"] = 2
    assert (len(copy.handlers), len(manager.handlers)) == (2, 1)
    assert manager.metadata == {"a": 1}
    assert (copy.tags, copy.parent_run_id) == (("t",), "p")


@pytest.mark.parametrize("recorder", [RecordingCallbackHandler, AsyncRecorder])
async def test_one_run_a_prompt(recorder):
    handler = recorder()
    manager = CallbackManager([handler], tags=["t"], metadata={"a": 1})
    runs = manager.on_llm_start(lambda: LLM, ["first", "second"])
    for run in runs:
        await run.start()
        await run.on_attempt(1)
        await run.on_rate_limit(429, 2.0)
        await run.on_retry(1, 0.5, ValueError("no"))
        await run.on_cache_hit(shared=True)
        await run.on_text("text")
        await run.on_llm_new_token(GenerationChunk("to"))
        await run.on_llm_end(LLMResult.of("to"))
    handler.assert_paired()
    assert list(handler.runs()) == [run.run_id for run in runs]
    assert len({run.run_id for run in runs}) == 2
    for prompt, (run_id, events) in zip(["first", "second"], handler.runs().items(), strict=True):
        start, attempt, limit, retry, hit, text, token, end = events
        assert (start.prompt, start.llm) == (prompt, LLM)
        assert (attempt.attempt, limit.status_code, limit.retry_after) == (1, 429, 2.0)
        assert (retry.attempt, retry.delay, retry.reason, retry.status_code) == (1, 0.5, "ValueError: no", None)
        assert (hit.shared, text.text, token.token, end.result.text) == (True, "text", "to", "to")
        assert token.chunk == GenerationChunk("to")
        assert {event.run_id for event in events} == {run_id}
        assert {(event.tags, event.metadata["a"], event.parent_run_id) for event in events} == {(("t",), 1, None)}
        times = [event.time for event in events]
        assert times == sorted(times)


async def test_a_child_has_its_parent():
    handler = RecordingCallbackHandler()
    (run,) = CallbackManager([handler], tags=["t"], metadata={"a": 1}).on_llm_start(LLM, ["p"])
    (child,) = run.get_child(tags=["child"]).on_llm_start(LLM, ["q"])
    await child.on_llm_end(LLMResult.of("x"))
    await run.on_llm_end(LLMResult.of("x"))
    handler.assert_paired()
    begun = handler.runs()[child.run_id][0]
    assert (begun.parent_run_id, begun.tags, begun.metadata) == (run.run_id, ("t", "child"), {"a": 1})
