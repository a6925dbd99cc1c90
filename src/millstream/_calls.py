"""What is said of one call, and what a caller tells of itself: data only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from millstream._admission import Lanes, Permit
from millstream._config import Deadlines
from millstream._control import WindowChange, WindowStatistics

__all__ = ["CallObserver", "CallerOptions", "CallerOutcome", "CallerStatistics"]

T = TypeVar("T")
ItemT = TypeVar("ItemT")


class CallObserver(Protocol):
    """Is told how a call goes. What it raises ends the call."""

    async def attempt(self, number: int, /) -> None:
        """An attempt is about to be made, counted from 1; its slot is held already."""

    async def retry(self, number: int, delay: float, error: Exception, /) -> None:
        """Attempt `number` failed with `error`; in `delay` seconds, or when there is room then, follows another."""

    @property
    def hears_windows(self) -> bool:
        """Whether it wants `window`; else that is told to another call's observer."""
        ...

    async def window(self, lane: str, change: WindowChange, time: float, /) -> None:
        """What is sent to an endpoint, how fast or when has changed, at `time` (seconds, ``time.monotonic``)."""


class CallerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What can differ from call to call."""

    deadline: float | None = None
    """When the call must be over, on the event loop's clock, besides `Deadlines.total`. None: no other bound."""
    deadlines: Deadlines | None = None
    """`total` and `queue` of this call; None: those of the caller."""
    tokens: int | None = None
    """LLM tokens that the request will use, by estimate; None: unknown. Of use where `AsyncCaller.counts_tokens`."""
    observer: CallObserver | None = None
    settle: Callable[[Any], int | None] | None = None
    """Tells from the function's result how many tokens were used, None for unknown. `open` does not ask it."""
    lanes: Lanes = ("",)
    """The endpoints that will do; each has a window of its own. The least loaded one is taken (`Permit.lane`)."""
    begin: Callable[[Permit], None] | None = None
    """Is given the permit of each attempt, just before it is made. Must not raise."""
    signals: bool = False
    """Whether the function tells by `Permit.first_token` when the first token is there. In `open` its return does."""


class CallerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand. Counters are since the caller was made."""

    in_flight: int
    """Slots that are held: attempts being made, and streams being read."""
    waiting: int
    """Calls that wait for a slot, a limit, or the end of a cool-down."""
    backing_off: int
    """Calls that wait alone for their next attempt; they hold no slot."""
    attempts: int
    retries: int
    """Attempts that were not the first of their call."""
    successes: int
    """Calls that gave a result."""
    failures: int
    """Calls that ended with an error. Cancelled ones are neither."""
    retry_budget: float
    """Counted retries that all calls together may still make, 0 to 100."""
    max_concurrency: int | Literal["auto"]
    limit: int
    """How many may be in flight at the moment, over all endpoints that were used."""
    requests_per_minute: float | None
    tokens_per_minute: float | None
    windows: dict[str, WindowStatistics]
    """What the governor of each endpoint (lane) sees and does; ``""`` is the only one of most callers."""


class CallerOutcome(msgspec.Struct, Generic[ItemT, T], frozen=True, kw_only=True):
    """What became of one item of `AsyncCaller.map`: `result`, or `error` where that is not None."""

    index: int
    """Its place in the input, from 0."""
    item: ItemT
    result: T | None = None
    error: Exception | None = None
