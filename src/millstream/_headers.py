"""What an answer's headers tell: how long to wait, what is left of a limit, what to quote when asking about it.

``header`` is a function from a lower-case name to the header's value (several lines joined with commas) or None, as
`Response.header` of the transport; nothing here raises, whatever a server sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from millstream._errors import excerpt

__all__ = [
    "MAX_RETRY_AFTER",
    "Header",
    "Item",
    "StatedLimits",
    "clamp_wait",
    "http_date",
    "parse_list",
    "provider",
    "request_id",
    "retry_after",
    "stated_limits",
]

Header = Callable[[bytes], str | None]

MAX_RETRY_AFTER = 600.0
"""Seconds. A server that asks for more is asked again after this time."""

_MAX_TIME_CHARACTERS = 64
_MAX_HEADER_CHARACTERS = 16 * 1024
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def request_id(header: Header) -> str | None:
    """The server's name for the request, the most useful one first; None where it told none."""
    for name in (b"x-request-id", b"x-amzn-trace-id", b"x-amz-cf-id"):
        value = excerpt(header(name) or "", 200)
        if value:
            return value
    return None


def provider(header: Header) -> str | None:
    """Who served the request behind a router; None where it is not told."""
    return excerpt(header(b"x-inference-provider") or "", 100) or None


def retry_after(header: Header, *, now: float) -> float | None:
    """Seconds that the server asks to wait, from 0 to `MAX_RETRY_AFTER`; None where it does not ask.

    In this order: ``Retry-After``, ``retry-after-ms``, ``RateLimit``, ``x-ratelimit-reset-*`` and their like. The last
    two come with every answer, so they count only for a limit that is used up.

    Args:
        header: gives the headers of the answer.
        now: wall clock, seconds since 1970; used for a date where the answer has no ``Date`` of its own.
    """
    clock = http_date(header(b"date") or "", now=now)
    reference = now if clock is None else clock
    for wait in (
        _retry_after(header(b"retry-after") or "", reference),
        _milliseconds(header(b"retry-after-ms") or ""),
        _rate_limit(header(b"ratelimit") or ""),
        _exhausted_resets(header, reference),
    ):
        if wait is not None:
            return clamp_wait(wait)
    return None


def clamp_wait(seconds: float) -> float:
    """A wait as it may be slept: from 0 to `MAX_RETRY_AFTER`."""
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _number(text: str) -> float | None:
    """ASCII digits with or without a decimal fraction: no sign, no exponent, no nan, no inf."""
    text = text.strip(" \t")
    return float(text) if len(text) <= _MAX_TIME_CHARACTERS and _NUMBER.fullmatch(text) else None


# Retry-After


def _retry_after(value: str, reference: float) -> float | None:
    """The longest of the times that it names (there may be several lines); what is over by now does not count."""
    waits: list[float] = []
    for text in _split_times(value):
        wait = _number(text)
        if wait is None:
            date = http_date(text, now=reference)
            wait = None if date is None else date - reference
        if wait is not None and wait >= 0:
            waits.append(wait)
    return max(waits, default=None)


def _split_times(value: str) -> Iterator[str]:
    """At its commas, except for the comma after the day of a date."""
    day = ""
    for part in value[:_MAX_HEADER_CHARACTERS].split(","):
        name = part.strip().lower()
        if name.isalpha() and name[:3] in _DAYS:
            day = part + ","
        else:
            yield (day + part).strip()
            day = ""


def _milliseconds(value: str) -> float | None:
    number = _number(value)
    return None if number is None else number / 1000


_DAYS = frozenset({"mon", "tue", "wed", "thu", "fri", "sat", "sun"})
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = (
    re.compile(rf"[A-Za-z]{{3}}, (?P<day>[0-9]{{2}}) (?P<month>[A-Za-z]{{3}}) (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(rf"[A-Za-z]{{6,9}}, (?P<day>[0-9]{{2}})-(?P<month>[A-Za-z]{{3}})-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(rf"[A-Za-z]{{3}} (?P<month>[A-Za-z]{{3}}) (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)


def http_date(text: str, *, now: float) -> float | None:
    """Seconds since 1970 of a date in any of the three forms of HTTP; None for anything else.

    Args:
        text: the date.
        now: seconds since 1970, to tell which century a year of two digits is in.
    """
    text = text.strip()
    if len(text) > _MAX_TIME_CHARACTERS:
        return None
    for form in _DATES:
        match = form.fullmatch(text)
        if match is not None:
            break
    else:
        return None
    month = _MONTHS.get(match["month"].lower())
    if month is None:
        return None
    second = min(int(match["second"]), 59) if match["second"] == "60" else int(match["second"])
    try:
        year = int(match["year"])
        if len(match["year"]) == 2:
            year = _full_year(year, datetime.fromtimestamp(now, UTC).year)
        moment = datetime(year, month, int(match["day"]), int(match["hour"]), int(match["minute"]), second, tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.timestamp()


def _full_year(two_digits: int, this_year: int) -> int:
    """As RFC 9110 has it: what would be more than 50 years ahead is the past."""
    year = this_year - this_year % 100 + two_digits
    if year > this_year + 50:
        return year - 100
    return year + 100 if year <= this_year - 50 else year


# RateLimit: a list of structured fields (RFC 9651)


class Item(NamedTuple):
    """One member of a structured list: its value (None for an inner list) and its parameters."""

    value: str | float | bool | None
    parameters: dict[str, str | float | bool]


def _rate_limit(value: str) -> float | None:
    """The longest ``t`` of the policies of which nothing remains."""
    waits: list[float] = []
    for _, parameters in parse_list(value) or ():
        remaining, wait = _count(parameters.get("r")), _count(parameters.get("t"))
        if remaining == 0 and wait is not None:
            waits.append(wait)
    return max(waits, default=None)


def _count(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def parse_list(text: str) -> list[Item] | None:
    """A structured-field list, such as ``RateLimit`` and ``RateLimit-Policy``; None where it is none: ignore it all."""
    if len(text) > _MAX_HEADER_CHARACTERS or not text.isascii():
        return None
    parser = _ListParser(text)
    try:
        return parser.members()
    except _NotStructuredError:
        return None


class _NotStructuredError(Exception):
    pass


_KEY = re.compile(r"[a-z*][a-z0-9_.*\-]*")
_SF_NUMBER = re.compile(r"-?(?:[0-9]{1,12}\.[0-9]{1,3}|[0-9]{1,15})(?![0-9.])")
_SF_STRING = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_SF_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_SF_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_SF_BOOLEAN = re.compile(r"\?([01])")
_SF_DATE = re.compile(r"@(-?[0-9]{1,15})(?![0-9.])")
_SF_DISPLAY = re.compile(r'%"((?:[\x20-\x21\x23-\x24\x26-\x7e]|%[0-9a-f]{2})*)"')
_SPACES = re.compile(r" *")
_OPTIONAL_SPACE = re.compile(r"[ \t]*")


class _ListParser:
    """Reads from left to right and never goes back: each pattern begins with another character."""

    def __init__(self, text: str) -> None:
        self.text = text.strip(" ")
        self.position = 0

    def members(self) -> list[Item]:
        members: list[Item] = []
        if not self.text:
            return members
        while True:
            members.append(self.member())
            self.take(_OPTIONAL_SPACE)
            if self.position == len(self.text):
                return members
            self.expect(",")
            self.take(_OPTIONAL_SPACE)

    def member(self) -> Item:
        if self.peek() != "(":
            return Item(self.bare_item(), self.parameters())
        self.expect("(")
        self.take(_SPACES)
        while self.peek() != ")":
            self.bare_item()
            self.parameters()
            if self.peek() not in {" ", ")"}:
                raise _NotStructuredError
            self.take(_SPACES)
        self.expect(")")
        return Item(None, self.parameters())

    def parameters(self) -> dict[str, str | float | bool]:
        parameters: dict[str, str | float | bool] = {}
        while self.peek() == ";":
            self.expect(";")
            self.take(_SPACES)
            key = self.take(_KEY)[0]
            value: str | float | bool = True
            if self.peek() == "=":
                self.expect("=")
                value = self.bare_item()
            parameters[key] = value
        return parameters

    def bare_item(self) -> str | float | bool:
        first = self.peek()
        if first == '"':
            return re.sub(r"\\(.)", r"\1", self.take(_SF_STRING)[1])
        if first == ":":
            return self.take(_SF_BYTES)[1]
        if first == "?":
            return self.take(_SF_BOOLEAN)[1] == "1"
        if first == "@":
            return int(self.take(_SF_DATE)[1])
        if first == "%":
            return self.take(_SF_DISPLAY)[1]
        if first == "-" or first.isdigit():
            number = self.take(_SF_NUMBER)[0]
            return float(number) if "." in number else int(number)
        return self.take(_SF_TOKEN)[0]

    def peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self.text, self.position)
        if match is None:
            raise _NotStructuredError
        self.position = match.end()
        return match

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise _NotStructuredError
        self.position += 1


# x-ratelimit-*, ratelimit-* (as early drafts have it), anthropic-ratelimit-*: a limit, what remains, when it is whole

_LIMITS = (
    b"",
    *(
        b"-" + counted + window
        for counted in (b"requests", b"tokens")
        for window in (b"", b"-second", b"-minute", b"-hour", b"-day")
    ),
    b"-input-tokens",
    b"-output-tokens",
    b"-tokens-prompt",
    b"-tokens-generated",
)


class _Names(NamedTuple):
    remaining: bytes
    reset: bytes
    of_tokens: bool


_NAMES = tuple(
    _Names(remaining, reset, b"tokens" in limit)
    for limit in _LIMITS
    for remaining, reset in (
        (b"x-ratelimit-remaining" + limit, b"x-ratelimit-reset" + limit),
        (b"ratelimit-remaining" + limit, b"ratelimit-reset" + limit),
        (b"anthropic-ratelimit" + limit + b"-remaining", b"anthropic-ratelimit" + limit + b"-reset"),
    )
)
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h|d)")
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e11


def _exhausted_resets(header: Header, reference: float) -> float | None:
    waits: list[float] = []
    for names in _NAMES:
        if _number(header(names.remaining) or "") == 0:
            wait = _reset(header(names.reset) or "", reference)
            if wait is not None and wait >= 0:
                waits.append(wait)
    return max(waits, default=None)


def _reset(value: str, reference: float | None) -> float | None:
    """Seconds, a duration such as ``1m30s``, or the moment itself (since 1970, or as RFC 3339).

    A moment is of no use where it is not known what time it is: `reference` None.
    """
    value = value.strip(" \t")
    number = _number(value)
    if number is None and value[-1:].isalpha() and value[-1:] != "Z":
        return _duration(value)
    if number is not None and number < _EPOCH_SECONDS:
        return number
    if reference is None:
        return None
    if number is not None:
        return (number / 1000 if number >= _EPOCH_MILLISECONDS else number) - reference
    return _moment(value, reference)


def _duration(value: str) -> float | None:
    if not value or len(value) > _MAX_TIME_CHARACTERS:
        return None
    seconds, position = 0.0, 0
    while position < len(value):
        match = _DURATION_PART.match(value, position)
        if match is None:
            return None
        seconds += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    return seconds


def _moment(value: str, reference: float) -> float | None:
    if len(value) > _MAX_TIME_CHARACTERS:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.timestamp() - reference if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


# What is left of every limit, as answers of all kinds tell it


class StatedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of the limits that a server tells; where it tells several of one kind, of the tightest."""

    requests_remaining: float | None = None
    """Requests that may still be sent; None: not told."""
    requests_reset: float | None = None
    """Seconds, 0 or more, until the limit is whole again; None: not told."""
    tokens_remaining: float | None = None
    """The same of LLM tokens."""
    tokens_reset: float | None = None
    concurrency: int | None = None
    """Requests at a time, 1 or more; None: not told."""


def stated_limits(headers: Iterable[tuple[bytes, bytes]], *, now: float | None = None) -> StatedLimits | None:
    """What the limits are that an answer tells of, by ``RateLimit``, ``x-ratelimit-*`` and their like; None: of none.

    The tightest limit is that with the least left for each second until its reset. One without a reset counts only
    where none has one.

    Args:
        headers: the headers of the answer, as `Response.headers`: names in lower case. It is not a `Header`, since
            most answers have no such header: looking once at every name costs less than asking for each that there is.
        now: wall clock, seconds since 1970; for a reset that is a moment where the answer has no ``Date`` of its own.
            None: such resets count as not told.
    """
    lines = [(name, value) for name, value in headers if b"ratelimit" in name or name == b"date"]
    told: dict[bytes, str] = {}
    for name, value in lines:
        text = value.decode("latin-1")
        told[name] = f"{told[name]}, {text}" if name in told else text
    date = told.pop(b"date", "")
    if not told:
        return None
    clock = http_date(date, now=0.0 if now is None else now)
    left, concurrency = _left_of_policies(told.get(b"ratelimit", ""), told.get(b"ratelimit-policy", ""))
    left += _left_of_names(told, now if clock is None else clock)
    requests, tokens = (_tightest(one for one in left if one.of_tokens is kind) for kind in (False, True))
    if requests is None and tokens is None and concurrency is None:
        return None
    return StatedLimits(
        requests_remaining=requests and requests.remaining,
        requests_reset=requests and requests.reset,
        tokens_remaining=tokens and tokens.remaining,
        tokens_reset=tokens and tokens.reset,
        concurrency=concurrency,
    )


class _Left(NamedTuple):
    remaining: float
    reset: float | None
    of_tokens: bool = False


def _tightest(limits: Iterable[_Left]) -> _Left | None:
    return min(limits, key=_looseness, default=None)


def _looseness(limit: _Left) -> tuple[bool, float, float]:
    if limit.reset is None:
        return True, limit.remaining, 0.0
    # Of two that are used up, that which stays so for longer.
    return False, limit.remaining / limit.reset if limit.reset > 0 else math.inf, -limit.reset


def _left_of_names(told: dict[bytes, str], reference: float | None) -> list[_Left]:
    left: list[_Left] = []
    for remaining_name, reset_name, of_tokens in _NAMES:
        value = told.get(remaining_name)
        remaining = None if value is None else _number(value)
        if remaining is not None:
            reset = _reset(told.get(reset_name, ""), reference)
            left.append(_Left(remaining, None if reset is None else max(0.0, reset), of_tokens))
    return left


def _left_of_policies(limits: str, policies: str) -> tuple[list[_Left], int | None]:
    """What is left of each policy that counts requests; and how many may be under way at a time."""
    units: dict[object, object] = {}
    ceilings: list[int] = []
    for name, parameters in parse_list(policies) or ():
        units[name] = unit = parameters.get("qu", "requests")
        quota = _count(parameters.get("q"))
        if unit == "concurrent-requests" and quota is not None:
            ceilings.append(max(1, int(quota)))  # with 0 nothing would ever be sent, to hear that it is more again
    left: list[_Left] = []
    for name, parameters in parse_list(limits) or ():
        remaining = _count(parameters.get("r"))
        if remaining is not None and units.get(name, "requests") == "requests":
            left.append(_Left(remaining, _count(parameters.get("t"))))
    return left, min(ceilings, default=None)
