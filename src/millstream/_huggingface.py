"""`HuggingFaceInference`: text generation at Hugging Face and everywhere that speaks like it, or like OpenAI."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

import msgspec

from millstream import _config
from millstream._calls import CallerOptions
from millstream._config import CallOptions, CallOverrides, Deadlines, check_bool, refuse_unknown
from millstream._errors import (
    DeserializationError,
    OptionTypeError,
    OptionValueError,
    UntrustedEndpointError,
    UsageError,
)
from millstream._http import Exchange
from millstream._language_model import TokenCount
from millstream._llm import BaseLLM, BaseLLMParams
from millstream._origin import parse_url
from millstream._prompts import BasePromptValue
from millstream._results import LLMResult
from millstream._routes import Api, check_model
from millstream._secret import Secret
from millstream._site import DEFAULT_MODEL, LOCAL, Access, Endpoint, Site, sites_by_lane
from millstream._streams import ChunkSource
from millstream._tokens import TokenCounter
from millstream._transport._seam import Transport
from millstream._transport.choice import is_transport
from millstream._version import __version__
from millstream.caches import SingleFlight
from millstream.callbacks import CallbackManagerForLLMRun

if TYPE_CHECKING:
    import httpx

__all__ = ["HuggingFaceInference", "HuggingFaceParams"]

T = TypeVar("T")

ANY: Final = "any"
_POLICIES = (ANY, "fastest", "cheapest", "preferred")

_lane: ContextVar[str] = ContextVar("millstream_lane", default="")
"""Of the attempt that a task makes: a subclass's `_generate` knows nothing of lanes, and asks ours."""


class HuggingFaceParams(BaseLLMParams, CallOverrides, total=False):
    """The keywords of `HuggingFaceInference`: where to ask, how, and what a call uses where it says nothing else."""

    endpoint_url: str | None
    """The server: its base URL, its ``/v1``, or one route's whole URL; ``"local"`` for the embedded model; None for
    ``MILLSTREAM_ENDPOINT_URL`` if that is set, else Hugging Face's Inference Providers."""
    endpoints: Sequence[str | Endpoint] | None
    """Several servers of the same, in place of `endpoint_url`: each URL, or an `Endpoint` with what is its own. A call
    goes where there is most room, and where one fails, to another; `api_key` goes to all that have no key of theirs."""
    provider: str | Sequence[str] | None
    """Who of the Inference Providers is to serve (``"groq"``), or a policy (``"fastest"``, ``"cheapest"``); several
    (``["groq", "together"]``) or ``"any"`` (all that serve the model, as the router lists them at the first call): a
    call goes where there is most room, and where one fails, to another. None: the user's own order."""
    api: Api
    """The dialect; ``"auto"`` (the default) takes the first that the server has: chat, completions, text-generation."""
    api_key: str | None
    """None: ``HF_TOKEN`` and its kin, the Hub's token file; such a key goes only to Hugging Face's own hosts."""
    allow_http_key: bool
    """Send `api_key` over plain http to a host that is not this machine (False: refused)."""
    bill_to: str | None
    """The organisation that pays (``X-HF-Bill-To``)."""
    headers: Mapping[str, str] | None
    """Further headers for every request. They take the place of ours of the same name, ``Authorization`` among them."""
    stop_sequences: str | Sequence[str] | None
    """`stop` for calls that say none."""
    streaming: bool | None
    """Whether answers that are wanted whole are streamed on the wire all the same. None: where the caller finds out by
    itself how many to keep in flight, since the first token tells it that the endpoint has begun to serve a request."""
    tokenizer: str | os.PathLike[str] | None
    """A ``tokenizer.json``, for `get_num_tokens`; None: the Hub's cache is looked into."""
    transport: Transport | httpx.AsyncBaseTransport | None
    http_client: httpx.AsyncClient | None
    """What carries the requests; None: our own pool. Whoever brings one closes it."""
    proxy: str | None
    http2: bool
    verify: bool | str
    """How the server's certificate is checked: True, or a file of certificates; False only for tests."""


_SAMPLING = tuple(name for name in CallOptions.__struct_fields__ if name not in ("stop", "deadlines"))
_BASE = tuple(BaseLLMParams.__annotations__)
_FIELDS = ("model", *HuggingFaceParams.__annotations__, *_BASE, *_SAMPLING)
_IDENTIFYING = ("model", "endpoint_url", "endpoints", "provider", "api", "bill_to", "stop_sequences", *_SAMPLING)
_JS_NAMES = {"maxTokens": "max_tokens", "topP": "top_p", "topK": "top_k", "frequencyPenalty": "frequency_penalty"}
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNPICKLED = ("headers", "callbacks", "cache", "caller", "transport", "http_client")


class HuggingFaceInference(BaseLLM, serialized_as=("huggingface_hub", "hf")):
    """A model at an endpoint.

        async with HuggingFaceInference(model="HuggingFaceTB/SmolLM3-3B", max_tokens=128) as llm:
            text = await llm.call("Why is the sky blue?")

    Args:
        model: the model's id. It may be left out where the endpoint serves one model; at Hugging Face it is then
            ``"gpt2"``, as in LangChain.js.
        params: `HuggingFaceParams`.

    Raises:
        UnknownOptionError: a keyword that does not exist; the message names the nearest that does.
        OptionTypeError, OptionValueError: a value that can't be. Nothing is sent before a call.
    """

    def __init__(self, model: str | None = None, **params: Unpack[HuggingFaceParams]) -> None:
        # Before anything can be wrong: tools that print tracebacks show local variables too.
        self._key = _hide(params, "api_key", "the API key")
        self._proxy = _hide(params, "proxy", "the proxy's URL")
        refuse_unknown(params, _FIELDS, "HuggingFaceInference option")
        given: dict[str, Any] = dict(params)
        super().__init__(**{name: given[name] for name in _BASE if name in given})
        self._params: dict[str, Any] = {"model": model, **given}
        self._named_model = model
        self.model = DEFAULT_MODEL if model is None else model
        check_model(self.model)
        self.endpoints = _endpoints(given.get("endpoints"), given)
        self.endpoint_url = None if self.endpoints else _endpoint(given.get("endpoint_url"))
        self.provider = _provider(given.get("provider"), self._params, self.endpoint_url)
        self.api: Api = given.get("api", "auto")
        self.options = CallOptions(
            stop=given.get("stop_sequences"),
            deadlines=given.get("deadlines"),
            **{name: given[name] for name in _SAMPLING if name in given},
        )
        self._streaming: bool | None = given.get("streaming")
        if self._streaming is not None:
            check_bool("streaming", self._streaming)
        headers = _headers(given.get("headers"), given.get("bill_to"))
        _check_ways({**given, "proxy": self._proxy})
        self._access = Access(headers, self._key, self.caller, self._params, self._proxy)
        self._sites = self._make_sites()
        self._by_lane: dict[str, Site] = {}
        self._lane_names: tuple[str, ...] = ()
        self._is_ready = len(self._sites) == 1 and self.provider != ANY
        self._providers: SingleFlight[tuple[str, ...]] = SingleFlight()
        self._counter: TokenCounter | None = None

    @property
    def temperature(self) -> float | None:
        """What a call uses where it says nothing else; None: the server decides. Likewise the next four."""
        return self.options.temperature

    @property
    def max_tokens(self) -> int | None:
        return self.options.max_tokens

    @property
    def top_p(self) -> float | None:
        return self.options.top_p

    @property
    def top_k(self) -> int | None:
        return self.options.top_k

    @property
    def frequency_penalty(self) -> float | None:
        return self.options.frequency_penalty

    def __repr__(self) -> str:
        if "_counter" not in vars(self):  # shown by a debugger amid __init__
            return "<HuggingFaceInference, not complete>"
        told = {name: value for name, value in self._identifying_params.items() if name != "extra_body"}
        return f"HuggingFaceInference({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    async def aclose(self) -> None:
        """Close the connections; calls under way fail with `ClosedError`. A transport that was brought stays open."""
        self._access.closed = True
        await super().aclose()
        for site in self._sites:
            site.forget()
        await self._access.aclose()

    @property
    def _transport(self) -> Transport | None:
        """What carries the requests to the first endpoint, once there were any."""
        return next(iter(self._access.transports.values()), None)

    # -- asking -----------------------------------------------------------------------------------------------------

    @property
    def _can_stream(self) -> bool:
        return True

    @property
    def _streams_on_wire(self) -> bool:
        if self._streaming is None:
            return self.caller.adaptive and type(self)._generate is HuggingFaceInference._generate
        return self._streaming

    @property
    def _lanes(self) -> tuple[str, ...]:
        if not self._by_lane:
            # One endpoint with a caller of its own is the usual case, and its only lane needs no name.
            is_alone = self._owns_caller and len(self._sites) == 1 and self.provider != ANY
            self._by_lane = {"": self._sites[0]} if is_alone else sites_by_lane(self._sites, self.caller)
            self._lane_names = tuple(self._by_lane)
        return self._lane_names

    async def _generate(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> LLMResult:
        return await self._site.first_that_speaks(Exchange.ask, prompt, options)

    async def _open_stream(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> ChunkSource:
        return await self._site.first_that_speaks(Exchange.open_or_ask, prompt, options)

    def _generate_at(
        self, lane: str, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> Awaitable[LLMResult]:
        if len(self._sites) == 1 and type(self)._generate is HuggingFaceInference._generate:
            # As by `_generate`, whose frame each answer would wake.
            return self._sites[0].first_that_speaks(Exchange.ask, prompt, options)
        return self._at(lane, self._generate, prompt, options, run)

    def _open_stream_at(
        self, lane: str, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> Awaitable[ChunkSource]:
        if len(self._sites) == 1 and type(self)._open_stream is HuggingFaceInference._open_stream:
            return self._sites[0].first_that_speaks(Exchange.open_or_ask, prompt, options)
        return self._at(lane, self._open_stream, prompt, options, run)

    def _at(self, lane: str, ask: Callable[..., Awaitable[T]], *args: Any) -> Awaitable[T]:
        return ask(*args) if len(self._sites) == 1 else _in_lane(lane, ask, args)

    @property
    def _site(self) -> Site:
        """Where the attempt under way is to be made."""
        if len(self._sites) == 1:
            return self._sites[0]
        return self._by_lane.get(_lane.get()) or self._sites[0]

    async def _get_ready(self, options: CallOptions) -> None:
        if self._is_ready:
            return
        if self.provider == ANY:
            router, deadlines = self._sites[0], options.deadlines or Deadlines()
            asking = CallerOptions(lanes=self._lanes, deadlines=options.deadlines)
            providers, _ = await self._providers.run(
                "", lambda: self.caller.call_with_options(asking, router.live_providers, deadlines)
            )
            if not self._is_ready:
                self._sites = tuple(self._site_at(self.endpoint_url, provider=name) for name in providers)
                self._by_lane = {}
        if len(self._sites) > 1:
            for site in self._sites:
                site.waits_for_replicas = False
                site.credential()  # a mistake at one of them is told always, and not only when it is that one's turn
        self._is_ready = True

    def _credential_fingerprint(self) -> str:
        found = [site.fingerprint() for site in self._sites]
        return found[0] if len(set(found)) == 1 else " ".join(each or "-" for each in found)

    def _site_at(self, url: str | None, *, provider: str | None = None, endpoint: Endpoint | None = None) -> Site:
        model, api, key = self._named_model, self.api, None
        if endpoint is not None:
            key = endpoint._key
            model = endpoint.model or model
            api = self.api if endpoint.api == "auto" else endpoint.api
        return Site(self._access, url, model=model, api=api, provider=provider, key=key)

    def _make_sites(self) -> tuple[Site, ...]:
        if not self.endpoints:
            names = self.provider if isinstance(self.provider, tuple) else (self.provider,)
            return tuple(self._site_at(self.endpoint_url, provider=None if n == ANY else n) for n in names)
        sites = tuple(self._site_at(each.url, endpoint=each) for each in self.endpoints)
        for number, site in enumerate(sites):
            if any(site.is_twin_of(other) for other in sites[:number]):
                raise OptionValueError(
                    f"endpoints has {site.name} twice; to send it more at a time, see max_concurrency"
                )
        return sites

    # -- counting ---------------------------------------------------------------------------------------------------

    async def get_num_tokens(self, text: str) -> TokenCount:
        """How many tokens `text` has for this model.

        Counted by its own tokenizer (the extra ``tokenizers`` with `tokenizer`, or the Hub's cache), else by the
        endpoint's ``/tokenize``; where there is neither, UTF-8 bytes divided by four: then ``exact`` is False.
        """
        if not isinstance(text, str):
            raise OptionTypeError(f"tokens are counted of text (str), not of {type(text).__name__}")
        at_router = self.endpoint_url is None and not self.endpoints
        if self._counter is None:
            self._counter = TokenCounter(self.model if at_router else self._named_model, self._params.get("tokenizer"))
        site, deadlines = self._sites[0], self.options.deadlines or Deadlines()
        return await self._counter.count(
            text, None if at_router else lambda name, body: site.post_beside(name, body, deadlines)
        )

    # -- describing -------------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "huggingface_hub"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        told = {
            "model": self._named_model,
            "endpoint_url": self.endpoint_url,
            "endpoints": [_described(each) for each in self.endpoints] or None,
            "provider": list(self.provider) if isinstance(self.provider, tuple) else self.provider,
            "api": None if self.api == "auto" else self.api,
            "bill_to": self._params.get("bill_to"),
            "stop_sequences": list(self.options.stops) or None,
            **{name: getattr(self.options, name) for name in _SAMPLING},
        }
        schema = told["response_format"]
        if isinstance(schema, type):
            told["response_format"] = msgspec.json.schema(schema)
        return {name: msgspec.to_builtins(value) for name, value in told.items() if value is not None}

    @classmethod
    def _from_serialized(
        cls, fields: dict[str, Any], *, allowed_hosts: Sequence[str], api_key: Secret | None
    ) -> HuggingFaceInference:
        named = {_JS_NAMES.get(name, name): value for name, value in fields.items()}
        unknown = [name for name in named if name not in _IDENTIFYING]
        if unknown:
            raise DeserializationError(f"a serialized HuggingFaceInference has no field {unknown[0]!r}")
        endpoint, several = named.get("endpoint_url"), named.get("endpoints")
        if endpoint is not None and endpoint != LOCAL:
            _check_allowed(endpoint, allowed_hosts)
        if several is not None:
            _check_endpoints(several, allowed_hosts)
        try:
            if several is not None:
                named["endpoints"] = [Endpoint(**each) if isinstance(each, Mapping) else each for each in several]
            model = cls(**named)
        except UsageError as error:
            raise DeserializationError(f"a serialized HuggingFaceInference can't be made: {error}") from None
        model._key = model._access.key = api_key
        model._access.takes_environment_key = endpoint is None and several is None
        return model

    def __getstate__(self) -> dict[str, Any]:
        if self._proxy is not None:
            raise UsageError("a model with a proxy= is not pickled: its URL may hold a password; make it anew instead")
        kept = {name: value for name, value in self._params.items() if name not in _UNPICKLED}
        if self.endpoints:
            kept["endpoints"] = [copy.copy(each) for each in self.endpoints]  # without their keys
        return {"params": kept, "implicit_key": self._access.takes_environment_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["params"])  # type: ignore[misc]
        self._access.takes_environment_key = state["implicit_key"]


async def _in_lane(lane: str, ask: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
    token = _lane.set(lane)
    try:
        return await ask(*args)
    finally:
        _lane.reset(token)


def _headers(headers: Any, bill_to: Any) -> list[tuple[str, str]]:
    found = [("User-Agent", f"millstream/{__version__}"), ("Content-Type", "application/json")]
    if bill_to is not None:
        if not isinstance(bill_to, str) or not bill_to.isascii() or not bill_to.isprintable() or not bill_to:
            raise OptionValueError("bill_to is the name of an organisation: ASCII text without control characters")
        found.append(("X-HF-Bill-To", bill_to))
    if headers is None:
        return found
    if not isinstance(headers, Mapping):
        raise OptionTypeError(f"headers is a mapping of text to text, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise OptionTypeError("headers is a mapping of text to text")
        if not _HEADER_NAME.fullmatch(name) or name.lower() in ("content-length", "transfer-encoding"):
            raise OptionValueError(f"{name!r} can't be the name of a header here")
        if not value.isascii() or not value.isprintable():
            raise OptionValueError(f"the value of header {name!r} has a line break or a character that is not ASCII")
    given = {name.lower() for name in headers}
    return [(name, value) for name, value in found if name.lower() not in given] + list(headers.items())


def _endpoint(given: str | None) -> str | None:
    if given == "":  # an unset variable, most often; prompts must not go elsewhere for it
        raise OptionValueError("endpoint_url is empty; leave it out for Hugging Face's Inference Providers")
    return _config.environment_endpoint() if given is None else given


def _check_ways(given: dict[str, Any]) -> None:
    """What carries the requests. Here, though it is made with the first one: a mistake is best told where it is."""
    ways = [name for name in ("transport", "http_client", "proxy") if given.get(name) is not None]
    if len(ways) > 1:
        raise OptionValueError(f"{' and '.join(ways)}: only one of them can carry the requests")
    unused = [name for name in ("verify", "http2") if name in given] if ways and ways != ["proxy"] else []
    if unused:
        raise OptionValueError(
            f"{' and '.join(unused)}: set on what carries the requests, since you bring it ({ways[0]})"
        )
    for name in ways:
        if name != "proxy" and not is_transport(given[name]):
            wanted = "a Transport or an httpx.AsyncBaseTransport" if name == "transport" else "an httpx.AsyncClient"
            raise OptionTypeError(f"{name} is {wanted}, not {type(given[name]).__name__}")
    for name in ("allow_http_key", "http2"):
        check_bool(name, given.get(name, False))
    if not isinstance(given.get("verify", True), bool | str):
        raise OptionTypeError(
            "verify is True, or the path (str) of a file of certificates, or False for tests, "
            f"not {type(given['verify']).__name__}"
        )
    if not isinstance(given.get("tokenizer") or "", str | os.PathLike):
        raise OptionTypeError(f"tokenizer is the path of a tokenizer.json, not {type(given['tokenizer']).__name__}")
    if given.get("deadlines") is not None and not isinstance(given["deadlines"], Deadlines):
        raise OptionTypeError(f"deadlines is a Deadlines(...), not {type(given['deadlines']).__name__}")


def _hide(params: Any, name: str, what: str) -> Secret | None:
    """Take a secret out of keywords, so that nothing that keeps or shows them has it."""
    if params.get(name) is None:
        params.pop(name, None)
        return None
    return Secret(params.pop(name), what)


def _endpoints(given: Any, params: Mapping[str, Any]) -> tuple[Endpoint, ...]:
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise OptionTypeError(f'endpoints is a list: ["https://a.example", ...], not {type(given).__name__}')
    if not given:
        raise OptionValueError("endpoints is empty; name one or more, or leave it out")
    for name in ("endpoint_url", "provider"):
        if params.get(name) is not None:
            instead = "put it into the list" if name == "endpoint_url" else "it chooses at Hugging Face's router"
            raise OptionValueError(f"endpoints and {name} can't go together; {instead}")
    for each in given:
        if not isinstance(each, str | Endpoint):
            raise OptionTypeError(f"endpoints holds URLs (str) and Endpoint(...), not {type(each).__name__}")
    return tuple(Endpoint(each) if isinstance(each, str) else each for each in given)


def _provider(given: Any, params: Mapping[str, Any], endpoint_url: str | None) -> str | tuple[str, ...] | None:
    if given is None or (isinstance(given, str) and given != ANY):
        return given
    wanted: str | tuple[str, ...] = ANY if given == ANY else _provider_names(given)
    if wanted == ANY and params.get("api", "auto") not in ("auto", "chat"):
        raise OptionValueError("provider='any' is for api='chat', which is all that the router tells about")
    if endpoint_url is not None:
        raise OptionValueError(
            "several providers are chosen from at Hugging Face's router: leave endpoint_url out, and "
            "MILLSTREAM_ENDPOINT_URL unset"
        )
    if ":" in (params.get("model") or ""):
        raise OptionValueError(f"the model {params['model']!r} names its provider already; name it in one place")
    return wanted


def _provider_names(given: Any) -> tuple[str, ...]:
    if isinstance(given, bytes | Mapping) or not isinstance(given, Sequence):
        raise OptionTypeError(f"provider is text (str) or a list of texts, not {type(given).__name__}")
    names = tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise OptionTypeError("provider is a list of texts, and one of these is none")
    if not names:
        raise OptionValueError("provider is an empty list; name one or more, or leave it out")
    policy = next((name for name in names if name in _POLICIES), None)
    if policy is not None:
        raise OptionValueError(f"provider={policy!r} stands alone: a list has names of providers")
    if len(set(names)) < len(names):
        raise OptionValueError(f"provider has a name twice: {names!r}")
    return names


def _described(endpoint: Endpoint) -> str | dict[str, str]:
    told = endpoint.describe()
    return endpoint.url if len(told) == 1 else told


def _check_endpoints(described: Any, allowed_hosts: Sequence[str]) -> None:
    """Whether that may be what `_described` gave; the data is not trusted."""
    if not isinstance(described, list | tuple):
        raise DeserializationError(f"the endpoints in the data are no list, but {type(described).__name__}")
    for each in described:
        told = each if isinstance(each, Mapping) else {"url": each}
        if not set(told) <= {"url", "model", "api"}:
            raise DeserializationError("an endpoint in the data has more than url, model and api")
        if told.get("url") != LOCAL:
            _check_allowed(told.get("url"), allowed_hosts)


def _check_allowed(endpoint: Any, allowed_hosts: Sequence[str]) -> None:
    try:
        origin, _ = parse_url(endpoint) if isinstance(endpoint, str) else parse_url("")
    except OptionValueError as error:
        raise DeserializationError(f"the endpoint in the data is no URL: {error}") from None
    allowed = {host.lower() for host in allowed_hosts}
    if origin.host.lower() not in allowed:
        raise UntrustedEndpointError(
            f"the data names the endpoint host {origin.host!r}; to follow it, allow it by allowed_hosts="
        )
