"""From a request to what is generated for it: words, stops, finish reasons. Pure, and the same every time."""

from __future__ import annotations

import dataclasses
import random
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

__all__ = ["EOS", "Output", "draw_words", "generate", "logprob", "split_tokens", "token_id"]

EOS = "</s>"
_TOKENS = re.compile(r"\s*\S+|\s+\Z")
_WORDS = """
the a of to and in is it that for on with as was at by from or an be this which are not but one all
you we his her mill stream water wheel grain stone flour river sky blue light wave morning wind
field road house hand time day small great old new long quiet bright slow clear first last good
other same turns runs falls grows makes gives
""".split()  # noqa: SIM905 - a word list is read as text


def split_tokens(text: str) -> list[str]:
    """Our tokens: a word with the white space before it. Joined, they are the text."""
    return _TOKENS.findall(text)


def token_id(token: str) -> int:
    """Stable number of a token, 3 to 32002."""
    return 2 if token == EOS else zlib.crc32(token.encode()) % 32_000 + 3


def logprob(token: str) -> float:
    """Stable log probability of a token, -4 to 0."""
    return -(zlib.crc32(token.encode(), 7) % 4_000) / 1_000


def draw_words(key: object, count: int, *, leading_space: bool = True) -> list[str]:
    """`count` tokens that depend on nothing but `key` (by its repr)."""
    tokens = [" " + word for word in random.Random(repr(key)).choices(_WORDS, k=count)]  # noqa: S311 - no secret
    if tokens and not leading_space:
        tokens[0] = tokens[0].strip().capitalize()
    return tokens


@dataclasses.dataclass(slots=True)
class Output:
    """What was generated for one choice."""

    tokens: list[str]
    """The visible tokens of the text, those of a stop sequence included; not the end-of-sequence token."""
    pieces: list[str]
    """What a stream shows for each token ("" while text is held back); then, if `finish` is "eos", for that token."""
    text: str
    finish: Literal["length", "eos", "stop"]
    stop: str | None = None
    """The stop sequence that ended it."""
    reasoning: list[str] = dataclasses.field(default_factory=list[str])
    tool_calls: list[tuple[str, str]] = dataclasses.field(default_factory=list[tuple[str, str]])
    """Name and JSON arguments."""

    @property
    def count(self) -> int:
        """Generated tokens, the end-of-sequence token included."""
        return len(self.reasoning) + len(self.tokens) + (self.finish == "eos")


def generate(
    tokens: Sequence[str],
    max_tokens: int | None,
    stop: Sequence[str] = (),
    *,
    keep_stop: bool = False,
    reasoning: Sequence[str] = (),
) -> Output:
    """Play `tokens` until one of these ends it: a stop sequence, `max_tokens`, the end of the tokens.

    Args:
        tokens: what the model would say.
        max_tokens: the budget, None without one.
        stop: stop sequences; one may span tokens.
        keep_stop: whether the stop sequence stays in the text (tgi), or is held back and cut off (the others).
        reasoning: tokens that come before, and use up the budget too.
    """
    budget = max_tokens if max_tokens is not None else len(reasoning) + len(tokens) + 1
    thought = list(reasoning[:budget])
    room = budget - len(thought)
    spoken = list(tokens[:room])
    text = "".join(spoken)
    hit = min(((text.find(s) + len(s), s) for s in stop if s and s in text), default=None)
    finish: Literal["length", "eos", "stop"] = "eos" if len(tokens) < room else "length"
    if hit is not None:
        finish, text = "stop", text[: hit[0]]
        spoken = _cut(spoken, len(text))
    found = hit[1] if hit is not None else None
    if found is not None and not keep_stop:
        text = text[: -len(found)]
    pieces = spoken[:] if keep_stop or not stop else _held_back(spoken, stop, text)
    if finish == "eos":
        pieces.append(text[sum(map(len, pieces)) :])
    return Output(spoken, pieces, text, finish, found, thought)


def _cut(tokens: Iterable[str], length: int) -> list[str]:
    """The tokens of the first `length` characters; the last one may be cut."""
    kept: list[str] = []
    for token in tokens:
        if length <= 0:
            break
        kept.append(token[:length])
        length -= len(token)
    return kept


def _held_back(tokens: Sequence[str], stop: Sequence[str], text: str) -> list[str]:
    """What a server shows after each token, if it holds back whatever may be the beginning of a stop sequence."""
    pieces: list[str] = []
    seen, sent = "", 0
    for number, token in enumerate(tokens, start=1):
        seen += token
        safe = len(text) if number == len(tokens) else min(len(seen) - _may_become(seen, stop), len(text))
        pieces.append(text[sent:safe])
        sent = max(sent, safe)
    return pieces


def _may_become(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop sequence begins."""
    longest = 0
    for sequence in stop:
        for length in range(min(len(sequence) - 1, len(text)), longest, -1):
            if text.endswith(sequence[:length]):
                longest = length
                break
    return longest


def tool_calls(reply: Any) -> list[tuple[str, Any]]:
    """Name and arguments of each call in a reply that is one, or a list of nothing but calls; else nothing."""
    calls = reply if isinstance(reply, list | tuple) else [reply]
    if not calls or not all(isinstance(call, dict) and "tool" in call for call in calls):
        return []
    return [(str(call["tool"]), call.get("arguments", {})) for call in calls]
