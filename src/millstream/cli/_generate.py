"""``millstream generate``: prompts to the terminal, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from millstream import ChatMessage, Deadlines, HuggingFaceInference, Outcome, PromptInput
from millstream.cli._terminal import RetryNotices, one_line, tell, told, write

__all__ = ["Asked", "generate"]

_TITLE_CHARACTERS = 76


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command's arguments; None: not given."""

    prompts: Sequence[str]
    endpoint_url: str | None
    model: str | None
    provider: str | None
    api: Any
    api_key: str | None
    system: str | None
    max_tokens: int
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: Sequence[str]
    max_concurrency: int | None
    max_retries: int
    timeout: float
    as_json: bool


async def generate(asked: Asked) -> int:
    """Print the answers; the exit code is 1 where any prompt failed. Raises: UsageError for options that can't be."""
    same = (
        "endpoint_url", "provider", "api", "api_key", "max_tokens", "temperature", "top_p", "seed", "max_concurrency"
    )  # fmt: skip
    options: dict[str, Any] = {name: value for name in same if (value := getattr(asked, name)) is not None}
    prompts = _prompts(asked)
    async with HuggingFaceInference(
        asked.model,
        **options,
        stop_sequences=list(asked.stop) or None,
        max_retries=asked.max_retries,
        deadlines=Deadlines(total=asked.timeout),
        callbacks=[RetryNotices()],
    ) as llm:
        if asked.as_json:
            return await _print_json(llm, prompts)
        if len(prompts) == 1:
            await _print_one(llm, prompts[0])
            return 0
        return await _print_several(llm, prompts, asked.prompts)


def _prompts(asked: Asked) -> list[PromptInput]:
    if asked.system is None:
        return list(asked.prompts)
    system = ChatMessage.system(asked.system)
    return [[system, ChatMessage.user(text)] for text in asked.prompts]


async def _print_one(llm: HuggingFaceInference, prompt: PromptInput) -> None:
    async with llm.stream(prompt) as stream:
        try:
            async for chunk in stream:
                write(chunk.text)
        finally:
            write(_line_end(stream.text))


async def _print_several(llm: HuggingFaceInference, prompts: Sequence[PromptInput], titles: Sequence[str]) -> int:
    """In the order of the prompts: the tokens of the first that is not finished as they come, the others' kept."""
    texts = [""] * len(prompts)
    outcomes: dict[int, Outcome] = {}
    current = 0
    write(_title(0, titles))
    async with llm.stream_many(prompts) as events:
        async for event in events:
            if event.chunk is not None:
                texts[event.index] += event.chunk.text
                if event.index == current:
                    write(event.chunk.text)
            elif event.outcome is not None:
                outcomes[event.index] = event.outcome
            while current in outcomes:
                _finish(current, texts[current], outcomes[current])
                current += 1
                if current < len(prompts):
                    write(f"\n{_title(current, titles)}{texts[current]}")
    return 0 if all(outcome.ok for outcome in outcomes.values()) else 1


def _title(index: int, titles: Sequence[str]) -> str:
    prompt = one_line(titles[index])
    return f"[{index + 1}] {prompt[:_TITLE_CHARACTERS]}{'...' if len(prompt) > _TITLE_CHARACTERS else ''}\n"


def _finish(index: int, text: str, outcome: Outcome) -> None:
    write(_line_end(text))
    if outcome.error is not None:
        tell(f"prompt {index + 1}: {told(outcome.error)}")


def _line_end(text: str) -> str:
    return "\n" if text and not text.endswith("\n") else ""


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
            click.echo(msgspec.json.encode(line))  # as bytes: JSON is UTF-8 whatever the terminal's encoding is
    return 1 if failed else 0
