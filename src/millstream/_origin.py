"""Where a URL leads: scheme, host and port, and the path there."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from millstream._errors import OptionValueError

__all__ = ["Origin", "parse_url"]

_ILLEGAL = re.compile(r"[\x00-\x20\x7f]")


class Origin(NamedTuple):
    """Where a connection goes: ``scheme`` is http or https, ``host`` without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in a URL and a ``Host`` header: brackets around IPv6, no port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_url(url: str) -> tuple[Origin, str]:
    """The origin and the path (``/`` where there is none, query included) of an http or https URL.

    Raises:
        OptionValueError: it is no such URL; the message says what is missing. It never has a password in it.
    """
    if _ILLEGAL.search(url):  # urlsplit would drop some of them without a word
        raise OptionValueError("an endpoint's URL has no spaces, line breaks or control characters in it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host is not None and not host.isascii():
            host = host.encode("idna").decode().lower()  # as it is dialled, so that it is judged as that too
    except ValueError:
        raise OptionValueError("an endpoint's URL can't be understood: host or port are wrong") from None
    if parts.scheme not in {"http", "https"}:
        raise OptionValueError(
            f"an endpoint's URL starts with http:// or https://, not {url.rsplit('@', maxsplit=1)[-1][:80]!r}"
        )
    if not host or "\\" in url:
        raise OptionValueError(f"the URL names no host: {url.rsplit('@', maxsplit=1)[-1][:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise OptionValueError("a URL with a user name or password in it is refused; give the key by api_key=")
    if port == 0:
        raise OptionValueError("port 0 can't be connected to")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii():
        raise OptionValueError(f"the URL's path has a character that must be percent-encoded: {path[:80]!r}")
    return Origin(parts.scheme, host, port or (443 if parts.scheme == "https" else 80)), path
