"""One client that has endless work for an endpoint, and what is noted of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Literal

from millstream import BaseCallbackHandler, HuggingFaceInference, WindowEvent, WindowStatistics

from .wire import Exchange, NotedTransport

LOOK_SECONDS = 0.25
MEAN_WORDS, LEAST_WORDS, MOST_WORDS = 32, 4, 128

Width = int | Literal["auto"]
Event = tuple[float, Callable[[], None]]


@dataclass
class Log:
    """Of one load. All times are on one clock; `began` is when it began."""

    began: float
    ended: float = 0.0
    exchanges: list[Exchange] = field(default_factory=list)
    looks: list[tuple[float, WindowStatistics]] = field(default_factory=list)
    changes: list[WindowEvent] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Listener(BaseCallbackHandler):
    def __init__(self, log: Log) -> None:
        self._log = log

    def on_window(self, event: WindowEvent, /) -> None:
        self._log.changes.append(event)


def varied(seed: int, mean: float = MEAN_WORDS) -> Iterator[str]:
    """Prompts that ask for few or many words, without end."""
    random = Random(seed)
    for number in itertools.count():
        count = round(random.lognormvariate(0, 0.5) * mean / 1.133)  # 1.133: the mean of that distribution
        yield f"{min(max(count, LEAST_WORDS), MOST_WORDS)} words for question {number}, please."


def even(mean: int) -> Iterator[str]:
    for number in itertools.count():
        yield f"{mean} words for question {number}, please."


def chat(seed: int) -> Iterator[str]:
    """Short prompts for a small model."""
    things = ("the sea", "a cat", "snow", "the moon", "a train", "bread", "a river", "rain", "an owl", "salt")
    random = Random(seed)
    for number in itertools.count():
        yield f"Write a sentence about {random.choice(things)} and the number {number}."


async def run(
    url: str,
    width: Width,
    prompts: Iterator[str],
    seconds: float,
    *,
    max_tokens: int = MOST_WORDS,
    events: Sequence[Event] = (),
) -> Log:
    """Ask for `seconds`; what is under way then is left.

    Args:
        url: the endpoint.
        width: requests in flight; ``"auto"``: the caller finds out.
        prompts: endless.
        seconds: how long.
        max_tokens: of each answer.
        events: what happens after so many seconds.
    """
    transport = NotedTransport()
    log = Log(monotonic(), exchanges=transport.exchanges)
    async with HuggingFaceInference(
        endpoint_url=url,
        api="chat",
        max_tokens=max_tokens,
        max_concurrency=width,
        streaming=None if width == "auto" else True,
        transport=transport,
        callbacks=[_Listener(log)],
    ) as llm:
        tasks = [asyncio.create_task(_look(llm, log)), *(asyncio.create_task(_later(*event)) for event in events)]
        try:
            async with asyncio.timeout(seconds):
                async with llm.map(prompts) as outcomes:
                    async for outcome in outcomes:
                        if outcome.error is not None:
                            log.errors.append(f"{type(outcome.error).__name__}: {outcome.error}")
        except TimeoutError:
            pass
        finally:
            log.ended = monotonic()
            for task in tasks:
                task.cancel()
    await transport.aclose()
    return log


async def _look(llm: HuggingFaceInference, log: Log) -> None:
    while True:
        for statistics in llm.caller.statistics().windows.values():
            log.looks.append((monotonic(), statistics))
        await asyncio.sleep(LOOK_SECONDS)


async def _later(seconds: float, act: Callable[[], None]) -> None:
    await asyncio.sleep(seconds)
    act()
