"""From a checked request to what is generated for it. Pure but for the caller's `reply` function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from millstream.testing._asked import Asked
from millstream.testing._behaviour import Behaviour
from millstream.testing._text import Output, draw_words, generate, split_tokens, tool_calls

__all__ = ["produce"]

_DEFAULT_MAX_TOKENS = 16


def produce(behaviour: Behaviour, asked: Asked, turns: Iterator[int]) -> list[Output]:
    """One output a choice: those of the first prompt, then those of the second.

    Args:
        behaviour: what the endpoint was told.
        asked: the request.
        turns: counts the generated texts, to cycle through several replies.
    """
    return [
        _one(behaviour, asked, prompt, choice, next(turns)) for prompt in asked.prompts for choice in range(asked.n)
    ]


def _one(behaviour: Behaviour, asked: Asked, prompt: str, choice: int, turn: int) -> Output:
    keep_stop = behaviour.server == "tgi" or asked.api == "text-generation"
    reasoning = split_tokens(behaviour.reasoning) if behaviour.reasoning and asked.api == "chat" else []
    reply = _reply(behaviour, prompt, turn)
    if reply is None:
        key = (asked.model, prompt, asked.sampling, asked.do_sample, asked.seed, choice, behaviour.seed)
        budget = asked.max_tokens if asked.max_tokens is not None else _DEFAULT_MAX_TOKENS + len(reasoning)
        count = min(budget, behaviour.max_total_tokens)
        tokens = draw_words(key, count, leading_space=asked.api != "chat")
        return generate(tokens, budget, asked.stop, keep_stop=keep_stop, reasoning=reasoning)
    calls = tool_calls(reply)
    if calls and asked.tools:
        return _call(behaviour, calls, reasoning)
    text = reply if isinstance(reply, str) else msgspec.json.encode(reply).decode()
    return generate(split_tokens(text), asked.max_tokens, asked.stop, keep_stop=keep_stop, reasoning=reasoning)


def _reply(behaviour: Behaviour, prompt: str, turn: int) -> Any:
    reply: Any = behaviour.reply
    if callable(reply):
        reply = reply(prompt)
    if isinstance(reply, list | tuple) and reply and not tool_calls(reply):
        return reply[turn % len(reply)]
    return reply


def _call(behaviour: Behaviour, calls: list[tuple[str, Any]], reasoning: list[str]) -> Output:
    if behaviour.server == "tgi":
        calls = calls[:1]  # it knows no parallel calls
    encoded = [
        (name, arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode())
        for name, arguments in calls
    ]
    tokens = [token for _, arguments in encoded for token in split_tokens(arguments)]
    return Output(tokens, [], "", "eos", reasoning=reasoning, tool_calls=encoded)
