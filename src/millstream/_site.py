"""One endpoint of a model: its routes and its key, and how it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from millstream import _clock, _config
from millstream._caller import AsyncCaller
from millstream._config import CallOptions, Deadlines
from millstream._errors import (
    AuthenticationError,
    BadRequestError,
    ClosedError,
    MillstreamError,
    MissingKeyError,
    ModelNotFoundError,
    NotFoundError,
    OptionTypeError,
    OptionValueError,
    StatusError,
    UsageError,
)
from millstream._headers import StatedLimits
from millstream._http import Exchange
from millstream._origin import Origin
from millstream._prompts import BasePromptValue
from millstream._routes import (
    APIS,
    ROUTER,
    Api,
    RouteSpec,
    catalogue_paths,
    check_model,
    providers_in,
    root_of,
    routes_for,
    sibling_path,
)
from millstream._secret import Secret
from millstream._transport._seam import Request, Response, Route, Timeouts, Transport
from millstream._transport.choice import choose_transport
from millstream._wire import DIALECTS
from millstream._wire.errors import ROUTE_NOT_FOUND, decode_error

__all__ = ["Access", "Endpoint", "Site", "sites_by_lane"]

T = TypeVar("T")

DEFAULT_MODEL: Final = "gpt2"
LOCAL: Final = "local"

_GONE = (400, 404, 405, 410, 422, 501)
"""The router does not tell of a single model: it tells of all."""


class Endpoint:
    """One of several endpoints that serve the same (`HuggingFaceInference(endpoints=[...])`), with what is its own.

    Args:
        url: as `HuggingFaceParams.endpoint_url`.
        model: the model's id there; None: the model's own.
        api_key: the key for this endpoint alone; None: the model's `api_key`, where one was given.
        api: the dialect there; ``"auto"``: as the model's `api` says, or the first that the server has.

    Raises:
        OptionTypeError, OptionValueError: a value that can't be.
    """

    __slots__ = ("_key", "api", "model", "url")

    def __init__(self, url: str, *, model: str | None = None, api_key: str | None = None, api: Api = "auto") -> None:
        held = [] if api_key is None else [api_key]
        del api_key  # tools that print tracebacks show local variables too
        self.url = url
        self.model = model
        self.api: Api = api
        self._key = Secret(held.pop(), "an endpoint's key") if held else None
        if not isinstance(url, str):
            raise OptionTypeError(f"an endpoint's url is text (str), not {type(url).__name__}")
        _routes_at(url, api, model)

    def __repr__(self) -> str:
        told = {name: value for name, value in self.describe().items() if name != "url"}
        return f"Endpoint({', '.join([repr(self.url), *(f'{name}={value!r}' for name, value in told.items())])})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the key, as a model."""
        return _endpoint_of, (self.describe(),)

    def describe(self) -> dict[str, str]:
        """Plain data, without the key."""
        told = {"url": self.url, "model": self.model, "api": None if self.api == "auto" else self.api}
        return {name: value for name, value in told.items() if value is not None}


def _endpoint_of(described: Mapping[str, Any]) -> Endpoint:
    return Endpoint(described["url"], model=described.get("model"), api=described.get("api", "auto"))


def _routes_at(url: str | None, api: str, model: str | None, provider: str | None = None) -> tuple[RouteSpec, ...]:
    """The routes of an endpoint; those of the embedded one are known when it runs."""
    model = DEFAULT_MODEL if model is None else model
    if url != LOCAL:
        return routes_for(url, api=api, model=model, provider=provider)
    check_model(model)
    if api not in APIS:
        raise OptionValueError(f"api is one of {', '.join(APIS)}, not {api!r}")
    return ()


class Access:
    """How all endpoints of one model are got at: headers, the model's key, and what carries the requests.

    Args:
        headers: lines for every request; ours of the same name are left out.
        key: what was given as the model's `api_key`.
        caller: is told what answers say of limits.
        params: `transport`, `http_client`, `http2`, `verify`, `allow_http_key`, as they were given.
        proxy: the URL, None for what the environment says.
    """

    def __init__(
        self,
        headers: Sequence[tuple[str, str]],
        key: Secret | None,
        caller: AsyncCaller,
        params: Mapping[str, Any],
        proxy: Secret | None,
    ) -> None:
        self.headers = headers
        self.key = key
        self.caller = caller
        self.closed = False
        self.takes_environment_key = True
        """Whether a key that nobody gave is looked for at all."""
        self.transports: dict[Secret | None, Transport] = {}
        """By proxy: the environment may want one for some hosts, and none for others."""
        self._params = params
        self._proxy = proxy
        self._own_lines = {name.lower(): value for name, value in headers}

    def credential(self, origin: Origin, own: Secret | None) -> Secret | None:
        """The key for `origin`, which may have one of its own; None where none is sent.

        Raises:
            OptionValueError: it would travel unencrypted.
            MissingKeyError: there is none, and without one this host answers nothing.
        """
        key = self.key if own is None else own
        if key is not None:
            if origin.scheme == "http" and not (_is_loopback(origin.host) or self._params.get("allow_http_key")):
                raise OptionValueError(
                    f"the key would go to {origin} unencrypted; use https, or allow it by allow_http_key=True"
                )
            return key
        if self.takes_environment_key and _config.takes_environment_key(origin.scheme, origin.host):
            key = _config.environment_key()
            if key is not None:
                return key
        if _config.is_official_host(origin.host) and "authorization" not in self._own_lines:
            raise MissingKeyError(
                f"{origin.host} needs a key: give api_key=, or set {_config.KEY_VARIABLES[0]} (huggingface.co/settings/"
                "tokens makes one that may call Inference Providers)"
            )
        return None

    def fingerprint(self, key: Secret | None) -> str:
        """Tells credentials apart, and tells nothing of them; ``""`` for none."""
        own = [Secret(v.replace(" ", "_")) for name, v in self._own_lines.items() if name == "authorization"]
        return " ".join(each.fingerprint() for each in (key, *own) if each is not None)

    def lines(self, ours: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The user's headers, and those of `ours` whose names are not among them."""
        return [*self.headers, *(line for line in ours if line[0].lower() not in self._own_lines)]

    def transport_to(self, origin: Origin) -> Transport:
        """What carries requests there."""
        params = self._params
        brought = params.get("transport") is not None or params.get("http_client") is not None
        proxy = None if brought else self._proxy or _environment_proxy(origin)
        transport = self.transports.get(proxy)
        if transport is None:
            transport = self.transports[proxy] = choose_transport(
                transport=params.get("transport"),
                http_client=params.get("http_client"),
                proxy=proxy,
                http2=bool(params.get("http2", False)),
                verify=params.get("verify", True),
            )
        return transport

    def check_open(self) -> None:
        if self.closed:
            raise ClosedError("this HuggingFaceInference was closed")

    async def aclose(self) -> None:
        """Close the connections; a transport that was brought stays open."""
        self.closed = True
        transports, self.transports = self.transports, {}
        async with AsyncExitStack() as stack:
            for transport in transports.values():
                if self._params.get("transport") is not transport:
                    stack.push_async_callback(transport.aclose)


class Site:
    """Where a model asks: one endpoint, or one provider at the router.

    Args:
        access: what it shares with the others of the model.
        url: None: Hugging Face's router.
        model: the name for the request, None: none was given.
        api: the dialect, or ``"auto"``: found out with the first request.
        provider: who is to serve, at the router.
        key: one that belongs to this endpoint alone.
    """

    def __init__(
        self,
        access: Access,
        url: str | None,
        *,
        model: str | None,
        api: Api,
        provider: str | None = None,
        key: Secret | None = None,
    ) -> None:
        self.access = access
        self.url = url
        self.lane = ""
        """What the caller knows it by."""
        self.waits_for_replicas = True
        """Whether a request is held where no replica is up yet; where there are others, it does better to go there."""
        self.provider = provider
        self._named_model = model
        self._model = DEFAULT_MODEL if model is None else model
        self._api: Api = api
        self._key = key
        self._exchanges: list[Exchange] = []
        self.routes = _routes_at(url, api, model, provider)

    # -- who it is --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Where it is and what it serves: ``"llm.example.com org/model"``. Never a key."""
        if self.url == LOCAL:
            return " ".join(filter(None, (LOCAL, self._named_model)))
        route = self.routes[0]._replace(api="chat")
        return " ".join(filter(None, (f"{route.origin.authority}{root_of(route)}", self._model_field(route))))

    def credential(self) -> Secret | None:
        """The key that is sent, None for none. Raises: what `Access.credential` does."""
        return self.access.credential(self.routes[0].origin, self._key) if self.routes else None

    def fingerprint(self) -> str:
        """See `Access.fingerprint`. Raises: what `credential` does."""
        return self.access.fingerprint(self.credential())

    def is_twin_of(self, other: Site) -> bool:
        """Whether both are the same endpoint, asked for the same model by the same key."""
        mine, others = (
            (site.name, (site.url or "").partition("?")[2], site._key or site.access.key) for site in (self, other)
        )
        return mine == others

    # -- asking -----------------------------------------------------------------------------------------------------

    def first_that_speaks(
        self,
        ask: Callable[[Exchange, BasePromptValue, CallOptions], Awaitable[T]],
        prompt: BasePromptValue,
        options: CallOptions,
    ) -> Awaitable[T]:
        """Ask at the routes in turn until one exists; the others are forgotten then."""
        exchanges = self._exchanges
        return ask(exchanges[0], prompt, options) if len(exchanges) == 1 else self._find_out(ask, prompt, options)

    async def _find_out(
        self,
        ask: Callable[[Exchange, BasePromptValue, CallOptions], Awaitable[T]],
        prompt: BasePromptValue,
        options: CallOptions,
    ) -> T:
        exchanges = self._exchanges or await self.prepare()
        if len(exchanges) == 1:
            return await ask(exchanges[0], prompt, options)
        refused: list[str] = []
        for exchange in list(exchanges):
            try:
                answer = await ask(exchange, prompt, options)
            except (ModelNotFoundError, AuthenticationError):
                raise
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
            provider=self.routes[0].origin.host if self.routes else None,
        )

    def stated(self, limits: StatedLimits) -> None:
        """See `ExchangeListener`."""
        self.access.caller.stated(limits, self.lane)

    def explain(self, error: StatusError) -> None:
        """See `ExchangeListener`."""
        hint = ""
        if isinstance(error, ModelNotFoundError) and self._named_model is None:
            hint = "; set model= to one that the endpoint serves"
        elif isinstance(error, AuthenticationError) and not self.fingerprint():
            hint = "; no key was sent: give api_key= (one from the environment goes only to Hugging Face's own hosts)"
        if hint and not str(error.args[0]).endswith(hint):
            error.args = (f"{error.args[0]}{hint}",)

    async def prepare(self) -> list[Exchange]:
        """Have something to ask with.

        Raises:
            ClosedError: the model was closed.
            MissingExtraError: the embedded endpoint is not installed.
        """
        self.access.check_open()
        if self.url == LOCAL:
            from millstream import local  # noqa: PLC0415 - an extra, and only for those who ask for it

            self.routes = routes_for(await local.local_endpoint(), api=self._api, model=self._model)
        self.access.check_open()
        if not self._exchanges:
            self._exchanges = [self._exchange(route) for route in self.routes]
        return self._exchanges

    def forget(self) -> None:
        """Drop what it asked with."""
        self._exchanges = []

    def _exchange(self, route: RouteSpec) -> Exchange:
        return Exchange(
            DIALECTS[route.api],
            self._prepared(route, route.path, "application/json"),
            self._prepared(route, route.path, "text/event-stream"),
            self.access.transport_to(route.origin),
            model=self._model_field(route),
            key=self.credential(),
            listener=self,
            scales_to_zero=self.waits_for_replicas and _scales_to_zero(route.origin.host),
        )

    def _prepared(self, route: RouteSpec, path: str, accept: str, method: str = "POST") -> Route:
        ours = (*self.authorization(), ("Accept", accept))
        return Route(method, route.origin, path, self.access.lines(ours))

    def authorization(self) -> list[tuple[str, str]]:
        """The header line of the key. Raises: what `credential` does."""
        key = self.credential()
        return [] if key is None else [("Authorization", f"Bearer {key.reveal()}")]

    def _model_field(self, route: RouteSpec) -> str | None:
        """The ``model`` of the request's body: at Hugging Face always, elsewhere only if one was named."""
        if route.api == "text-generation":
            return None
        name = self._model if self.url is None else self._named_model
        if name and self.provider and ":" not in name and route[1:] == (ROUTER, "/v1/chat/completions"):
            return f"{name}:{self.provider}"
        return name

    # -- other routes -----------------------------------------------------------------------------------------------

    async def post_beside(self, name: str, body: bytes, deadlines: Deadlines) -> bytes | None:
        """The answer of another route of the server (``tokenize``), None where it has no such route."""
        await self.prepare()
        response = await self._send("POST", sibling_path(self.routes[0], name), body, deadlines)
        if response.status == 200:
            return response.body
        if response.status in (429, 500, 502, 503, 504):
            raise self._refusal(response)
        return None

    async def live_providers(self, deadlines: Deadlines) -> tuple[str, ...]:
        """Who serves the model at the moment, as the router lists them: one attempt.

        Raises:
            ModelNotFoundError: nobody does.
            MillstreamError: the router could not be asked; the message says what for.
        """
        try:
            known = await self._providers(deadlines)
        except MillstreamError as error:
            if not isinstance(error, UsageError):
                error.args = (f"who serves {self._model!r} could not be found out: {error.args[0]}",)
            raise
        live = tuple(name for name, state in known.items() if state == "live")
        if not live:
            listed = ", ".join(f"{name} ({state})" for name, state in known.items()) or "none is listed"
            raise ModelNotFoundError(
                f"no provider serves {self._model!r} at the moment: {listed}",
                status_code=404,
                provider=self.routes[0].origin.host,
            )
        return live

    async def _providers(self, deadlines: Deadlines) -> dict[str, str]:
        self.access.check_open()
        of_one, of_all = catalogue_paths(self._model)
        response = await self._send("GET", of_one, b"", deadlines)
        known = providers_in(response.body, self._model) if response.status == 200 else None
        if known is None and response.status in (200, *_GONE):
            response = await self._send("GET", of_all, b"", deadlines)
            known = providers_in(response.body, self._model) if response.status == 200 else None
        if response.status == 200:
            return known or {}
        error = self._refusal(response)
        if isinstance(error, AuthenticationError):
            self.explain(error)
        raise error

    async def _send(self, method: str, path: str, body: bytes, deadlines: Deadlines) -> Response:
        route = self.routes[0]
        at = self._prepared(route, path, "application/json", method)
        timeouts = Timeouts(deadlines.connect, deadlines.write, deadlines.first_token)
        return await self.access.transport_to(route.origin).send(Request(at, body, timeouts=timeouts))

    def _refusal(self, response: Response) -> StatusError:
        key = self.credential()
        body = response.body if key is None else key.hide_in_bytes(response.body)
        host = self.routes[0].origin.host
        return decode_error(response.status, response.header, body, host=host, now=_clock.wall_time())


# -- lanes -----------------------------------------------------------------------------------------------------------

_first_credentials: WeakKeyDictionary[AsyncCaller, dict[str, str]] = WeakKeyDictionary()


def sites_by_lane(sites: Sequence[Site], caller: AsyncCaller) -> dict[str, Site]:
    """The sites by the names of their lanes, in their order; each site is told its own.

    All models that share `caller` and ask one endpoint for one model by one key share a lane, and no others do.
    """
    found: dict[str, Site] = {}
    for site in sites:
        try:
            credential = site.fingerprint()
        except UsageError:  # told when it is asked
            credential = ""
        name = site.name
        first = _first_credentials.setdefault(caller, {}).setdefault(name, credential)
        if credential != first:
            name = f"{name} ({credential or 'no key'})"
        same = sum(each == name or each.startswith(f"{name} #") for each in found)
        site.lane = f"{name} #{same + 1}" if same else name
        found[site.lane] = site
    return found


def _scales_to_zero(host: str) -> bool:
    return host.lower().rstrip(".").endswith(".endpoints.huggingface.cloud") or _is_loopback(host)


def _environment_proxy(origin: Origin) -> Secret | None:
    if _config.environment_proxy(origin.scheme, origin.host) is None:
        return None
    return Secret(_config.environment_proxy(origin.scheme, origin.host) or "", "the proxy's URL")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name; "127.0.0.1.example.com" is one too
        return host == "localhost"


def _is_missing_dialect(error: StatusError) -> bool:
    """No such route here, or a base model that has no chat template: another dialect may do."""
    return error.status_code in (404, 501) or error.kind in (ROUTE_NOT_FOUND, "template_error")
