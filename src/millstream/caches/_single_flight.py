"""Identical calls at the same time become one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio

from millstream import _clock

__all__ = ["SingleFlight"]

T = TypeVar("T")


class _Flight(Generic[T]):
    """One fetch under way. It lands with a value or an error; with neither, its leader left and another fetches."""

    __slots__ = ("error", "landed", "traceback", "value")

    def __init__(self) -> None:
        self.landed: anyio.Event | None = None  # made by the first that waits: most flights are alone
        self.value: tuple[T] | None = None
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None


class SingleFlight(Generic[T]):
    """Lets the first of several identical calls fetch, and the others wait for what it gets.

    The first fetches in its own task; there are no other tasks. If it is cancelled, one of those that wait fetches anew
    and the rest wait on; when all are cancelled, so is the call. An error of the fetch reaches all that wait, each its
    own copy. Nothing is kept of a fetch that is over: keeping is a cache's work.

    A deadline of one caller belongs around `run`, where it ends that caller alone, not into `fetch`, where it would
    end all. `fetch` must not run the same key again: it would wait for itself.
    """

    __slots__ = ("_flights", "_loop")

    def __init__(self) -> None:
        self._loop: Any = None
        self._flights: dict[str, _Flight[T]] = {}

    def __len__(self) -> int:
        """Fetches under way."""
        return len(self._flights)

    async def run(self, key: str, fetch: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """What `fetch` gives, and whether another call fetched it.

        The value is one object for all who share it.

        Raises:
            Whatever `fetch` raises, here or in the call that fetched.
        """
        flights = self._flights_of_this_loop()
        while (flight := flights.get(key)) is not None:
            if flight.landed is None:
                flight.landed = anyio.Event()
            await flight.landed.wait()
            if flight.value is not None:
                return flight.value[0], True
            if flight.error is not None:
                raise _copy_of(flight.error).with_traceback(flight.traceback)
        return await _lead(flights, key, fetch), False

    def _flights_of_this_loop(self) -> dict[str, _Flight[T]]:
        loop = _clock.event_loop()
        if loop is not self._loop:
            # What an ended loop has left can't land any more. One that still runs (in another thread) keeps its own.
            self._loop, self._flights = loop, {}
        return self._flights


async def _lead(flights: dict[str, _Flight[T]], key: str, fetch: Callable[[], Awaitable[T]]) -> T:
    flight = flights[key] = _Flight[T]()
    try:
        value = await fetch()
    except Exception as error:
        flight.error, flight.traceback = error, error.__traceback__
        raise
    else:
        flight.value = (value,)
        return value
    finally:
        del flights[key]
        if flight.landed is not None:
            with contextlib.suppress(RuntimeError):  # the coroutine is being closed after its loop has ended
                flight.landed.set()
        del flight  # the error's traceback has this frame, and would keep itself alive through it


def _copy_of(error: Exception) -> Exception:
    """A twin of `error` for another task, without its traceback.

    Raising one object in several tasks makes their tracebacks one tangle, and whoever adds a fact (`prompt_index`)
    adds it for all. Where a class can't be copied, the object itself.
    """
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - whatever a foreign class does here, the error must be told
        return error
    if type(twin) is not type(error):
        return error
    twin.__cause__ = error.__cause__
    twin.__context__ = error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    if hasattr(error, "__notes__"):
        twin.__notes__ = list(error.__notes__)
    return twin
