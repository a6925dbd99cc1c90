"""LangChain.js's `HuggingFaceInference`, on Node: `langchain_js.cjs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from benchmarks.client import Client


class Bench(Client):
    label = "LangChain.js on Node"
    module = "langchain/llms/hf"
    distributions = ("langchain", "@huggingface/inference", "node")
    requirements = ("langchain@0.0.92", "@huggingface/inference@1.8.0")
    foreign = ("node", "benchmarks/clients/langchain_js.cjs")
    skips: ClassVar[Mapping[str, str]] = {
        "stream": "it does not stream",
        "first": "it does not stream",
        "hold": "it does not stream",
        "wait": "only its CPU time is measured",
    }
