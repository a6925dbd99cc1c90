"""What each error means, and the whole schedule of waits."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import _errors as errors
from millstream._backoff import FINAL, RULES, RetryBudget, RetrySchedule, Verdict, classify, next_delay, retry_after
from millstream._config import RetryPolicy

FREE = Verdict(retry=True, counted=False)
PAID = Verdict(retry=True, counted=True)


def status(kind: type[errors.StatusError], code: int) -> errors.StatusError:
    return kind("no", status_code=code)


def deadline(name: errors.DeadlineName) -> errors.DeadlineError:
    return errors.DeadlineError(deadline=name)


# error, class ("free", "paid", "final"), signal, limit
TABLE = [
    (errors.UsageError(), "final", "none", None),
    (errors.UnknownOptionError(), "final", "none", None),
    (errors.OptionTypeError(), "final", "none", None),
    (errors.OptionValueError(), "final", "none", None),
    (errors.MissingKeyError(), "final", "none", None),
    (errors.MissingExtraError(), "final", "none", None),
    (errors.ClosedError(), "final", "none", None),
    (errors.DeserializationError(), "final", "none", None),
    (errors.UntrustedEndpointError(), "final", "none", None),
    (deadline("connect"), "free", "transient", None),
    (deadline("write"), "free", "none", None),
    (deadline("read"), "paid", "overload", None),
    (deadline("first_token"), "paid", "overload", None),
    (deadline("idle"), "paid", "overload", None),
    (deadline("pool"), "final", "none", None),
    (deadline("queue"), "final", "none", None),
    (deadline("total"), "final", "none", None),
    (errors.TransportError(), "paid", "transient", None),
    (errors.ConnectError(), "free", "transient", None),
    (errors.CertificateError(), "final", "none", None),
    (errors.WriteError(), "free", "none", None),
    (errors.ReadError(started=False), "paid", "transient", None),
    (errors.ReadError(started=True), "paid", "transient", None),
    (errors.LocalProtocolError(), "final", "none", None),
    (errors.ProtocolError(), "paid", "transient", None),
    (errors.ProtocolError(status_code=200), "paid", "transient", 1),
    (errors.TruncatedStreamError(), "paid", "transient", None),
    (errors.StreamInterruptedError(), "final", "none", None),
    *(
        (status(errors.BadRequestError, code), "final", "none", None)
        for code in (307, 400, 405, 413, 414, 415, 422, 451)
    ),
    (status(errors.ContextLengthError, 422), "final", "none", None),
    (status(errors.AuthenticationError, 401), "final", "none", None),
    (status(errors.PaymentRequiredError, 402), "final", "none", None),
    (status(errors.PaymentRequiredError, 429), "final", "none", None),
    (status(errors.PermissionDeniedError, 403), "final", "none", None),
    (status(errors.NotFoundError, 404), "final", "none", None),
    (status(errors.NotFoundError, 410), "final", "none", None),
    (status(errors.ModelNotFoundError, 404), "final", "none", None),
    (status(errors.RateLimitError, 429), "free", "rate", None),
    (status(errors.OverloadedError, 429), "free", "overload", None),
    (status(errors.OverloadedError, 503), "free", "overload", None),
    (status(errors.OverloadedError, 529), "free", "overload", None),
    (status(errors.ModelLoadingError, 503), "free", "loading", None),
    (status(errors.GenerationError, 424), "paid", "transient", 1),
    *(
        (status(errors.ServerError, code), "paid", "transient", None)
        for code in (408, 409, 425, 500, 502, 520, 521, 522, 523, 599)
    ),
    (status(errors.ServerError, 504), "paid", "overload", 2),
    (status(errors.ServerError, 524), "paid", "overload", 2),
    (status(errors.ServerError, 501), "final", "none", None),
    (status(errors.ServerError, 505), "final", "none", None),
    (errors.StatusError(), "final", "none", None),
    (errors.MillstreamError(), "final", "none", None),
    (ConnectionResetError(), "paid", "transient", None),
    (ConnectionRefusedError(), "paid", "transient", None),
    (TimeoutError(), "paid", "transient", None),
    (ValueError(), "final", "none", None),
    (OSError(), "final", "none", None),
    (KeyError("retry"), "final", "none", None),
    (ExceptionGroup("several", [ConnectionResetError()]), "final", "none", None),
    (KeyboardInterrupt(), "final", "none", None),
    (SystemExit(), "final", "none", None),
    (GeneratorExit(), "final", "none", None),
    (asyncio.CancelledError(), "final", "none", None),
]


@pytest.mark.parametrize(("error", "kind", "signal", "limit"), TABLE, ids=lambda value: repr(value)[:50])
def test_every_error_has_its_verdict(error, kind, signal, limit):
    verdict = classify(error)
    actual = "final" if not verdict.retry else "paid" if verdict.counted else "free"
    assert (actual, verdict.signal, verdict.limit) == (kind, signal, limit)


def permanent(error: errors.ConnectError) -> errors.ConnectError:
    error.permanent = True
    return error


@pytest.mark.parametrize(
    "error",
    [
        errors.CertificateError(),
        permanent(errors.ConnectError()),
        status(errors.AuthenticationError, 401),
        status(errors.PaymentRequiredError, 402),
        status(errors.PaymentRequiredError, 429),
        status(errors.PermissionDeniedError, 403),
        status(errors.NotFoundError, 404),
        status(errors.NotFoundError, 410),
        status(errors.ModelNotFoundError, 404),
        status(errors.ModelNotFoundError, 400),
        status(errors.BadRequestError, 301),
        status(errors.BadRequestError, 308),
        status(errors.BadRequestError, 405),
        status(errors.BadRequestError, 451),
        status(errors.ServerError, 501),
        status(errors.ServerError, 505),
        *(status(errors.StatusError, code) for code in (401, 402, 403, 404, 405, 410, 451, 501, 505)),
    ],
    ids=repr,
)
def test_a_final_error_of_the_endpoint_may_be_none_elsewhere(error):
    assert classify(error) == Verdict(retry=False, elsewhere=True)


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError(),
        errors.MissingKeyError(),
        errors.LocalProtocolError(),
        errors.StreamInterruptedError(),
        deadline("total"),
        deadline("pool"),
        *(status(errors.BadRequestError, code) for code in (400, 413, 414, 415, 422)),
        status(errors.ContextLengthError, 400),
        *(status(errors.StatusError, code) for code in (0, 400, 413, 422)),
        ValueError(),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
def test_an_error_of_the_request_is_final_everywhere(error):
    assert classify(error) == FINAL == Verdict(retry=False, elsewhere=False)


def test_only_a_final_error_sends_elsewhere():
    assert {rule.verdict.retry for rule in RULES if rule.verdict.elsewhere} == {False}


def test_no_error_of_the_tree_is_missing_in_the_table_above():
    told = {type(error).__name__ for error, *_ in TABLE}
    tree = {name for name in errors.__all__ if name != "DeadlineName"}
    assert tree <= told


def test_each_rule_can_be_reached():
    """A rule that stands behind a more general one would never hold."""
    for place, rule in enumerate(RULES):
        for before in RULES[:place]:
            hidden = issubclass(rule.error, before.error) and (
                before.facts is None or (rule.facts is not None and rule.facts <= before.facts)
            )
            assert not hidden, f"{rule} is hidden by {before}"


class ForeignError(Exception):
    def __init__(self, status_code: object) -> None:
        self.status_code = status_code


@pytest.mark.parametrize(
    ("code", "same_as"),
    [
        (429, status(errors.RateLimitError, 429)),
        (503, status(errors.OverloadedError, 503)),
        (529, status(errors.OverloadedError, 529)),
        (530, status(errors.OverloadedError, 530)),
        (424, status(errors.GenerationError, 424)),
        (500, status(errors.ServerError, 500)),
        (501, status(errors.ServerError, 501)),
        (504, status(errors.ServerError, 504)),
        (408, status(errors.ServerError, 408)),
        (400, status(errors.BadRequestError, 400)),
        (302, status(errors.StatusError, 302)),
        (True, ValueError()),
        ("500", ValueError()),
        (None, ValueError()),
    ],
)
def test_errors_of_other_libraries_count_by_status(code, same_as):
    assert classify(ForeignError(code)) == classify(same_as)


def test_an_httpx_error_is_understood_with_its_headers():
    request = httpx.Request("POST", "https://example.org/")
    response = httpx.Response(503, headers={"Retry-After": "7"}, request=request)
    error = httpx.HTTPStatusError("no", request=request, response=response)
    assert classify(error).signal == "overload"
    assert retry_after(error, now=0) == 7


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"RETRY-AFTER": "3"}, 3.0),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "9999"}, 600.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        (None, None),
        ([("retry-after", "1")], None),
    ],
)
def test_retry_after_of_a_foreign_response(headers, seconds):
    error = ForeignError(429)
    error.response = type("Answer", (), {"headers": headers})()
    assert retry_after(error, now=60.0) == seconds


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        *[(0, 0.0), (2, 2.0), (2.5, 2.5), (1e9, 600.0)],
        *[(value, None) for value in (None, -1, float("nan"), float("inf"), "3", True)],
    ],
)
def test_retry_after_of_an_own_error(told, seconds):
    assert retry_after(errors.RateLimitError(retry_after=told), now=0.0) == seconds


def delays(verdict: Verdict, count: int, *, policy=RetryPolicy(), told=None, random=1.0):
    return [next_delay(policy, verdict, n, told, random) for n in range(count)]


def test_the_schedule_after_a_failure():
    verdict = classify(status(errors.ServerError, 500))
    assert delays(verdict, 8) == [0.25, 0.5, 1, 2, 4, 8, 8, 8]
    assert delays(verdict, 3, random=0.5) == [0.125, 0.25, 0.5]
    assert delays(verdict, 3, random=0.0) == [0, 0, 0]


def test_the_schedule_of_an_overload_and_of_a_rate_limit():
    for code, kind in (
        (503, errors.OverloadedError),
        (503, errors.ModelLoadingError),
        (429, errors.RateLimitError),
        (504, errors.ServerError),
    ):
        assert delays(classify(status(kind, code)), 6) == [1, 2, 4, 8, 10, 10]


def test_a_dropped_connection_is_tried_again_at_once_the_first_time():
    assert delays(classify(errors.ReadError(started=False)), 4) == [0, 0.5, 1, 2]
    assert delays(classify(errors.ReadError(started=True)), 2) == [0.25, 0.5]


def test_a_huge_retry_number_does_not_overflow():
    assert next_delay(RetryPolicy(), PAID, 10**6, None, 1.0) == 8


@pytest.mark.parametrize(
    ("told", "random", "delay"),
    [
        (0, 0.0, 0),
        (0, 1.0, 0.5),
        (2, 0.0, 2),
        (2, 1.0, 2.5),
        (40, 0.5, 41),
        (60, 0.0, 60),
        (60, 1.0, 63),
        (60.1, 0, None),
    ],
)
def test_what_the_server_told(told, random, delay):
    assert next_delay(RetryPolicy(), FREE, 3, told, random) == delay


def test_an_estimate_is_cut_and_no_reason_to_give_up():
    assert next_delay(RetryPolicy(), classify(errors.ModelLoadingError()), 0, 300.0, 0.0) == 60


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 50),
    told=st.none() | st.floats(0, 600),
    random=st.floats(0, 1, exclude_max=True),
    verdict=st.sampled_from([rule.verdict for rule in RULES if rule.verdict.retry]),
)
def test_a_delay_is_never_earlier_than_told_and_never_over_its_cap(n, told, random, verdict):
    policy = RetryPolicy()
    delay = next_delay(policy, verdict, n, told, random)
    if told is None:
        assert delay is not None
        assert 0 <= delay <= policy.overload_cap
    elif delay is None:
        assert told > policy.max_wait
    else:
        assert min(told, policy.max_wait) <= delay <= told + max(0.5, 0.05 * told)


def given_retries(schedule: RetrySchedule, verdict: Verdict, told: float | None = None, random: float = 1.0) -> int:
    for count in range(1000):
        if schedule.next(verdict, told, random) is None:
            return count
    raise AssertionError("it never ends")


def test_counted_retries_end_at_max_retries():
    assert given_retries(RetrySchedule(RetryPolicy()), PAID) == 6
    assert given_retries(RetrySchedule(RetryPolicy(max_retries=2)), PAID) == 2


def test_free_retries_of_a_call_with_a_deadline_do_not_end_by_themselves():
    full = classify(status(errors.OverloadedError, 503))
    for verdict, told in ((full, None), (FREE, 20.0), (FREE, 60.0), (FREE, 0.0)):
        schedule = RetrySchedule(RetryPolicy(), bounded=True)
        assert None not in [schedule.next(verdict, told, 1.0) for _ in range(500)]


def test_one_wait_that_is_too_long_ends_them():
    schedule = RetrySchedule(RetryPolicy(), bounded=True)
    assert schedule.next(FREE, 60.0, 0.0) == 60
    assert schedule.next(FREE, 60.1, 0.0) is None
    assert schedule.next(classify(errors.ModelLoadingError()), 600.0, 0.0) == 60  # that is but a guess
    assert RetrySchedule(RetryPolicy(max_wait=5), bounded=True).next(FREE, 6.0, 0.0) is None


def test_free_retries_of_a_call_without_a_deadline_end_somewhen():
    assert given_retries(RetrySchedule(RetryPolicy(transient_base=0)), FREE) == 100
    assert given_retries(RetrySchedule(RetryPolicy()), FREE, told=60.0) == 100


def test_free_retries_use_up_no_counted_ones():
    schedule = RetrySchedule(RetryPolicy())
    assert [schedule.next(FREE, None, 0.0) for _ in range(10)] == [0] * 10
    assert schedule.counted == 0
    assert given_retries(schedule, PAID) == 6
    assert schedule.counted == 6


def test_what_is_not_given_is_not_counted():
    schedule = RetrySchedule(RetryPolicy(max_retries=1))
    assert schedule.next(PAID, 61.0, 0.0) is None
    assert schedule.next(PAID, None, 0.0) == 0.0
    assert schedule.next(PAID, None, 0.0) is None
    assert schedule.counted == 1


def test_no_retry_of_any_kind_with_max_retries_0():
    for verdict in (FREE, PAID, classify(errors.ReadError())):
        assert given_retries(RetrySchedule(RetryPolicy(max_retries=0)), verdict) == 0


def test_a_limit_holds_for_errors_of_its_kind_only():
    schedule = RetrySchedule(RetryPolicy())
    generation, gateway = classify(status(errors.GenerationError, 424)), classify(status(errors.ServerError, 504))
    assert given_retries(schedule, gateway) == 2
    assert given_retries(schedule, generation) == 1
    assert given_retries(schedule, PAID) == 3


def test_final_is_final():
    assert RetrySchedule(RetryPolicy()).next(FINAL, None, 0.0) is None


def test_the_budget_is_100_retries_and_earns_a_tenth_by_success():
    budget = RetryBudget()
    assert budget.level == 100
    assert sum(budget.take() for _ in range(150)) == 100
    assert budget.empty
    for _ in range(9):
        budget.give_back()
    assert not budget.take()
    budget.give_back()
    assert budget.take()
    assert budget.level == 0
    for _ in range(5000):
        budget.give_back()
    assert budget.level == 100


def test_below_half_the_budget_is_low():
    budget = RetryBudget()
    assert not budget.low
    assert all(budget.take() for _ in range(50))
    assert (budget.level, budget.low) == (50, False)
    assert budget.take()
    assert (budget.level, budget.low, budget.empty) == (49, True, False)
    for _ in range(10):
        budget.give_back()
    assert (budget.level, budget.low) == (50, False)
