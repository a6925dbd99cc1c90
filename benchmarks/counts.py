"""What a call costs, in things that can be counted and come out the same each time: no seconds.

- ``python -m benchmarks.counts`` prints the table, and what its words mean;
- ``python -m benchmarks.counts --where token-alone calls`` tells which functions a figure is made of, the most first.

`tests/test_costs.py` fails when a figure grows. It has the table as it was printed: after a change that saves
something, print it anew and put it there, so that what was saved stays saved. Do it on the oldest Python that is
supported, whose figures are the highest, and say in the commit why a figure that grew had to.

What is said of one request is what a longer batch has more than a shorter one, divided by the difference: what happens
once falls out. Why the figures don't vary from run to run is told in `counted.py`.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, Self

from millstream import BaseCallbackHandler, HuggingFaceInference, LLMEndEvent, LLMStartEvent

from .answers import ANSWER_TEXT, STREAM_TEXT, TOKENS
from .client import spread
from .counted import NOT_COUNTED, Behaviour, Counts, Loop, Recorder, is_of_python

UNITS = {
    "request": "a prompt of `generate`, 64 in flight",
    "request-256": "the same, 256 in flight",
    "stream": "a stream without its tokens: opened, begun, ended",
    "token": "a token of a stream that comes in one write",
    "token-alone": "a token that comes in a write of its own",
    "left": "what a prompt and a stream leave behind",
    "open-stream": "a stream that stays open after its first token",
}
COUNTED = {
    "calls": "Python functions called, and coroutines gone on with",
    "C-calls": "functions of C, called by code that is not the standard library's",
    "instructions": "of Python's bytecode",
    "suspensions": "awaits that gave way to the event loop",
    "handles": "callbacks given to the event loop to call soon",
    "timers": "callbacks given to it to call later",
    "tasks": "tasks made",
    "futures": "futures made",
    "sends": "system calls that send",
    "receives": "system calls that receive",
    "bytes-sent": "bytes of the requests",
    "cyclic": "objects that only the garbage collector could free",
    "kept": "blocks of memory still there an hour later",
    "held-blocks": "blocks of memory while it is open, without the standard library's",
    "held-bytes": "the bytes of these",
}

Each = dict[tuple[str, Any], float]
"""`Counts` of one request, stream or token."""


class _Handler(BaseCallbackHandler):
    """Two callbacks a run, as the benchmark's client has them."""

    def on_llm_start(self, event: LLMStartEvent, /) -> None:
        pass

    def on_llm_end(self, event: LLMEndEvent, /) -> None:
        pass


class Bench:
    """A client with all features on, and what it is asked."""

    def __init__(self, in_flight: int, *, instructions: bool = True) -> None:
        self.in_flight = in_flight
        self._recorder = Recorder(instructions=instructions)
        self._loop = Loop(self._recorder)
        self._llm = HuggingFaceInference(
            endpoint_url="http://127.0.0.1:9",
            api="chat",
            temperature=0.7,
            max_tokens=64,
            max_concurrency=in_flight,
            requests_per_minute=1e9,
            callbacks=[_Handler()],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._llm.aclose())
        self._loop.close()
        self._loop.outside.close()

    def generate(self, count: int) -> Counts:
        """What a batch of so many prompts needs."""
        return self._recorded(lambda: self._generate(count))

    def stream(self, count: int, behaviour: Behaviour) -> Counts:
        """What so many streams need."""
        self._loop.outside.behaviour = behaviour
        return self._recorded(lambda: self._stream(count, behaviour.tokens))

    def leave(self, count: int) -> Counts:
        """What so many prompts, and as many streams, leave behind."""
        self._loop.outside.behaviour = Behaviour()
        self._forget()
        before = sys.getallocatedblocks()
        gc.disable()
        tracemalloc.start()
        self._run(self._generate(count))
        self._run(self._stream(count, len(TOKENS)))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        counts: Counts = Counter(
            ("cyclic", f"{type(each).__module__}.{type(each).__qualname__}") for each in gc.garbage
        )
        gc.garbage.clear()
        gc.enable()
        self._forget()
        kept = sys.getallocatedblocks() - before
        counts.update(("kept-at", each.traceback[0]) for each in tracemalloc.take_snapshot().traces)
        tracemalloc.stop()
        counts["kept", "all together, less what it replaced"] = kept
        return counts

    def _forget(self) -> None:
        """Go on after an hour, when no minute has anything in it any more, and no connection is still open."""
        self._loop.outside.skip(3600)
        self._run(self._generate(1))
        self._run(self._stream(1, len(TOKENS)))
        gc.collect()

    def hold(self, count: int) -> Counts:
        """What is in memory while so many streams are open."""
        self._loop.outside.behaviour = Behaviour(held=True)
        gc.collect()
        tracemalloc.start()
        try:
            return self._loop.run_until_complete(self._hold(count))
        finally:
            tracemalloc.stop()

    async def _hold(self, count: int) -> Counts:
        open_streams = [self._llm.stream(prompt) for prompt in _prompts(count)]
        for stream in open_streams:
            await stream.__aenter__()
            await anext(stream)
        gc.collect()
        counts: Counts = Counter()
        for trace in tracemalloc.take_snapshot().traces:
            who = trace.traceback[0]
            if not is_of_python(who.filename) and who.filename not in NOT_COUNTED:
                counts["held-blocks", who] += 1
                counts["held-bytes", who] += trace.size
        for stream in open_streams:
            await stream.aclose()
        return counts

    async def _generate(self, count: int) -> None:
        result = await self._llm.generate(_prompts(count))
        _check(result.texts, [ANSWER_TEXT] * count)

    async def _stream(self, count: int, tokens: int) -> None:
        answers = await spread(self._read, _prompts(count), self.in_flight)
        _check(answers.texts, [STREAM_TEXT * (tokens // len(TOKENS))] * count)

    async def _read(self, prompt: str) -> str:
        async with self._llm.stream(prompt) as stream:
            return "".join([chunk.text async for chunk in stream])

    def _run(self, batch: Coroutine[Any, Any, None]) -> None:
        self._loop.outside.begin()
        self._loop.run_until_complete(batch)

    def _recorded(self, batch: Callable[[], Coroutine[Any, Any, None]]) -> Counts:
        async def recorded() -> None:
            self._recorder.start()
            try:
                await batch()
            finally:
                self._recorder.stop()

        for _ in range(_WARM_UP):
            self._run(batch())
        gc.collect()
        gc.disable()  # what it finds would be finalized in the midst of anything
        self._run(recorded())
        gc.enable()
        return self._recorder.counts()


_WARM_UP = 2
"""Batches until all connections are open, each code was run, and the adaptive window is as wide as it gets."""


def _prompts(count: int) -> list[str]:
    return [f"Why is the sky blue, and why is it red in the evening? Question {1000 + each}." for each in range(count)]


def _check(texts: Sequence[str], expected: Sequence[str]) -> None:
    if list(texts) != list(expected):
        raise RuntimeError("an answer was not understood: its costs would count for nothing")


def _increment(batch: Callable[[int], Counts], less: int, more: int) -> Each:
    """What one more costs in a batch."""
    small, large = batch(less), batch(more)
    return _scaled(_without(large, small), 1 / (more - less))


def _scaled(each: Mapping[tuple[str, Any], float], factor: float) -> Each:
    return {key: number * factor for key, number in each.items()}


def _without(all_of_it: Mapping[tuple[str, Any], float], part: Mapping[tuple[str, Any], float]) -> Each:
    return {key: all_of_it.get(key, 0.0) - part.get(key, 0.0) for key in {**all_of_it, **part}}


def _token(bench: Bench, gap: float) -> Each:
    """What a token costs, from a stream that has twice as many as another."""
    short, long = (bench.stream(1, Behaviour(tokens, gap)) for tokens in (len(TOKENS), 2 * len(TOKENS)))
    return _scaled(_without(long, short), 1 / len(TOKENS))


def measure() -> dict[str, Each]:
    """For every unit, what one of it costs."""
    units: dict[str, Each] = {}
    with Bench(64) as bench:
        units["request"] = _increment(bench.generate, 64, 128)
        bench.leave(64)
        units["left"] = _increment(bench.leave, 64, 192)
    with Bench(256, instructions=False) as bench:
        units["request-256"] = _increment(bench.generate, 256, 384)
    with Bench(1) as bench:
        units["token"] = _token(bench, 0.0)
        units["token-alone"] = _token(bench, 0.002)
        whole = _increment(lambda count: bench.stream(count, Behaviour()), 1, 2)
        units["stream"] = _without(whole, _scaled(units["token"], len(TOKENS)))
    units["open-stream"] = _increment(_hold, 32, 64)
    return {unit: units[unit] for unit in UNITS}


def _hold(count: int) -> Counts:
    with Bench(count) as bench:  # a new one, in whose sets and dictionaries nothing was that is gone
        return bench.hold(count)


def _is_counted(kind: str, unit: str) -> bool:
    if kind in ("cyclic", "kept"):
        return unit == "left"
    if kind in ("held-blocks", "held-bytes"):
        return unit == "open-stream"
    return unit not in ("left", "open-stream") and (kind, unit) != ("instructions", "request-256")


def _table(units: Mapping[str, Each]) -> str:
    width = max(map(len, UNITS)) + 2
    lines = [" " * 14 + "".join(f"{unit:>{width}}" for unit in UNITS)]
    for kind in COUNTED:
        cells = [f"{_sum(units[unit], kind):.2f}" if _is_counted(kind, unit) else "-" for unit in UNITS]
        lines.append(f"{kind:14}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def _sum(each: Each, kind: str) -> float:
    return round(sum(number for (its, _), number in each.items() if its == kind), 2) + 0.0  # never -0.0


def _where(each: Each, unit: str, kind: str) -> str:
    numbers: dict[str, float] = {}
    for (its, who), number in each.items():
        if its in (kind, f"{kind}-at"):
            name = _who(who)
            numbers[name] = numbers.get(name, 0.0) + number
    lines = [f"{_sum(each, kind):10.2f}  {kind} ({COUNTED[kind]}) of {unit} ({UNITS[unit]})"]
    most_first = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    lines += [f"{number:10.2f}  {name}" for name, number in most_first if abs(number) >= 0.005]
    return "\n".join(lines)


def _who(who: Any) -> str:
    if isinstance(who, CodeType):
        return f"{who.co_qualname}  {_short(who.co_filename)}:{who.co_firstlineno}"
    return f"{_short(who.filename)}:{who.lineno}" if isinstance(who, tracemalloc.Frame) else who


def _short(file: str) -> str:
    """Enough of a path to know the file by."""
    parts = Path(file).parts
    roots = [number for number, part in enumerate(parts) if part in ("site-packages", "src")]
    return "/".join(parts[roots[-1] + 1 :] if roots else parts[-2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--where", nargs="*", metavar=("UNIT", "COUNT"), help="of which functions; without more: the calls of a request"
    )
    options = parser.parse_args()
    unit, kind = [*(options.where or ["request"]), "calls"][:2]
    if unit not in UNITS or kind not in COUNTED or not _is_counted(kind, unit):
        parser.error(f"of {', '.join(UNITS)} there is counted {', '.join(COUNTED)}; not all of each")
    units = measure()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may have seen enough
    if options.where is not None:
        print(_where(units[unit], unit, kind))
    else:
        print(_table(units), "", *(f"{name:14}{meaning}" for name, meaning in (UNITS | COUNTED).items()), sep="\n")


if __name__ == "__main__":
    main()
