"""What a client keeps in memory for each stream that is open, and for each call that is in flight."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .answers import ANSWER_TEXT
from .client import Answers, Client
from .control import tell
from .machine import resident_bytes
from .scenarios import Scenario
from .timing import check, prompts_of

AT_A_TIME = 100
"""How many are begun at the same time, so that what is measured is what waits and not a rush."""


async def measure_streams(client: Client, scenario: Scenario) -> dict[str, Any]:
    """Streams that had their first token and wait for the second."""
    release = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def hold(count: int) -> None:
        left = count
        all_there = asyncio.Event()

        def arrived() -> None:
            nonlocal left
            left -= 1
            if not left:
                all_there.set()

        new = [asyncio.create_task(client.hold(prompt, arrived, release)) for prompt in prompts_of(count)]
        tasks.extend(new)
        waiting = asyncio.create_task(all_there.wait())
        await asyncio.wait([waiting, *new], return_when=asyncio.FIRST_COMPLETED)
        for task in new:
            if task.done():
                task.result()
        await waiting

    figures = await _grow(hold, scenario)
    release.set()
    await asyncio.gather(*tasks)
    return figures


async def measure_calls(client: Client, scenario: Scenario) -> dict[str, Any]:
    """Calls whose request is sent and whose answer has not begun."""
    tasks: list[asyncio.Task[Answers]] = []
    waiting = 0

    async def wait(count: int) -> None:
        nonlocal waiting
        waiting += count
        tasks.append(asyncio.create_task(client.generate(prompts_of(count))))
        while await tell(client.port, "waiting") < waiting:
            await asyncio.sleep(0.002)
            if tasks[-1].done():
                check(tasks[-1].result(), ANSWER_TEXT, count)
                raise RuntimeError("an answer was there before it was sent")

    figures = await _grow(wait, scenario)
    await tell(client.port, "release")
    for answers in await asyncio.gather(*tasks):
        check(answers, ANSWER_TEXT, len(answers.texts))
    if sum(len(task.result().texts) for task in tasks) != waiting:
        raise RuntimeError("answers were lost")
    return figures


async def _grow(begin: Callable[[int], Awaitable[None]], scenario: Scenario) -> dict[str, Any]:
    """What each further one adds, once the client's code and first objects are there."""
    await begin(AT_A_TIME // 2)
    gc.collect()
    before = resident_bytes()
    began = time.process_time()
    for start in range(0, scenario.batch, AT_A_TIME):
        await begin(min(AT_A_TIME, scenario.batch - start))
    cpu = time.process_time() - began
    gc.collect()
    return {
        "figure": (resident_bytes() - before) / scenario.batch / 1000,
        "figure_unit": f"kB a {scenario.unit}",
        "count": scenario.batch,
        "open_cpu_us": cpu / scenario.batch * 1e6,
    }
