"""Calling handlers so that nothing they do reaches the run.

Plain methods are called inline. ``async`` ones are queued and awaited one after the other, each in a shielded scope
with a deadline, so that a cancelled run can still tell its end. Only the host's own cancellation and the likes of
KeyboardInterrupt go through, and they do so after every handler was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import anyio

from millstream.callbacks._base import HOOKS, BaseCallbackHandler

__all__ = [
    "HANDLER_SECONDS",
    "Hook",
    "Index",
    "Late",
    "call_late",
    "call_now",
    "discard_late",
    "index_hooks",
    "is_cancellation",
]

HANDLER_SECONDS = 1.0
"""For one ``async`` method: enough to hand an event on, short enough not to hold up a shutdown."""

_log = logging.getLogger("millstream")


class Hook(NamedTuple):
    """One method of one handler."""

    handler: BaseCallbackHandler
    name: str
    method: Callable[[Any], Any]
    is_async: bool


class Late(NamedTuple):
    """A call whose outcome must be awaited: made later (`made` is None) or made already by a plain method."""

    hook: Hook
    event: Any
    made: Any = None


Index = dict[str, tuple[Hook, ...]]
"""The hooks of all handlers by name; a name that nobody listens to is absent."""


def index_hooks(handlers: Iterable[BaseCallbackHandler]) -> Index:
    """Find the methods that handlers have overridden."""
    found: dict[str, list[Hook]] = {}
    for handler in handlers:
        for name in HOOKS:
            method = getattr(handler, name)
            if getattr(method, "__func__", method) is not getattr(BaseCallbackHandler, name):
                hook = Hook(handler, name, method, inspect.iscoroutinefunction(method))
                found.setdefault(name, []).append(hook)
    return {name: tuple(hooks) for name, hooks in found.items()}


def is_cancellation(error: BaseException) -> bool:
    """Whether somebody left: a backend's cancelled exception (or a group of only such), or GeneratorExit."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_cancellation(each) for each in error.exceptions)
    if isinstance(error, GeneratorExit | asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")
    return trio is not None and isinstance(error, trio.Cancelled)


def call_now(hooks: Iterable[Hook], event: Any, late: list[Late]) -> BaseException | None:
    """Call the plain methods and queue the rest in `late`; give what must be raised once everyone was told."""
    fatal: BaseException | None = None
    for hook in hooks:
        if hook.is_async:
            late.append(Late(hook, event))
            continue
        try:
            made = hook.method(event)
        except BaseException as error:  # noqa: BLE001 - given back to be raised when all were told
            # A plain method can't be where the host's cancellation arrives: a cancellation from it is its own.
            if isinstance(error, Exception) or is_cancellation(error):
                _report(hook, error)
            else:
                fatal = fatal or error
        else:
            if made is not None and inspect.isawaitable(made):  # async behind a decorator that hides it
                late.append(Late(hook, event, made))
    return fatal


async def call_late(late: list[Late], overran: set[int]) -> BaseException | None:
    """Await what is queued, in order; give what must be raised afterwards.

    `overran` has the ids of handlers that used up their time: they are still told start and end, and nothing else.
    """
    fatal: BaseException | None = None
    cancelled_before = _cancel_requests()
    while late:
        call = late.pop(0)
        if id(call.hook.handler) in overran and call.hook.name not in {"on_llm_start", "on_llm_end", "on_llm_error"}:
            _discard(call)
            continue
        error = await _await_one(call, overran, cancelled_before)
        fatal = fatal or error
    if fatal is None and _cancel_requests() > cancelled_before:
        fatal = await _swallowed_cancellation()
    return fatal


async def _await_one(call: Late, overran: set[int], cancelled_before: int) -> BaseException | None:
    try:
        with anyio.move_on_after(HANDLER_SECONDS, shield=True) as scope:
            await (call.hook.method(call.event) if call.made is None else call.made)
    except GeneratorExit:
        raise  # the host's coroutine is being closed: nothing more can be awaited
    except BaseException as error:  # noqa: BLE001 - given back to be raised when all were told
        # The scope is shielded, so only a native task.cancel() of asyncio is the host's; trio has no such thing.
        own = is_cancellation(error) and _cancel_requests() <= cancelled_before
        if not isinstance(error, Exception) and not own:
            return error
        _report(call.hook, error)
        return None
    if scope.cancelled_caught:
        overran.add(id(call.hook.handler))
        _report(call.hook, None)
    return None


def discard_late(late: list[Late]) -> None:
    """Drop what is queued, where nothing can be awaited any more."""
    while late:
        _discard(late.pop(0))


def _discard(call: Late) -> None:
    if inspect.iscoroutine(call.made):
        call.made.close()


def _host() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _cancel_requests() -> int:
    host = _host()
    return 0 if host is None else host.cancelling()


async def _swallowed_cancellation() -> asyncio.CancelledError:
    """The host was cancelled, and its handlers kept that to themselves: get it, or what stands for it."""
    try:
        await asyncio.sleep(0)  # where the request has not arrived yet, it does so here, and not a second time later
    except asyncio.CancelledError as error:
        return error
    return asyncio.CancelledError()


def _report(hook: Hook, error: BaseException | None) -> None:
    """Log a failure once for each handler and hook: kind and place, never a message, which could quote a prompt."""
    handler = hook.handler
    if hook.name in handler.reported_hooks:
        return
    with contextlib.suppress(AttributeError, TypeError):  # a frozen dataclass or slots: then it is logged each time
        handler.reported_hooks |= {hook.name}
    if error is None:
        what = f"was cancelled after {HANDLER_SECONDS:g} s"
    else:
        what = f"raised {type(error).__name__}{_place(error)}"
    _log.warning(
        "callback handler %s: %s %s; the run goes on, and this is not logged again for it",
        handler.name,
        hook.name,
        what,
    )


def _place(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    return f" at {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
