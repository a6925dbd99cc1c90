"""The house: imports go down only, effects have one door each, files and functions stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "millstream"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = [
    {"_version", "_errors", "_secret", "_results", "_prompts", "_events", "_config"},
    {"_headers", "_sse", "_backoff", "_control", "_assembly", "_wire", "_origin", "_routes"},
    {"_clock", "_transport", "httpx2", "_admission", "limiters", "_fanout", "callbacks", "caches", "local"},
    {"_calls", "_retrying", "_caller"},
    {"_language_model", "_tokens", "_runs", "_streams", "_llm", "_http", "_site", "_huggingface"},
    {"__init__"},
    {"testing"},
    {"cli"},
]
"""From the bottom up. A part imports its own layer and those below."""

SANS_IO = {"_headers", "_sse", "_backoff", "_control", "_assembly", "_wire", "_origin", "_routes"}
EFFECTS = {"asyncio", "anyio", "trio", "httpx", "httpx2", "time", "random", "socket", "ssl", "os", "threading"}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_METHODS = 25  # BaseLLM and HuggingFaceInference are the public surface: one method for each thing that it does


def name_of(file: Path) -> str:
    """``millstream._wire.errors`` for a file, the package itself for its ``__init__``."""
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def part_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(file: Path, *, typing_only: bool = False) -> Iterator[str]:
    """Every module that a file imports, inside functions too; not what is only for type checkers."""
    tree = ast.parse(file.read_text())
    skipped = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in skipped and not typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield submodule if submodule in MODULES else module


MODULES = {name_of(file) for file in FILES}


def layer_of(module: str) -> int:
    part = part_of(module)
    for number, layer in enumerate(LAYERS):
        if part in layer:
            return number
    raise AssertionError(f"{module} is in no layer: say in LAYERS where it belongs")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down(file: Path):
    module = name_of(file)
    for imported in imports_of(file):
        if imported.split(".")[0] == "millstream":
            assert layer_of(imported) <= layer_of(module), f"{module} imports {imported}, which is above it"


def test_there_is_no_import_cycle():
    graph = {name_of(file): {name for name in imports_of(file) if name in MODULES} for file in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for imported in graph[module] - {module}:
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("file", [f for f in FILES if part_of(name_of(f)) in SANS_IO], ids=name_of)
def test_pure_parts_do_no_io(file: Path):
    assert not {name.split(".")[0] for name in imports_of(file)} & EFFECTS


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_effects_have_one_door(file: Path):
    module, text = name_of(file), file.read_text()
    roots = {name.split(".")[0] for name in imports_of(file)}
    if module != "millstream._clock":
        assert "time" not in roots
    if module not in ("millstream._clock",) and part_of(module) != "testing":
        assert "random" not in roots
    if module != "millstream._config":
        assert "os.environ" not in text
        assert "getenv" not in text
    if "httpx" in roots:
        assert module.startswith("millstream._transport.httpx_")
    if "httpx2" in roots:
        assert module == "millstream.httpx2"
    # A stream of httpx that nobody awaits any more; a call of Redis whose answer must not be lost with a cancelled waiter.
    if module not in ("millstream._transport.httpx_client", "millstream.limiters._redis"):
        assert "create_task(" not in text, "a task without an owner"
    # The workers of `for_each`: it ends when they have, as a task group does that costs twice as much of each.
    if module != "millstream._fanout":
        assert not re.search(r"\bTask\(", text), "a task without an owner"
    assert "ensure_future(" not in text, "a task without an owner"


@pytest.mark.parametrize("part", ["cli"])
def test_applications_use_public_names_only(part: str):
    for file in FILES:
        if part_of(name_of(file)) == part:
            for imported in imports_of(file):
                names = imported.split(".")
                if names[0] == "millstream" and names[1:2] != [part]:
                    assert not any(name.startswith("_") for name in names), f"{file}: {imported}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_sizes(file: Path):
    text = file.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
            assert methods <= MAX_METHODS or name_of(file) in ("millstream._llm", "millstream._huggingface")


def test_no_code_is_made_of_data():
    """Nothing that could run what a server, a file or a serialized model says."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__", "compile"), file
        assert not {name.split(".")[0] for name in imports_of(file)} & {"pickle", "marshal", "shelve", "yaml"}, file


def test_import_pulls_in_no_extra_and_no_httpx():
    code = "import sys, millstream; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"httpx", "httpx2", "aiolimiter", "trio", "click", "xllamacpp", "tokenizers", "rich", "pydantic", "uvloop"}
    assert not heavy & {name.split(".")[0] for name in loaded}
