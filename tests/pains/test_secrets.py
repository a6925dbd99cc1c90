"""The key goes to the server, and nowhere else."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import traceback

import msgspec
import pytest

from millstream import AuthenticationError, HuggingFaceInference, InMemoryCache, MillstreamError
from millstream.callbacks._recording import RecordingCallbackHandler
from millstream.testing import FakeEndpoint, Fault

from .support import impatient

KEY = "a-Key.with_parts-0123456789"


def assert_no_key(*texts: object) -> None:
    for text in texts:
        assert KEY not in (text if isinstance(text, str) else repr(text))


def test_the_model_itself():
    """Pain 27: the key is in `repr`, `pickle` and the serialized model."""
    llm = HuggingFaceInference(endpoint_url="http://127.0.0.1:9", api_key=KEY, headers={"X-Extra": KEY})
    assert_no_key(llm, str(llm), f"{llm}", json.dumps(llm.serialize()))
    assert KEY.encode() not in pickle.dumps(llm)
    assert KEY.encode() not in pickle.dumps(copy.deepcopy(llm.serialize()))
    assert_no_key(llm._invocation_params(llm.options))
    loaded = pickle.loads(pickle.dumps(llm))
    assert_no_key(vars(loaded))


ECHOES = {
    "status": Fault.status(401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}}),
    "plain text": Fault.status(500, body=f"Authorization: Bearer {KEY}", headers={"x-request-id": KEY}),
    "in a 200": Fault.error_in_200(body={"error": {"message": f"bad key {KEY}", "type": KEY, "code": 401}}),
    "in a stream": Fault.error_event(1, message=f"Request failed during generation: {KEY}"),
    "no JSON": Fault.status(200, body=f"<html>{KEY}</html>"),
    "nothing": Fault.disconnect(),
    "a part": Fault.truncate(),
}


async def test_errors_events_and_logs(model, endpoint, api, caplog):
    """Pain 27: the key is in exceptions, events and logs, most of all where a server sends it back."""
    caplog.set_level(logging.DEBUG)
    heard = RecordingCallbackHandler()
    for fault in ECHOES.values():
        llm = model(api=api, api_key=KEY, callbacks=[heard], caller=impatient(max_retries=1))
        endpoint.faults = lambda number, fault=fault: fault
        for ask in (llm.call, lambda prompt, llm=llm: llm.stream(prompt).result()):
            with pytest.raises(MillstreamError) as caught:
                await ask("x")
            error = caught.value
            assert_no_key(error, str(error), vars(error), "".join(traceback.format_exception(error)))
            assert KEY.encode() not in pickle.dumps(vars(error))
    assert endpoint.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert len(heard.runs()) == 2 * len(ECHOES)
    for event in heard.events:
        assert_no_key(event, msgspec.json.encode(event, enc_hook=repr).decode())
    assert_no_key(caplog.text)


async def test_cache_and_verbose_output(model, endpoint, capsys):
    """Pain 27: the key is in cache keys and in what is printed."""
    seen = io.StringIO()

    class Watched(InMemoryCache):
        async def update(self, key, result):
            print(key, result, file=seen)
            await super().update(key, result)

    endpoint.api_key = KEY
    llm = model(api="chat", api_key=KEY, cache=Watched(), verbose=True)
    await llm.call("x")
    assert seen.getvalue()
    told = capsys.readouterr()
    assert told.out + told.err
    assert_no_key(seen.getvalue(), told.out, told.err, repr(llm.caller.statistics()))


async def test_a_redirect_gets_no_key(model):
    """Pain 27: the key goes along with a redirect, to another host."""
    async with FakeEndpoint() as there, FakeEndpoint() as here:
        here.fail(Fault.status(307, headers={"location": there.url + "/v1/chat/completions"}))
        with pytest.raises(MillstreamError, match="redirect"):
            await model(endpoint_url=here.url, api="chat", api_key=KEY).call("x")
    assert len(here.requests) == 1
    assert there.connections == 0


async def test_a_wrong_key_says_so(model, endpoint):
    """Pain 27: the key is quoted in the error about it; here the error is typed, final, and quotes nothing."""
    endpoint.api_key = "another"
    with pytest.raises(AuthenticationError) as caught:
        await model(api="chat", api_key=KEY).call("x")
    assert caught.value.attempts == 1
    assert_no_key(str(caught.value), caught.value.body)
