"""Everything that a fake endpoint can be told, in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from millstream.testing._faults import Fault, Latency

__all__ = ["Api", "Behaviour", "FakeRequest", "RateLimitAlgorithm", "RateLimitHeaders", "Reply", "Server"]

Server = Literal["tgi", "vllm", "llamacpp"]
Api = Literal["text-generation", "completions", "chat"]
RateLimitAlgorithm = Literal["fixed-window", "leaky-bucket"]
RateLimitHeaders = Literal["retry-after", "ratelimit", "x-ratelimit", "none"]

Reply: TypeAlias = "str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]"
"""A text; a tool call ``{"tool": name, "arguments": {...}}``; a list of calls; or texts and calls to cycle through."""


@dataclasses.dataclass(frozen=True, slots=True)
class FakeRequest:
    """One request as it arrived, also one that was refused."""

    number: int
    """From 1, in order of arrival."""
    method: str
    path: str
    """With the query, if there was one."""
    headers: dict[str, str] = dataclasses.field(repr=False)
    """Names in lower case; of a repeated header the last one. Not part of the repr: a key may be in there."""
    body: Any
    """The decoded JSON; None if there was none, or it was no JSON."""
    raw: bytes = dataclasses.field(repr=False)
    """The body's bytes."""
    time: float
    """When it was complete, in seconds on the endpoint's event loop's clock."""
    connection: int
    """Number of the connection that it came by, from 1."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Behaviour:
    """What a fake endpoint does. A field may also be changed while it runs, and then holds for the requests that come.

    That goes for all but `host`, `port`, `seed` and a list of `faults`, which are read once.
    """

    server: Server = "tgi"
    """Whose dialect and whose quirks: Text Generation Inference, vLLM or llama.cpp."""
    apis: Sequence[Api] | None = None
    """Which APIs exist (others are unknown routes). None: those of `server`; only tgi has text-generation."""
    models: Sequence[str] | None = None
    """The models that are served; another is refused (llama.cpp ignores the name). None: any."""
    api_key: str | None = dataclasses.field(default=None, repr=False)
    """The key that requests must bring as a bearer; None: none is looked for."""
    reply: Reply | Callable[[str], Reply] | None = None
    """
    What is generated. None: words drawn by a hash of model, prompt, sampling parameters and `seed`, as many as
    ``max_tokens`` (16 where the request sets none), ending with "length". A text ends with "stop", and costs one
    token more than it has words (the end-of-sequence token), unless ``max_tokens`` ends it first. A list of texts is
    cycled through, one for each generated text. A callable gets the prompt (of a chat: the texts of all messages,
    one a line).
    """
    reasoning: str | None = None
    """Sent before the text of a chat, in the field that `server` uses for it. Its words count as tokens. None: none."""
    chat_template: bool = True
    """Whether the model has one; without, a chat is refused (as tgi does it: 422, ``template_error``)."""
    max_total_tokens: int = 131_072
    """Context: prompt and output together; more is refused."""
    latency: Latency = dataclasses.field(default_factory=Latency)
    """How long tokens take. Default: no time."""
    slots: int | None = None
    """How many requests generate at once; others queue, first come first served. None: no bound. See `resize`."""
    max_queue: int | None = None
    """How many may queue; more are refused as overload (429 on tgi, else 503). None: no bound."""
    requests_per_minute: int | None = None
    """Generation requests a `rate_window`, others get 429; None: no limit."""
    tokens_per_minute: int | None = None
    """
    Tokens a `rate_window`, of prompts and outputs; None: no limit. A request passes as long as any are left, and then
    costs all of its own at once; when none are left, others get 429.
    """
    rate_window: float = 60.0
    """Seconds that both limits are for: with 1.0, `requests_per_minute` is really requests a second."""
    rate_limit_algorithm: RateLimitAlgorithm = "fixed-window"
    """
    How both are counted: in windows, each of which begins with the first request after the last; or in a bucket that
    leaks evenly, so that each request makes room for itself after its part of `rate_window`.
    """
    rate_burst: int | None = None
    """Requests that an empty leaky bucket takes at one moment, 1 or more; None: `requests_per_minute`."""
    rate_limit_headers: RateLimitHeaders = "retry-after"
    """
    What clients are told. "retry-after": ``Retry-After`` on a 429. "ratelimit": ``RateLimit`` and ``RateLimit-Policy``
    on all answers, of requests alone, and ``Retry-After`` on a 429 for the sake of tokens. "x-ratelimit":
    ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` as OpenAI writes them on all answers, and ``Retry-After``
    on a 429. "none": nothing. A reset is the time until nothing is used any more.
    """
    scale_up: float | None = None
    """
    Seconds that the replica takes to start; None: it is up. Otherwise it is scaled to zero as a dedicated endpoint is,
    and the first generation request has it started. Until it is up, requests get the proxy's 503; with the header
    ``X-Scale-Up-Timeout`` they are held until it is up, or get the 503 when so many seconds are over.
    """
    loading: float | None = None
    """
    Seconds that the model takes to load; None: it is loaded. Otherwise the first generation request (after `scale_up`)
    has it loaded, and until then all get 503 with the ``estimated_time`` that is left (llama.cpp: without).
    """
    faults: Sequence[Fault] | Callable[[int], Fault | None] = ()
    """
    What goes wrong, in order, each for its number of generation requests; or a callable that gets the number of the
    generation request (from 1) and gives a fault or None.
    """
    fault_rate: float = 0.0
    """If above 0: the share of generation requests that get one of `faults` (none: a 503), drawn with `seed`."""
    seed: int = 0
    """Of everything that is drawn: words, jitter, faults."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Sent with every answer, for example ``{"x-request-id": "1"}``."""
    coalesce: bool = True
    """Whether events that need no wait between them are written at once; False: one by one, with a checkpoint."""
    keep_alive: bool = True
    """Whether a connection serves more than one request."""
    idle_timeout: float | None = None
    """Seconds after which a connection without a request is closed; None: never."""
    record: bool = True
    """Whether `FakeEndpoint.requests` keeps the requests; False for long runs, which would fill the memory."""
    host: str = "127.0.0.1"
    """Where to listen."""
    port: int = 0
    """0: a free one."""

    @property
    def offered(self) -> Sequence[Api]:
        """The APIs that exist."""
        if self.apis is not None:
            return self.apis
        return ("text-generation", "completions", "chat") if self.server == "tgi" else ("completions", "chat")

    @property
    def model(self) -> str:
        """The model that answers when a request names none."""
        return self.models[0] if self.models else "fake-model"
