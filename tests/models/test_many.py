"""`map` and `stream_many`: any number of prompts, as they complete."""

from __future__ import annotations

import itertools

import anyio
import pytest

from millstream import LLM, BadRequestError, OptionTypeError, StreamEvent
from millstream.testing import FakeEndpoint, Fault


class Echo(LLM):
    """Answers with the prompt; counts how many it is asked at a time."""

    running = 0
    most = 0

    async def _call(self, prompt, options, run):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(0)
            if prompt == "bad":
                raise ValueError("a bad prompt")
        finally:
            self.running -= 1
        return prompt


async def collect(llm, prompts):
    async with llm.map(prompts) as outcomes:
        return [outcome async for outcome in outcomes]


async def test_every_prompt_has_its_outcome(model, endpoint, api):
    llm = model(api=api, max_tokens=3, max_concurrency=4)
    prompts = [f"p{number}" for number in range(30)]
    outcomes = await collect(llm, prompts)
    assert sorted(outcome.index for outcome in outcomes) == list(range(30))
    assert all(outcome.ok and outcome.prompt == prompts[outcome.index] for outcome in outcomes)
    assert endpoint.connections <= 4


async def test_an_error_is_an_outcome_and_sinks_no_other(model, endpoint):
    endpoint.fail(Fault.status(400, body={"error": "no"}))
    outcomes = await collect(model(max_concurrency=1), ["a", "b", 5, "c"])
    failed = {outcome.index: type(outcome.error) for outcome in outcomes if not outcome.ok}
    assert failed == {0: BadRequestError, 2: OptionTypeError}
    assert [outcome.index for outcome in outcomes if outcome.ok] == [1, 3]
    with pytest.raises(BadRequestError):
        next(outcome for outcome in outcomes if outcome.index == 0).unwrap()
    with pytest.raises(BadRequestError):
        _ = next(outcome for outcome in outcomes if outcome.index == 0).text


async def test_endless_input_is_read_as_outcomes_are_taken():
    taken = 0

    def prompts():
        nonlocal taken
        for number in itertools.count():
            taken = number + 1
            yield str(number)

    llm = Echo(max_concurrency=4)
    async with llm.map(prompts()) as outcomes:
        async for outcome in outcomes:
            assert taken <= outcome.index + 2 * 2 * 4
            if outcome.index >= 50:
                break
    assert llm.running == 0
    assert llm.most <= 4


async def test_async_input_is_closed_when_the_block_is_left():
    closed = False

    async def prompts():
        nonlocal closed
        try:
            for number in itertools.count():
                yield str(number)
        finally:
            closed = True

    async with Echo(max_concurrency=2).map(prompts()) as outcomes:
        async for _outcome in outcomes:
            break
    assert closed


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_error_of_the_input_comes_after_what_was_read(asynchronous):
    def prompts():
        yield from ("a", "b", "c")
        raise OSError("the file is damaged")

    async def async_prompts():
        for prompt in prompts():
            yield prompt

    seen = []
    with pytest.raises(OSError, match="damaged"):
        async with Echo().map(async_prompts() if asynchronous else prompts()) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.text)
    assert sorted(seen) == ["a", "b", "c"]


@pytest.mark.parametrize("prompts", ["text", b"bytes", 5, None, {"name": "prompt"}])
async def test_what_is_no_input(prompts):
    with pytest.raises(OptionTypeError):
        await collect(Echo(), prompts)


async def test_no_prompts():
    assert await collect(Echo(), []) == []


async def test_an_error_of_the_block_is_raised_as_it_is():
    llm = Echo()
    with pytest.raises(ZeroDivisionError):
        async with llm.map(["a", "b"]) as outcomes:
            async for _outcome in outcomes:
                raise ZeroDivisionError
    assert llm.running == 0


async def test_a_bad_prompt_of_a_model_of_ones_own():
    outcomes = await collect(Echo(), ["a", "bad", "b"])
    assert {outcome.index: outcome.ok for outcome in outcomes} == {0: True, 1: False, 2: True}


async def test_streams_are_merged(model, api):
    async with FakeEndpoint(reply=lambda prompt: f"{prompt.strip()} one two three", coalesce=False) as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api)
        prompts = ["a", "b", "c"]
        texts = dict.fromkeys(range(3), "")
        ended: list[StreamEvent] = []
        async with llm.stream_many(prompts) as events:
            async for event in events:
                assert event.prompt == prompts[event.index]
                if event.chunk is not None:
                    assert event.index not in {end.index for end in ended}
                    texts[event.index] += event.chunk.text
                else:
                    ended.append(event)
        assert {event.index: event.outcome.text for event in ended} == texts
        assert texts == {number: f"{prompt} one two three" for number, prompt in enumerate(prompts)}


async def test_a_stream_that_fails_is_an_outcome(model, endpoint):
    endpoint.fail(Fault.error_event(after_events=2))
    async with model(max_concurrency=1, max_tokens=4).stream_many(["a", "b"]) as events:
        outcomes = {event.index: event.outcome async for event in events if event.outcome is not None}
    assert {index: outcome.ok for index, outcome in outcomes.items()} == {0: False, 1: True}
    assert outcomes[0].error.partial


async def test_leaving_stream_many_stops_everything(model):
    async with FakeEndpoint(faults=[Fault.stall(after_events=1, times=5)]) as endpoint:
        llm = model(endpoint_url=endpoint.url)
        async with llm.stream_many(["a", "b", "c"]) as events:
            async for _event in events:
                break
        await endpoint.wait_for(lambda: endpoint.in_flight == 0)
