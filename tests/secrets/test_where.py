"""Where a key goes, and where never; what untrusted data and odd text can't do."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import (
    AuthenticationError,
    DeserializationError,
    HuggingFaceInference,
    MissingKeyError,
    OptionTypeError,
    OptionValueError,
    StatusError,
    UntrustedEndpointError,
    UsageError,
    _config,
)
from millstream._transport._seam import Response
from millstream.testing import FakeEndpoint, Fault

from .canary import KEY, OTHER, assert_error_hides

CHAT = b'{"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}'


class Body:
    """The answer, piece by piece."""

    def __init__(self) -> None:
        self.left = [CHAT]

    async def receive(self, deadline: float = math.inf) -> bytes:
        return self.left.pop() if self.left else b""

    async def aclose(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Wire:
    """A transport that only looks: which headers would go where."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, str]]] = []

    async def send(self, request) -> Response:
        headers = {name.decode().lower(): value.decode() for name, value in request.route.headers}
        assert len(headers) == len(request.route.headers), "a header that is sent twice"
        self.sent.append((str(request.route.origin), headers))
        assert request.route.head.count(b"\r\n") == len(request.route.headers) + 2  # request line, Host
        kind = ((b"content-type", b"application/json"),)
        return Response(200, kind, stream=Body()) if request.stream else Response(200, kind, CHAT)

    async def aclose(self) -> None:
        pass


async def key_sent_to(url: str | None, **options) -> str | None:
    """What a model would send as its key."""
    wire = Wire()
    llm = HuggingFaceInference(endpoint_url=url, transport=wire, api="chat", **options)
    assert await llm.call("x") == "hi"
    ((_, headers),) = wire.sent
    return headers.get("authorization")


@pytest.mark.parametrize("url", [None, "https://llm.example.com"])
async def test_a_header_of_ones_own_is_the_only_one(url, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    for key in ({}, {"api_key": KEY}):
        own = {"authorization": f"Bearer {OTHER}", "accept": "application/json"}
        assert await key_sent_to(url, headers=own, **key) == f"Bearer {OTHER}"


OFFICIAL = [
    None,
    "https://huggingface.co",
    "https://HuggingFace.co",
    "https://router.huggingface.co/v1",
    "https://api-inference.huggingface.co/models/gpt2",
    "https://x1.us-east-1.aws.endpoints.huggingface.cloud",
    "https://x1.us-east-1.aws.endpoints.huggingface.cloud:8443/v1",
]
OTHERS = [
    "https://example.com",
    "https://huggingface.co.example.com",
    "https://evil-huggingface.co",
    "https://evilhuggingface.co",
    "https://huggingface.com",
    "https://huggingface.cloud",
    "https://endpoints.huggingface.cloud",
    "https://endpoints.huggingface.cloud.example.com",
    "https://evilendpoints.huggingface.cloud",
    "https://someone-space.hf.space",
    "https://hf.co",
    "https://127.0.0.1",
    "https://example.com/huggingface.co",
    "https://example.com/?x=.huggingface.co",
    "https://example.com#.huggingface.co",
    "http://127.0.0.1:8080",
    "http://localhost:8080",
]


@pytest.mark.parametrize("url", OFFICIAL)
async def test_a_key_from_the_environment_goes_to_hugging_face(url, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    assert await key_sent_to(url) == f"Bearer {KEY}"


@pytest.mark.parametrize("url", OTHERS)
async def test_and_to_nobody_else(url, monkeypatch):
    for name in _config.KEY_VARIABLES:
        monkeypatch.setenv(name, KEY)
    assert await key_sent_to(url) is None


@pytest.mark.parametrize(
    "url", ["http://huggingface.co", "http://router.huggingface.co", "http://x.huggingface.co:443"]
)
async def test_and_never_unencrypted(url, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    with pytest.raises(MissingKeyError) as caught:
        await key_sent_to(url)
    assert_error_hides(caught.value)
    with pytest.raises(OptionValueError, match="allow_http_key") as caught:
        await key_sent_to(url, api_key=KEY)
    assert_error_hides(caught.value)


@given(st.text(max_size=30), st.sampled_from(["http", "https", "HTTPS", "ftp", ""]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_other_name_is_official(name, scheme):
    official = name.lower().rstrip(".") == "huggingface.co" or name.lower().rstrip(".").endswith(
        (".huggingface.co", ".endpoints.huggingface.cloud")
    )
    assert _config.takes_environment_key(scheme, name) == (official and scheme == "https")
    assert not _config.takes_environment_key("https", f"{name}huggingface.com")
    assert not _config.takes_environment_key("https", f"huggingface.co{name or '.x'}x")


ORDER = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "HUGGINGFACEHUB_API_KEY")


async def test_an_endpoint_that_got_no_key_and_wants_one(endpoint, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    endpoint.api_key = "another"
    async with HuggingFaceInference(endpoint_url=endpoint.url) as llm:
        for ask in (llm.call("x"), llm.stream("x").result()):
            with pytest.raises(AuthenticationError, match=r"no key was sent.*give api_key=") as caught:
                await ask
            assert KEY not in str(caught.value)
    async with HuggingFaceInference(endpoint_url=endpoint.url, api_key=KEY) as llm:
        with pytest.raises(AuthenticationError) as caught:
            await llm.call("x")
        assert "no key was sent" not in str(caught.value)


async def test_where_a_key_is_looked_for(monkeypatch, tmp_path):
    assert ORDER == _config.KEY_VARIABLES
    file = tmp_path / "token"
    file.write_text(f"{OTHER}file\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(file))
    assert await key_sent_to(None) == f"Bearer {OTHER}file"
    for name in reversed(ORDER):
        monkeypatch.setenv(name, f" {OTHER}{name}\n")
        assert await key_sent_to(None) == f"Bearer {OTHER}{name}"
    monkeypatch.setenv("HF_TOKEN", "  ")
    assert await key_sent_to(None) == f"Bearer {OTHER}HUGGING_FACE_HUB_TOKEN"
    assert await key_sent_to(None, api_key=KEY) == f"Bearer {KEY}"
    assert await key_sent_to("https://example.com", api_key=KEY) == f"Bearer {KEY}"


async def test_the_token_file_of_the_hub(monkeypatch, tmp_path):
    (tmp_path / "token").write_text(f"{KEY}\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert await key_sent_to(None) == f"Bearer {KEY}"
    assert await key_sent_to("https://example.com") is None
    (tmp_path / "token").write_text("\n")
    with pytest.raises(MissingKeyError, match="HF_TOKEN"):
        await key_sent_to(None)
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(MissingKeyError):
        await key_sent_to(None)


async def test_an_openai_key_of_the_environment_is_not_touched(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert await key_sent_to("https://example.com") is None
    with pytest.raises(MissingKeyError):
        await key_sent_to(None)


# -- plain http --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "LOCALHOST", "[::1]"])
async def test_this_machine_gets_a_key_over_http(host):
    assert await key_sent_to(f"http://{host}:8000", api_key=KEY) == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "127.0.0.1.example.com",
        "127.example.com",
        "127.0.0.1.nip.io",
        "localhost.example.com",
        "10.0.0.1",
        "0.0.0.0",
        "128.0.0.1",
        "[::ffff:10.0.0.1]",
        "[::2]",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
    ],
)
async def test_nobody_else_does(host):
    with pytest.raises(OptionValueError, match="unencrypted") as caught:
        await key_sent_to(f"http://{host}:8000", api_key=KEY)
    assert_error_hides(caught.value)
    assert await key_sent_to(f"http://{host}:8000", api_key=KEY, allow_http_key=True) == f"Bearer {KEY}"
    assert await key_sent_to(f"http://{host}:8000") is None


# -- on the wire -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def endpoint() -> AsyncIterator[FakeEndpoint]:
    async with FakeEndpoint(reply="hi") as endpoint:
        yield endpoint


async def test_the_header_as_it_arrives(endpoint, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OTHER)
    for key, header in ((None, None), (KEY, f"Bearer {KEY}")):
        async with HuggingFaceInference(endpoint_url=endpoint.url, api_key=key) as llm:
            await llm.call("x")
            await llm.stream("x").result()
            await llm.get_num_tokens("x")
        assert {request.headers.get("authorization") for request in endpoint.requests} == {header}
        endpoint.requests.clear()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(endpoint, status, streamed):
    async with FakeEndpoint() as elsewhere:
        for target in (
            f"{elsewhere.url}/v1/chat/completions",
            f"{endpoint.url}/v1/other",
            "/v1/other",
            "//evil.example",
        ):
            endpoint.fail(Fault.status(status, headers={"location": target}))
            async with HuggingFaceInference(endpoint_url=endpoint.url, api_key=KEY, api="chat") as llm:
                with pytest.raises(StatusError) as caught:
                    await (llm.stream("x").result() if streamed else llm.call("x"))
            assert caught.value.status_code == status
            assert "127.0.0.1" in str(caught.value) or "evil.example" in str(caught.value)
            assert_error_hides(caught.value)
        assert elsewhere.requests == []
        assert len(endpoint.requests) == 4  # nothing was sent twice


# -- text that would break out of its place ----------------------------------------------------------------------------

TEXT = st.text(max_size=20) | st.text(st.sampled_from("a/-.:?#@%\\ \r\n\t\0\x7f\u2028é\u212a"), max_size=12)


def attempt(**options) -> list[tuple[str, dict[str, str]]]:
    """What is sent with these options: one request, or nothing and an error of ours."""
    wire = Wire()

    async def main() -> None:
        llm = HuggingFaceInference(transport=wire, api_key=KEY, **options)
        await llm.call("x")

    try:
        anyio.run(main)
    except UsageError as error:
        assert_error_hides(error)
        assert wire.sent == []
    return wire.sent


@given(TEXT, TEXT)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_headers_stay_headers(name, value):
    for _, headers in attempt(headers={name: value}, api="chat"):
        assert headers[name.lower()] == value.strip(" \t")
        assert set(headers) <= {"user-agent", "content-type", "accept", "authorization", name.lower()}


@given(TEXT)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_names_stay_names(text):
    for _, headers in attempt(bill_to=text, api="chat"):
        assert headers["x-hf-bill-to"] == text.strip(" ")
    for origin, _ in attempt(model=text, api="completions"):
        assert origin == "https://router.huggingface.co"
    for origin, _ in attempt(provider=text, api="completions"):
        assert origin == "https://router.huggingface.co"


@given(TEXT)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_url_stays_a_url(text):
    for origin, _ in attempt(endpoint_url=f"https://llm.example/{text}"):
        assert origin == "https://llm.example"
    attempt(endpoint_url=f"https://{text}", api="chat")
    attempt(endpoint_url=text, api="chat")


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "a b", "", "a:b", "a\r\nb", "é"])
def test_names_that_no_header_may_have_here(name):
    with pytest.raises(OptionValueError, match="name of a header"):
        HuggingFaceInference(headers={name: "1"})


# -- data that is not trusted ------------------------------------------------------------------------------------------

NASTY = [
    "https://evil.example",
    "https://EVIL.example",
    "https://good.example@evil.example",
    "https://good.example:pass@evil.example",
    "https://evil.example#good.example",
    "https://evil.example?good.example",
    "https://evil.example/good.example",
    "https://evil.example\\@good.example",
    "https://good.example\\.evil.example",
    "https://good.example.evil.example",
    "https://evilgood.example",
    "https://good.example%2eevil.example",
    "https://good.example%00.evil.example",
    "https://good.example\x00.evil.example",
    "https://good.example\r\n.evil.example",
    "https://good.example\t.evil.example",
    "https://good.example .evil.example",
    "https://good.example:0",
    "https://good.example:99999",
    "https://good.example:-1",
    "https://good.example:a",
    "https://good.example\uff0eevil.example",
    "https://good.example\u3002evil.example",
    "https://go\u00f6d.example",
    "https://127.0.0.1",
    "https://2130706433",
    "https://0x7f.1",
    "https://0177.0.0.1",
    "https://127.1",
    "https://[::1]",
    "https://[::ffff:127.0.0.1]",
    "https://[::ffff:7f00:1]",
    "https://[fe80::1%25eth0]",
    "https://[::1",
    "https://169.254.169.254/latest/meta-data",
    "http://metadata.google.internal",
    "//evil.example",
    "https:///evil.example",
    "https:evil.example",
    "https://",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    " https://good.example",
    "",
    "LOCAL",
    5,
    [],
    {"lc": 1, "type": "secret", "id": ["HF_TOKEN"]},
]


@pytest.mark.parametrize("url", NASTY)
@pytest.mark.parametrize("key", [None, KEY])
def test_an_endpoint_in_the_data_is_refused(url, key, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OTHER)
    data = {"_type": "huggingface_hub", "_model": "base_llm", "endpoint_url": url}
    with pytest.raises(DeserializationError) as caught:
        HuggingFaceInference.deserialize(data, allowed_hosts=["good.example"], api_key=key)
    assert_error_hides(caught.value)
    with pytest.raises(DeserializationError):
        HuggingFaceInference.deserialize(json.dumps(data), api_key=key)


@pytest.mark.parametrize("url", ["https://good.example", "https://GOOD.example:8443/v1", "http://good.example"])
async def test_an_allowed_endpoint_gets_no_key_of_the_environment(url, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    data = {"_type": "hf", "_model": "base_llm", "endpoint_url": url}
    with pytest.raises(UntrustedEndpointError):
        HuggingFaceInference.deserialize(data)
    llm = HuggingFaceInference.deserialize(data, allowed_hosts=["Good.Example"])
    assert llm._sites[0].authorization() == []
    again = HuggingFaceInference.deserialize(llm.serialize(), allowed_hosts=["good.example"])
    assert again._sites[0].authorization() == []


@pytest.mark.parametrize("url", ["https://huggingface.co", "https://x.endpoints.huggingface.cloud"])
def test_not_even_hugging_face_does(url, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    host = url.removeprefix("https://")
    llm = HuggingFaceInference.deserialize({"_type": "hf", "endpoint_url": url}, allowed_hosts=[host])
    with pytest.raises(MissingKeyError):
        llm._sites[0].authorization()
    with_key = HuggingFaceInference.deserialize(
        {"_type": "hf", "endpoint_url": url}, allowed_hosts=[host], api_key=OTHER
    )
    assert with_key._sites[0].authorization() == [("Authorization", f"Bearer {OTHER}")]


async def test_data_without_an_endpoint_uses_the_key_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    llm = HuggingFaceInference.deserialize({"_type": "huggingface_hub", "_model": "base_llm"})
    assert llm._sites[0].authorization() == [("Authorization", f"Bearer {KEY}")]


STRANGE = [
    {"lc": 1, "type": "secret", "id": ["HF_TOKEN"]},
    {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": "true"}},
    {"__class__": "os.system"},
    {"env": "HF_TOKEN"},
    {"$ref": "file:///etc/passwd"},
    ["${HF_TOKEN}"],
    {"__reduce__": ["os.system", ["true"]]},
]
FIELDS = ("model", "provider", "api", "bill_to", "temperature", "max_tokens", "top_p", "stop_sequences", "seed", "n")
FORBIDDEN = (
    "api_key", "headers", "proxy", "verify", "transport", "http_client", "allow_http_key", "callbacks", "cache",
    "caller", "tokenizer", "http2", "verbose", "metadata", "__class__", "self", "cls", "max_concurrency", "deadlines",
)  # fmt: skip


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("field", FIELDS)
def test_objects_in_the_data_are_refused(field, value):
    data = {"_type": "huggingface_hub", "_model": "base_llm", field: value}
    if field == "stop_sequences" and isinstance(value, list):
        assert HuggingFaceInference.deserialize(data).options.stops == ("${HF_TOKEN}",)  # a text is a text
        return
    with pytest.raises(DeserializationError):
        HuggingFaceInference.deserialize(data)


@pytest.mark.parametrize("field", ["response_format", "extra_body", "tools", "tool_choice"])
@pytest.mark.parametrize("value", STRANGE)
def test_objects_where_objects_belong_are_only_data(field, value, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    wanted = [value] if field == "tools" else value
    data = {"_type": "huggingface_hub", "_model": "base_llm", field: wanted}
    if isinstance(value, list):
        with pytest.raises(DeserializationError):
            HuggingFaceInference.deserialize(data)
        return
    llm = HuggingFaceInference.deserialize(data)
    assert llm.serialize()[field] == wanted
    assert KEY not in json.dumps(llm.serialize())


@pytest.mark.parametrize("field", FORBIDDEN)
def test_fields_that_data_may_not_have(field):
    with pytest.raises(DeserializationError, match="no field"):
        HuggingFaceInference.deserialize({"_type": "hf", "_model": "base_llm", field: True})


@pytest.mark.parametrize("data", ["", "{", "[]", "5", "null", b"\xff", '"hf"', "[" * 100_000, "{}", '{"_type": {}}'])
def test_data_that_is_no_model(data):
    with pytest.raises(DeserializationError):
        HuggingFaceInference.deserialize(data)


@pytest.mark.parametrize("hosts", ["good.example", [5], [None], b"good.example"])
def test_allowed_hosts_are_a_list_of_names(hosts):
    with pytest.raises(OptionTypeError, match="allowed_hosts"):
        HuggingFaceInference.deserialize({"_type": "hf", "endpoint_url": "https://g"}, allowed_hosts=hosts)
