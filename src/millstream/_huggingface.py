"""`HuggingFaceInference`: text generation at Hugging Face and everywhere that speaks like it, or like OpenAI."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

import msgspec

from millstream import _clock, _config
from millstream._config import CallOptions, CallOverrides, Deadlines, check_bool, refuse_unknown
from millstream._errors import (
    AuthenticationError,
    BadRequestError,
    ClosedError,
    DeserializationError,
    MissingKeyError,
    ModelNotFoundError,
    NotFoundError,
    OptionTypeError,
    OptionValueError,
    StatusError,
    UntrustedEndpointError,
    UsageError,
)
from millstream._http import Exchange
from millstream._language_model import TokenCount
from millstream._llm import BaseLLM, BaseLLMParams
from millstream._origin import parse_url
from millstream._prompts import BasePromptValue
from millstream._results import LLMResult
from millstream._routes import APIS, ROUTER, Api, RouteSpec, check_model, routes_for, sibling_path
from millstream._secret import Secret
from millstream._streams import ChunkSource
from millstream._tokens import TokenCounter
from millstream._transport._seam import Request, Route, Timeouts, Transport
from millstream._transport.choice import choose_transport, is_transport
from millstream._version import __version__
from millstream._wire import DIALECTS
from millstream._wire.errors import ROUTE_NOT_FOUND, decode_error
from millstream.callbacks import CallbackManagerForLLMRun

if TYPE_CHECKING:
    import httpx

__all__ = ["HuggingFaceInference", "HuggingFaceParams"]

T = TypeVar("T")

DEFAULT_MODEL: Final = "gpt2"
LOCAL: Final = "local"


class HuggingFaceParams(BaseLLMParams, CallOverrides, total=False):
    """The keywords of `HuggingFaceInference`: where to ask, how, and what a call uses where it says nothing else."""

    endpoint_url: str | None
    """The server: its base URL, its ``/v1``, or one route's whole URL; ``"local"`` for the embedded model; None for
    ``MILLSTREAM_ENDPOINT_URL`` if that is set, else Hugging Face's Inference Providers."""
    provider: str | None
    """Who of the Inference Providers is to serve (``"groq"``), or a policy (``"fastest"``, ``"cheapest"``); None: the
    user's own order."""
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
_IDENTIFYING = ("model", "endpoint_url", "provider", "api", "bill_to", "stop_sequences", *_SAMPLING)
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
        self.endpoint_url = _endpoint(given.get("endpoint_url"))
        self.provider: str | None = given.get("provider")
        self.api: Api = given.get("api", "auto")
        self.options = CallOptions(
            stop=given.get("stop_sequences"),
            deadlines=given.get("deadlines"),
            **{name: given[name] for name in _SAMPLING if name in given},
        )
        self._streaming: bool | None = given.get("streaming")
        if self._streaming is not None:
            check_bool("streaming", self._streaming)
        self._implicit_key = True
        self._routes = self._check_routes()
        self._headers = _headers(given.get("headers"), given.get("bill_to"))
        _check_ways({**given, "proxy": self._proxy})
        self._transport: Transport | None = None
        self._exchanges: list[Exchange] = []
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
        if "_transport" not in vars(self):  # shown by a debugger amid __init__
            return "<HuggingFaceInference, not complete>"
        told = {name: value for name, value in self._identifying_params.items() if name != "extra_body"}
        return f"HuggingFaceInference({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    async def aclose(self) -> None:
        """Close the connections; calls under way fail with `ClosedError`. A transport that was brought stays open."""
        await super().aclose()
        transport, self._transport = self._transport, None
        self._exchanges = []
        if transport is not None and self._params.get("transport") is not transport:
            await transport.aclose()

    # -- asking -----------------------------------------------------------------------------------------------------

    @property
    def _can_stream(self) -> bool:
        return True

    @property
    def _streams_on_wire(self) -> bool:
        if self._streaming is None:
            return self.caller.adaptive and type(self)._generate is HuggingFaceInference._generate
        return self._streaming

    async def _generate(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> LLMResult:
        return await self._first_that_speaks(lambda exchange: exchange.ask(prompt, options))

    async def _open_stream(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> ChunkSource:
        return await self._first_that_speaks(lambda exchange: exchange.open_or_ask(prompt, options))

    async def _first_that_speaks(self, ask: Callable[[Exchange], Awaitable[T]]) -> T:
        """Ask at the routes in turn until one exists; the others are forgotten then."""
        exchanges = self._exchanges or await self._prepare()
        if len(exchanges) == 1:
            try:
                return await ask(exchanges[0])
            except (ModelNotFoundError, AuthenticationError) as error:
                raise self._explained(error) from None
        refused: list[str] = []
        for exchange in list(exchanges):
            try:
                answer = await ask(exchange)
            except (ModelNotFoundError, AuthenticationError) as error:
                raise self._explained(error) from None
            except (NotFoundError, BadRequestError) as error:
                if not _is_missing_dialect(error):
                    self._exchanges = [exchange]
                    raise
                refused.append(f"{exchange.dialect.name} at {exchange.url} ({error.status_code})")
            else:
                self._exchanges = [exchange]
                return answer
        raise NotFoundError(
            f"the server has no route that Millstream knows: tried {', '.join(refused)}; "
            "check endpoint_url, or name the dialect by api=",
            status_code=404,
            provider=self._routes[0].origin.host if self._routes else None,
        )

    def _explained(self, error: StatusError) -> StatusError:
        hint = ""
        if isinstance(error, ModelNotFoundError) and self._named_model is None:
            hint = "; set model= to one that the endpoint serves"
        elif isinstance(error, AuthenticationError) and not self._credential_fingerprint():
            hint = "; no key was sent: give api_key= (one from the environment goes only to Hugging Face's own hosts)"
        if hint:
            error.args = (f"{error.args[0]}{hint}",)
        return error

    async def _prepare(self) -> list[Exchange]:
        if self._closed:
            raise ClosedError("this HuggingFaceInference was closed")
        if self.endpoint_url == LOCAL:
            from millstream import local  # noqa: PLC0415 - an extra, and only for those who ask for it

            self._routes = routes_for(await local.local_endpoint(), api=self.api, model=self.model)
        if self._closed:
            raise ClosedError("this HuggingFaceInference was closed")
        if not self._exchanges:
            self._exchanges = [self._exchange(route) for route in self._routes]
        return self._exchanges

    def _exchange(self, route: RouteSpec) -> Exchange:
        return Exchange(
            DIALECTS[route.api],
            self._prepared(route, route.path, "application/json"),
            self._prepared(route, route.path, "text/event-stream"),
            self._transport_for(route),
            model=self._model_field(route),
            key=self._credential(route),
            on_limits=self.caller.stated,
        )

    def _prepared(self, route: RouteSpec, path: str, accept: str) -> Route:
        return Route("POST", route.origin, path, self._header_lines(route, accept))

    def _header_lines(self, route: RouteSpec, accept: str) -> list[tuple[str, str]]:
        """The user's, and those of ours whose names are not among them."""
        given = {name.lower() for name, _ in self._headers}
        ours = (*self._authorization(route), ("Accept", accept))
        return [*self._headers, *(line for line in ours if line[0].lower() not in given)]

    def _model_field(self, route: RouteSpec) -> str | None:
        """The ``model`` of the request's body: at Hugging Face always, elsewhere only if one was named."""
        if route.api == "text-generation":
            return None
        name = self.model if self.endpoint_url is None else self._named_model
        if name and self.provider and ":" not in name and route[1:] == (ROUTER, "/v1/chat/completions"):
            return f"{name}:{self.provider}"
        return name

    def _authorization(self, route: RouteSpec) -> list[tuple[str, str]]:
        key = self._credential(route)
        return [] if key is None else [("Authorization", f"Bearer {key.reveal()}")]

    def _credential(self, route: RouteSpec) -> Secret | None:
        origin = route.origin
        if self._key is not None:
            if origin.scheme == "http" and not (_is_loopback(origin.host) or self._params.get("allow_http_key")):
                raise OptionValueError(
                    f"the key would go to {origin} unencrypted; use https, or allow it by allow_http_key=True"
                )
            return self._key
        if self._implicit_key and _config.takes_environment_key(origin.scheme, origin.host):
            key = _config.environment_key()
            if key is not None:
                return key
        if _config.is_official_host(origin.host) and not any(n.lower() == "authorization" for n, _ in self._headers):
            raise MissingKeyError(
                f"{origin.host} needs a key: give api_key=, or set {_config.KEY_VARIABLES[0]} (huggingface.co/settings/"
                "tokens makes one that may call Inference Providers)"
            )
        return None

    def _credential_fingerprint(self) -> str:
        key = self._credential(self._routes[0]) if self._routes else None
        own = [Secret(value.replace(" ", "_")) for name, value in self._headers if name.lower() == "authorization"]
        return " ".join(each.fingerprint() for each in (key, *own) if each is not None)

    def _transport_for(self, route: RouteSpec) -> Transport:
        if self._transport is None:
            params = self._params
            self._transport = choose_transport(
                transport=params.get("transport"),
                http_client=params.get("http_client"),
                proxy=self._proxy or _environment_proxy(route),
                http2=bool(params.get("http2", False)),
                verify=params.get("verify", True),
            )
        return self._transport

    def _check_routes(self) -> tuple[RouteSpec, ...]:
        if self.endpoint_url != LOCAL:
            return routes_for(self.endpoint_url, api=self.api, model=self.model, provider=self.provider)
        if self.api not in APIS:
            raise OptionValueError(f"api is one of {', '.join(APIS)}, not {self.api!r}")
        return ()

    # -- counting ---------------------------------------------------------------------------------------------------

    async def get_num_tokens(self, text: str) -> TokenCount:
        """How many tokens `text` has for this model.

        Counted by its own tokenizer (the extra ``tokenizers`` with `tokenizer`, or the Hub's cache), else by the
        endpoint's ``/tokenize``; where there is neither, UTF-8 bytes divided by four: then ``exact`` is False.
        """
        if not isinstance(text, str):
            raise OptionTypeError(f"tokens are counted of text (str), not of {type(text).__name__}")
        if self._counter is None:
            self._counter = TokenCounter(
                self.model if self.endpoint_url is None else self._named_model, self._params.get("tokenizer")
            )
        ask = None if self.endpoint_url is None else self._post_beside
        return await self._counter.count(text, ask)

    async def _post_beside(self, name: str, body: bytes) -> bytes | None:
        """The answer of another route of the server (``tokenize``), None where it has no such route."""
        await self._prepare()
        route = self._routes[0]
        at = self._prepared(route, sibling_path(route, name), "application/json")
        deadlines = self.options.deadlines or Deadlines()
        timeouts = Timeouts(deadlines.connect, deadlines.write, deadlines.first_token)
        response = await self._transport_for(route).send(Request(at, body, timeouts=timeouts))
        if response.status == 200:
            return response.body
        if response.status in (429, 500, 502, 503, 504):
            host, now = route.origin.host, _clock.wall_time()
            raise decode_error(response.status, response.header, response.body, host=host, now=now)
        return None

    # -- describing -------------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "huggingface_hub"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        told = {
            "model": self._named_model,
            "endpoint_url": self.endpoint_url,
            "provider": self.provider,
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
        endpoint = named.get("endpoint_url")
        if endpoint is not None and endpoint != LOCAL:
            _check_allowed(endpoint, allowed_hosts)
        try:
            model = cls(**named)
        except UsageError as error:
            raise DeserializationError(f"a serialized HuggingFaceInference can't be made: {error}") from None
        model._key = api_key
        model._implicit_key = endpoint is None
        return model

    def __getstate__(self) -> dict[str, Any]:
        if self._proxy is not None:
            raise UsageError("a model with a proxy= is not pickled: its URL may hold a password; make it anew instead")
        kept = {name: value for name, value in self._params.items() if name not in _UNPICKLED}
        return {"params": kept, "implicit_key": self._implicit_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["params"])  # type: ignore[misc]
        self._implicit_key = state["implicit_key"]


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


def _environment_proxy(route: RouteSpec) -> Secret | None:
    if _config.environment_proxy(route.origin.scheme, route.origin.host) is None:
        return None
    return Secret(_config.environment_proxy(route.origin.scheme, route.origin.host) or "", "the proxy's URL")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name; "127.0.0.1.example.com" is one too
        return host == "localhost"


def _is_missing_dialect(error: StatusError) -> bool:
    """No such route here, or a base model that has no chat template: another dialect may do."""
    return error.status_code in (404, 501) or error.kind in (ROUTE_NOT_FOUND, "template_error")


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
