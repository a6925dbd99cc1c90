"""What follows from a failed attempt: who hears of it, whether there is another one, where and when."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import msgspec

from millstream import _clock
from millstream._admission import Admission, Lanes, Permit, others
from millstream._backoff import (
    NO_CONNECTION,
    SHARED,
    WRONG_ADDRESS,
    RetryBudget,
    RetrySchedule,
    Verdict,
    classify,
    retry_after,
)
from millstream._calls import CallerOptions
from millstream._config import RetryPolicy
from millstream._errors import (
    DeadlineError,
    ProtocolError,
    ReadError,
    StatusError,
    StreamInterruptedError,
    WriteError,
)
from millstream.limiters import Limiter

__all__ = ["Call", "Retrying", "end_failed"]

_LEFT_OUT_SECONDS = 60.0
"""An endpoint that can't serve a request which another one can is asked again after this time."""


class Call(msgspec.Struct, eq=False):
    """One call under way."""

    options: CallerOptions
    queue: float | None
    """Seconds that it may wait for each permit; None: no bound."""
    lanes: Lanes
    """Where the next attempt may go."""
    deadline: float = math.inf
    """When it must be over, on the event loop's clock,"""
    seconds: float = math.inf
    """and how long that was when it began."""
    attempts: int = 0
    waited: float = 0.0
    cause: Exception | None = None
    """Why the last attempt failed, while another is to follow."""
    schedule: RetrySchedule | None = None
    """What its retries have used up; None: there was none."""
    counted: bool = False
    """Whether that other one takes from the retry budget."""
    retries: int = 0
    """How many have taken from it."""
    failed_at: float = 0.0
    tried: tuple[str, ...] = ()
    """Where it need not be tried again."""


def end_failed(permit: Permit, error: BaseException, verdict: Verdict) -> None:
    """Tell the endpoint's governor what an attempt's end says about the endpoint."""
    # Nothing was processed: no token was used. (The request itself stays counted: the server saw it.)
    tokens = None if verdict.counted else 0
    match verdict.signal:
        case "rate" | "overload" | "loading":
            permit.rejected(verdict.signal, retry_after(error, now=_clock.wall_time()), tokens)
        case "transient" if not verdict.counted or len(permit.lanes) > 1:
            permit.unreachable(tokens)
        case _:
            # An endpoint that fails one request may serve the next, and where there is no other it is asked.
            permit.broken(tokens)


def _is_of_the_endpoint(error: Exception) -> bool:
    """Whether somebody was there, whatever it said."""
    if isinstance(error, DeadlineError):
        return error.deadline in ("read", "first_token", "idle")
    return isinstance(error, StatusError | ProtocolError | ReadError | WriteError | StreamInterruptedError)


class Retrying:
    """Decides about further attempts, for all calls of one caller.

    Args:
        policy: waits and bounds.
        admission: where attempts queue up.
        limiter: a limiter that is shared with others, who are told of a refusal; None: none.
        random: gives a number from [0, 1) for the jitter.
    """

    def __init__(
        self, policy: RetryPolicy, admission: Admission, limiter: Limiter | None, random: Callable[[], float]
    ) -> None:
        self.budget = RetryBudget()
        self._policy = policy
        self._admission = admission
        self._limiter = limiter
        self._random = random
        self._reached: set[str] = set()
        """The endpoints that have ever answered."""
        self._left_out: set[str] = set()
        """The endpoints that others have answered for, and that have not answered since."""
        self._refusals: dict[str, StatusError] = {}
        """The last refusal of each endpoint, for those that would have to wait too long because of it."""

    def answered(self, lane: str) -> None:
        """An attempt was answered there."""
        if lane not in self._reached:
            self._reached.add(lane)
        if self._left_out:
            self._left_out.discard(lane)

    def check_hold(self, call: Call) -> None:
        """Fail now, and with the real reason, rather than wait for what comes too late.

        Raises:
            StatusError: the endpoint has asked others to wait for longer than this call does.
        """
        if call.cause is not None or not self._refusals:
            return
        now = self._admission.now()
        hold = self._admission.cool_until(call.lanes) - now
        longest = 1.05 * self._policy.max_wait + 0.5  # with the spread over the time that was told
        if hold > longest or (hold > 0 and now + hold >= call.deadline):
            known = next((self._refusals[lane] for lane in call.lanes if lane in self._refusals), None)
            if known is not None:
                refusal = copy.copy(known)
                refusal.retry_after = hold
                raise refusal

    def begin(self, call: Call, permit: Permit) -> None:
        """Take what another attempt costs. Raises: why the last one failed, where that is more than is left."""
        assert call.cause is not None
        call.waited += permit.sent_at - call.failed_at
        if call.counted:
            call.retries += 1
            if not self.budget.take():
                permit.give_back()  # the retries of others have used up the budget meanwhile
                raise call.cause

    def after(self, call: Call, permit: Permit, error: Exception) -> float | None:
        """End a failed attempt. Seconds that its call waits alone before it queues up again, None where it does not."""
        verdict = classify(error)
        if verdict == NO_CONNECTION:
            verdict = verdict if permit.lane in self._reached else WRONG_ADDRESS
        elif permit.served or _is_of_the_endpoint(error):
            self._reached.add(permit.lane)
        if permit.served and not verdict.counted:
            verdict = msgspec.structs.replace(verdict, counted=True)  # whatever it says: it has begun to answer
        elsewhere: Lanes = ()
        if len(call.options.lanes) > 1:
            if verdict.elsewhere or verdict == WRONG_ADDRESS:
                call.tried = (*call.tried, permit.lane)
            elsewhere = others(call.options.lanes, (*call.tried, permit.lane))
            if verdict.elsewhere:  # those that are left out would only say what they said before, a minute later
                elsewhere = others(elsewhere, self._left_out_now())
        self._tell(permit, error, verdict, goes_elsewhere=bool(elsewhere))
        call.counted = verdict.counted and verdict.retry
        call.failed_at = self._admission.now()
        if self._admission.closed or self._policy.max_retries == 0:
            return None
        if verdict.elsewhere and elsewhere:
            call.lanes = elsewhere
            return 0.0
        return self._delay(call, verdict, retry_after(error, now=_clock.wall_time()), elsewhere)

    def _tell(self, permit: Permit, error: Exception, verdict: Verdict, *, goes_elsewhere: bool) -> None:
        if verdict.elsewhere and goes_elsewhere:
            permit.rejected("loading", _LEFT_OUT_SECONDS)
            self._left_out.add(permit.lane)
        else:
            end_failed(permit, error, verdict)
        if verdict.signal in SHARED and isinstance(error, StatusError):
            self._refusals[permit.lane] = copy.copy(error)  # without its traceback
        if verdict.signal == "rate" and self._limiter is not None:
            self._limiter.push_back(max(0.0, permit.window.cool_until - self._admission.now()))

    def _left_out_now(self) -> Lanes:
        now = self._admission.now()
        return tuple(lane for lane in self._left_out if self._admission.cool_until((lane,)) > now)

    def _delay(self, call: Call, verdict: Verdict, told: float | None, elsewhere: Lanes) -> float | None:
        spent = self.budget.empty or (self.budget.low and call.retries > 0)
        if not verdict.retry or (verdict.counted and spent):
            return None
        now = call.failed_at
        free_elsewhere = bool(elsewhere) and self._admission.ready_at(elsewhere) <= now
        if call.schedule is None:
            call.schedule = RetrySchedule(self._policy, bounded=call.deadline < math.inf)
        delay = call.schedule.next(verdict, None if free_elsewhere else told, self._random())
        if delay is None:
            return None
        call.lanes = elsewhere if free_elsewhere else others(call.options.lanes, call.tried) or call.options.lanes
        if free_elsewhere or verdict.signal in SHARED:
            delay = 0.0  # nobody waits there; or everybody does, and this call is the first of them
        # A wait that would pass the deadline is for nothing: better to fail now, and with the real reason.
        ready = max(now + delay, self._admission.ready_at(call.lanes))
        return None if ready >= call.deadline else delay
