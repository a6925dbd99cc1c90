"""`LLM`: a model of one's own with one `_call`, that has nothing to do with HTTP."""

from __future__ import annotations

import anyio
import pytest

from millstream import LLM, AsyncCaller, CallOptions, ConnectError, GenerationChunk, LLMResult, OptionTypeError
from millstream.callbacks._recording import RecordingCallbackHandler

from ..conftest import manual_backends


class Parrot(LLM):
    """Says the prompt; keeps the options that it was asked with; fails first with what `errors` holds."""

    def __init__(self, *errors: Exception, **params):
        super().__init__(**params)
        self.errors = list(errors)
        self.asked: list[CallOptions] = []

    async def _call(self, prompt, options, run):
        self.asked.append(options)
        if self.errors:
            raise self.errors.pop(0)
        return prompt


class Talker(Parrot):
    """Streams word by word."""

    closed = 0

    async def _stream(self, prompt, options, run):
        try:
            for word in prompt.split(" "):
                if word == "bad":
                    raise ValueError("a bad word")
                yield GenerationChunk(f"{word} ")
        finally:
            self.closed += 1


async def test_everything_is_there():
    llm = Parrot(max_concurrency=2)
    assert await llm.call("hello") == "hello"
    assert (await llm.generate(["a", "b", "c"])).texts == ["a", "b", "c"]
    assert (await llm.predict_messages([{"role": "user", "content": "hi"}])).content == "Human: hi"
    assert [chunk.text async for chunk in llm.stream("in one piece")] == ["in one piece"]
    async with llm.map(["a"]) as outcomes:
        assert [outcome.text async for outcome in outcomes] == ["a"]
    assert await llm.get_num_tokens("12345678") == 2
    async with llm:
        pass


async def test_options_reach_it():
    llm = Parrot()
    await llm.call("x", ["stop"], temperature=0.5)
    assert llm.asked == [CallOptions(stop=("stop",), temperature=0.5)]


async def test_it_streams_if_it_can():
    llm = Talker()
    assert [chunk.text async for chunk in llm.stream("one two")] == ["one ", "two "]
    result = await llm.stream("one two").result()
    assert isinstance(result, LLMResult)
    assert result.text == "one two "


async def test_a_stream_left_early_is_closed():
    llm = Talker()
    async with llm.stream("one two three") as stream:
        await anext(stream)
    assert llm.closed == 1
    assert llm.caller.statistics().in_flight == 0


async def test_an_error_of_its_own_is_raised_as_it_is():
    llm = Talker()
    with pytest.raises(ValueError, match="a bad word"):
        await llm.stream("one bad").result()
    assert llm.caller.statistics().in_flight == 0
    with pytest.raises(ZeroDivisionError):
        await Parrot(ZeroDivisionError()).call("x")


@pytest.mark.parametrize("words", ["bad", "one bad"], ids=["before the first chunk", "after it"])
async def test_the_error_of_a_stream_is_told_again(words):
    stream = Talker().stream(words)
    for _ in range(2):
        with pytest.raises(ValueError, match="a bad word"):
            await stream.result()


@pytest.mark.parametrize("anyio_backend", manual_backends())
async def test_what_may_pass_is_tried_again():
    handler = RecordingCallbackHandler()
    llm = Parrot(ConnectionError("reset"), ConnectError("refused"), TimeoutError(), callbacks=[handler])
    assert await llm.call("x") == "x"
    assert len(llm.asked) == 4
    assert handler.kinds() == [
        "llm_start",
        "attempt",
        "retry",
        "attempt",
        "retry",
        "attempt",
        "retry",
        "attempt",
        "llm_end",
    ]


async def test_it_must_give_text():
    class Wrong(LLM):
        async def _call(self, prompt, options, run):
            return 5

    with pytest.raises(OptionTypeError, match=r"Wrong\._call must give text"):
        await Wrong().call("x")


def test_it_must_have_a_call():
    class Nothing(LLM):
        pass

    with pytest.raises(TypeError, match="_call"):
        Nothing()


async def test_its_answers_can_be_cached_and_shared():
    llm = Parrot(cache=True)
    llm.cache.clear()
    assert (await llm.generate(["same"] * 10)).texts == ["same"] * 10
    assert len(llm.asked) == 1
    llm.cache.clear()


async def test_a_slot_is_held_while_it_works_and_not_while_it_waits():
    caller = AsyncCaller(max_concurrency=1)
    seen = []

    class Watching(LLM):
        async def _call(self, prompt, options, run):
            seen.append(caller.statistics().in_flight)
            await anyio.sleep(0)
            return prompt

    await Watching(caller=caller).generate(["a", "b", "c"])
    assert seen == [1, 1, 1]
    assert caller.statistics().in_flight == 0
