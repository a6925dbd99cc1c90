"""Errors as servers write them, turned into the tree of `millstream._errors`.

Two entries: `decode_error` for an answer whose status is an error, `error_in_body` for an error inside a 200 answer or
an event. Both go the same way: *told* (what the body says, whatever its shape), *status* (as received, or derived),
*class* (a decision table over both).
"""

from __future__ import annotations

import http
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from millstream._errors import (
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    GenerationError,
    ModelLoadingError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    StatusError,
    excerpt,
)
from millstream._headers import Header, clamp_wait, provider, request_id, retry_after

__all__ = ["ENDPOINT_PAUSED", "ROUTE_NOT_FOUND", "decode_error", "error_in_body", "without_keys"]

ENDPOINT_PAUSED = "endpoint_paused"
"""The `kind` where a dedicated endpoint is paused: it stays so until somebody resumes it."""

ROUTE_NOT_FOUND = "route_not_found"
"""The `kind` of a 404 or 405 that says no more: the server has no such route, and may speak another dialect."""

_READ_BYTES = 64 * 1024
"""How much of an error's body is looked at."""


class _Told(NamedTuple):
    """What a body says."""

    message: str = ""
    kind: str | None = None
    param: str | None = None
    code: int | None = None
    estimated_time: float | None = None

    @property
    def words(self) -> str:
        """All that the classification looks at, in lower case and bounded."""
        return f"{self.kind or ''} {self.message[:4000]}".lower()


def decode_error(status: int, header: Header, body: bytes, *, host: str, now: float) -> StatusError:
    """The error for an answer whose status is not 2xx; it is returned, not raised.

    Args:
        status: as received. For 2xx `error_in_body` is meant; here it gives a `ServerError` unless the body says more.
        header: gives the headers of the answer.
        body: the whole body.
        host: who answered, for the message and as `provider` where no header names one.
        now: wall clock, seconds since 1970.
    """
    if 300 <= status < 400:
        told = _Told(_redirect_message(status, header(b"location") or "", host), "redirect")
        return _build(BadRequestError, status, told, header=header, host=host, body=body)
    told = _told_by_body(body, header)
    if status < 300:
        status = _derived_status(told)
    kind = _class_of(status, told)
    if status in (404, 405) and kind in (NotFoundError, BadRequestError) and _is_route_missing(told.message):
        told = told._replace(kind=ROUTE_NOT_FOUND)
    if kind is NotFoundError and _is_paused(told):
        told = told._replace(message=f"{told.message} ({_PAUSED_ADVICE})", kind=ENDPOINT_PAUSED)
    if not told.message:
        told = told._replace(message=_message_without_words(status, body, host))
    error = _build(kind, status, told, header=header, host=host, body=body)
    error.retry_after = retry_after(header, now=now)
    if error.retry_after is None and status == 503:
        error.retry_after = told.estimated_time
    return error


def error_in_body(
    value: object, *, status: int = 200, header: Header | None = None, host: str = ""
) -> StatusError | None:
    """The error that a 2xx answer or an event is in truth; None where it is an ordinary one.

    Args:
        value: the JSON document, decoded.
        status: as received; below 400 the error's own is derived from what it says.
        header: gives the headers of the answer, for `request_id` and `provider`. Times in them are not used: on a 2xx
            answer they say nothing of this error.
        host: who answered.
    """
    if not _is_error(value):
        return None
    told = _told_by(value)
    if status < 400:
        status = _derived_status(told)
    if not told.message:
        told = told._replace(message=f"an error without a message{_at(host)}")
    try:
        body = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        body = b""
    error = _build(_class_of(status, told), status, told, header=header or _no_header, host=host, body=body)
    error.retry_after = told.estimated_time
    return error


def _no_header(_: bytes) -> None:
    return None


def _build(kind: type[StatusError], status: int, told: _Told, *, header: Header, host: str, body: bytes) -> StatusError:
    identity = request_id(header)
    return kind(
        excerpt(without_keys(told.message)),
        status_code=status,
        kind=excerpt(without_keys(told.kind), 100) if told.kind else None,
        request_id=without_keys(identity) if identity else None,
        provider=provider(header) or host or None,
        body=excerpt(without_keys(body[:_READ_BYTES].decode("utf-8", "replace"))),
    )


_KEYS = re.compile(
    r"hf_(?:oauth|jwt)_[\w.\-]{8,}"
    r"|hf_[A-Za-z0-9]{8,}"
    r"|(?<![A-Za-z0-9])sk-[\w*\-]{4,}"
    r"|\b(?i:bearer)\s+[^\s\"']+"
)


def without_keys(text: str) -> str:
    """The text without anything that looks like a key: some servers quote the one they refuse."""
    return _KEYS.sub("[key removed]", text)


# What a body says


def _told_by_body(body: bytes, header: Header) -> _Told:
    """JSON of any shape, plain text, or nothing. HTML is nothing: its words are a proxy's, not the server's."""
    text = body[:_READ_BYTES].decode("utf-8", "replace").strip().lstrip("\ufeff")
    if text.startswith(("{", "[", '"')):
        try:
            return _told_by(msgspec.json.decode(body.strip().removeprefix(b"\xef\xbb\xbf")))
        except (msgspec.DecodeError, RecursionError):
            pass
    if _is_html(text) or not text:
        return _Told((header(b"x-error-message") or "").strip())
    return _Told(text)


def _is_html(text: str) -> bool:
    return text[:200].lower().startswith(("<!doctype html", "<html", "<head", "<body", "<!--", "<center", "<h1"))


_FIRST_MESSAGE = ("message", "error_message", "error_description", "detail", "msg", "title", "error", "errors")


def _told_by(value: object) -> _Told:
    if isinstance(value, list):
        errors = [told for item in value[:20] if isinstance(item, dict | str) and (told := _told_by(item)).message]
        return errors[0]._replace(message="; ".join(told.message for told in errors)) if errors else _Told()
    if not isinstance(value, dict):
        return _Told(value.strip() if isinstance(value, str) else "")
    error = value.get("error") or None
    if isinstance(error, dict):
        inner, outer = _told_by_object(error), _told_by_object({**value, "error": None})
        return inner._replace(
            kind=inner.kind or outer.kind,
            code=inner.code or (None if "http_status_code" in error else outer.code),
            estimated_time=inner.estimated_time if inner.estimated_time is not None else outer.estimated_time,
        )
    told = _told_by_object(value)
    if isinstance(error, str) and isinstance(value.get("error_description"), str):
        return told._replace(kind=error)  # OAuth: the word is in ``error``, the sentence in ``error_description``
    if isinstance(error, str | list):
        return told._replace(message=_text(error))
    return told


def _told_by_object(value: Mapping[Any, Any]) -> _Told:
    message = next((text for name in _FIRST_MESSAGE if (text := _text(value.get(name)))), "")
    code = None if "http_status_code" in value else _first_status(value)
    return _Told(message, _kind(value), _string(value.get("param")), code, _seconds(value.get("estimated_time")))


def _text(value: object) -> str:
    """The text of a message: itself, or of the first levels of what it is wrapped in."""
    for _ in range(3):
        if isinstance(value, dict):
            value = value.get("message") or value.get("msg") or value.get("error") or value.get("detail")
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return "; ".join(filter(None, map(_text_of_detail, value[:20])))
    return ""


def _text_of_detail(value: object) -> str:
    """FastAPI's ``{"loc", "msg", "input"}`` without the input: that is the prompt."""
    if not isinstance(value, dict):
        return value.strip() if isinstance(value, str) else ""
    message = _string(value.get("msg")) or _string(value.get("message")) or _string(value.get("error")) or ""
    place = value.get("loc")
    if message and isinstance(place, list):
        return f"{'.'.join(str(part) for part in place[:20] if isinstance(part, str | int))}: {message}"
    return message


def _kind(value: Mapping[Any, Any]) -> str | None:
    """The server's own word, the most telling first: ``code`` says more than ``type`` where it is a word."""
    code = _string(value.get("code"))
    if code is not None and not code.isdigit():
        return code
    kind = _string(value.get("error_type")) or _string(value.get("type"))
    return kind if kind != "error" else None


def _string(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _first_status(value: Mapping[Any, Any]) -> int | None:
    for name in ("code", "status", "status_code", "statusCode"):
        number = value.get(name)
        if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) <= 5:
            number = int(number)
        if isinstance(number, int) and 40000 <= number < 60000:
            number //= 100  # 40301 is a kind of 403
        if isinstance(number, int) and 400 <= number < 600:
            return number
    return None


def _seconds(value: object) -> float | None:
    if isinstance(value, str) and _SECONDS.fullmatch(value):
        return clamp_wait(float(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return clamp_wait(float(value))


_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")

# Whether it is an error at all, and which status it would have had

_RESULT_KEYS = frozenset({"choices", "generated_text", "token", "content", "data", "usage", "embeddings", "output"})


def _is_error(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, dict) and _is_error(item) for item in value)
    if not isinstance(value, dict):
        return False
    error = value.get("error")
    if isinstance(error, dict):
        return any(part is not None for part in error.values())
    if error and isinstance(error, str | list | bool):
        return True
    if _string(value.get("error_message")) or _string(value.get("error_type")):
        return True
    if "error" in (value.get("object"), value.get("type")):
        return True
    if not _RESULT_KEYS.isdisjoint(value):
        return False
    if value.get("detail") or value.get("errors"):
        return bool(_told_by_object(value).message)
    return _string(value.get("message")) is not None and not {"request_id", "code", "status"}.isdisjoint(value)


_STATUS_BY_MESSAGE = (
    ("model is overloaded", 429),
    ("input validation error", 422),
    ("template error", 422),
    ("missing template", 422),
    ("tool error", 422),
    ("request failed during generation", 424),
    ("incomplete generation", 500),
)

# Compared without case, without punctuation and without "error" at the end.
_STATUS_BY_KIND = {
    "overloaded": 529,
    "engineoverloaded": 503,
    "validation": 422,
    "template": 422,
    "missingtemplatevariable": 422,
    "tool": 422,
    "suffixnotsupported": 422,
    "batchsizeexceeded": 422,
    "unprocessableentity": 422,
    "generation": 424,
    "incompletegeneration": 500,
    "incompletegenerationstream": 500,
    "streamserialization": 500,
    "healthcheck": 503,
    "badrequest": 400,
    "invalidrequest": 400,
    "exceedcontextsize": 400,
    "contextlengthexceeded": 400,
    "modelnotsupported": 400,
    "authentication": 401,
    "unauthorized": 401,
    "invalidapikey": 401,
    "permission": 403,
    "permissiondenied": 403,
    "forbidden": 403,
    "notfound": 404,
    "modelnotfound": 404,
    "requesttoolarge": 413,
    "ratelimit": 429,
    "ratelimitexceeded": 429,
    "toomanyrequests": 429,
    "insufficientquota": 429,
    "billing": 402,
    "paymentrequired": 402,
    "api": 500,
    "server": 500,
    "internalserver": 500,
    "unavailable": 503,
    "serviceunavailable": 503,
    "timeout": 504,
    "gatewaytimeout": 504,
}
_NO_LETTER = re.compile(r"[^a-z0-9]+")


def _derived_status(told: _Told) -> int:
    """The status that the error would have had; 500 where it does not say."""
    message = told.message[:200].lower()
    for beginning, status in _STATUS_BY_MESSAGE:
        if message.startswith(beginning):
            return status
    if told.code is not None:
        return told.code
    kind = _NO_LETTER.sub("", (told.kind or "")[:100].lower()).removesuffix("error")
    if kind in _STATUS_BY_KIND:
        return _STATUS_BY_KIND[kind]
    if told.estimated_time is not None or _LOADING.search(told.words):
        return 503
    if _QUOTA.search(told.words):
        return 402
    if _RATE.search(told.words):
        return 429
    if _CONTEXT.search(told.words):
        return 400
    if _MODEL_UNKNOWN.search(told.words):
        return 404
    return 500


# Which class

_LOADING = re.compile(
    r"\bloading model\b|\bmodel\b.{0,300}\b(?:loading|being loaded|warming up|not ready)\b|\bcurrently loading\b"
    r"|\bis loading\b",
    re.DOTALL,
)
_PAUSED = re.compile(r"bad request: invalid state\.?|.{0,80}\bendpoint\b.{0,40}\bpaused\b.{0,80}")
_PAUSED_ADVICE = "a dedicated endpoint that is paused stays so: resume it"
_OVERLOADED = re.compile(
    r"overloaded|\bat capacity\b|\btier.capacity.exceeded\b|\bqueue_exceeded\b|\bqueue is full\b|\bhigh traffic\b"
)
_RATE = re.compile(
    r"rate.?limit|too many requests|(?:requests|tokens) per (?:second|min|hour|day)|\b(?:rpm|tpm|rpd|tpd)\b"
)
_QUOTA = re.compile(
    r"insufficient.?quota|exceeded your current quota|included credits|insufficient (?:\w+ )?(?:credit|balance|funds)"
    r"|\b(?:out of|not enough|no|depleted|exhausted) (?:\w+ ){0,4}credits?\b|credit balance|spend(?:ing)? limit"
    r"|credits? (?:are|is|have been) (?:\w+ )?(?:exhausted|depleted|used up)|billing.?hard.?limit|payment required"
    r"|billing_error"
)
_PASSES_SOON = re.compile(r"\b(?:retry|again) (?:in|after) [0-9.]+ ?(?:ms|s|seconds?|m|min|minutes?)\b")
_QUOTA_PERHAPS = re.compile(r"\bquota\b|\bcredits?\b|\bbilling\b")
_CONTEXT = re.compile(
    r"maximum context length|model'?s context length|maximum model length|max_model_len|context.?length.?exceeded"
    r"|context window"
    r"|exceed_context_size|available context size|context size has been exceeded|prompt is too long"
    r"|`inputs` tokens \+ `max_new_tokens` must be|must have less than \d+ tokens"
)
_MODEL_UNKNOWN = re.compile(
    r"model_not_found|model_not_supported|not supported by (?:any )?provider|unknown model|no such model"
    r"|\bmodel\b.{0,300}(?:does ?n[o']t exist|does not exist|\bnot found|no longer|deprecated|not supported by any)",
    re.DOTALL,
)
_MODEL = re.compile(r"\bmodel\b|model_not_found|model_not_supported")

_BY_STATUS: dict[int, type[StatusError]] = {
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    408: ServerError,
    409: ServerError,
    424: GenerationError,
    425: ServerError,
    529: OverloadedError,
    530: OverloadedError,
}


def _class_of(status: int, told: _Told) -> type[StatusError]:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    words = told.words
    if status == 429:
        return _class_of_429(words)
    if (status == 503 or 400 <= status < 500) and _is_paused(told):
        return NotFoundError
    if status == 503:
        loading = told.estimated_time is not None or _LOADING.search(words)
        return ModelLoadingError if loading else OverloadedError
    if not 400 <= status < 500:
        return ServerError
    if _CONTEXT.search(words):
        return ContextLengthError
    if status in {404, 410}:
        return ModelNotFoundError if told.param == "model" or _MODEL.search(words) else NotFoundError
    if status in {400, 422} and _MODEL_UNKNOWN.search(words):
        return ModelNotFoundError
    return BadRequestError


def _is_paused(told: _Told) -> bool:
    return _PAUSED.fullmatch(told.message[:300].lower()) is not None


def _class_of_429(words: str) -> type[StatusError]:
    if _QUOTA.search(words) and not _PASSES_SOON.search(words):  # Gemini calls each limit a minute a quota, too
        return PaymentRequiredError
    if _OVERLOADED.search(words):
        return OverloadedError
    # A rate limit's text may well offer to lift it for money; only without such a text is "billing" the reason.
    passes = _RATE.search(words) or _PASSES_SOON.search(words)
    return PaymentRequiredError if _QUOTA_PERHAPS.search(words) and not passes else RateLimitError


# Sentences for answers without words of their own

_ROUTE_MISSING = frozenset(
    {
        "",
        "not found",
        "file not found",
        "404 not found",
        "404 page not found",
        "page not found",
        "404: not found",
        "route not found",
        "method not allowed",
        "no route matched with those values",
    }
)


def _is_route_missing(message: str) -> bool:
    text = message[:200].lower().strip(" .")
    return text in _ROUTE_MISSING or text.startswith(("cannot post ", "invalid url (post", "unrecognized request url"))


def _message_without_words(status: int, body: bytes, host: str) -> str:
    try:
        phrase = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    text = body[:_READ_BYTES].decode("utf-8", "replace").strip()
    if not text:
        return f"{phrase}{_at(host)}, with an empty body"
    if _is_html(text):
        title = _title(text)
        return f"{phrase}{_at(host)}, with an HTML page" + (f" titled '{title}'" if title else "")
    return f"{phrase}{_at(host)}, with a body that says nothing of the reason"


def _title(text: str) -> str:
    lower = text.lower()
    start, end = lower.find("<title>"), lower.find("</title>")
    return " ".join(text[start + 7 : end].split())[:100] if 0 <= start < end and len(lower) == len(text) else ""


def _redirect_message(status: int, location: str, host: str) -> str:
    try:
        parts = urlsplit(location)
        scheme, target, port = parts.scheme or "https", parts.hostname, parts.port
    except ValueError:
        scheme, target, port = "", None, None
    if target:
        where = excerpt(f"{scheme}://{target}" + (f":{port}" if port else ""), 200)
    else:
        where = f"another path of {host}" if location and host else "another place"
    return (
        f"{host or 'the endpoint'} redirects ({status}) to {where}; a redirect is not followed, because the key and "
        "the prompt would go along: set endpoint_url to the final address"
    )


def _at(host: str) -> str:
    return f" from {host}" if host else ""
