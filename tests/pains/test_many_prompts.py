"""Many prompts: as many at a time as was said, no more than that in memory, and each with an outcome of its own."""

from __future__ import annotations

import anyio
import pytest

from millstream import LLM, ContextLengthError, DeadlineError, Deadlines, OptionTypeError
from millstream.testing import FakeEndpoint, Fault, Latency

from .support import DONE, MANUAL_CLOCK, chat, event, model_at, new_objects, prompt_of, refusal, stream_of

MANY = 20_000
FEWER = 3_000
"""On the slower loops."""

MANY_ON_EACH_LOOP = {
    "argnames": ("anyio_backend", "many"),
    "argvalues": [(("asyncio", {}), FEWER), (("asyncio", {"use_uvloop": True}), MANY), (("trio", {}), FEWER)],
    "ids": ["asyncio", "uvloop", "trio"],
}


class Echo(LLM):
    """Answers with the prompt, after letting the others run; sees how much is under way."""

    def __init__(self, **params):
        super().__init__(**params)
        self.calls = self.in_flight = self.most_in_flight = self.most_tasks = 0

    async def _call(self, prompt, options, run):
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.calls % 500 == 0:
            self.most_tasks = max(self.most_tasks, len(anyio.get_running_tasks()))
        for _ in range(100 if self.calls < 500 else 1):  # slow enough at first for all places to be taken
            await anyio.lowlevel.cancel_shielded_checkpoint()
        self.in_flight -= 1
        return prompt


@pytest.mark.parametrize(**MANY_ON_EACH_LOOP)
async def test_generate_of_many_keeps_few_in_flight(many):
    """Pain 10: 20 000 prompts are launched at once, and the process hangs."""
    before = len(anyio.get_running_tasks())
    llm = Echo(max_concurrency=50)
    prompts = [str(number) for number in range(many)]
    assert (await llm.generate(prompts)).texts == prompts
    assert (llm.calls, llm.most_in_flight) == (many, 50)
    assert 50 <= llm.most_tasks - before <= 101


@pytest.mark.parametrize(**MANY_ON_EACH_LOOP)
async def test_map_of_many_reads_its_input_as_it_goes(many):
    """Pain 10: 20 000 prompts are read, launched and kept at once; memory grows with them."""
    read = taken = most_ahead = 0
    objects: list[int] = []

    def prompts():
        nonlocal read, most_ahead
        for number in range(2 * many):
            read += 1
            most_ahead = max(most_ahead, read - taken)
            yield str(number)

    before = len(anyio.get_running_tasks())
    llm = Echo(max_concurrency=50)
    with new_objects() as count:
        async with llm.map(prompts()) as outcomes:
            async for outcome in outcomes:
                taken += 1
                assert outcome.text == outcome.prompt == str(outcome.index)
                if taken in (many // 4, many - many // 4):
                    objects.append(count())
                if taken == many:
                    break
    assert llm.most_in_flight == 50
    assert 50 <= llm.most_tasks - before <= 101
    assert most_ahead <= 101
    early, late = objects
    assert late - early < many / 10, "memory grows with the outcomes that were taken"


async def test_an_idle_reader_stops_the_input(model, endpoint):
    """Pain 10: the input is read and paid for ahead of whoever takes the outcomes."""
    read = 0

    async def prompts():
        nonlocal read
        while True:
            read += 1
            yield "x"

    llm = model(api="chat", max_concurrency=4)
    async with llm.map(prompts()) as outcomes:
        await anext(outcomes)
        with anyio.move_on_after(0.03):
            await endpoint.wait_for(lambda: len(endpoint.requests) > 9)
        assert len(endpoint.requests) <= 9
        assert read <= 9
        for _ in range(30):
            await anext(outcomes)
    assert read <= 31 + 9


async def test_hundreds_of_prompts_through_few_connections(model, api):
    """Pain 10: as many connections and requests as there are prompts."""
    async with FakeEndpoint(
        reply=lambda prompt: prompt.strip().upper(), latency=Latency(first_token=0.001)
    ) as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, max_concurrency=16)
        prompts = [f"prompt {number}" for number in range(100)]
        assert (await llm.generate(prompts)).texts == [prompt.upper() for prompt in prompts]
        assert endpoint.connections == 16


async def test_there_is_no_hidden_cap(model):
    """Pain 5: a hidden cap of 100 connections; the pool has as many as the caller's limit says."""
    async with FakeEndpoint() as endpoint:
        endpoint.fail(Fault.stall(1, times=150))
        llm = model(endpoint_url=endpoint.url, api="chat", max_concurrency=150)
        async with llm.map(["x"] * 200):
            with anyio.fail_after(30):
                await endpoint.wait_for(lambda: endpoint.generating == 150)


async def test_hundreds_of_calls_wait_for_two_connections(model, endpoint):
    """Pain 5: 200 of 400 calls fail, because waiting for the pool counts as a time-out."""
    llm = model(api="chat", max_concurrency=2, max_retries=0)
    async with llm.map(["x"] * 400) as outcomes:
        assert [outcome.ok async for outcome in outcomes] == [True] * 400
    assert endpoint.connections == 2


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize(("queue", "in_time"), [(None, 20), (25, 3)])
async def test_waiting_for_a_slot_is_not_the_servers_time(queue, in_time):
    """Pain 5: waiting for the pool counts as the server's time-out; queueing has a deadline and a name of its own."""

    async def answer(number, body):
        await anyio.sleep(10)
        return stream_of(event("a", finish="stop"), DONE)

    deadlines = Deadlines(first_token=11, idle=11, connect=11, queue=queue)
    llm, transport = model_at(answer, max_concurrency=1, max_retries=0, deadlines=deadlines)
    errors: list[Exception] = []

    async def ask() -> None:
        try:
            await llm.stream("x").result()
        except DeadlineError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)
    assert len(transport.began) == in_time
    assert len(errors) == 20 - in_time
    for error in errors:
        assert (error.deadline, error.seconds, error.attempts) == ("queue", 25, 0)
        assert "no slot became free within 25 s" in str(error)


BAD = "too long " * 40


@pytest.mark.parametrize("how", ["map", "stream_many"])
async def test_one_bad_prompt_fails_alone(model, api, how):
    """Pain 11: one bad prompt turns the whole batch into exceptions, and those after it are never sent."""
    async with FakeEndpoint(max_total_tokens=40, reply=lambda prompt: prompt.strip().upper()) as endpoint:
        llm = model(endpoint_url=endpoint.url, api=api, max_concurrency=2, max_retries=0)
        prompts = ["a", "b", BAD, None, "e", "f"]
        if how == "map":
            async with llm.map(prompts) as each:
                outcomes = [outcome async for outcome in each]
        else:
            async with llm.stream_many(prompts) as events:
                outcomes = [event.outcome async for event in events if event.outcome is not None]
    outcomes.sort(key=lambda outcome: outcome.index)
    assert [outcome.prompt for outcome in outcomes] == prompts
    assert [outcome.text if outcome.ok else None for outcome in outcomes] == ["A", "B", None, None, "E", "F"]
    assert isinstance(outcomes[2].error, ContextLengthError)
    assert outcomes[2].error.status_code in (400, 422)
    assert isinstance(outcomes[3].error, OptionTypeError)
    assert len(endpoint.requests) == 5


async def test_the_error_of_a_list_says_which_prompt(model):
    """Pain 11: one bad prompt turns the whole batch into exceptions that don't say which prompt it was."""
    async with FakeEndpoint(max_total_tokens=40) as endpoint:
        llm = model(endpoint_url=endpoint.url, api="chat", max_concurrency=1)
        with pytest.raises(ContextLengthError) as caught:
            await llm.generate(["a", "b", BAD, "d", "e"])
        assert caught.value.prompt_index == 2
        with pytest.raises(OptionTypeError) as caught:
            await llm.generate(["a", None, "c"])
        assert caught.value.prompt_index == 1


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize(("concurrency", "seconds"), [(10, 0.2), (5, 0.4), (1, 2.0), (64, 0.2)])
async def test_concurrency_is_what_was_said(concurrency, seconds):
    """Pain 12: `max_concurrency` is ignored, the batch is serial: 10 prompts of 0.2 s take 2 s."""

    async def answer(number, body):
        await anyio.sleep(0.2)
        return chat(prompt_of(body).upper())

    llm, transport = model_at(answer, max_concurrency=concurrency)
    began = anyio.current_time()
    result = await llm.generate([f"p{number}" for number in range(10)])
    assert anyio.current_time() - began == pytest.approx(seconds)
    assert transport.most_in_flight == min(10, concurrency)
    assert result.texts == [f"P{number}" for number in range(10)]


async def test_concurrency_at_a_real_endpoint(model, endpoint):
    """Pain 12: the batch is serial; here seven are with the server at the same moment, and the eighth is not."""
    endpoint.fail(Fault.stall(1, times=100))
    llm = model(api="chat", max_concurrency=7)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(llm.generate, ["x"] * 20)
        with anyio.fail_after(30):
            await endpoint.wait_for(lambda: endpoint.generating == 7)
        with anyio.move_on_after(0.03):
            await endpoint.wait_for(lambda: len(endpoint.requests) > 7)
        assert len(endpoint.requests) == 7
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_a_slot_is_not_held_while_waiting_for_a_retry():
    """Pain 12: a sleeping retry holds a slot, and the batch is serial behind it."""

    async def answer(number, body):
        if prompt_of(body) == "bad" and number < 10:
            return refusal(500, retry_after="50")  # not a 503: after that everybody waits for the endpoint
        return chat()

    llm, transport = model_at(answer, max_concurrency=1)
    async with llm.map(["bad", *["good"] * 20]) as outcomes:
        order = [outcome.prompt async for outcome in outcomes]
    assert order == ["good"] * 20 + ["bad"]
    assert transport.began[1:21] == [transport.began[0]] * 20
