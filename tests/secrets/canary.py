"""A key that must not be seen, and how to look for it everywhere."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

KEY = "hf_CANARY0123456789abcdefghijklmnop"
OTHER = "hf_CANARYother9876543210zyxwvutsrqp"
PASSWORD = "CANARY-proxy-password"
_SEEN = "CANARY"

_OURS = "/src/millstream/"
_FAKE = "/src/millstream/testing/"


def assert_hidden(*texts: Any) -> None:
    """Raise AssertionError if the canary, or a part of it that is worth something, is in one of the texts."""
    for text in texts:
        shown = text.decode("latin-1") if isinstance(text, bytes | bytearray) else str(text)
        assert _SEEN not in shown, f"the key is in {shown[max(0, shown.index(_SEEN) - 200) :][:400]}"


def assert_error_hides(error: BaseException, *, echoed: bool = False) -> None:
    """Nothing that can be shown of an error has the key: texts, attributes, causes, and the locals of our frames.

    `echoed`: the server has sent the key back, so that the bytes that it sent have it, which are in locals too.
    """
    for each in chain(error):
        assert_hidden(repr(each), str(each), each.args, getattr(each, "__notes__", ()), _attributes(each))
        if not echoed:
            assert_hidden(*_locals(each))
    assert_hidden("".join(traceback.format_exception(error)))


def chain(error: BaseException) -> list[BaseException]:
    """The error with all its causes, contexts and members."""
    found: list[BaseException] = []
    pending = [error]
    while pending:
        each = pending.pop()
        if each in found:
            continue
        found.append(each)
        shown = each.__cause__ if each.__suppress_context__ else each.__context__
        if shown is not None:
            pending.append(shown)
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
    return found


def _attributes(error: BaseException) -> str:
    shown = {}
    for name in dir(error):
        with contextlib.suppress(Exception):  # properties of foreign classes
            if not name.startswith("__"):
                shown[name] = repr(getattr(error, name))
    return repr(shown)


def _locals(error: BaseException) -> list[str]:
    """What tools that print tracebacks with their locals show, of the package's own frames."""
    shown: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if _OURS in file and _FAKE not in file:
            shown += [f"{file}:{line} {name} = {value!r}" for name, value in frame.f_locals.items()]
    return shown
