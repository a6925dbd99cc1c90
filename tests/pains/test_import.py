"""Importing loads what is needed, and no more."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "aiohttp", "aiolimiter", "click", "httpx", "httpcore", "huggingface_hub", "jinja2", "numpy", "openai", "pandas",
    "pydantic", "requests", "rich", "sqlite3", "tiktoken", "tokenizers", "torch", "transformers", "trio", "uvloop",
    "xllamacpp", "yaml",
}  # fmt: skip

CODE = """
import sys
before = set(sys.modules)
import millstream
millstream.HuggingFaceInference(endpoint_url="http://127.0.0.1:9", requests_per_minute=5, cache=True)
print("\\n".join(set(sys.modules) - before))
"""


def test_importing_is_light():
    """Pain 29: `import` takes 3.2 s and 175 MB; here neither it nor making a model loads anything heavy."""
    told = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    assert "millstream._huggingface" in told
    assert not HEAVY & {name.split(".")[0] for name in told}
    assert "millstream.testing" not in told
    assert "millstream.cli" not in told
    assert len(told) < 400
