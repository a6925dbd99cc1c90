"""What goes to the terminal: text as the model writes it, and errors in the command line's own words."""

from __future__ import annotations

import re
import sys

from millstream import AuthenticationError, BaseCallbackHandler, NotFoundError, RetryEvent, UsageError

__all__ = ["RetryNotices", "one_line", "shown", "tell", "told", "write"]

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_OPTIONS = {"api_key": "--api-key-env", "api": "--api", "model": "--model", "endpoint_url": "--endpoint"}
_KEYWORD = re.compile(r"\b(api_key|api|model|endpoint_url)\b(?:=('?)|(?<=_url))")
_SECONDS_BETWEEN_NOTICES = 1.0


def write(text: str) -> None:
    """Print `text` at once. On a terminal, control characters are printed in writing; elsewhere all is as it came."""
    print(shown(text) if sys.stdout is not None and sys.stdout.isatty() else text, end="", flush=True)


def shown(text: str) -> str:
    """`text` with control characters in writing, line breaks and tabs kept: neither model nor server may drive it."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """`text` on one line, harmless."""
    return shown(" ".join(text.split()))


def told(error: BaseException) -> str:
    """What to say about an error, on one line, with this command's options in place of the library's keywords."""
    text = one_line(str(error))
    if isinstance(error, UsageError | NotFoundError | AuthenticationError):
        text = _KEYWORD.sub(lambda found: _OPTIONS[found[1]] + (" '" if found[2] else ""), text)
    if isinstance(error, AuthenticationError) and "--api-key-env" not in text:
        text += "; --api-key-env names the variable with the key for an endpoint that is not Hugging Face's"
    return text


def tell(text: str) -> None:
    """Print a line about what happens to standard error."""
    print(f"millstream: {text}", file=sys.stderr, flush=True)


class RetryNotices(BaseCallbackHandler):
    """Tells why it takes so long; once a second is enough, however many prompts wait."""

    def __init__(self) -> None:
        self._told_at = float("-inf")

    def on_retry(self, event: RetryEvent, /) -> None:
        if event.time - self._told_at >= _SECONDS_BETWEEN_NOTICES:
            self._told_at = event.time
            tell(f"attempt {event.attempt} failed, next in {event.delay:.1f} s: {one_line(event.reason)}")
