"""Nothing is in use, nothing is under way: what must hold after every call, however it ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import anyio

from millstream import BaseLLM
from millstream.testing import FakeEndpoint

_SECONDS = 5.0
"""For the endpoint to see that its client left; it takes no time unless something is broken."""


async def assert_quiet(llm: BaseLLM, endpoint: FakeEndpoint | None = None, *, sole: bool = False) -> None:
    """Raise AssertionError unless the model holds no slot, no connection in use, no task, and the endpoint does nothing.

    Args:
        llm: the model; may be closed.
        endpoint: where it asks, if that runs in this event loop.
        sole: whether nobody else asks there: then no connection may be open that is not in the model's pool.
    """
    assert_idle(llm)
    leftover = sorted(set(own_tasks()))
    assert not leftover, f"tasks left behind: {leftover}"
    if endpoint is not None:
        open_here = _open_connections(llm)

        def quiet() -> bool:
            return endpoint.in_flight == 0 and (not sole or endpoint.open_connections <= open_here)

        with anyio.move_on_after(_SECONDS):
            await endpoint.wait_for(quiet)
        assert endpoint.in_flight == 0, "the endpoint still works for somebody who left"
        assert quiet(), f"{endpoint.open_connections} connections are open, {open_here} are known to the pool"


def assert_idle(llm: BaseLLM) -> None:
    """The part that can be told at once, also outside of an event loop."""
    caller = llm.caller.statistics()
    in_use = (caller.in_flight, caller.waiting, caller.backing_off)
    assert in_use == (0, 0, 0), f"in flight, waiting, backing off: {in_use}"
    pool = _pool_statistics(llm)
    if pool is not None:
        busy = (pool.active, pool.opening, pool.waiting)
        assert busy == (0, 0, 0), f"connections active, opening, waited for: {busy}"
    assert len(llm._flights) == 0, "a shared fetch is still under way"


def _pool_statistics(llm: BaseLLM) -> Any:
    statistics = getattr(getattr(llm, "_transport", None), "statistics", None)
    return None if statistics is None else statistics()


def _open_connections(llm: BaseLLM) -> int:
    pool = _pool_statistics(llm)
    return 0 if pool is None else pool.open


def own_tasks() -> Iterator[str]:
    """Names of the tasks of this event loop that run the package's code (not that of its fake endpoint)."""
    for name, coroutine in _tasks():
        code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
        file = "" if code is None else code.co_filename.replace("\\", "/")
        ours = "/millstream/" in file and "/millstream/testing/" not in file
        named = name.startswith("millstream.") and not name.startswith("millstream.testing.")
        if ours or named or type(coroutine).__name__ == "async_generator_athrow":
            yield name


def _tasks() -> Iterable[tuple[str, Any]]:
    try:
        return [(task.get_name(), task.get_coro()) for task in asyncio.all_tasks() if not task.done()]
    except RuntimeError:
        pass
    trio = sys.modules["trio"]
    found: list[tuple[str, Any]] = []
    pending = [trio.lowlevel.current_root_task()]
    while pending:
        task = pending.pop()
        found.append((task.name, task.coro))
        pending += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found
