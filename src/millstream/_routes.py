"""Which URLs an endpoint has for which dialect: pure, and the only place that knows Hugging Face's addresses."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import msgspec

from millstream._errors import OptionTypeError, OptionValueError, ProtocolError
from millstream._origin import Origin, parse_url

__all__ = ["Api", "RouteSpec", "routes_for"]

Api = Literal["auto", "text-generation", "completions", "chat"]
APIS = ("auto", "text-generation", "completions", "chat")

ROUTER = Origin("https", "router.huggingface.co", 443)

_COMPLETIONS_PATHS = {"novita": "/novita/v3/openai/completions", "deepinfra": "/deepinfra/v1/openai/completions"}
"""Where a provider's own path below the router differs (huggingface_hub's provider helpers)."""


_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RouteSpec(NamedTuple):
    """A dialect and where it is spoken."""

    api: Literal["text-generation", "completions", "chat"]
    origin: Origin
    path: str

    @property
    def url(self) -> str:
        """The URL, for messages."""
        return f"{self.origin}{self.path}"


def routes_for(
    endpoint_url: str | None, *, api: str = "auto", model: str = "gpt2", provider: str | None = None
) -> tuple[RouteSpec, ...]:
    """The routes to try, best first; just one where the dialect is said by `api` or by the URL itself.

    Raises:
        OptionValueError: no URL, a model or provider that can't stand in one, or an `api` that contradicts the URL.
    """
    if api not in APIS:
        raise OptionValueError(f"api is one of {', '.join(APIS)}, not {api!r}")
    check_model(model)
    if provider is not None:
        _check_provider(provider)
    if endpoint_url is None:
        return (_router_route(api, model, provider),)
    if not isinstance(endpoint_url, str):
        raise OptionTypeError(f"endpoint_url is text (str), not {type(endpoint_url).__name__}")
    found = _url_routes(*parse_url(endpoint_url))
    chosen = tuple(route for route in found if api in ("auto", route.api))
    if not chosen:
        raise OptionValueError(f"{endpoint_url!r} is a {found[0].api} route, so api={api!r} can't be right")
    return chosen


def _router_route(api: str, model: str, provider: str | None) -> RouteSpec:
    """Hugging Face Inference Providers: chat is all that the router itself speaks; the rest is a provider's."""
    if api in ("auto", "chat"):
        return RouteSpec("chat", ROUTER, "/v1/chat/completions")
    at_model = f"/hf-inference/models/{quote(model)}"
    if api == "completions":
        if provider in (None, "hf-inference"):
            return RouteSpec("completions", ROUTER, f"{at_model}/v1/completions")
        return RouteSpec("completions", ROUTER, _COMPLETIONS_PATHS.get(provider, f"/{provider}/v1/completions"))
    if provider not in (None, "hf-inference"):
        raise OptionValueError(f"provider {provider!r} has no text-generation route; use api='chat'")
    return RouteSpec("text-generation", ROUTER, at_model)


def _url_routes(origin: Origin, path: str) -> tuple[RouteSpec, ...]:
    path, _, query = path.partition("?")
    query = f"?{query}" if query else ""
    base = path.rstrip("/")
    if base.endswith("/chat/completions"):
        return (RouteSpec("chat", origin, base + query),)
    if base.endswith("/completions"):
        return (RouteSpec("completions", origin, base + query),)
    for ending in ("/generate_stream", "/generate"):
        if base.endswith(ending):
            # One route for both kinds of answer: TGI's root takes "stream", /generate ignores it.
            return (RouteSpec("text-generation", origin, (base.removesuffix(ending) or "/") + query),)
    versioned = base.rsplit("/", 1)[-1]
    is_version = len(versioned) > 1 and versioned[0] == "v" and versioned[1:].isdigit()
    openai = base if is_version or versioned == "openai" else f"{base}/v1"
    root = base.removesuffix(f"/{versioned}") if is_version else base
    return (
        RouteSpec("chat", origin, f"{openai}/chat/completions{query}"),
        RouteSpec("completions", origin, f"{openai}/completions{query}"),
        RouteSpec("text-generation", origin, (root or "/") + query),
    )


def sibling_path(route: RouteSpec, name: str) -> str:
    """The path of another route of the same server, such as ``/tokenize``."""
    path = route.path.partition("?")[0]
    for ending in ("/chat/completions", "/completions"):
        path = path.removesuffix(ending)
    head, _, last = path.rpartition("/")
    root = head if last[:1] == "v" and last[1:].isdigit() else path.rstrip("/")
    return f"{root}/{name}"


def root_of(route: RouteSpec) -> str:
    """The path that all routes of the same server have in front; ``""`` for most."""
    return sibling_path(route, "").rstrip("/")


def catalogue_paths(model: str) -> tuple[str, str]:
    """Where the router tells who serves a model: of that model alone, and of all."""
    return f"/v1/models/{quote(model)}", "/v1/models"


def providers_in(catalogue: bytes, model: str) -> dict[str, str] | None:
    """The providers of a model and their states (``"live"``), in the order of the router's answer.

    None where the answer does not tell of this model. Names that could not stand in a request are left out.

    Raises:
        ProtocolError: it is no JSON object.
    """
    try:
        value = msgspec.json.decode(catalogue, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("the router's list of models is no JSON object", status_code=200) from None
    data = value.get("data", value)
    for entry in data if isinstance(data, list) else [data]:
        if isinstance(entry, dict) and entry.get("id") == model and isinstance(entry.get("providers"), list):
            return dict(filter(None, map(_provider, entry["providers"])))
    return None


def _provider(entry: Any) -> tuple[str, str] | None:
    name: Any = entry.get("provider") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _PROVIDER.fullmatch(name):
        return None
    return name, str(entry.get("status", "live"))


def check_model(model: str) -> None:
    """Refuse a model's name that could change the meaning of a URL. Raises: OptionTypeError, OptionValueError."""
    if not isinstance(model, str):
        raise OptionTypeError(f"model is text (str), not {type(model).__name__}")
    for segment in model.split("/"):
        _check_segment("model", segment, of=model)


def _check_provider(provider: str) -> None:
    if not isinstance(provider, str):
        raise OptionTypeError(f"provider is text (str), not {type(provider).__name__}")
    if not _PROVIDER.fullmatch(provider):
        raise OptionValueError(f"{provider!r} can't be a provider's name")


def _check_segment(what: str, segment: str, of: str | None = None) -> None:
    if not isinstance(segment, str):
        raise OptionTypeError(f"{what} is text (str), not {type(segment).__name__}")
    if segment in ("", ".", "..") or any(c in "/?#\\% " or not c.isprintable() for c in segment):
        raise OptionValueError(f"{(segment if of is None else of)!r} can't be a {what}'s name")
