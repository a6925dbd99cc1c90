"""Failures that pass are tried again, within bounds; failures that stay are told with all that is known."""

from __future__ import annotations

import anyio
import pytest

from millstream import (
    AuthenticationError,
    BadRequestError,
    DeadlineError,
    Deadlines,
    MillstreamError,
    OverloadedError,
    PaymentRequiredError,
    RateLimitError,
    RetryPolicy,
    ServerError,
)
from millstream.testing import Fault

from .support import MANUAL_CLOCK, chat, impatient, model_at, refusal

PASSING = {
    "429": Fault.status(429),
    "429 with a time": Fault.status(429, headers={"retry-after": "0"}),
    "500": Fault.status(500),
    "502 of a proxy": Fault.html(502),
    "503": Fault.status(503),
    "504": Fault.status(504),
    "529": Fault.status(529),
    "closed": Fault.disconnect(),
    "reset": Fault.disconnect(reset=True),
}


async def test_one_failure_is_none(model, endpoint):
    """Pain 1: one 429, 500 or 503 is a hard failure."""
    llm = model(api="chat", caller=impatient())
    expected = await llm.call("x")
    for name, fault in PASSING.items():
        endpoint.requests.clear()
        endpoint.fail(fault, fault)
        assert await llm.call("x") == expected, name
        endpoint.fail(fault, fault)
        assert (await llm.stream("x").result()).text == expected, name
        assert len(endpoint.requests) == 3 + 3


@pytest.mark.parametrize(("status", "kind", "attempts"), [(500, ServerError, 3), (422, BadRequestError, 1)])
async def test_an_error_tells_all(model, endpoint, api, status, kind, attempts):
    """Pain 1: the error drops the provider's name."""
    headers = {"x-request-id": "req-7", "x-inference-provider": "acme", "retry-after": "0"}
    endpoint.faults = lambda number: Fault.status(status, headers=headers, body={"error": "the reason"})
    for ask in (lambda llm: llm.call("x"), lambda llm: llm.stream("x").result()):
        endpoint.requests.clear()
        with pytest.raises(kind) as caught:
            await ask(model(api=api, caller=impatient(max_retries=2)))
        error = caught.value
        assert (error.status_code, error.provider, error.request_id) == (status, "acme", "req-7")
        assert (error.attempts, len(endpoint.requests)) == (attempts, attempts)
        for told in ("the reason", f"status {status}", "from acme", "request req-7"):
            assert told in str(error)


async def test_an_error_without_a_status_tells_all(model, endpoint, api):
    """Pain 1: an error that is no status says neither who nor how often."""
    endpoint.headers = {"x-request-id": "req-7"}
    for fault in (Fault.disconnect(), Fault.stall(0), Fault.garbage(), Fault.truncate(0)):
        endpoint.faults = lambda number, fault=fault: fault
        deadlines = Deadlines(first_token=0.02 if fault.kind == "stall" else 30)
        llm = model(api=api, caller=impatient(max_retries=1), deadlines=deadlines)
        with pytest.raises(MillstreamError) as caught:
            await llm.stream("x").result()
        error = caught.value
        assert (error.provider, error.attempts) == ("127.0.0.1", 2), fault
        if fault.kind in ("garbage", "truncate"):
            assert error.request_id == "req-7"
        assert "from 127.0.0.1" in str(error)
        assert "attempts 2" in str(error)


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_an_error_tells_the_seconds_waited():
    """Pain 1: nobody knows how often and how long was tried; every error tells attempts and seconds waited."""

    async def fail(number, body):
        return refusal(500, "broken", x_request_id=f"req-{number}")

    llm, transport = model_at(fail, caller=impatient(max_retries=3, random=lambda: 1.0))
    with pytest.raises(ServerError) as caught:
        await llm.call("x")
    assert transport.waits() == [0.25, 0.5, 1.0]
    assert (caught.value.attempts, caught.value.waited, caught.value.request_id) == (4, 1.75, "req-3")
    assert str(caught.value).endswith("(status 500, from 127.0.0.1, request req-3, attempts 4, waited 1.8 s)")


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("how", ["call", "stream"])
async def test_an_endpoint_that_is_down_is_given_up(how):
    """Pain 22: a 503 is retried at once and without limit."""

    async def fail(number, body):
        return refusal(503)

    llm, transport = model_at(fail, caller=impatient(random=lambda: 1.0))
    with pytest.raises(OverloadedError) as caught:
        await (llm.call("x") if how == "call" else llm.stream("x").result())
    # 0.5 s, doubled, 10 s at the most. What costs nothing is tried until the total deadline, 600 s; a wait that would
    # end after it is not begun.
    waits = transport.waits()
    assert waits[:6] == [0.5, 1, 2, 4, 8, 10]
    assert set(waits[5:]) == {10}
    assert 590 <= sum(waits) < 600
    assert caught.value.attempts == len(transport.began) == len(waits) + 1
    assert caught.value.waited == pytest.approx(sum(waits))
    assert f"attempts {len(waits) + 1}, waited {sum(waits):.1f} s" in str(caught.value)


@pytest.mark.parametrize(**MANUAL_CLOCK)
@pytest.mark.parametrize("concurrency", ["auto", 50])
async def test_an_outage_is_asked_about_by_one_call_at_a_time(concurrency):
    """Pain 22: 501 requests in 0.6 s; here 50 calls wait together, and a minute of 503 costs a dozen requests."""

    async def fail(number, body):
        await anyio.sleep(0.01)
        return refusal(503)

    llm, transport = model_at(fail, max_concurrency=concurrency)
    errors: list[MillstreamError] = []

    async def ask() -> None:
        with pytest.raises((OverloadedError, DeadlineError)) as caught:
            await llm.call("x")
        errors.append(caught.value)

    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask)
    began = [time - start for time in transport.began]
    at_once = sum(time < 0.01 for time in began)
    assert at_once == (8 if concurrency == "auto" else 50)
    # The second time with fewer, and after two refusals without an answer between them one at a time.
    assert sum(0.01 < time < 1 for time in began) < at_once
    assert sum(1 <= time < 60 for time in began) <= 12
    assert sum(60 <= time < 600 for time in began) <= 9 * 12
    assert max(began) < 600
    # Whoever was refused last tells that; the deadline of the others came while they waited for the outage's end.
    assert len(errors) == 50
    for error in errors:
        assert error.attempts == 0 or isinstance(error.__cause__ or error, OverloadedError)
    assert sum(error.attempts for error in errors) == len(began)


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_a_server_that_names_a_time_is_left_alone_until_then():
    """Pain 22: a 503 is retried at once; the time that the server names is waited for, and a long one is not."""
    times = iter(["7", "30"])

    async def fail_twice(number, body):
        told = next(times, None)
        return chat() if told is None else refusal(503, retry_after=told)

    llm, transport = model_at(fail_twice)
    await llm.call("x")
    for wait, told in zip(transport.waits(), (7, 30), strict=True):
        assert told <= wait <= told + max(0.5, 0.05 * told)

    async def fail_long(number, body):
        return refusal(503, retry_after="61")

    llm, transport = model_at(fail_long)
    with pytest.raises(OverloadedError) as caught:
        await llm.call("x")
    assert (caught.value.attempts, caught.value.waited, caught.value.retry_after) == (1, 0, 61)


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_all_calls_together_have_one_retry_budget():
    """Pain 22: retries have no budget, so a brown-out is answered with a storm."""

    async def fail(number, body):
        return refusal(500)

    llm, transport = model_at(fail, max_concurrency=200)
    async with llm.map(["x"] * 200) as outcomes:
        assert all([isinstance(outcome.error, ServerError) async for outcome in outcomes])
    assert len(transport.began) == 200 + 100  # 200 first attempts; 1200 retries were allowed, but for the budget


NO_CREDIT = {
    "402": Fault.status(402, body={"error": "Payment required"}, times=1000),
    "429 with a quota text": Fault.status(
        429, body={"error": {"message": "x", "code": "insufficient_quota"}}, times=1000
    ),
    "200 with a quota text": Fault.error_in_200(
        body={"error": {"message": "no credits left", "code": 402}}, times=1000
    ),
}


@pytest.mark.parametrize("fault", NO_CREDIT.values(), ids=NO_CREDIT.keys())
async def test_no_credit_is_final(model, endpoint, fault):
    """Pain 24: 402 (no credit) is retried as if it were transient."""
    endpoint.fail(fault)
    llm = model(api="chat", caller=impatient())
    with pytest.raises(PaymentRequiredError) as caught:
        await llm.call("x")
    assert caught.value.attempts == 1
    with pytest.raises(PaymentRequiredError):
        await llm.stream("x").result()
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [402, 401])
async def test_without_credit_a_batch_stops(model, endpoint, status):
    """Pain 24: a batch without credit (or key) burns its rows, one after the other."""
    endpoint.faults = lambda number: Fault.status(status)
    llm = model(api="chat", max_concurrency=2)
    with pytest.raises(PaymentRequiredError if status == 402 else AuthenticationError) as caught:
        await llm.generate([f"row {number}" for number in range(100)])
    assert caught.value.prompt_index in range(2)
    assert len(endpoint.requests) <= 4

    endpoint.requests.clear()
    endpoint.faults = lambda number: Fault.status(status) if len(endpoint.requests) == 3 else None
    with pytest.raises((PaymentRequiredError, AuthenticationError)):
        await llm.generate([f"row {number}" for number in range(100)])
    assert 3 <= len(endpoint.requests) <= 6

    endpoint.faults = lambda number: Fault.status(status)
    taken = 0

    def rows():
        nonlocal taken
        while True:
            taken += 1
            yield f"row {taken}"

    async with llm.map(rows()) as outcomes:
        async for outcome in outcomes:
            assert not outcome.ok
            break
    sent = len(endpoint.requests)
    assert taken <= 8
    with anyio.move_on_after(0.03):
        await endpoint.wait_for(lambda: len(endpoint.requests) > sent)
    assert len(endpoint.requests) == sent


@pytest.mark.parametrize(**MANUAL_CLOCK)
async def test_a_rate_limit_is_waited_for():
    """Pain 1: one 429 is a hard failure; the server's time is waited for, without using up a retry."""

    async def limited(number, body):
        return refusal(429, retry_after="10") if number < 5 else chat()

    llm, transport = model_at(limited, caller=impatient(max_retries=1))
    assert await llm.call("x") == "fine"
    assert all(10 <= wait <= 12 for wait in transport.waits())

    async def always(number, body):
        return refusal(429, retry_after="10")

    llm, transport = model_at(always, caller=impatient(max_retries=1))
    with pytest.raises(RateLimitError) as caught:
        await llm.call("x")
    # It costs nothing, so it ends with the total deadline (600 s): one more wait would end after it.
    waits = transport.waits()
    assert all(10 <= wait <= 12 for wait in waits)
    assert 588 <= sum(waits) < 600
    assert (caught.value.attempts, caught.value.retry_after) == (len(waits) + 1, 10)
    assert caught.value.waited == pytest.approx(sum(waits))

    llm, transport = model_at(always, caller=impatient(retry_policy=RetryPolicy(max_wait=9)))
    with pytest.raises(RateLimitError) as caught:
        await llm.call("x")
    assert (caught.value.attempts, caught.value.waited, caught.value.retry_after) == (1, 0, 10)
