"""What follows from an error: whether the attempt is made again, what that uses up, and how long to wait.

All of it is pure: time and chance are arguments. `RULES` is the whole table; `classify` only looks it up.

An error falls into one of three classes:

* not processed (``counted=False``): the server did no work, so a retry uses up nothing but time, and ends with it;
* perhaps processed (``counted=True``): the attempt may have been billed; retries are counted, and cost the budget;
* final (``retry=False``): the same request would fail again, or somebody has already seen a part of the answer;
  ``elsewhere`` where it is this endpoint that fails and not the request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from millstream import _errors as errors
from millstream import _headers
from millstream._config import RetryPolicy

__all__ = [
    "FINAL",
    "NO_CONNECTION",
    "RULES",
    "SHARED",
    "RetryBudget",
    "RetrySchedule",
    "Rule",
    "Signal",
    "Verdict",
    "WRONG_ADDRESS",
    "classify",
    "next_delay",
    "retry_after",
]

Signal = Literal["none", "transient", "rate", "overload", "loading"]
"""What an error tells about the endpoint as a whole: nothing, a failure, too many a minute, no room, no model yet."""

SHARED = frozenset[Signal]({"rate", "overload", "loading"})
"""Signals after which everybody waits, and not only the call that was refused."""

MAX_FREE_RETRIES = 100
"""Retries that use up nothing end with the call's deadline; those of a call that has none end here."""


class Verdict(msgspec.Struct, frozen=True):
    """What follows from one error."""

    retry: bool
    counted: bool = True
    """Whether a retry uses up one of `RetryPolicy.max_retries`. False: nothing was processed."""
    signal: Signal = "none"
    limit: int | None = None
    """Retries that one call makes at the most after errors of this kind; None: only the policy's limits hold."""
    immediate: bool = False
    """Whether the first retry of a call waits for nothing: a stale connection is replaced by a new one."""
    estimated: bool = False
    """Whether a time that the server told is its guess, to be cut to the policy, and not a demand."""
    elsewhere: bool = False
    """Whether a final error is one of the endpoint (key, quota, no such model) and not of the request, so that another
    endpoint that serves the same may well answer."""


FINAL = Verdict(retry=False)
_FINAL_HERE = Verdict(retry=False, elsewhere=True)
_UNPROCESSED = Verdict(retry=True, counted=False)
NO_CONNECTION = Verdict(retry=True, counted=False, signal="transient")
WRONG_ADDRESS = Verdict(retry=True, counted=False, signal="transient", limit=3)
"""No connection to an endpoint that has never answered: most likely it is not there, and waiting is for nothing."""
_RATE = Verdict(retry=True, counted=False, signal="rate")
_FULL = Verdict(retry=True, counted=False, signal="overload")
_LOADING = Verdict(retry=True, counted=False, signal="loading", estimated=True)
_FAILED = Verdict(retry=True, signal="transient")
_FAILED_ONCE = Verdict(retry=True, signal="transient", limit=1)
_DROPPED = Verdict(retry=True, signal="transient", immediate=True)
_TOO_SLOW = Verdict(retry=True, signal="overload")
_GATEWAY_TOO_SLOW = Verdict(retry=True, signal="overload", limit=2)


class Rule(NamedTuple):
    """`verdict` holds for errors of the class `error` whose fact (see `_fact`) is one of `facts`; None: for any."""

    error: type[BaseException]
    facts: frozenset[object] | None
    verdict: Verdict


def _rule(error: type[BaseException], verdict: Verdict, *facts: object) -> Rule:
    return Rule(error, frozenset(facts) or None, verdict)


RULES: tuple[Rule, ...] = (
    # The first that matches holds; a class stands before its bases.
    _rule(errors.UsageError, FINAL),
    _rule(errors.DeadlineError, NO_CONNECTION, "connect"),
    _rule(errors.DeadlineError, _UNPROCESSED, "write"),
    _rule(errors.DeadlineError, _TOO_SLOW, "read", "first_token", "idle"),
    _rule(errors.DeadlineError, FINAL),  # pool, queue, total: our own limits
    _rule(errors.CertificateError, _FINAL_HERE),
    _rule(errors.ConnectError, _FINAL_HERE, True),  # permanent
    _rule(errors.ConnectError, NO_CONNECTION),
    _rule(errors.WriteError, _UNPROCESSED),
    _rule(errors.ReadError, _DROPPED, False),  # not a byte came: most often a stale connection
    _rule(errors.ReadError, _FAILED),
    _rule(errors.LocalProtocolError, FINAL),
    _rule(errors.TransportError, _FAILED),
    _rule(errors.TruncatedStreamError, _FAILED),
    _rule(errors.ProtocolError, _FAILED, None),
    _rule(errors.ProtocolError, _FAILED_ONCE),  # it has a status: a whole answer, but garbage
    _rule(errors.StreamInterruptedError, FINAL),
    # A redirect, a route without POST, a law: those are the address's. All else that is wrong is the request itself.
    _rule(errors.BadRequestError, _FINAL_HERE, 405, 451, *range(300, 400)),
    _rule(errors.BadRequestError, FINAL),
    _rule(errors.AuthenticationError, _FINAL_HERE),
    _rule(errors.PaymentRequiredError, _FINAL_HERE),  # 429 among them: before the rules by status
    _rule(errors.PermissionDeniedError, _FINAL_HERE),
    _rule(errors.NotFoundError, _FINAL_HERE),
    _rule(errors.RateLimitError, _RATE),
    _rule(errors.ModelLoadingError, _LOADING),
    _rule(errors.OverloadedError, _FULL),
    _rule(errors.GenerationError, _FAILED_ONCE),
    _rule(errors.ServerError, _FINAL_HERE, 501, 505),
    _rule(errors.ServerError, _GATEWAY_TOO_SLOW, 504, 524),
    _rule(errors.ServerError, _FAILED),
    # By status alone: a plain StatusError, and errors that are not ours.
    _rule(errors.StatusError, _RATE, 429),
    _rule(errors.StatusError, _FULL, 503, 529, 530),
    _rule(errors.StatusError, _FAILED_ONCE, 424),
    _rule(errors.StatusError, _GATEWAY_TOO_SLOW, 504, 524),
    _rule(errors.StatusError, _FINAL_HERE, 401, 402, 403, 404, 405, 410, 451, 501, 505),
    _rule(errors.StatusError, _FAILED, 408, 409, 425, *range(500, 600)),
    _rule(errors.MillstreamError, FINAL),
    # The operating system's own, from a function that is not of Millstream.
    _rule(ConnectionError, _FAILED),
    _rule(TimeoutError, _FAILED),
)


def classify(error: BaseException) -> Verdict:
    """What follows from `error`.

    Errors of other libraries count by their ``status_code`` or ``response.status_code``; those of httpx by which of
    its classes says that a connection failed or a time was over. Whatever is in no rule, such
    as a cancellation, a ``KeyboardInterrupt`` or a ``ValueError``, is final.
    """
    if not isinstance(error, Exception):
        return FINAL
    kind: type[BaseException] = type(error)
    fact = _fact(error)
    if not isinstance(error, errors.MillstreamError):
        status = _foreign_status(error)
        if status is not None:
            kind, fact = errors.StatusError, status
        elif _is_of_httpx(kind):
            return _FAILED
    for rule in RULES:
        if issubclass(kind, rule.error) and (rule.facts is None or fact in rule.facts):
            return rule.verdict
    return FINAL


def _fact(error: BaseException) -> object:
    """The one fact besides its class by which an error is judged."""
    match error:
        case errors.DeadlineError():
            return error.deadline
        case errors.ConnectError():
            return error.permanent
        case errors.ReadError():
            return error.started
        case errors.StatusError() | errors.ProtocolError():
            return error.status_code
        case _:
            return None


def _is_of_httpx(kind: type[BaseException]) -> bool:
    """By name, so that httpx need not be there: models of one's own often ask with it."""
    names = {base.__name__ for base in kind.__mro__ if base.__module__.partition(".")[0] in ("httpx", "httpx2")}
    return not names.isdisjoint(("NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError"))


def _foreign_status(error: Any) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int) and not isinstance(status, bool):
            return status
    return None


def retry_after(error: BaseException, *, now: float) -> float | None:
    """Seconds, 0 to 600, that the server asked to wait; None where it did not.

    Taken from the error's own ``retry_after``, or from the headers of its ``response`` (errors of other libraries).

    Args:
        error: what was raised.
        now: wall clock, seconds since 1970; for a date in those headers.
    """
    told = getattr(error, "retry_after", None)
    if told is None:
        given = getattr(getattr(error, "response", None), "headers", None)
        if not isinstance(given, Mapping):
            return None
        headers = {str(name).lower(): str(value) for name, value in given.items()}
        return _headers.retry_after(lambda name: headers.get(name.decode()), now=now)
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0.0 <= told < math.inf:
        return None
    return _headers.clamp_wait(float(told))


def next_delay(
    policy: RetryPolicy, verdict: Verdict, retry_num: int, retry_after: float | None, random: float
) -> float | None:
    """Seconds to wait before a retry, or None where the server asks for more than the policy waits.

    Without a time from the server: ``random * min(cap, base * 2**retry_num)`` ("full jitter"; with the defaults up to
    0.25, 0.5, 1, 2, 4, 8, 8, ... s after a failure, up to 1, 2, 4, 8, 10, 10, ... s where the server takes no more).
    With one: that time, never less, and up to 5 % (at least 0.5 s) more, so that not all come back at one moment.

    Args:
        policy: bases, caps and `max_wait`.
        verdict: what `classify` said.
        retry_num: retries of this call before this one, from 0.
        retry_after: seconds that the server asked for, None for none.
        random: a number drawn evenly from [0, 1).
    """
    if retry_after is not None:
        if verdict.estimated:
            retry_after = min(retry_after, policy.max_wait)
        elif retry_after > policy.max_wait:
            return None
        return retry_after + random * max(0.5, 0.05 * retry_after)
    if verdict.immediate and retry_num == 0:
        return 0.0
    slow = verdict.signal in SHARED
    base = policy.overload_base if slow else policy.transient_base
    cap = policy.overload_cap if slow else policy.transient_cap
    return random * min(cap, base * 2.0 ** min(retry_num, 64))


class RetrySchedule:
    """What the retries of one call have used up, and whether there is another one.

    Args:
        policy: waits and bounds.
        bounded: whether the call has a deadline. Retries that use up nothing then end by that, or by a single wait of
            more than `RetryPolicy.max_wait` that the server asks for; otherwise also after `MAX_FREE_RETRIES`.
    """

    __slots__ = ("_bounded", "_by_kind", "_counted", "_policy", "_retries")

    def __init__(self, policy: RetryPolicy, *, bounded: bool = False) -> None:
        self._policy = policy
        self._bounded = bounded
        self._counted = 0
        self._by_kind: dict[Verdict, int] = {}
        self._retries = 0

    @property
    def counted(self) -> int:
        """Retries so far that used up one of `RetryPolicy.max_retries`."""
        return self._counted

    def next(self, verdict: Verdict, retry_after: float | None, random: float) -> float | None:
        """The delay in seconds before the next attempt, None for no further attempt. A delay that is given counts."""
        policy = self._policy
        if not verdict.retry or policy.max_retries == 0:
            return None
        if verdict.limit is not None and self._by_kind.get(verdict, 0) >= verdict.limit:
            return None
        if verdict.counted:
            if self._counted >= policy.max_retries:
                return None
        elif not self._bounded and self._retries - self._counted >= MAX_FREE_RETRIES:
            return None
        delay = next_delay(policy, verdict, self._retries, retry_after, random)
        if delay is None:
            return None
        self._counted += verdict.counted
        self._by_kind[verdict] = self._by_kind.get(verdict, 0) + 1
        self._retries += 1
        return delay


class RetryBudget:
    """How many retries everyone together may still make, so that a brown-out is not answered with a storm.

    Starts full, at 100. A counted retry takes 1, a success gives 0.1 back: in the long run at most one request in ten
    is a retry. At less than 50 a call is to make one counted retry at the most, at less than 1 none.
    """

    __slots__ = ("_tenths",)

    CAPACITY = 100
    LOW = 50

    def __init__(self) -> None:
        self._tenths = self.CAPACITY * 10  # whole numbers: ten tenths are exactly one retry

    @property
    def level(self) -> float:
        """Retries that are left, 0 to 100."""
        return self._tenths / 10

    @property
    def low(self) -> bool:
        """Whether a call that has made a counted retry is to make no other."""
        return self._tenths < self.LOW * 10

    @property
    def empty(self) -> bool:
        return self._tenths < 10

    def take(self) -> bool:
        """Take one retry; False, and nothing taken, where none is left."""
        if self.empty:
            return False
        self._tenths -= 10
        return True

    def give_back(self) -> None:
        """A call succeeded."""
        if self._tenths < self.CAPACITY * 10:
            self._tenths += 1
