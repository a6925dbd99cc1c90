"""What can be set, checked before anything is sent; and the only reader of the environment."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import msgspec

from millstream._errors import OptionTypeError, OptionValueError, UnknownOptionError
from millstream._secret import Secret

__all__ = ["AdaptiveConcurrency", "CallOptions", "CallOverrides", "Deadlines", "RetryPolicy"]


class AdaptiveConcurrency(msgspec.Struct, frozen=True, kw_only=True):
    """Let the caller find out how many requests an endpoint serves best at a time: ``max_concurrency="auto"``.

    It looks at how many of its requests wait for their first token, and keeps so many in flight that the endpoint is
    never idle and hardly any stand in its queue.
    """

    start: int = 8
    """Requests in flight at the beginning; doubled each second as long as none has to queue."""
    ceiling: int = 1000
    """Never more than this, over all endpoints of the caller together."""

    def __post_init__(self) -> None:
        check_int("start", self.start, low=1, optional=False)
        check_int("ceiling", self.ceiling, low=1, optional=False)


class Deadlines(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long each phase of a call may take, in seconds; ``None`` sets no bound.

    The defaults are for a person or a service that waits for the answer (connect 5, write 30, first token 120,
    idle 60, total 600). `total` holds over all attempts and the waits between them.
    """

    connect: float | None = 5.0
    """To a connection, TLS included; for each attempt."""
    write: float | None = 30.0
    """To send the request; for each attempt."""
    queue: float | None = None
    """For a slot and the permits of the rate limits, before each attempt."""
    first_token: float | None = 120.0
    """From sending an attempt to the first token (for a call that does not stream: see `total`)."""
    idle: float | None = 60.0
    """Between two tokens of a stream. Comments that keep a connection alive are no tokens."""
    total: float | None = 600.0
    """The whole call: all attempts, all waits."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            check_number(f"deadlines.{name}", getattr(self, name), above=0.0)


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How failed attempts are tried again; which ones are is told by the error (see `millstream.classify`).

    The wait before retry ``n`` (from 0) is drawn evenly from ``0 .. min(cap, base * 2**n)``, and is never shorter than
    what the server asked for. Sources: AWS "Exponential Backoff and Jitter" (full jitter); the figures are those of
    the retry tables of Envoy, gRPC and openai-python, seconds throughout.
    """

    max_retries: int = 6
    """Attempts after the first that may have been paid for (5xx, broken connections). 0: none, of any kind."""
    transient_base: float = 0.25
    transient_cap: float = 8.0
    """For connections and servers that failed."""
    overload_base: float = 1.0
    overload_cap: float = 10.0
    """For servers that are full, loading, or limit the rate."""
    max_wait: float = 60.0
    """No single wait is longer: where a server asks for more, its error is raised at once, with ``retry_after``. Apart
    from that, refusals that cost nothing (429, 503, no connection) use up no retry: they are tried again until the
    call's deadline (`Deadlines.total`), or 100 times where it has none."""

    def __post_init__(self) -> None:
        check_int("max_retries", self.max_retries, low=0)
        for name in ("transient_base", "transient_cap", "overload_base", "overload_cap", "max_wait"):
            check_number(name, getattr(self, name), low=0.0)


class CallOverrides(TypedDict, total=False):
    """The options of one call as keywords: the fields of `CallOptions` but `stop`, which is an argument of its own."""

    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    top_k: int | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    seed: int | None
    n: int | None
    logprobs: int | bool | None
    response_format: Any
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    extra_body: Mapping[str, Any] | None
    deadlines: Deadlines | None


class CallOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What can differ from call to call. ``None`` leaves a choice to the model, and then to the server.

    Raises:
        OptionTypeError, OptionValueError: a value that no server would take; the message says what it could be.
    """

    stop: str | Sequence[str] | None = None
    """Texts at which the output ends; they are never part of it. Servers differ in how many they take (TGI: 4)."""
    temperature: float | None = None
    """0 (always the likeliest token, on every dialect) upwards."""
    max_tokens: int | None = None
    """Output tokens at the most, 1 or more."""
    top_p: float | None = None
    """Nucleus sampling: over 0, up to 1 (1: off)."""
    top_k: int | None = None
    """Only the k likeliest tokens; 0 or -1: off."""
    frequency_penalty: float | None = None
    """-2 to 2 (0: off)."""
    presence_penalty: float | None = None
    """-2 to 2 (0: off)."""
    repetition_penalty: float | None = None
    """Over 0 (1: off)."""
    seed: int | None = None
    """0 to 2**64 - 1; the same seed and prompt give the same output where the server keeps that promise."""
    n: int | None = None
    """Outputs for each prompt, 1 or more."""
    logprobs: int | bool | None = None
    """Log-probabilities of the tokens: True, or how many alternatives to tell with each."""
    response_format: Any = None
    """A JSON schema (mapping), the wire's own ``{"type": ...}``, or a `msgspec.Struct` type: then
    `Generation.parsed` is an instance of it."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may ask for, as the OpenAI-compatible wire writes them."""
    tool_choice: str | Mapping[str, Any] | None = None
    extra_body: Mapping[str, Any] | None = None
    """Fields that are put into the request as they are, over everything else."""
    deadlines: Deadlines | None = None

    def __post_init__(self) -> None:
        if self.stop is not None:
            msgspec.structs.force_setattr(self, "stop", _stop_texts(self.stop))
        check_number("temperature", self.temperature, low=0.0)
        check_int("max_tokens", self.max_tokens, low=1)
        check_number("top_p", self.top_p, above=0.0, high=1.0)
        check_int("top_k", self.top_k, low=-1)
        check_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        check_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        check_number("repetition_penalty", self.repetition_penalty, above=0.0)
        check_int("seed", self.seed, low=0, high=2**64 - 1)
        check_int("n", self.n, low=1)
        if not isinstance(self.logprobs, bool):
            check_int("logprobs", self.logprobs, low=0)
        _check_response_format(self.response_format)
        check_mapping("extra_body", self.extra_body)
        if self.tools is not None:
            if isinstance(self.tools, str | bytes | Mapping) or not isinstance(self.tools, Sequence):
                raise OptionTypeError("tools is a list of mappings, one a function")
            for tool in self.tools:
                check_mapping("each of tools", tool)
        if self.tool_choice is not None and not isinstance(self.tool_choice, str):
            check_mapping("tool_choice", self.tool_choice)
        if self.deadlines is not None and not isinstance(self.deadlines, Deadlines):
            raise OptionTypeError(f"deadlines is a Deadlines(...), not {type(self.deadlines).__name__}")

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty for None."""
        return self.stop if isinstance(self.stop, tuple) else ()

    def merged(self, over: CallOptions | None) -> CallOptions:
        """These options with those of `over` that are set put over them; `extra_body` is merged by key."""
        if over is None or over is self:
            return self
        changes = {name: value for name in self.__struct_fields__ if (value := getattr(over, name)) is not None}
        if self.extra_body and over.extra_body:
            changes["extra_body"] = {**self.extra_body, **over.extra_body}
        return msgspec.structs.replace(self, **changes) if changes else self

    @classmethod
    def of(cls, stop: str | Sequence[str] | CallOptions | None, overrides: Mapping[str, Any]) -> CallOptions | None:
        """The options of a call from its `stop` argument (stop texts, or whole options) and its keywords.

        Raises:
            UnknownOptionError: a keyword that is no option; the message names the nearest that is.
        """
        options = stop if isinstance(stop, CallOptions) else None
        given = dict(overrides)
        if stop is not None and options is None:
            given["stop"] = stop
        if not given:
            return options
        refuse_unknown(given, cls.__struct_fields__, "option")
        made = cls(**given)
        return made if options is None else options.merged(made)


_WORDS_OF_OTHERS = {
    "token": "api_key",
    "stop": "stop_sequences",
    "base_url": "endpoint_url",
    "endpoint": "endpoint_url",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
}
"""What other clients call an option, and we another that no spelling would lead to."""

_OTHER_WAYS = {
    "timeout": "say deadlines=Deadlines(total=seconds)",
    "stream": "use llm.stream(prompt)",
    "model": "it belongs to the model object: make a model of its own for each",
}
"""What is no option here at all, and what does it."""


def refuse_unknown(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise `UnknownOptionError` for the first of `given` that is not `known`, naming the nearest that is."""
    for name in given:
        if name not in known:
            raise UnknownOptionError(f"there is no {what} {name!r}; {_instead_of(name, known)}")


def _instead_of(name: str, known: Sequence[str]) -> str:
    if name in _OTHER_WAYS:
        return _OTHER_WAYS[name]
    ours = _WORDS_OF_OTHERS.get(name)
    nearest = [ours] if ours in known else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(set(known)))}"


def _stop_texts(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Sequence):
        raise OptionTypeError(f"stop is a list of texts, not {type(stop).__name__}")
    for text in texts:
        if not isinstance(text, str):
            raise OptionTypeError(f"stop is a list of texts; {text!r} is none")
        if not text:
            raise OptionValueError("a stop text may not be empty: it would end every output at once")
    return tuple(dict.fromkeys(texts))


def _check_response_format(value: Any) -> None:
    if value is None or isinstance(value, Mapping):
        return
    if isinstance(value, type) and issubclass(value, msgspec.Struct):
        return
    raise OptionTypeError("response_format is a JSON schema (mapping) or a msgspec.Struct type")


def check_mapping(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise OptionTypeError(f"{name} is a mapping, not {type(value).__name__}")


def check_bool(name: str, value: Any) -> bool:
    """A switch, which ``"no"`` and ``"false"`` are not: they would turn it on."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name} is True or False, not {value!r}")
    return value


def check_tags(tags: Any) -> tuple[str, ...]:
    """Tags as a tuple, none for None."""
    if tags is None:
        return ()
    if isinstance(tags, str):
        raise OptionTypeError(f"tags is a list of texts: [{tags!r}], not {tags!r}")
    if isinstance(tags, bytes) or not isinstance(tags, Iterable):
        raise OptionTypeError(f"tags is a list of texts, not {type(tags).__name__}")
    made = tuple(tags)
    if not all(isinstance(tag, str) for tag in made):
        raise OptionTypeError("tags is a list of texts, and one of these is none")
    return made


def check_number(
    name: str, value: Any, *, low: float | None = None, above: float | None = None, high: float | None = None
) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{name} is a number, not {type(value).__name__}")
    if not _is_finite(value):
        _refuse_value(name, value, "a finite number")
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if too_low or (high is not None and value > high):
        least = f"at least {low:g}" if above is None else f"over {above:g}"
        _refuse_value(name, value, least + (f" and at most {high:g}" if high is not None else ""))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def check_int(name: str, value: Any, *, low: int, high: int | None = None, optional: bool = True) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{name} is a whole number, not {type(value).__name__}")
    if value < low or (high is not None and value > high):
        _refuse_value(name, value, f"at least {low}" + (f" and at most {high}" if high is not None else ""))


def _refuse_value(name: str, value: Any, allowed: str) -> NoReturn:
    raise OptionValueError(f"{name} must be {allowed}, not {value!r}")


# -- the environment -------------------------------------------------------------------------------------------------

KEY_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "HUGGINGFACEHUB_API_KEY")
"""Where a key is looked for, in this order (huggingface_hub, LangChain, LangChain.js); then the Hub's token file."""

_OFFICIAL_HOSTS = ("huggingface.co",)
_OFFICIAL_SUFFIXES = (".huggingface.co", ".endpoints.huggingface.cloud")


def environment_key() -> Secret | None:
    """The key that nobody gave by argument: from the environment or the Hub's token file, None without one."""
    # The key is never a local variable here: tools that print tracebacks show those too.
    for name in KEY_VARIABLES:
        if os.environ.get(name, "").strip():
            return Secret(os.environ[name], what=name)
    try:
        found = [line for line in (_token_file().read_text(encoding="utf-8").strip(),) if line]
    except (OSError, UnicodeDecodeError):
        return None
    return Secret(found.pop(), what="the Hub's token file") if found else None


def _token_file() -> Path:
    explicit = os.environ.get("HF_TOKEN_PATH")
    if explicit:
        return Path(os.path.expandvars(explicit)).expanduser()
    return _hub_home() / "token"


def _hub_home() -> Path:
    home = os.environ.get("HF_HOME")
    if home:
        return Path(os.path.expandvars(home)).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(cache)).expanduser() / "huggingface"


def takes_environment_key(scheme: str, host: str) -> bool:
    """Whether a key that was not given by argument may go there: only over https, only to Hugging Face's own hosts."""
    return scheme == "https" and is_official_host(host)


def is_official_host(host: str) -> bool:
    """Hugging Face's own hosts. Spaces (``*.hf.space``) are not: anybody's code runs there."""
    host = host.lower().rstrip(".")
    return host in _OFFICIAL_HOSTS or host.endswith(_OFFICIAL_SUFFIXES)


def environment_proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment asks for (``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``), None for none."""
    if not any(name.lower() in {"http_proxy", "https_proxy", "all_proxy"} for name in os.environ):
        return None  # spares the import below, which is most of the cost
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    proxies = getproxies()
    if host in {"localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    return proxies.get(scheme) or proxies.get("all")


def environment_endpoint() -> str | None:
    """``MILLSTREAM_ENDPOINT_URL``: the endpoint where a program names none."""
    return os.environ.get("MILLSTREAM_ENDPOINT_URL") or None


def cached_tokenizer(model: str) -> Path | None:
    """The ``tokenizer.json`` of a model in the Hub's cache on this machine, None without one. Nothing is fetched."""
    cache = os.environ.get("HF_HUB_CACHE")
    folder = Path(os.path.expandvars(cache)).expanduser() if cache else _hub_home() / "hub"
    at = folder / f"models--{model.partition(':')[0].replace('/', '--')}"
    found = sorted((at / "snapshots").glob("*/tokenizer.json"))
    try:
        current = (at / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        current = ""
    return next((path for path in found if path.parent.name == current), found[0] if found else None)


def environment_ca() -> tuple[str | None, str | None]:
    """The file and the directory of trusted certificates that the environment names, None for none."""
    return os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
