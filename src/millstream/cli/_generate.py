"""``millstream generate``: prompts to the terminal, token by token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import anyio
import msgspec

from millstream import ChatMessage, Deadlines, HuggingFaceInference, Outcome, PromptInput

__all__ = ["Asked", "generate"]


@dataclass(frozen=True)
class Asked:
    """The command's arguments; None: not given."""

    prompts: Sequence[str]
    endpoint_url: str | None = None
    model: str | None = None
    provider: str | None = None
    api: Any = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    max_concurrency: int = 64
    timeout: float = 600.0
    as_json: bool = False


async def generate(asked: Asked) -> int:
    """Print the answers; the exit code is 1 where any prompt failed. Raises: UsageError for options that can't be."""
    sampling = {name: getattr(asked, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    where = {name: getattr(asked, name) for name in ("endpoint_url", "provider", "api")}
    options: dict[str, Any] = {name: value for name, value in {**sampling, **where}.items() if value is not None}
    prompts = await _prompts(asked)
    async with HuggingFaceInference(
        asked.model,
        **options,
        stop_sequences=list(asked.stop) or None,
        max_concurrency=asked.max_concurrency,
        deadlines=Deadlines(total=asked.timeout),
    ) as llm:
        if asked.as_json:
            return await _print_json(llm, prompts)
        if len(prompts) == 1:
            await _print_one(llm, prompts[0])
            return 0
        return await _print_several(llm, prompts, asked.prompts)


async def _prompts(asked: Asked) -> list[PromptInput]:
    texts = [await anyio.to_thread.run_sync(sys.stdin.read) if text == "-" else text for text in asked.prompts]
    if asked.system is None:
        return list(texts)
    system = ChatMessage.system(asked.system)
    return [[system, ChatMessage.user(text)] for text in texts]


async def _print_one(llm: HuggingFaceInference, prompt: PromptInput) -> None:
    out = sys.stdout
    async with llm.stream(prompt) as stream:
        try:
            async for chunk in stream:
                _write(out, chunk.text)
        finally:
            if stream.text and not stream.text.endswith("\n"):
                _write(out, "\n")


async def _print_several(llm: HuggingFaceInference, prompts: Sequence[PromptInput], titles: Sequence[str]) -> int:
    """In the order of the prompts: the tokens of the first that is not finished as they come, the others' kept."""
    out = sys.stdout
    texts: dict[int, list[str]] = {}
    outcomes: dict[int, Outcome] = {}
    shown = 0
    _write(out, _title(0, titles))
    async with llm.stream_many(prompts) as events:
        async for event in events:
            if event.chunk is not None:
                if event.index == shown:
                    _write(out, event.chunk.text)
                texts.setdefault(event.index, []).append(event.chunk.text)
            elif event.outcome is not None:
                outcomes[event.index] = event.outcome
            while shown in outcomes:
                _finish(out, shown, outcomes[shown])
                shown += 1
                if shown < len(prompts):
                    _write(out, _title(shown, titles) + "".join(texts.get(shown, [])))
    return 0 if all(outcome.ok for outcome in outcomes.values()) else 1


def _title(index: int, titles: Sequence[str]) -> str:
    prompt = " ".join(titles[index].split())
    return f"[{index + 1}] {prompt[:76]}{'...' if len(prompt) > 76 else ''}\n"


def _finish(out: TextIO, index: int, outcome: Outcome) -> None:
    _write(out, "\n\n")
    if outcome.error is not None:
        print(f"millstream: prompt {index + 1}: {' '.join(str(outcome.error).split())}", file=sys.stderr)


async def _print_json(llm: HuggingFaceInference, prompts: Sequence[PromptInput]) -> int:
    failed = False
    async with llm.map(prompts) as outcomes:
        async for outcome in outcomes:
            line: dict[str, Any] = {"index": outcome.index}
            if outcome.result is not None:
                line["result"] = msgspec.Raw(outcome.result.to_json())
            else:
                failed = True
                line["error"] = {"type": type(outcome.error).__name__, "message": str(outcome.error)}
            _write(sys.stdout, msgspec.json.encode(line).decode() + "\n")
    return 1 if failed else 0


def _write(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()
