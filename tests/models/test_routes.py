"""Which URLs an endpoint has for which dialect."""

from __future__ import annotations

import pytest

from millstream import OptionTypeError, OptionValueError
from millstream._routes import routes_for, sibling_path

ROUTER = "https://router.huggingface.co"
BASE = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("endpoint", "chat", "completions", "text_generation"),
    [
        (BASE, "/v1/chat/completions", "/v1/completions", "/"),
        (f"{BASE}/", "/v1/chat/completions", "/v1/completions", "/"),
        (f"{BASE}/v1", "/v1/chat/completions", "/v1/completions", "/"),
        (f"{BASE}/v1/", "/v1/chat/completions", "/v1/completions", "/"),
        (f"{BASE}/llm", "/llm/v1/chat/completions", "/llm/v1/completions", "/llm"),
        (f"{BASE}/llm/v2", "/llm/v2/chat/completions", "/llm/v2/completions", "/llm"),
        (f"{BASE}/v3/openai", "/v3/openai/chat/completions", "/v3/openai/completions", "/v3/openai"),
        (f"{BASE}?tenant=a", "/v1/chat/completions?tenant=a", "/v1/completions?tenant=a", "/?tenant=a"),
    ],
)
def test_a_base_url_has_all_dialects(endpoint, chat, completions, text_generation):
    routes = routes_for(endpoint)
    assert [(route.api, route.path) for route in routes] == [
        ("chat", chat),
        ("completions", completions),
        ("text-generation", text_generation),
    ]
    assert {str(route.origin) for route in routes} == {BASE}


@pytest.mark.parametrize(
    ("endpoint", "api", "path"),
    [
        (f"{BASE}/v1/chat/completions", "chat", "/v1/chat/completions"),
        (f"{BASE}/v1/completions", "completions", "/v1/completions"),
        (f"{BASE}/generate", "text-generation", "/"),
        (f"{BASE}/x/generate_stream", "text-generation", "/x"),
    ],
)
def test_a_route_url_says_its_dialect(endpoint, api, path):
    assert [(route.api, route.path) for route in routes_for(endpoint)] == [(api, path)]
    assert routes_for(endpoint, api=api) == routes_for(endpoint)


@pytest.mark.parametrize(
    ("api", "provider", "url"),
    [
        ("auto", None, f"{ROUTER}/v1/chat/completions"),
        ("chat", "groq", f"{ROUTER}/v1/chat/completions"),
        ("completions", None, f"{ROUTER}/hf-inference/models/org/m/v1/completions"),
        ("completions", "novita", f"{ROUTER}/novita/v3/openai/completions"),
        ("completions", "together", f"{ROUTER}/together/v1/completions"),
        ("text-generation", None, f"{ROUTER}/hf-inference/models/org/m"),
    ],
)
def test_hugging_face(api, provider, url):
    assert [route.url for route in routes_for(None, api=api, model="org/m", provider=provider)] == [url]


@pytest.mark.parametrize(
    "given",
    [
        {"endpoint_url": "ftp://host"},
        {"endpoint_url": "host:80"},
        {"endpoint_url": "http://"},
        {"endpoint_url": "http://a b/"},
        {"endpoint_url": "http://host/a b"},
        {"endpoint_url": "http://host:99999"},
        {"endpoint_url": "http://user:secret@host/"},
        {"endpoint_url": "http://host\\evil/"},
        {"endpoint_url": f"{BASE}/v1/completions", "api": "chat"},
        {"endpoint_url": BASE, "api": "speech"},
        {"endpoint_url": None, "model": "../admin"},
        {"endpoint_url": None, "model": "a?b"},
        {"endpoint_url": None, "model": "a#b"},
        {"endpoint_url": None, "model": "a\nb"},
        {"endpoint_url": None, "model": ""},
        {"endpoint_url": None, "api": "completions", "provider": "a/../b"},
        {"endpoint_url": None, "api": "text-generation", "provider": "groq"},
    ],
)
def test_what_can_not_be(given):
    with pytest.raises(OptionValueError) as caught:
        routes_for(given.pop("endpoint_url"), **given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", [b"http://host", 5, ["http://host"]])
def test_wrong_types(endpoint):
    with pytest.raises(OptionTypeError):
        routes_for(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        (BASE, "/tokenize"),
        (f"{BASE}/v1", "/tokenize"),
        (f"{BASE}/llm/v1/completions", "/llm/tokenize"),
        (f"{BASE}/llm", "/llm/tokenize"),
    ],
)
def test_a_route_beside(endpoint, path):
    assert {sibling_path(route, "tokenize") for route in routes_for(endpoint)} == {path}
