"""Several endpoints, or several providers, behind one model."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from millstream import (
    AdaptiveConcurrency,
    AsyncCaller,
    AuthenticationError,
    BadRequestError,
    DeserializationError,
    Endpoint,
    HuggingFaceInference,
    InMemoryCache,
    LLMResult,
    MillstreamError,
    MissingKeyError,
    ModelNotFoundError,
    NotFoundError,
    OptionTypeError,
    OptionValueError,
    ProtocolError,
    RetryPolicy,
    UntrustedEndpointError,
)
from millstream._origin import Origin
from millstream._transport import PoolTransport
from millstream._transport._seam import Request, Response, Route
from millstream.testing import FakeEndpoint, Fault, Latency

from ..conftest import manual_socket_backends

manual = pytest.mark.parametrize("anyio_backend", manual_socket_backends())
KEY, OTHER = "hf_key0of0the0model", "hf_key0of0one0endpoint"
SOME = Latency(first_token=0.05)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeEndpoint, FakeEndpoint]]:
    async with FakeEndpoint(reply="first") as first, FakeEndpoint(reply="second") as second:
        yield first, second


def at(*endpoints: FakeEndpoint, **options: Any) -> HuggingFaceInference:
    return HuggingFaceInference(**{"endpoints": [each.url for each in endpoints], "api": "chat", **options})


def host_of(endpoint: FakeEndpoint) -> str:
    return endpoint.url.removeprefix("http://")


def keys_at(endpoint: FakeEndpoint) -> set[str | None]:
    return {request.headers.get("authorization") for request in endpoint.requests}


async def texts(llm: HuggingFaceInference, number: int) -> Counter[str]:
    result = await llm.generate([f"p{i}" for i in range(number)])
    return Counter(each[0].text for each in result.generations)


def assert_quiet(llm: HuggingFaceInference) -> None:
    now = llm.caller.statistics()
    assert (now.in_flight, now.waiting, now.backing_off) == (0, 0, 0)


# -- where calls go ----------------------------------------------------------------------------------------------------


async def test_load_is_spread_evenly_over_equals(pair):
    for each in pair:
        each.latency = SOME
    async with at(*pair, max_concurrency=8) as llm:
        assert await texts(llm, 8) == {"first": 4, "second": 4}
        assert_quiet(llm)


@manual
async def test_load_is_spread_by_what_each_has_room_for(pair):
    for each, slots in zip(pair, (2, 16), strict=True):
        each.slots, each.latency = slots, Latency(first_token=0.5, inter_token=0.1)
    async with at(*pair) as llm:
        found = await texts(llm, 150)
        assert found.total() == 150
        assert found["second"] > 3 * found["first"] > 0
        assert_quiet(llm)


async def test_streams_are_spread_too(pair):
    async with at(*pair, max_concurrency=4) as llm:
        async with llm.stream("x") as one, llm.stream("y") as other:
            found = [(await anext(aiter(each))).text for each in (one, other)]
        assert found == ["first", "second"]
        async with llm.stream_many(["x"] * 6) as events:
            ends = [event.outcome async for event in events if event.outcome is not None]
        assert len(ends) == 6
        assert all(outcome.error is None for outcome in ends)
        async with llm.map(["x"] * 6) as outcomes:
            assert len([outcome async for outcome in outcomes]) == 6
        assert_quiet(llm)


async def test_statistics_show_a_window_for_each(pair):
    caller = AsyncCaller(max_concurrency=4)
    async with at(*pair, model="org/m", caller=caller) as llm:
        await texts(llm, 4)
        assert set(llm.caller.statistics().windows) == {f"{host_of(each)} org/m" for each in pair}
    async with at(pair[0]) as llm:
        await llm.call("x")
        assert set(llm.caller.statistics().windows) == {""}, "alone it needs no name"


async def test_each_has_a_dialect_and_a_model_of_its_own():
    async with AsyncExitStack() as stack:
        chat = await stack.enter_async_context(FakeEndpoint(apis=["chat"], reply="chat", models=["a"]))
        plain = await stack.enter_async_context(FakeEndpoint(apis=["completions"], reply="plain", models=["b"]))
        own = await stack.enter_async_context(FakeEndpoint(apis=["text-generation"], reply="own"))
        for each in (chat, plain, own):
            each.latency = SOME
        endpoints = [chat.url, Endpoint(plain.url, model="b"), Endpoint(own.url, api="text-generation")]
        async with HuggingFaceInference("a", endpoints=endpoints, max_concurrency=3) as llm:
            assert await texts(llm, 3) == {"chat": 1, "plain": 1, "own": 1}
            assert await texts(llm, 3) == {"chat": 1, "plain": 1, "own": 1}
            assert len(own.requests) == 2, "a dialect that is named is the only one that is tried"
            assert [request.path for request in plain.requests].count("/v1/completions") == 2
            assert {request.body["model"] for request in plain.requests} == {"b"}


async def test_a_model_of_ones_own_that_asks_ours_goes_everywhere_too(pair):
    class Shouting(HuggingFaceInference):
        async def _generate(self, prompt, options, run):
            result = await super()._generate(prompt, options, run)
            assert result.text in ("first", "second")
            return result

    for each in pair:
        each.latency = SOME
    async with Shouting(endpoints=[each.url for each in pair], api="chat", max_concurrency=8) as llm:
        assert await texts(llm, 8) == {"first": 4, "second": 4}


async def test_tokens_are_counted_by_the_first(pair):
    async with at(*pair) as llm:
        count = await llm.get_num_tokens("one two")
        assert (count, count.exact) == (2, True)
        assert [request.path for request in pair[0].requests] == ["/tokenize"]


# -- where one fails ---------------------------------------------------------------------------------------------------


@manual
@pytest.mark.parametrize("fault", [Fault.status(503), Fault.status(500), Fault.disconnect(), Fault.status(429)])
async def test_one_that_fails_is_left_alone_until_it_works_again(pair, fault):
    first, second = pair
    for each in pair:
        each.latency = Latency(first_token=0.5)
    async with at(*pair, max_concurrency=8) as llm:
        assert set(await texts(llm, 8)) == {"first", "second"}
        first.outage(math.inf, fault)
        asked = len(first.requests)
        assert await texts(llm, 100) == {"second": 100}
        assert len(first.requests) - asked < 25, "it was not asked each time"
        first.outage(0)
        await anyio.sleep(15)
        await texts(llm, 40)
        assert (await texts(llm, 40))["first"] >= 4, "it is back"
        assert_quiet(llm)


async def test_one_that_is_closed_loses_nothing():
    outcomes: list[Any] = []

    async def ask(llm: HuggingFaceInference) -> None:
        async with llm.map([f"p{i}" for i in range(60)]) as found:
            outcomes.extend([outcome async for outcome in found])

    async with FakeEndpoint(reply="second", latency=SOME) as second, anyio.create_task_group() as group:
        async with FakeEndpoint(reply="first", latency=SOME) as first:
            llm = at(first, second, max_concurrency=8)
            group.start_soon(ask, llm)
            await first.wait_for(lambda: first.generating >= 2)
        await second.wait_for(lambda: second.served + second.in_flight >= 50)
    await llm.aclose()
    assert len(outcomes) == 60
    assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
    assert {outcome.result.text for outcome in outcomes} <= {"first", "second"}
    assert_quiet(llm)


async def test_one_that_was_never_there(pair):
    gone = FakeEndpoint()
    async with gone:
        pass
    async with at(gone, pair[1]) as llm:
        assert await texts(llm, 20) == {"second": 20}
        assert (await llm.stream("x").result()).text == "second"
        assert_quiet(llm)


@manual
@pytest.mark.parametrize(
    "wrong", [{"api_key": "another"}, {"models": ["other"]}, {"apis": ["completions"]}], ids=["401", "404", "route"]
)
async def test_one_that_can_not_serve_is_left_out_for_a_minute(pair, wrong):
    first, second = pair
    for name, value in wrong.items():
        setattr(first, name, value)
    async with at(*pair, model="org/m", max_concurrency=8) as llm:
        assert await llm.call("x") == "second"
        assert (await llm.stream("x").result()).text == "second"
        assert await texts(llm, 20) == {"second": 20}
        assert len(first.requests) == 1
        first.api_key, first.models, first.apis = None, None, None
        await anyio.sleep(70)
        for each in pair:
            each.latency = SOME
        await texts(llm, 30)
        assert (await texts(llm, 8))["first"] == 4
        assert_quiet(llm)


@manual
async def test_one_that_has_no_replica_up_holds_no_call_and_joins_later(pair):
    first, second = pair
    first.scale_up = 300.0
    for each in pair:
        each.latency = Latency(first_token=2)
    async with at(*pair, max_concurrency=8) as llm:
        with anyio.fail_after(120):
            assert await texts(llm, 150) == {"second": 150}
        assert len(first.requests) > 8, "it was asked now and then meanwhile"
        await anyio.sleep(300)
        await texts(llm, 40)
        assert (await texts(llm, 40))["first"] >= 4, "it is back"
        assert_quiet(llm)


async def test_an_error_of_the_request_is_not_tried_elsewhere(pair):
    for each in pair:
        each.max_total_tokens = 4
    async with at(*pair) as llm:
        for ask in (llm.call, lambda text: llm.stream(text).result()):
            with pytest.raises(BadRequestError) as caught:
                await ask("one two three four five")
            assert caught.value.attempts == 1
        assert sum(len(each.requests) for each in pair) == 2
        assert_quiet(llm)


async def test_where_all_fail_the_last_error_is_told(pair):
    first, second = pair
    first.models, second.api_key = ["other"], "another"
    async with at(*pair, model="org/m") as llm:
        with pytest.raises(AuthenticationError, match="no key was sent") as caught:
            await llm.call("x")
        assert caught.value.attempts == 2
        with anyio.fail_after(5):
            with pytest.raises(MillstreamError):
                await llm.generate(["x"] * 10)
            async with llm.map(["x"] * 10) as outcomes:
                assert {type(outcome.error) async for outcome in outcomes} <= {AuthenticationError, ModelNotFoundError}
        assert_quiet(llm)


async def test_no_retry_of_any_kind_is_none_elsewhere_either(pair):
    pair[0].api_key = "another"
    async with at(*pair, max_retries=0) as llm:
        with pytest.raises(AuthenticationError):
            await llm.call("x")
        assert pair[1].requests == []


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_keys_never_cross(pair, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    first, second = pair
    for each in pair:
        each.latency = SOME
    endpoints = [first.url, Endpoint(second.url, api_key=OTHER)]
    async with HuggingFaceInference(endpoints=endpoints, api_key=KEY, max_concurrency=4) as llm:
        assert set(await texts(llm, 8)) == {"first", "second"}
        first.api_key = "wrong"
        await texts(llm, 8)
        await llm.get_num_tokens("x")
    assert (keys_at(first), keys_at(second)) == ({f"Bearer {KEY}"}, {f"Bearer {OTHER}"})
    for each in pair:
        each.requests.clear()
    first.api_key = None
    async with HuggingFaceInference(endpoints=endpoints, max_concurrency=4) as llm:
        await texts(llm, 8)
    assert (keys_at(first), keys_at(second)) == ({None}, {f"Bearer {OTHER}"})


async def test_a_mistake_at_one_is_told_at_every_call(pair):
    async with at(pair[0], endpoints=[pair[0].url, "https://router.huggingface.co/v1"]) as llm:
        for _ in range(2):
            with pytest.raises(MissingKeyError):
                await llm.call("x")
    async with at(pair[0], endpoints=[pair[0].url, "http://llm.example"], api_key=KEY) as llm:
        for _ in range(2):
            with pytest.raises(OptionValueError, match="unencrypted") as caught:
                await llm.call("x")
            assert KEY not in str(caught.value)
    assert pair[0].requests == []


def test_a_key_is_in_nothing_that_is_shown_or_kept():
    endpoint = Endpoint("https://a.example/v1", model="org/m", api_key=OTHER, api="chat")
    assert repr(endpoint) == "Endpoint('https://a.example/v1', model='org/m', api='chat')"
    llm = HuggingFaceInference(endpoints=[endpoint, "https://b.example"], api_key=KEY)
    shown = [
        repr(llm),
        repr(endpoint),
        json.dumps(llm.serialize()),
        repr(vars(llm)),
        repr(llm._invocation_params(llm.options)),
    ]
    shown += [
        pickle.dumps(llm).decode("latin-1"),
        pickle.dumps(endpoint).decode("latin-1"),
        llm._credential_fingerprint(),
    ]
    for text in shown:
        assert OTHER not in text
        assert KEY not in text
    for again in (pickle.loads(pickle.dumps(llm)), copy.copy(llm), copy.deepcopy(llm)):
        assert again.serialize() == llm.serialize()
        assert [site.credential() for site in again._sites] == [None, None]
    assert copy.deepcopy(endpoint).describe() == endpoint.describe()


@pytest.mark.parametrize("key", ["", 5, "a b", "a\nb"])
def test_a_key_that_can_not_be_is_not_told(key):
    with pytest.raises((OptionTypeError, OptionValueError)) as caught:
        Endpoint("https://a.example", api_key=key)
    assert "a b" not in str(caught.value)


# -- lanes of callers that are shared ----------------------------------------------------------------------------------


def lanes_of(caller: AsyncCaller, **options: Any) -> tuple[str, ...]:
    return HuggingFaceInference(caller=caller, **options)._lanes


def test_models_of_one_caller_share_what_is_the_same_and_nothing_else():
    caller = AsyncCaller()
    url = "https://llm.example/v1"
    assert lanes_of(caller, endpoint_url=url, model="org/m") == ("llm.example org/m",)
    assert lanes_of(caller, endpoint_url="https://llm.example", model="org/m", api="chat") == ("llm.example org/m",)
    assert lanes_of(caller, endpoint_url=url, model="org/n") == ("llm.example org/n",)
    assert lanes_of(caller, endpoint_url=url) == ("llm.example",)
    assert lanes_of(caller, endpoint_url="https://llm.example:8443/a/v1") == ("llm.example:8443/a",)
    ((other,), (again,)) = (lanes_of(caller, endpoint_url=url, model="org/m", api_key=KEY) for _ in range(2))
    assert other == again != "llm.example org/m"
    assert other.startswith("llm.example org/m (")
    assert KEY not in other
    assert lanes_of(AsyncCaller(), endpoint_url=url, model="org/m", api_key=KEY) == ("llm.example org/m",)
    assert lanes_of(caller, model="org/m", provider="groq", api_key=KEY) == ("router.huggingface.co org/m:groq",)
    assert lanes_of(caller, endpoint_url="local") == ("local",)


def test_one_endpoint_with_two_keys_or_two_queries_has_two_lanes():
    url = "https://llm.example"
    llm = HuggingFaceInference(endpoints=[Endpoint(url, api_key=KEY), Endpoint(url, api_key=OTHER)])
    assert len(set(llm._lanes)) == 2
    assert llm._lanes[0] == "llm.example"
    llm = HuggingFaceInference(endpoints=[f"{url}?deployment=secret", f"{url}?deployment=other"])
    assert llm._lanes == ("llm.example", "llm.example #2")


@manual
async def test_two_models_at_one_caller_and_endpoint_share_a_window(pair):
    first, _ = pair
    caller = AsyncCaller()
    first.fail(Fault.status(429, headers={"retry-after": "0.05"}))
    for _ in range(2):
        async with HuggingFaceInference("org/m", endpoint_url=first.url, api="chat", caller=caller) as llm:
            await llm.call("x")
    ((lane, window),) = caller.statistics().windows.items()
    assert (lane, window.rejected) == (f"{host_of(first)} org/m", 1)


async def test_stated_limits_reach_the_window_of_their_endpoint(pair):
    first, second = pair
    first.headers = {"ratelimit": '"api";r=50;t=10', "ratelimit-policy": '"api";q=100;w=60'}
    for each in pair:
        each.latency = SOME
    async with at(*pair, max_concurrency=4) as llm:
        await texts(llm, 4)
        windows = llm.caller.statistics().windows
    assert windows[host_of(first)].pace is not None
    assert windows[host_of(second)].pace is None


# -- options -----------------------------------------------------------------------------------------------------------

A, B = "https://a.example", "https://b.example/v1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoints": []}, "endpoints is empty"),
        ({"endpoints": A}, r"endpoints is a list: \["),
        ({"endpoints": {A: 1}}, "endpoints is a list"),
        ({"endpoints": 5}, "endpoints is a list"),
        ({"endpoints": [A, 5]}, "URLs .* and Endpoint"),
        ({"endpoints": [A, None]}, "URLs .* and Endpoint"),
        ({"endpoints": [A, "b.example"]}, "starts with http"),
        ({"endpoints": [A, ""]}, "starts with http"),
        ({"endpoints": [A, f"{A}/"]}, r"a\.example twice"),
        ({"endpoints": [A, f"{A}/v1"]}, r"a\.example twice"),
        ({"endpoints": [A, Endpoint(A, api_key=KEY)], "api_key": KEY}, r"a\.example twice"),
        ({"endpoints": [A], "endpoint_url": B}, "endpoints and endpoint_url .* put it into the list"),
        ({"endpoints": [A], "provider": "groq"}, "endpoints and provider"),
        ({"endpoints": [f"{A}/v1/completions"], "api": "chat"}, "completions route"),
        ({"provider": []}, "provider is an empty list"),
        ({"provider": ["groq", "groq"]}, "twice"),
        ({"provider": ["groq", "fastest"]}, "'fastest' stands alone"),
        ({"provider": ["any"]}, "'any' stands alone"),
        ({"provider": ["groq", 5]}, "list of texts"),
        ({"provider": ["a/../b"]}, "can't be a provider's name"),
        ({"provider": {"groq": 1}}, "provider is"),
        ({"provider": "any", "endpoint_url": A}, "leave endpoint_url out"),
        ({"provider": ["groq", "novita"], "endpoint_url": A}, "leave endpoint_url out"),
        ({"provider": "any", "api": "completions"}, "api='chat'"),
        ({"provider": "any", "model": "org/m:groq"}, "names its provider already"),
    ],
)
def test_options_that_can_not_be(options, message):
    with pytest.raises((OptionValueError, OptionTypeError), match=message) as caught:
        HuggingFaceInference(**options)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", [None, 5, "", "ftp://a", "http://u:p@a.example"])
def test_an_endpoint_is_checked_where_it_is_made(url):
    with pytest.raises((OptionTypeError, OptionValueError)):
        Endpoint(url)
    with pytest.raises(OptionValueError):
        Endpoint(A, api="speech")
    with pytest.raises(OptionValueError):
        Endpoint(A, model="../x")


def test_endpoints_go_before_the_environment(monkeypatch):
    monkeypatch.setenv("MILLSTREAM_ENDPOINT_URL", B)
    llm = HuggingFaceInference(endpoints=[A])
    assert [str(site.routes[0].origin) for site in llm._sites] == [A]


async def test_the_cache_tells_endpoints_apart(pair):
    cache = InMemoryCache()
    first, second = pair
    for endpoints in ([first], [second], [first, second], [first, second]):
        async with at(*endpoints, cache=cache) as llm:
            await llm.call("x")
    assert len(first.requests) + len(second.requests) == 3
    async with at(endpoints=[Endpoint(first.url, model="b"), second.url], cache=cache) as llm:
        await llm.call("x")
    assert len(first.requests) + len(second.requests) == 4


# -- serialization -----------------------------------------------------------------------------------------------------


def test_the_round_trip_has_urls_and_no_keys(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    own = Endpoint("https://x.endpoints.huggingface.cloud", model="org/n", api_key=OTHER)
    llm = HuggingFaceInference("org/m", endpoints=[A, B, own], temperature=0.5)
    data = llm.serialize()
    assert data["endpoints"] == [A, B, {"url": own.url, "model": "org/n"}]
    hosts = ["a.example", "b.example", "x.endpoints.huggingface.cloud"]
    again = HuggingFaceInference.deserialize(json.dumps(data), allowed_hosts=hosts)
    assert again.serialize() == data
    assert repr(again) == repr(llm)
    with pytest.raises(MissingKeyError):
        again._sites[2].credential()  # data that names endpoints gets no key of the environment
    with_key = HuggingFaceInference.deserialize(data, allowed_hosts=hosts, api_key=OTHER)
    assert all(site.credential() is not None for site in with_key._sites)
    for missing in range(3):
        with pytest.raises(UntrustedEndpointError, match=r"allowed_hosts="):
            HuggingFaceInference.deserialize(data, allowed_hosts=hosts[:missing] + hosts[missing + 1 :])
    data = HuggingFaceInference("org/m", provider=["groq", "novita"]).serialize()
    assert data["provider"] == ["groq", "novita"]
    assert HuggingFaceInference.deserialize(data).serialize() == data


@pytest.mark.parametrize(
    "endpoints",
    [
        [],
        5,
        A,
        {"url": A},
        [5],
        [None],
        [[A]],
        [{"url": A, "api_key": KEY}],
        [{"url": A, "lc": 1}],
        [{"model": "x"}],
        [{}],
        [{"url": A, "api": "speech"}],
        [{"url": A, "model": 5}],
        [A, A],
        ["https://a.example@evil.example"],
        ["https://evil.example#a.example"],
        [{"url": "https://evil.example"}],
        [{"url": ["https://evil.example"]}],
    ],
    ids=str,
)
def test_endpoints_in_data_that_are_refused(endpoints):
    with pytest.raises(DeserializationError) as caught:
        HuggingFaceInference.deserialize({"_type": "hf", "endpoints": endpoints}, allowed_hosts=["a.example"])
    assert KEY not in str(caught.value)


# -- providers ---------------------------------------------------------------------------------------------------------


def listed(**states: str) -> dict[str, Any]:
    return {"id": "org/m", "providers": [{"provider": name, "status": state} for name, state in states.items()]}


class Router:
    """Hugging Face's router as a transport: its list of models, and an endpoint on this machine for each provider."""

    def __init__(self, of_one: Any = None, of_all: Any = None, **providers: FakeEndpoint) -> None:
        self.lists = {"/v1/models/org/m": of_one, "/v1/models": of_all}
        self.providers = providers
        self.asked: list[str] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.failures: list[Response] = []
        self._pool = PoolTransport()

    async def send(self, request: Request) -> Response:
        route = request.route
        assert str(route.origin) == "https://router.huggingface.co"
        self.headers.append(dict(route.headers))
        if route.method == "GET":
            self.asked.append(route.target)
            await anyio.sleep(0)
            if self.failures:
                return self.failures.pop(0)
            answer = self.lists[route.target]
            return answered(404, {"error": "no"}) if answer is None else answered(200, answer)
        name = json.loads(request.body)["model"].partition(":")[2]
        target = Origin("http", "127.0.0.1", int(self.providers[name].url.rpartition(":")[2]))
        lines = [(key.decode(), value.decode()) for key, value in route.headers]
        at_provider = Route(route.method, target, route.target, lines)
        return await self._pool.send(
            Request(at_provider, request.body, stream=request.stream, timeouts=request.timeouts)
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def answered(status: int, value: Any) -> Response:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Response(status, ((b"content-type", b"application/json"),), body)


@pytest.fixture
async def router(pair) -> AsyncIterator[Router]:
    router = Router(listed(groq="live", novita="staging", together="live"), groq=pair[0], together=pair[1])
    yield router
    await router.aclose()


def through(router: Router, provider: Any = "any", **options: Any) -> HuggingFaceInference:
    options = {"api_key": KEY, **options}
    return HuggingFaceInference("org/m", provider=provider, transport=router, **options)


async def test_several_providers_are_tried_by_load_and_in_order(router, pair):
    async with through(router, ["groq", "together"], max_concurrency=8) as llm:
        assert await llm.call("x") == "first"
        for each in pair:
            each.latency = SOME
        assert await texts(llm, 8) == {"first": 4, "second": 4}
        assert {request.body["model"] for request in pair[1].requests} == {"org/m:together"}
        assert set(llm.caller.statistics().windows) == {
            "router.huggingface.co org/m:groq",
            "router.huggingface.co org/m:together",
        }
        pair[0].outage(math.inf, Fault.status(404))
        assert await texts(llm, 8) == {"second": 8}
        assert router.asked == []


async def test_one_provider_in_a_list_is_that_provider(router, pair):
    async with through(router, ["together"]) as llm:
        assert await llm.call("x") == "second"
        assert llm._lanes == ("",)


async def test_any_provider_is_any_that_is_live_in_the_order_of_the_router(router, pair):
    async with through(router, max_concurrency=8) as llm:
        for each in pair:
            each.latency = SOME
        assert await texts(llm, 8) == {"first": 4, "second": 4}
        assert await texts(llm, 8) == {"first": 4, "second": 4}
        assert (await llm.stream("x").result()).text == "first"
        assert router.asked == ["/v1/models/org/m"], "once for the life of the model, however many ask at once"
        assert llm._lanes == ("router.huggingface.co org/m:groq", "router.huggingface.co org/m:together")
        assert {line.get(b"Authorization") for line in router.headers} == {f"Bearer {KEY}".encode()}
        assert_quiet(llm)


@pytest.mark.parametrize("ask", ["map", "stream_many", "stream", "call"])
async def test_the_first_call_may_be_any(router, ask):
    async with through(router) as llm:
        if ask == "call":
            assert await llm.call("x") == "first"
        elif ask == "stream":
            assert (await llm.stream("x").result()).text == "first"
        else:
            async with getattr(llm, ask)(["x"] * 5) as found:
                assert [each async for each in found if getattr(each, "error", None)] == []
        assert router.asked == ["/v1/models/org/m"]
        assert_quiet(llm)


@manual
async def test_as_many_are_in_flight_as_the_providers_have_room_for(router, pair):
    most = 0

    def answer(prompt: str) -> str:
        nonlocal most
        most = max(most, sum(each.in_flight for each in pair))
        return prompt

    for each in pair:
        each.latency, each.reply = Latency(first_token=0.5), answer
    async with through(router, max_concurrency=AdaptiveConcurrency(start=1)) as llm, llm.map(["x"] * 80) as outcomes:
        assert len([outcome async for outcome in outcomes]) == 80
    assert most > 6


@pytest.mark.parametrize("shape", ["of one", "data of one", "of all"])
async def test_shapes_of_the_list(pair, shape):
    entry = listed(together="live", groq="live")
    of_one = {"of one": entry, "data of one": {"data": entry}, "of all": None}[shape]
    other = {"id": "org/other", "providers": [{"provider": "groq", "status": "live"}]}
    router = Router(of_one, {"object": "list", "data": [other, entry]}, groq=pair[0], together=pair[1])
    async with through(router) as llm:
        assert await llm.call("x") == "second"
    assert router.asked == ["/v1/models/org/m", "/v1/models"][: 2 if shape == "of all" else 1]
    await router.aclose()


@pytest.mark.parametrize(
    ("of_one", "of_all", "error", "message"),
    [
        (listed(novita="staging"), None, ModelNotFoundError, r"no provider serves 'org/m' at the moment: novita \(sta"),
        (None, {"data": [{"id": "org/other", "providers": []}]}, ModelNotFoundError, "none is listed"),
        (None, None, NotFoundError, "could not be found out"),
        (b"<html>", None, ProtocolError, "could not be found out"),
        (None, b"[1]", ProtocolError, "could not be found out"),
        ({"id": "org/m", "providers": [{"provider": "a/../b"}, {"provider": 5}, 6]}, None, ModelNotFoundError, "none"),
    ],
)
async def test_nobody_to_ask_is_one_clear_error(of_one, of_all, error, message):
    router = Router(of_one, of_all)
    policy = RetryPolicy(transient_base=0.0)
    async with through(router, caller=AsyncCaller(retry_policy=policy)) as llm:
        for ask in (llm.call("x"), llm.generate(["x", "y"]), llm.stream("x").result()):
            with pytest.raises(error, match=message) as caught:
                await ask
            assert KEY not in str(caught.value)
        assert_quiet(llm)
    await router.aclose()


@manual
async def test_the_router_is_asked_again_where_that_helps(router):
    router.failures = [answered(429, {"error": "slow"}), answered(500, {"error": "x"})]
    policy = RetryPolicy(transient_base=0.0, overload_base=0.0)
    async with through(router, caller=AsyncCaller(retry_policy=policy, random=lambda: 0.0)) as llm:
        assert await llm.call("x") == "first"
    assert len(router.asked) == 3


async def test_a_wrong_key_is_told(router):
    router.failures = [answered(401, {"error": f"Invalid: {KEY}"})]
    async with through(router) as llm:
        with pytest.raises(AuthenticationError, match="who serves 'org/m' could not be found out") as caught:
            await llm.call("x")
        assert KEY not in f"{caught.value} {caught.value.body}"
        assert await llm.call("x") == "first", "the next call asks again"
    async with through(router, api_key=None) as llm:
        with pytest.raises(MissingKeyError):
            await llm.call("x")


async def test_an_answer_from_the_cache_asks_nobody(router):
    cache = InMemoryCache()
    for _ in range(2):
        async with through(router, cache=cache) as llm:
            assert await llm.call("x") == "first"
    assert router.asked == ["/v1/models/org/m"]


async def test_a_provider_that_dropped_the_model_is_left_out(router, pair):
    body = {"error": {"message": "The requested model is not supported", "code": "model_not_supported"}}
    pair[0].outage(math.inf, Fault.status(400, body=body))
    async with through(router) as llm:
        assert await texts(llm, 20) == {"second": 20}
        assert len(pair[0].requests) < 10


async def test_a_model_asked_within_an_attempt_does_not_change_where_it_goes():
    class Other(HuggingFaceInference):
        async def _generate(self, prompt, options, run):
            await anyio.sleep(0.01)  # so that the other prompt is on its way too, to the other endpoint
            return LLMResult.of("x")

    class Both(HuggingFaceInference):
        async def _generate(self, prompt, options, run):
            before = self._site.lane
            await other.call("hi")
            seen.append((before, self._site.lane))
            return LLMResult.of("y")

    seen: list[tuple[str, str]] = []
    other = Other(endpoint_url="http://127.0.0.1:3")
    both = Both(endpoints=["http://127.0.0.1:1", "http://127.0.0.1:2"])
    await both.generate(["a", "b"])
    assert len({before for before, _ in seen}) == 2
    assert all(before == after for before, after in seen)
