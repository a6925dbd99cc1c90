"""Everything that Millstream raises.

    MillstreamError
    ├── UsageError                    your program; nothing was sent, asking again changes nothing
    │   ├── UnknownOptionError        (also a TypeError) a keyword that does not exist
    │   ├── OptionTypeError           (also a TypeError) a value of the wrong type
    │   ├── OptionValueError          (also a ValueError) a value that is not possible
    │   ├── MissingKeyError           the endpoint needs a key and there is none
    │   ├── MissingExtraError         (also an ImportError) an optional dependency is not installed
    │   ├── ClosedError               the client was closed
    │   └── DeserializationError      (also a ValueError) the data is no model that we know
    │       └── UntrustedEndpointError   it names an endpoint that the caller did not allow
    ├── DeadlineError                 (also a TimeoutError) a deadline ended it; ``deadline`` says which
    ├── TransportError                the way there
    │   ├── ConnectError              no connection: nothing was processed         retried
    │   │   └── CertificateError      the server is not who it says                final
    │   ├── WriteError                it broke while the request was being sent    retried
    │   ├── ReadError                 it broke before the answer was complete      retried
    │   └── LocalProtocolError        we would have sent something illegal         final
    ├── ProtocolError                 the answer can't be understood
    │   └── TruncatedStreamError      a stream that ended without its end
    ├── StreamInterruptedError        a stream broke after tokens had been delivered; has ``partial``
    └── StatusError                   the server said no
        ├── BadRequestError           400, 405, 413, 415, 422 ...                  final
        │   └── ContextLengthError    prompt and output don't fit the model        final
        ├── AuthenticationError       401                                          final
        ├── PaymentRequiredError      402, and 429 for a quota that is used up     final
        ├── PermissionDeniedError     403                                          final
        ├── NotFoundError             404, 410                                     final
        │   └── ModelNotFoundError    nobody serves this model here                final
        ├── RateLimitError            429                                          retried
        ├── OverloadedError           503, 529, 429 of a full queue                retried
        │   └── ModelLoadingError     503 while the model is loaded                retried
        ├── GenerationError           424                                          retried once
        └── ServerError               408, 409, 425, other 5xx                     retried

"Retried" is what `AsyncCaller` does before you see the error; when you see it, that was in vain (``attempts`` and
``waited`` tell how much). Errors carry facts; what follows from them is decided in one place, ``_backoff.classify``.
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = [
    "AuthenticationError",
    "BadRequestError",
    "CertificateError",
    "ClosedError",
    "ConnectError",
    "ContextLengthError",
    "DeadlineError",
    "DeadlineName",
    "DeserializationError",
    "GenerationError",
    "LocalProtocolError",
    "MillstreamError",
    "MissingExtraError",
    "MissingKeyError",
    "ModelLoadingError",
    "ModelNotFoundError",
    "NotFoundError",
    "OptionTypeError",
    "OptionValueError",
    "OverloadedError",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitError",
    "ReadError",
    "ServerError",
    "StatusError",
    "StreamInterruptedError",
    "TransportError",
    "TruncatedStreamError",
    "UnknownOptionError",
    "UntrustedEndpointError",
    "UsageError",
    "WriteError",
]

DeadlineName = Literal["connect", "write", "read", "pool", "queue", "first_token", "idle", "total"]

EXCERPT_CHARACTERS = 500
"""How much of a server's body an error keeps: enough for any error text, too little to leak a prompt."""


def excerpt(body: bytes | str, limit: int = EXCERPT_CHARACTERS) -> str:
    """A server's body for an error message: at most `limit` characters, control characters escaped."""
    text = body[: limit * 4].decode("utf-8", "replace") if isinstance(body, bytes) else body
    text = text.strip()
    short = text[:limit]
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)
    return escaped + ("..." if len(text) > limit else "")


class MillstreamError(Exception):
    """The root: ``except MillstreamError`` catches all that Millstream raises by itself.

    Attributes:
        attempts: how many attempts were made before this was raised (0: nothing was sent).
        waited: seconds spent waiting between the attempts.
        provider: who served it, or the host that was asked; None where nobody was.
        request_id: the server's name for the request, None where it told none.
        prompt_index: which prompt of a `generate` this is about, counted from 0; None outside of one.
        partial: the text that had arrived when a stream ended with this error; None outside of one.
        partial_result: the same as a result, None where nothing had arrived.
    """

    attempts: int = 0
    waited: float = 0.0
    provider: str | None = None
    request_id: str | None = None
    prompt_index: int | None = None
    partial: str | None = None
    partial_result: Any = None  # an LLMResult, which is above this module

    def __str__(self) -> str:
        retry_after: float | None = getattr(self, "retry_after", None)
        facts: list[tuple[str, Any]] = [
            ("status", getattr(self, "status_code", None) or None),
            ("from", self.provider),
            ("request", self.request_id),
            ("retry after", f"{retry_after:g} s" if retry_after is not None else None),
            ("attempts", self.attempts if self.attempts > 1 else None),
            ("waited", f"{self.waited:.1f} s" if self.waited else None),
        ]
        told = ", ".join(f"{name} {value}" for name, value in facts if value is not None)
        return super().__str__() + (f" ({told})" if told else "")


class UsageError(MillstreamError):
    """Your program asked for something that can't be; nothing was sent."""


class UnknownOptionError(UsageError, TypeError):
    """A keyword that does not exist. The message names the nearest that does."""


class OptionTypeError(UsageError, TypeError):
    """A value of the wrong type, a prompt that is not text among them."""


class OptionValueError(UsageError, ValueError):
    """A value that is not possible, such as a negative temperature, a URL that is no URL, a key with a line break."""


class MissingKeyError(UsageError):
    """The endpoint needs a key, and there is none in the arguments, the environment or the Hub's token file."""


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed. The message is the install command."""


class ClosedError(UsageError):
    """The model, caller or transport was closed before or during the call."""


class DeserializationError(UsageError, ValueError):
    """The data describes no model that we know. For an endpoint that isn't allowed: `UntrustedEndpointError`."""


class UntrustedEndpointError(DeserializationError):
    """Serialized data names an endpoint whose host the caller did not allow."""


class DeadlineError(MillstreamError, TimeoutError):
    """A deadline ended it.

    Attributes:
        deadline: which one. ``connect``, ``write``, ``read`` and ``pool`` are the transport's; ``queue`` (waiting for
            a slot or a permit), ``first_token``, ``idle`` (between two tokens) and ``total`` (all attempts and waits)
            are the call's.
        seconds: its length.
    """

    def __init__(self, message: str = "", *, deadline: DeadlineName = "total", seconds: float | None = None) -> None:
        self.deadline: DeadlineName = deadline
        self.seconds = seconds
        super().__init__(message or _deadline_message(deadline, seconds))


def _deadline_message(deadline: str, seconds: float | None) -> str:
    what = {
        "connect": "no connection",
        "write": "the request could not be sent",
        "read": "nothing was received",
        "pool": "no connection became free",
        "queue": "no slot became free",
        "first_token": "no first token",
        "idle": "no further token",
        "total": "not finished",
    }[deadline]
    return what + (f" within {seconds:g} s" if seconds is not None else " in time") + f" (deadline {deadline!r})"


class TransportError(MillstreamError):
    """The connection failed. Whether the server may have worked is told by the subclass."""


class ConnectError(TransportError):
    """No connection: the name doesn't resolve, the port refuses, TLS failed. Nothing was processed.

    Attributes:
        permanent: whether it will be so next time too, as where a server speaks no TLS. Never retried then.
    """

    permanent: bool = False


class CertificateError(ConnectError):
    """The server's certificate is not accepted. Never retried."""


class WriteError(TransportError):
    """The connection broke while the request was being sent."""


class ReadError(TransportError):
    """The connection broke, or closed, before the answer was complete; the server may have worked.

    Attributes:
        started: whether any byte of the answer had been received.
    """

    def __init__(self, message: str = "", *, started: bool = False) -> None:
        super().__init__(message)
        self.started = started


class LocalProtocolError(TransportError):
    """The request would not be legal HTTP: a header with a line break, for one. Nothing was sent."""


class ProtocolError(MillstreamError):
    """The server's answer can't be understood: no HTTP, no JSON, wrong types, over a bound.

    Attributes:
        status_code: the answer's status, None where it had none.
        body: an excerpt of it, bounded.
    """

    def __init__(
        self, message: str = "", *, status_code: int | None = None, body: str = "", request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.body = body
        self.request_id = request_id
        self.retry_after: float | None = None


class TruncatedStreamError(ProtocolError):
    """A stream ended without a finish reason and without ``[DONE]``; ``partial`` has what had arrived."""


class StreamInterruptedError(MillstreamError):
    """The connection broke after tokens had been delivered, so that the stream could not be tried again silently.

    ``partial`` has what had arrived, the reason is ``__cause__``. Not raised for a stream that merely ends early
    (`TruncatedStreamError`), nor for an error that the server sent inside the stream (that `StatusError` is raised).
    """

    status_code: int | None = None
    retry_after: float | None = None


class StatusError(MillstreamError):
    """The server refused, by a status code or by an error inside a 200 answer.

    Attributes:
        status_code: the status; for an error inside a stream the one that it stands for.
        kind: the server's own word for it (``error_type``, ``type`` or ``code``), None where it had none.
        request_id: the server's name for the request, None where it told none.
        provider: who served it, or the host that answered.
        retry_after: seconds that the server asked to wait, None where it did not.
        body: an excerpt of the answer, bounded.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int = 0,
        kind: str | None = None,
        request_id: str | None = None,
        provider: str | None = None,
        retry_after: float | None = None,
        body: str = "",
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.kind = kind
        self.request_id = request_id
        self.provider = provider
        self.retry_after = retry_after
        self.body = body


class BadRequestError(StatusError):
    """The request is not acceptable as it is: parameters, model without chat template, size."""


class ContextLengthError(BadRequestError):
    """The prompt and the wanted output do not fit the model's context."""


class AuthenticationError(StatusError):
    """401: the key is missing, wrong or expired."""


class PaymentRequiredError(StatusError):
    """402, or a 429 whose text says that a quota or credit is used up. Never retried."""


class PermissionDeniedError(StatusError):
    """403: the key may not do this, or the model is gated."""


class NotFoundError(StatusError):
    """404 or 410: no such route here; or a dedicated endpoint that is paused. For a model: `ModelNotFoundError`."""


class ModelNotFoundError(NotFoundError):
    """Nobody serves this model at this endpoint."""


class RateLimitError(StatusError):
    """429: too many requests or tokens in a time. For a full queue: `OverloadedError`."""


class OverloadedError(StatusError):
    """The server has no room just now (503, 529, TGI's 429 of a full queue). Nothing was processed."""


class ModelLoadingError(OverloadedError):
    """503 while the model is being loaded; ``retry_after`` is the server's estimate where it gave one."""


class GenerationError(StatusError):
    """424: the backend failed while generating, such as out of memory."""


class ServerError(StatusError):
    """The server failed (5xx), or asks to send again (408, 409, 425). It may have worked, and billed."""
