"""The caller: what is tried again, when, for how long; and that every slot comes back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import anyio
import anyio.lowlevel
import httpx
import pytest

from millstream import _clock
from millstream import _errors as errors
from millstream._caller import AsyncCaller, CallerOptions, Permit
from millstream._config import Deadlines, RetryPolicy
from millstream._control import WindowChange
from millstream.limiters import LocalLimiter
from tests.conftest import manual_backends

from .test_admission import run_manually, settle_down

manual = pytest.mark.parametrize("anyio_backend", manual_backends())
FOREVER = Deadlines(total=None)


def server_error(code: int = 500, retry_after: float | None = None) -> errors.ServerError:
    return errors.ServerError("failed", status_code=code, retry_after=retry_after)


def rate_limit(retry_after: float | None = None) -> errors.RateLimitError:
    return errors.RateLimitError("slower", status_code=429, retry_after=retry_after)


class Script:
    """A function that does, call after call, what its script says: raise the error, or return the value."""

    def __init__(self, *steps: object, takes: float = 0.0) -> None:
        self.steps = list(steps)
        self.takes = takes
        self.began: list[float] = []

    async def __call__(self, *args: object) -> object:
        self.began.append(_clock.monotonic())
        await anyio.sleep(self.takes)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, BaseException):
            raise step
        return step

    @property
    def waits(self) -> list[float]:
        return [round(later - before, 6) for before, later in zip(self.began, self.began[1:], strict=False)]


class Recorder:
    def __init__(self) -> None:
        self.told: list[object] = []

    async def attempt(self, number: int) -> None:
        self.told.append(number)

    async def retry(self, number: int, delay: float, error: Exception) -> None:
        self.told.append((number, delay, type(error)))

    hears_windows = True

    async def window(self, lane: str, change: WindowChange, time: float) -> None:
        self.told.append((lane, change.reason))


def caller_of(**settings) -> AsyncCaller:
    return AsyncCaller(**{"random": lambda: 1.0, **settings})


def assert_quiet(caller: AsyncCaller) -> None:
    now = caller.statistics()
    assert (now.in_flight, now.waiting, now.backing_off) == (0, 0, 0)


async def test_a_call_gives_what_the_function_gives():
    async def add(a: int, b: int) -> int:
        return a + b

    caller = AsyncCaller()
    assert await caller.call(add, 1, 2) == 3
    now = caller.statistics()
    assert (now.attempts, now.retries, now.successes, now.failures) == (1, 0, 1, 0)
    assert_quiet(caller)


def test_the_defaults():
    caller = AsyncCaller()
    assert caller.retry_policy.max_retries == 6
    assert caller.max_concurrency == "auto"
    assert caller.adaptive
    assert caller.deadlines == Deadlines()
    now = caller.statistics()
    assert (now.retry_budget, now.max_concurrency, now.limit) == (100, "auto", 8)
    assert (now.requests_per_minute, now.tokens_per_minute, caller.counts_tokens) == (None, None, False)
    assert AsyncCaller(max_retries=2, retry_policy=RetryPolicy(max_wait=1)).retry_policy == RetryPolicy(
        max_retries=2, max_wait=1
    )
    assert AsyncCaller(tokens_per_minute=100).counts_tokens


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_concurrency": 0}, errors.OptionValueError),
        ({"max_concurrency": 2.5}, errors.OptionTypeError),
        ({"max_concurrency": "many"}, errors.OptionValueError),
        ({"limiter": object()}, errors.OptionTypeError),
        ({"limiter": LocalLimiter(), "requests_per_minute": 5}, errors.OptionValueError),
        ({"max_retries": -1}, errors.OptionValueError),
        ({"max_retries": 1.5}, errors.OptionTypeError),
        ({"requests_per_minute": 0}, errors.OptionValueError),
        ({"tokens_per_minute": "many"}, errors.OptionTypeError),
        ({"retry_policy": {}}, errors.OptionTypeError),
        ({"deadlines": 5}, errors.OptionTypeError),
    ],
)
def test_settings_that_can_not_be(settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        AsyncCaller(**settings)


@manual
async def test_six_retries_with_growing_waits_then_the_error_with_its_facts():
    caller = caller_of()
    script = Script(server_error())
    with pytest.raises(errors.ServerError) as caught:
        await caller.call(script)
    assert script.waits == [0.25, 0.5, 1, 2, 4, 8]
    assert (caught.value.attempts, caught.value.waited) == (7, 15.75)
    now = caller.statistics()
    assert (now.attempts, now.retries, now.successes, now.failures) == (7, 6, 0, 1)
    assert now.retry_budget == 94
    assert_quiet(caller)


@manual
async def test_success_after_retries():
    caller = caller_of()
    script = Script(server_error(), rate_limit(3), "text")
    assert await caller.call(script) == "text"
    assert script.waits == [0.25, 3.5]
    assert caller.statistics().retry_budget == 99.1  # the rate limit cost nothing


@manual
async def test_refusals_use_up_no_retries_and_end_with_the_deadline():
    caller = caller_of(max_retries=1, deadlines=Deadlines(total=60))
    script = Script(rate_limit())
    with pytest.raises(errors.RateLimitError) as caught:
        await caller.call(script)
    assert 0.5 <= script.waits[0] <= script.waits[1] <= script.waits[2] <= script.waits[3]
    assert max(script.waits) <= 12
    assert caught.value.waited == pytest.approx(sum(script.waits))
    assert 40 < caught.value.waited < 60, "a wait that would pass the deadline is for nothing"
    assert caller.statistics().retry_budget == 100


@manual
@pytest.mark.parametrize("error", [server_error(), rate_limit(), errors.ConnectError(), errors.ReadError()])
async def test_max_retries_0_is_no_retry_of_any_kind(error):
    script = Script(error)
    with pytest.raises(type(error)) as caught:
        await caller_of(max_retries=0).call(script)
    assert len(script.began) == 1
    assert caught.value.attempts == 1


@manual
async def test_a_server_that_asks_for_too_long_is_not_waited_for():
    script = Script(rate_limit(61))
    with pytest.raises(errors.RateLimitError) as caught:
        await caller_of().call(script)
    assert (len(script.began), caught.value.retry_after, caught.value.waited) == (1, 61, 0)


@manual
async def test_errors_of_the_function_itself_pass_untouched():
    error = ValueError("no")
    script = Script(error)
    caller = caller_of()
    with pytest.raises(ValueError, match="no") as caught:
        await caller.call(script)
    assert caught.value is error
    assert len(script.began) == 1
    assert_quiet(caller)


@manual
async def test_the_operating_systems_errors_are_tried_again():
    script = Script(ConnectionResetError(), TimeoutError(), "text")
    assert await caller_of().call(script) == "text"


@manual
async def test_a_slot_is_free_while_another_call_waits_for_its_retry():
    caller = caller_of(max_concurrency=1)
    failing, other = Script(server_error(), server_error(), "late"), Script("soon")
    start = _clock.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(caller.call, failing)
        await anyio.sleep(0.5)
        now = caller.statistics()
        assert (now.in_flight, now.backing_off) == (0, 1)
        assert await caller.call(other) == "soon"
        assert _clock.monotonic() - start == 0.5
    assert failing.waits == [0.25, 0.5]
    assert_quiet(caller)


@manual
async def test_a_refusal_makes_everybody_wait_and_who_was_refused_goes_first():
    caller = caller_of(max_concurrency=1)
    refused = Script(rate_limit(20), "first")
    sent: list[tuple[str, float]] = []
    start = _clock.monotonic()

    async def ask(script: Script) -> None:
        sent.append((await caller.call(script), _clock.monotonic() - start))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, refused)
        await anyio.sleep(5)
        now = caller.statistics()
        assert (now.in_flight, now.waiting, now.backing_off) == (0, 1, 0), "it holds nothing while it waits"
        group.start_soon(ask, Script("second"))
    assert [text for text, _ in sent] == ["first", "second"]
    assert all(at >= 20 for _, at in sent), "never before the time that was told"
    assert_quiet(caller)


@manual
async def test_never_more_than_max_concurrency_in_flight():
    caller = caller_of(max_concurrency=3)
    most = 0

    async def work():
        nonlocal most
        most = max(most, caller.statistics().in_flight)
        await anyio.sleep(1)

    start = _clock.monotonic()
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(caller.call, work)
        await settle_down()
        assert (caller.statistics().in_flight, caller.statistics().waiting) == (3, 7)
    assert most == 3
    assert _clock.monotonic() - start == 4
    assert_quiet(caller)


@manual
async def test_the_budget_is_shared_and_at_0_the_first_error_is_raised():
    caller = caller_of(max_concurrency=200)
    failures = []

    async def fail():
        with pytest.raises(errors.ServerError) as caught:
            await caller.call(Script(server_error()))
        failures.append(caught.value.attempts)

    async with anyio.create_task_group() as group:
        for _ in range(110):
            group.start_soon(fail)
    assert sum(failures) == 210, "110 first attempts and 100 retries"
    assert caller.statistics().retry_budget == 0
    one = Script(server_error())
    start = _clock.monotonic()
    with pytest.raises(errors.ServerError):
        await caller.call(one)
    assert (len(one.began), _clock.monotonic() - start) == (1, 0)
    refused = Script(rate_limit(1), "text")
    assert await caller.call(refused) == "text", "what costs nothing needs no budget"
    assert_quiet(caller)


@manual
async def test_a_budget_used_up_while_a_retry_waited_takes_no_permit():
    caller = caller_of(requests_per_minute=2)
    script = Script(server_error(), "text")
    start = _clock.monotonic()
    async with anyio.create_task_group() as group:

        async def ask():
            with pytest.raises(errors.ServerError):
                await caller.call(script)

        group.start_soon(ask)
        await settle_down()
        while caller._retrying.budget.take():
            pass
    assert len(script.began) == 1
    assert await caller.call(Script("text")) == "text"
    assert _clock.monotonic() - start == 0.25
    assert_quiet(caller)


@manual
async def test_retries_queue_up_again_and_take_permits_like_everyone():
    caller = caller_of(requests_per_minute=2)
    script = Script(server_error(), "text")
    start = _clock.monotonic()
    await caller.call(Script("text"))
    await caller.call(script)
    assert _clock.monotonic() - start == pytest.approx(60, abs=1e-4)
    assert_quiet(caller)


# -- deadlines -------------------------------------------------------------------------------------------------------


@manual
async def test_the_total_deadline_ends_an_attempt():
    caller = caller_of(deadlines=Deadlines(total=10))
    start = _clock.monotonic()
    with pytest.raises(errors.DeadlineError) as caught:
        await caller.call(anyio.sleep, 100)
    assert _clock.monotonic() - start == 10
    assert (caught.value.deadline, caught.value.seconds, caught.value.attempts) == ("total", 10, 1)
    assert caller.statistics().failures == 1
    assert_quiet(caller)


@manual
async def test_the_total_deadline_holds_over_attempts_and_says_why_there_were_several():
    caller = caller_of(deadlines=Deadlines(total=10))
    script = Script(server_error(), takes=6)
    start = _clock.monotonic()
    with pytest.raises(errors.DeadlineError) as caught:
        await caller.call(script)
    assert _clock.monotonic() - start == 10
    assert (caught.value.attempts, caught.value.waited) == (2, 0.25)
    assert isinstance(caught.value.__cause__, errors.ServerError)


@manual
async def test_a_wait_that_would_pass_the_deadline_is_not_begun():
    caller = caller_of(deadlines=Deadlines(total=10))
    start = _clock.monotonic()
    with pytest.raises(errors.RateLimitError) as caught:
        await caller.call(Script(rate_limit(2), rate_limit(30)))
    assert _clock.monotonic() - start == 2.5
    assert (caught.value.attempts, caught.value.waited) == (2, 2.5)
    assert_quiet(caller)


@manual
async def test_the_total_deadline_counts_the_queue():
    caller = caller_of(max_concurrency=1, deadlines=FOREVER)
    async with anyio.create_task_group() as group:
        group.start_soon(caller.call, anyio.sleep, 50)
        await settle_down()
        script = Script("text")
        with pytest.raises(errors.DeadlineError, match="total") as caught:
            await caller.call_with_options(CallerOptions(deadlines=Deadlines(total=5)), script)
        assert (script.began, caught.value.attempts) == ([], 0)
    assert_quiet(caller)


@manual
@pytest.mark.parametrize("settings", [{"max_concurrency": 1}, {"max_concurrency": 9, "requests_per_minute": 1}])
async def test_the_queue_deadline_is_for_slots_and_limits(settings):
    caller = caller_of(**settings)
    start = _clock.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(caller.call, anyio.sleep, 50)
        await settle_down()
        options = CallerOptions(deadlines=Deadlines(queue=7))
        with pytest.raises(errors.DeadlineError) as caught:
            await caller.call_with_options(options, Script("text"))
        assert _clock.monotonic() - start == 7
        assert (caught.value.deadline, caught.value.seconds, caught.value.attempts) == ("queue", 7, 0)
    assert_quiet(caller)


@manual
async def test_an_absolute_deadline_holds_besides_the_total_one():
    caller = caller_of()
    start = _clock.monotonic()
    with pytest.raises(errors.DeadlineError, match="within 3 s"):
        await caller.call_with_options(CallerOptions(deadline=start + 3), anyio.sleep, 100)
    assert _clock.monotonic() - start == 3
    script = Script("text")
    with pytest.raises(errors.DeadlineError):
        await caller.call_with_options(CallerOptions(deadline=start), script)
    assert script.began == [], "over before it began: nothing is sent"


@manual
async def test_only_our_own_deadline_becomes_a_deadline_error():
    caller = caller_of(deadlines=Deadlines(total=50))
    with anyio.move_on_after(5) as outer:
        await caller.call(anyio.sleep, 100)
    assert outer.cancelled_caught
    with pytest.raises(TimeoutError) as caught, anyio.fail_after(5):
        await caller.call(anyio.sleep, 100)
    assert not isinstance(caught.value, errors.MillstreamError)
    now = caller.statistics()
    assert (now.failures, now.successes) == (0, 0)
    assert_quiet(caller)


def test_native_cancellation_and_asyncio_timeouts_pass_through():
    async def main():
        caller = caller_of(deadlines=Deadlines(total=50))
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(5):
                await caller.call(anyio.sleep, 100)
        assert not isinstance(caught.value, errors.MillstreamError)
        task = asyncio.create_task(caller.call(anyio.sleep, 100))
        await asyncio.sleep(1)
        task.cancel("reason")
        with pytest.raises(asyncio.CancelledError, match="reason"):
            await task
        assert_quiet(caller)
        with pytest.raises(errors.DeadlineError):
            await caller.call(anyio.sleep, 100)
        assert asyncio.current_task().cancelling() == 0

    run_manually("asyncio", main)


# -- options, leases, closing ----------------------------------------------------------------------------------------


@manual
async def test_the_observer_is_told_attempts_and_retries_in_order():
    recorder = Recorder()
    await caller_of().call_with_options(CallerOptions(observer=recorder), Script(server_error(), rate_limit(2), "text"))
    told = [1, (1, 0.25, errors.ServerError), 2, ("", "rate"), (2, 2.5, errors.RateLimitError), 3]
    assert recorder.told == told


@manual
async def test_what_fails_after_its_first_token_was_paid_for_whatever_the_error_says():
    caller = caller_of(max_retries=2)
    attempts = 0
    begun: list[Permit] = []

    async def refuse_midway() -> None:
        nonlocal attempts
        attempts += 1
        begun[-1].first_token()
        raise errors.OverloadedError("no room", status_code=503)

    with pytest.raises(errors.OverloadedError):
        await caller.call_with_options(CallerOptions(signals=True, begin=begun.append), refuse_midway)
    assert attempts == 3
    assert caller.statistics().retry_budget == 98
    assert_quiet(caller)


@manual
async def test_an_observer_that_raises_ends_the_call_and_leaves_nothing():
    class Broken(Recorder):
        async def attempt(self, number):
            raise ValueError("broken")

    caller = caller_of(requests_per_minute=1)
    script = Script("text")
    with pytest.raises(ValueError, match="broken"):
        await caller.call_with_options(CallerOptions(observer=Broken()), script)
    assert script.began == []
    assert await caller.call(script) == "text", "the permit was given back: this one need not wait"
    assert_quiet(caller)


@manual
async def test_tokens_are_reserved_and_settled_by_usage():
    caller = caller_of(tokens_per_minute=100)
    options = CallerOptions(tokens=80, settle=lambda text: len(text))
    start = _clock.monotonic()
    for _ in range(5):
        assert await caller.call_with_options(options, Script("text")) == "text"
    assert _clock.monotonic() == start
    await caller.call_with_options(CallerOptions(tokens=80, settle=lambda _: None), Script("text"))
    assert _clock.monotonic() == start
    await caller.call_with_options(options, Script("text"))
    assert _clock.monotonic() - start == pytest.approx(60, abs=1e-4), "without usage the estimate stands"


@manual
async def test_tokens_of_a_refused_request_are_given_back():
    caller = caller_of(tokens_per_minute=100)
    start = _clock.monotonic()
    await caller.call_with_options(CallerOptions(tokens=90), Script(rate_limit(1), "text"))
    assert _clock.monotonic() - start == 1.5


@manual
async def test_tokens_of_an_attempt_that_was_cancelled_stay_used():
    caller = caller_of(tokens_per_minute=100)
    start = _clock.monotonic()
    with anyio.move_on_after(1):
        await caller.call_with_options(CallerOptions(tokens=90), anyio.sleep, 10)
    await caller.call_with_options(CallerOptions(tokens=90), Script("text"))
    assert _clock.monotonic() - start == pytest.approx(60, abs=1e-4)


async def test_more_tokens_than_the_limit():
    caller = AsyncCaller(tokens_per_minute=100)
    with pytest.raises(errors.OptionValueError, match="tokens_per_minute=100"):
        await caller.call_with_options(CallerOptions(tokens=101), Script("text"))
    assert_quiet(caller)


async def test_settling_that_raises_gives_the_slot_back():
    caller = AsyncCaller()
    with pytest.raises(ZeroDivisionError):
        await caller.call_with_options(CallerOptions(settle=lambda _: 1 // 0), Script("text"))
    assert_quiet(caller)


@manual
async def test_a_lease_holds_its_slot_until_it_is_released():
    caller = caller_of(max_concurrency=1, tokens_per_minute=100)
    lease = await caller.open(CallerOptions(tokens=90), Script(server_error(), "stream"))
    assert (lease.value, lease.attempts) == ("stream", 2)
    start = _clock.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(caller.call, Script("text"))
        await anyio.sleep(5)
        assert (caller.statistics().in_flight, caller.statistics().waiting) == (1, 1)
        lease.release(10)
        lease.release(10)
    assert _clock.monotonic() - start == 5
    assert_quiet(caller)


@manual
async def test_the_total_deadline_does_not_bound_a_lease():
    caller = caller_of(deadlines=Deadlines(total=5))
    lease = await caller.open(CallerOptions(), Script("stream"))
    await anyio.sleep(100)
    lease.release()
    assert_quiet(caller)


@manual
async def test_a_closed_caller_takes_no_calls_and_ends_those_that_wait():
    caller = caller_of(max_concurrency=1)
    ended = []

    async def ask(*steps):
        with pytest.raises(errors.ClosedError) as caught:
            await caller.call(Script(*steps))
        ended.append(caught.value.attempts)

    start = _clock.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(ask, server_error(retry_after=50))
        await anyio.sleep(1)
        group.start_soon(caller.call, anyio.sleep, 10)
        await settle_down()
        group.start_soon(ask, "text")
        await settle_down()
        await caller.aclose()
        await caller.aclose()
        await settle_down()
        assert sorted(ended) == [0, 1]
        assert caller.closed
        assert caller.statistics().in_flight == 1, "what is under way ends by itself"
        await ask("text")
    assert _clock.monotonic() - start == 11
    assert_quiet(caller)


@manual
async def test_an_attempt_that_fails_after_closing_raises_its_own_error():
    caller = caller_of()
    async with anyio.create_task_group() as group:

        async def ask():
            with pytest.raises(errors.ServerError):
                await caller.call(Script(server_error(), takes=5))

        group.start_soon(ask)
        await anyio.sleep(1)
        await caller.aclose()
    assert_quiet(caller)


async def test_as_a_context_manager_it_is_closed_at_the_end():
    async with AsyncCaller() as caller:
        assert not caller.closed
    with pytest.raises(errors.ClosedError):
        await caller.call(Script("text"))


def test_one_caller_serves_several_runs():
    caller = caller_of(max_concurrency=1, requests_per_minute=1000, tokens_per_minute=1000)

    async def run():
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(caller.call, Script(server_error(503, 1), "text", takes=1))
        assert_quiet(caller)

    async def break_off():
        with anyio.move_on_after(3):
            await run()

    for backend in ("asyncio", "trio", "asyncio"):
        run_manually(backend, break_off)
        run_manually(backend, run)
    assert caller.statistics().successes == 15


@manual
async def test_a_call_leaves_nothing_to_the_garbage_collector():
    caller = caller_of()
    raised: list[weakref.ref] = []

    async def fail_until(times: int) -> str:
        if len(raised) == times:
            return "text"
        raise remembered(server_error())

    def remembered(error: Exception) -> Exception:
        raised.append(weakref.ref(error))
        return error

    gc.collect()
    gc.disable()
    try:
        assert await caller.call(fail_until, 2) == "text"
        assert [gone() for gone in raised] == [None] * 2
        with contextlib.suppress(errors.ServerError):
            await caller.call(fail_until, 99)
        assert [gone() for gone in raised] == [None] * (2 + 7)
    finally:
        gc.enable()


# -- cancelled at every suspension -----------------------------------------------------------------------------------


class CancelAt:
    """Runs a coroutine, and calls `cancel` in its suspension number `number`."""

    def __init__(self, coroutine, number: int, cancel) -> None:
        self.coroutine = coroutine
        self.number = number
        self.cancel = cancel
        self.count = 0

    def __await__(self):
        step, argument = self.coroutine.send, None
        while True:
            try:
                trap = step(argument)
            except StopIteration as stop:
                return stop.value
            self.count += 1
            if self.count == self.number:
                self.cancel()
            try:
                step, argument = self.coroutine.send, (yield trap)
            except BaseException as error:
                step, argument = self.coroutine.throw, error


class Yielding(Recorder):
    async def attempt(self, number):
        await anyio.lowlevel.checkpoint()

    async def retry(self, number, delay, error):
        await anyio.lowlevel.checkpoint()


async def cancelled_at(number: int, native: bool) -> bool:
    """Whether there was a suspension of that number."""
    caller = caller_of(max_concurrency=1, requests_per_minute=3, tokens_per_minute=100, deadlines=Deadlines(queue=500))
    options = CallerOptions(tokens=40, settle=lambda _: 10, observer=Yielding())
    async with anyio.create_task_group() as group:
        group.start_soon(caller.call_with_options, options, anyio.sleep, 5)  # holds the slot
        await settle_down()
        group.start_soon(caller.call_with_options, options, anyio.sleep, 5)  # is the first in the queue
        await settle_down()
        script = Script(server_error(), "text", takes=1)
        ran: CancelAt
        ended = False

        async def victim(scope: anyio.CancelScope) -> None:
            nonlocal ran, ended
            cancel = asyncio.current_task().cancel if native else scope.cancel
            ran = CancelAt(caller.call_with_options(options, script), number, cancel)
            with scope:
                try:
                    await ran
                except asyncio.CancelledError:
                    if not native:
                        raise
                else:
                    ended = True

        group.start_soon(victim, anyio.CancelScope())
    assert_quiet(caller)
    assert ended == (ran.count < number)
    # Nothing was lost: when all that was used has run out, everything is there again.
    await anyio.sleep(60)
    before = _clock.monotonic()
    for _ in range(2):
        await caller.call_with_options(CallerOptions(tokens=50), Script("text"))
    assert _clock.monotonic() == before
    return not ended


@pytest.mark.parametrize("how", ["asyncio", "asyncio-native", "trio"])
def test_cancelled_at_every_suspension_it_leaves_nothing(how):
    backend, _, native = how.partition("-")
    points = 0
    while run_manually(backend, cancelled_at, points + 1, bool(native)):
        points += 1
    assert points >= 7, "queue, permits, observer, attempt, observer, back-off, permits again, attempt"


@manual
async def test_a_wrong_address_is_given_up_soon_and_a_known_one_is_waited_for():
    caller = AsyncCaller()
    outcomes = [errors.ConnectError("refused")] * 30

    async def ask():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(errors.ConnectError) as caught:
        await caller.call(ask)
    assert caught.value.attempts == 4
    assert caught.value.waited < 2
    outcomes[:] = ["an answer", *[errors.ConnectError("restarting")] * 10, "another"]
    assert await caller.call(ask) == "an answer"
    assert await caller.call(ask) == "another"


@manual
async def test_errors_of_httpx_that_may_pass_are_tried_again():
    outcomes = [httpx.ConnectError("x"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x"), "an answer"]

    async def ask():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert await AsyncCaller().call(ask) == "an answer"
    outcomes[:] = [httpx.UnsupportedProtocol("x")]
    with pytest.raises(httpx.UnsupportedProtocol):
        await AsyncCaller().call(ask)
