"""Requests and tokens a minute: part of the model, never ignored, exact under concurrency."""

from __future__ import annotations

import anyio
import pytest

from millstream import LLM, AsyncCaller, Deadlines, HuggingFaceInference, UnknownOptionError
from millstream.limiters import LocalLimiter

from .support import DONE, MANUAL_CLOCK, URL, chat, event, model_at, prompt_of, refusal, stream_of


@pytest.mark.parametrize("name", ["rate_limiter", "model_kwargs", "requests_per_second", "rpm", "max_concurency"])
async def test_an_option_that_does_not_exist_is_refused(name):
    """Pain 7: the rate limiter is silently ignored, as an unknown option."""
    with pytest.raises(TypeError, match=f"'{name}'") as caught:
        HuggingFaceInference(endpoint_url=URL, **{name: 1})
    assert isinstance(caught.value, UnknownOptionError)
    with pytest.raises(TypeError, match=name):
        AsyncCaller(**{name: 1})
    with pytest.raises(TypeError, match=f"'{name}'"):
        await HuggingFaceInference(endpoint_url=URL).call("x", **{name: 1})


FOREVER = Deadlines(total=None)


class Own(LLM):
    """A model of one's own."""

    async def _call(self, prompt, options, run):
        began.append(anyio.current_time())
        return prompt


began: list[float] = []


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("how", ["own", "caller", "limiter", "subclass"])
async def test_the_limit_holds_however_it_is_given(how):
    """Pain 7: the rate limiter is silently ignored."""

    async def answer(number, body):
        return chat()

    began.clear()
    limits = {"requests_per_minute": 3}
    if how == "subclass":
        await Own(**limits).generate(["x"] * 7)
        times = began
    else:
        given = {
            "own": limits,
            "caller": {"caller": AsyncCaller(**limits)},
            "limiter": {"caller": AsyncCaller(limiter=LocalLimiter(**limits))},
        }[how]
        llm, transport = model_at(answer, **given)
        await llm.call("x")
        await llm.generate(["x"] * 5)
        await llm.stream("x").result()
        times = transport.began
    assert [time - times[0] for time in times] == pytest.approx([0, 0, 0, 60, 60, 60, 120])


def most_in_a_minute(uses: list[tuple[float, float]]) -> float:
    """The largest sum of what was used in any 60 s."""
    starts = [time for time, _ in uses]
    return max(sum(amount for time, amount in uses if start <= time < start + 60) for start in starts)


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("concurrency", ["auto", 30])
@pytest.mark.parametrize("how", ["map", "stream_many", "calls"])
async def test_both_limits_hold_over_any_minute(how, concurrency):
    """Pain 20: tokens and requests a minute are not respected under concurrency."""
    sizes = [(7 * number) % 90 + 10 for number in range(150)]  # output tokens, up to 99
    used: list[tuple[float, float]] = []
    order: list[str] = []

    async def answer(number, body):
        index = int(prompt_of(body))
        order.append(prompt_of(body))
        used.append((anyio.current_time(), sizes[index] + 1))
        await anyio.sleep((index * 13) % 17)
        if not body.get("stream"):
            return chat("x", prompt_tokens=1, output_tokens=sizes[index])
        usage = b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": %d}}\n\n' % sizes[index]
        return stream_of(event("x"), 1.0, event("", finish="stop"), usage, DONE)

    limits = {"requests_per_minute": 40, "tokens_per_minute": 1500}
    llm, transport = model_at(answer, max_concurrency=concurrency, max_tokens=100, deadlines=FOREVER, **limits)
    prompts = [str(number) for number in range(150)]
    if how == "calls":
        async with anyio.create_task_group() as tasks:
            for prompt in prompts:
                tasks.start_soon(llm.call, prompt)
    else:
        async with llm.map(prompts) if how == "map" else llm.stream_many(prompts) as outcomes:
            async for _ in outcomes:
                pass
    assert len(order) == 150
    if how == "calls":
        assert sorted(order, key=int) == prompts
    assert most_in_a_minute([(time, 1) for time, _ in used]) <= 40
    tokens = most_in_a_minute(used)
    assert 1000 < tokens <= 1500
    if concurrency != "auto":
        assert transport.most_in_flight <= concurrency


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_first_come_first_served():
    """Pain 20: small requests overtake a large one for ever where tokens are short."""
    sent: dict[int, float] = {}

    async def answer(number, body):
        sent[int(prompt_of(body))] = anyio.current_time()
        return chat("x", prompt_tokens=1, output_tokens=body["max_tokens"])

    llm, transport = model_at(answer, tokens_per_minute=1000, deadlines=FOREVER)
    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(ask, llm, f"{number}", 900 if number == 10 else 50)
            await anyio.lowlevel.checkpoint()
    # By time: several leave at one moment, and trio runs them in an order of its own.
    times = [sent[number] for number in range(30)]
    assert times == sorted(times)
    assert times[9] < times[10] < times[12], "the large one waits, and they wait behind it"


async def ask(llm, prompt, max_tokens):
    await llm.call(prompt, max_tokens=max_tokens)


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_one_limit_for_several_models():
    """Pain 20: each client counts for itself, and together they pass the quota."""

    async def answer(number, body):
        await anyio.sleep(0.3)
        return chat()

    limiter = LocalLimiter(requests_per_minute=20)
    models = [model_at(answer, caller=AsyncCaller(limiter=limiter), deadlines=FOREVER) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for llm, _ in models:
            for _ in range(30):
                tasks.start_soon(llm.call, "x")
    times = sorted(time for _, transport in models for time in transport.began)
    assert len(times) == 90
    assert most_in_a_minute([(time, 1) for time in times]) == 20
    assert times[-1] - times[0] == pytest.approx(4 * 60, abs=1)


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_failed_attempts_count_too():
    """Pain 20: retries are sent past the limit."""

    async def answer(number, body):
        return refusal(500) if number % 2 else chat()

    llm, transport = model_at(answer, requests_per_minute=10, max_concurrency=20, max_retries=30, deadlines=FOREVER)
    async with llm.map(["x"] * 40) as outcomes:
        assert all([outcome.ok async for outcome in outcomes])
    assert len(transport.began) > 60
    assert most_in_a_minute([(time, 1) for time in transport.began]) == 10
