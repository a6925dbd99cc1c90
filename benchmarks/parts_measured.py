"""What parts of a client cost: no sockets, and mostly no event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable
from typing import Any

from .answers import ANSWER_TEXT, STREAM_EVENTS, TOKENS
from .machine import new_loop, peak_resident_bytes
from .part import Part
from .scenarios import Scenario
from .timing import WrongAnswerError

_PIECE_BYTES = 16 * 1024
_STREAMS = 4
"""Streams decoded one after the other between two looks at the clock."""


def measure_part(part: Part, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Run a scenario and give its figures."""
    if scenario.kind == "map":
        return _measure_map(part, scenario.batch)
    if scenario.kind == "events":
        return _measure_events(part, seconds)
    data = result_of(scenario.shape)
    result = part.decode(data)
    if _without_defaults(json.loads(part.encode(result))) != _without_defaults(json.loads(data)):
        raise WrongAnswerError("what was decoded and encoded is not what it was")
    work = (lambda: part.decode(data)) if scenario.kind == "decode" else (lambda: part.encode(result))
    return _figures(work, 1, "result", seconds)


def result_of(shape: str) -> bytes:
    """A result as JSON: ``plain`` are answers to 64 prompts, ``logprobs`` is one answer with its tokens' logprobs."""
    info = {"model": "static-1b", "created": 1_760_000_000, "systemFingerprint": "1.0-static"}
    generation: dict[str, Any] = {"text": ANSWER_TEXT, "generationInfo": info, "finishReason": "stop"}
    generations = [[generation] for _ in range(64)]
    if shape == "logprobs":
        alternatives = [{"token": f" other{n}", "logprob": -1.5 - n / 8, "id": 4000 + n} for n in range(5)]
        generation["logprobs"] = [
            {"token": token, "logprob": -0.25, "id": 1000 + number, "topLogprobs": alternatives}
            for number, token in enumerate(TOKENS)
        ]
        generations = [[generation]]
    usage = {"inputTokens": 19, "outputTokens": 38}
    output = {"tokenUsage": {"promptTokens": 19, "completionTokens": 38, "totalTokens": 57}}
    return json.dumps({"generations": generations, "llmOutput": output, "usage": usage}).encode()


def _without_defaults(value: Any) -> Any:
    """None says the same as nothing."""
    if isinstance(value, dict):
        return {key: _without_defaults(each) for key, each in value.items() if each is not None}
    return [_without_defaults(each) for each in value] if isinstance(value, list) else value


def _measure_events(part: Part, seconds: float) -> dict[str, Any]:
    body = b"".join(STREAM_EVENTS)
    pieces = [body[start : start + _PIECE_BYTES] for start in range(0, len(body), _PIECE_BYTES)]
    if part.texts(pieces) != list(TOKENS):
        raise WrongAnswerError("the tokens are not those that were sent")

    def work() -> None:
        for _ in range(_STREAMS):
            part.texts(pieces)

    return _figures(work, _STREAMS * len(TOKENS), "token", seconds)


def _figures(work: Callable[[], object], units: int, unit: str, seconds: float) -> dict[str, Any]:
    work()
    gc.collect()
    count = 0
    began = time.process_time()
    while not count or time.process_time() - began < seconds:
        work()
        count += units
    cpu = time.process_time() - began
    return {"figure": cpu / count * 1e6, "figure_unit": f"CPU us a {unit}", "count": count, "per_second": count / cpu}


def _measure_map(part: Part, count: int) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        began = time.process_time()
        answered = runner.run(part.drain(count))
        cpu = time.process_time() - began
    if answered != count:
        raise WrongAnswerError(f"{answered} answers to {count} prompts")
    return {
        "figure": peak_resident_bytes() / 1e6,
        "figure_unit": "MB at the peak",
        "count": count,
        "per_second": count / cpu,
        "cpu_us": cpu / count * 1e6,
    }
