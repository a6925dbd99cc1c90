"""The list of pains, and that each has a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PAINS = {
    1: "One 429, 500 or 503 is a hard failure; the error drops the provider's name",
    3: "With many requests in flight each of them costs more",
    4: "The client left, the model keeps generating and billing",
    5: "A hidden cap of 100 connections, and waiting for the pool counts as a server's time-out",
    6: "After one 429 every worker retries at once",
    7: "The rate limiter is silently ignored",
    8: "The cache answers with another model's or temperature's text",
    9: "A stream hangs for ever",
    10: "20 000 prompts launched at once hang the process",
    11: "One bad prompt turns the whole batch into exceptions",
    12: "`max_concurrency` is ignored, the batch is serial",
    14: '"What concurrency should I use?"',
    15: "U+2028 or U+0085 inside a token kills the stream",
    16: "The connection is dropped after every `[DONE]`",
    17: "A stream that is not consumed leaks",
    18: "Streamed calls report zero tokens",
    19: '"Event loop is closed" when a client is used from a second `run()`',
    20: "Tokens and requests a minute are not respected under concurrency",
    21: "`</s>` leaks into streamed text",
    22: "503 is retried at once and without limit",
    23: "An endpoint scaled to zero gives a wrong error",
    24: "402 (no credit) is retried as if transient",
    25: "A stream that ends without a finish marker is taken as complete",
    26: "200 OK, but the body or the stream holds an error",
    27: "The API key is in `pickle`, logs, exceptions",
    28: "Identical prompts in flight are paid for several times",
    29: "`import` takes seconds",
    30: "Failures are cached",
}
"""What users of other clients suffer from, by number. Others are closed elsewhere, or not at all yet."""


def each_test() -> Iterator[tuple[str, str]]:
    """Name and docstring of each test here."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if file != Path(__file__):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                    yield f"{file.name}::{node.name}", ast.get_docstring(node) or ""


def test_each_test_says_which_pain_it_is_about():
    for name, docstring in each_test():
        found = re.match(r"Pain (\d+): ", docstring)
        assert found, f"{name} has no docstring that begins with 'Pain <number>: '"
        assert int(found[1]) in PAINS, f"{name}: there is no pain {found[1]}"


def test_each_pain_has_a_test():
    tested = {int(found[1]) for _, docstring in each_test() if (found := re.match(r"Pain (\d+): ", docstring))}
    assert set(PAINS) == tested
