"""From a path to what is there; and the small answers that are no generation. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from millstream.testing._answers import Answer, error, json_answer, missing_route
from millstream.testing._behaviour import Api, Behaviour, Server
from millstream.testing._replies_openai import CREATED
from millstream.testing._text import split_tokens, token_id

__all__ = ["Counters", "Route", "find_route", "information"]

_GENERATION: dict[str, Api] = {
    "/": "text-generation",
    "/generate": "text-generation",
    "/generate_stream": "text-generation",
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
}
_INFORMATION = ("/v1/models", "/health", "/info", "/tokenize", "/metrics")
_PREFIXES = ("/hf-inference/models/", "/models/")


class Route(NamedTuple):
    """Where a request goes."""

    path: str
    """One of the known paths; ``/v1/models/`` for a single model."""
    api: Api | None
    """For a generation."""
    model: str | None
    """From the path."""


class Counters(NamedTuple):
    """What ``/metrics`` tells."""

    running: int
    waiting: int
    served: int


def find_route(behaviour: Behaviour, method: str, target: str) -> Route:
    """Find what is there.

    Raises:
        Refusal: there is nothing at this path, or not for this method.
    """
    path, model = _split_model(urlsplit(target).path)
    server = behaviour.server
    if path.startswith("/v1/models/") and len(path) > len("/v1/models/"):
        model, path = unquote(path.removeprefix("/v1/models/")), "/v1/models/"
    api = _GENERATION.get(path)
    if api is not None:
        if path == "/" and method in {"GET", "HEAD"} and api in behaviour.offered:
            return Route("/health", None, model)
        if api not in behaviour.offered:
            raise missing_route(server)
        if method != "POST":
            raise missing_route(server, wrong_method=True)
        return Route(path, api, model)
    if path not in {*_INFORMATION, "/v1/models/"} or (path == "/info" and server != "tgi"):
        raise missing_route(server)
    wanted = {"POST"} if path == "/tokenize" else {"GET", "HEAD"}
    if method not in wanted:
        raise missing_route(server, wrong_method=True)
    return Route(path, None, model)


def _split_model(path: str) -> tuple[str, str | None]:
    for prefix in _PREFIXES:
        if path.startswith(prefix) and len(path) > len(prefix):
            rest = path.removeprefix(prefix)
            for known in _GENERATION:
                if known != "/" and rest.endswith(known) and len(rest) > len(known):
                    return known, unquote(rest.removesuffix(known))
            for known in _INFORMATION:
                if rest.endswith(known) and len(rest) > len(known):
                    return known, unquote(rest.removesuffix(known))
            return "/", unquote(rest.rstrip("/"))
    return path or "/", None


def check_model(behaviour: Behaviour, model: str) -> None:
    """Let pass a model that is served.

    Raises:
        Refusal: this one is not.
    """
    server = behaviour.server
    if behaviour.models is None or model in behaviour.models or server == "llamacpp":
        return
    if server == "tgi" and model == "tgi":
        return
    raise unknown_model(server, model)


def unknown_model(server: Server, model: str) -> Exception:
    """404 for a model."""
    if server == "vllm":
        return error(server, 404, f"The model `{model}` does not exist.", "NotFoundError", param="model")
    refusal = error(server, 404, f"Model {model} does not exist")
    refusal.answer = json_answer(404, {"error": refusal.message})
    return refusal


def information(behaviour: Behaviour, route: Route, body: Any, counters: Counters) -> Answer:
    """The answer of a route that generates nothing.

    Raises:
        Refusal: the single model is unknown, the body of ``/tokenize`` is wrong.
    """
    if route.path == "/health":
        return json_answer(200, {"status": "ok"}) if behaviour.server == "llamacpp" else Answer(200)
    if route.path == "/v1/models":
        listed = [_model(behaviour, name) for name in behaviour.models or [behaviour.model]]
        return json_answer(200, {"object": "list", "data": listed})
    if route.path == "/v1/models/":
        name = route.model or ""
        if name not in (behaviour.models or [behaviour.model]):
            raise unknown_model(behaviour.server, name)
        return json_answer(200, _model(behaviour, name))
    if route.path == "/info":
        return json_answer(200, _info(behaviour))
    if route.path == "/tokenize":
        return _tokenize(behaviour, body)
    return _metrics(behaviour.server, counters)


def _model(behaviour: Behaviour, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": name, "object": "model", "created": CREATED, "owned_by": behaviour.server}
    if behaviour.server == "vllm":
        entry["max_model_len"] = behaviour.max_total_tokens
    return entry


def _info(behaviour: Behaviour) -> dict[str, Any]:
    return {
        "model_id": behaviour.model,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": behaviour.max_total_tokens - 1,
        "max_total_tokens": behaviour.max_total_tokens,
        "max_client_batch_size": 4,
        "router": "text-generation-router",
        "version": "3.3.6-dev0",
    }


def _tokenize(behaviour: Behaviour, body: Any) -> Answer:
    field = {"tgi": "inputs", "vllm": "prompt", "llamacpp": "content"}[behaviour.server]
    text = body.get(field) if isinstance(body, dict) else None
    if not isinstance(text, str):
        raise error(behaviour.server, 422 if behaviour.server == "tgi" else 400, f"missing field `{field}`")
    tokens = split_tokens(text)
    if behaviour.server == "tgi":
        starts = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        described = [
            {"id": token_id(token), "text": token, "start": start, "stop": start + len(token)}
            for token, start in zip(tokens, starts, strict=True)
        ]
        return json_answer(200, described)
    ids = [token_id(token) for token in tokens]
    if behaviour.server == "vllm":
        return json_answer(200, {"count": len(ids), "max_model_len": behaviour.max_total_tokens, "tokens": ids})
    if body.get("with_pieces"):
        return json_answer(200, {"tokens": [{"id": token_id(token), "piece": token} for token in tokens]})
    return json_answer(200, {"tokens": ids})


def _metrics(server: Server, counters: Counters) -> Answer:
    names = {
        "tgi": ("tgi_batch_current_size", "tgi_queue_size", "tgi_request_success"),
        "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:request_success_total"),
        "llamacpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred", "llamacpp:requests_total"),
    }[server]
    kinds = ("gauge", "gauge", "counter")
    lines = [f"# TYPE {n} {k}\n{n} {v}\n" for n, k, v in zip(names, kinds, counters, strict=True)]
    return Answer(200, "".join(lines).encode(), (("content-type", "text/plain; version=0.0.4"),))
