"""The measurements: a sweep of fixed widths, then the caller that finds out by itself, for each endpoint."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.machine import new_loop
from millstream import WindowStatistics

from .endpoints import Endpoints, running_endpoints
from .figures import SAME, Best, Figures, best_of, figures, seconds_to
from .load import Event, Log, Width, chat, even, run, varied
from .scenarios import (
    BATCHING,
    BOUNDED_QUEUE,
    BOUNDED_WIDTHS,
    LOCAL_WIDTHS,
    QUICK_WIDTHS,
    QUOTA,
    RATE_LATENCY,
    RATE_WIDTH,
    RATE_WORDS,
    RATES,
    SLOTS,
    STEP_WIDTHS,
    STEPS,
    UNBOUNDED_WIDTHS,
    WINDOWS,
    Effort,
)

LOCAL_TOKENS = 32
MOST_WIDTH = 32
LOCAL_SAME = 0.95
"""As `SAME`, of an engine on a CPU: a few answers a second say no more."""


@dataclass
class Result:
    """One endpoint (or one phase of it)."""

    name: str
    best: Best
    whole: Figures
    steady: Figures
    to_90: float | None
    """Seconds until the goodput was 90 % of the best."""
    sweep: dict[Width, Figures] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


def ask(*arguments: Any, **options: Any) -> Log:
    """`run` in a loop of its own."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(run(*arguments, **options))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def sweep_of(
    url: str, widths: Iterable[int], prompts: Iterator[str], seconds: float, warm_up: float, **options: Any
) -> dict[Width, Figures]:
    found: dict[Width, Figures] = {}
    for width in widths:
        found[width] = figures(ask(url, width, prompts, seconds, **options), warm_up)
        tell(f"  {width:4}: {shown(found[width])}")
    return found


def shown(each: Figures) -> str:
    p50, p99 = (f"{value:.3f}" if value is not None else "-" for value in (each.ttft_p50, each.ttft_p99))
    return (
        f"{each.tokens:7.1f} tokens/s, {each.answers:5.2f} answers/s, TTFT {p50} / {p99} s, refused {each.refused:.1%}"
    )


def result_of(
    name: str,
    log: Log,
    sweep: dict[Width, Figures],
    *,
    steady: float,
    begin: float = 0.0,
    end: float | None = None,
    span: float = 2.0,
    same: float = SAME,
) -> Result:
    best = best_of(sweep, same)
    result = Result(
        name=name,
        best=best,
        whole=figures(log, begin, end),
        steady=figures(log, begin + steady, end),
        to_90=seconds_to(log, 0.9 * best.tokens, begin=begin, span=span),
        sweep=sweep,
        errors=log.errors,
        trace=trace(log),
    )
    tell(f"  auto: {shown(result.steady)} (steady); 90 % after {result.to_90} s")
    return result


def trace(log: Log) -> list[str]:
    """How the window went, a line for each look and each change."""
    lines = [(at, _shown_look(at, look)) for at, look in log.looks]
    lines += [
        (each.time, f"-- {each.before} -> {each.limit} {each.reason} pace {each.pace} cool {each.cool_for:.2f}")
        for each in log.changes
    ]
    return [f"{at - log.began:7.2f} {text}" for at, text in sorted(lines)]


def _shown_look(at: float, look: WindowStatistics) -> str:
    cool = max(0.0, look.cool_until - at) if look.cool_until > 0 else 0.0
    return (
        f"limit {look.limit} waiting {look.waiting} served {look.served} rate {look.arrival_rate:.2f} "
        f"base {look.base or 0:.3f} excess {look.excess:.1f} pace {look.pace or 0:.2f} cool {cool:.1f} "
        f"cuts {look.cuts} probes {look.probes} rejected {look.rejected}"
    )


# -- the fake endpoint ----------------------------------------------------------------------------------------------------


def batching(effort: Effort) -> list[Result]:
    """Continuous batching: a queue without and with a bound, and slots that come and go."""
    results: list[Result] = []
    tell(f"fake endpoint, {SLOTS} slots, unbounded queue")
    with running_endpoints([{**BATCHING, "slots": SLOTS}]) as endpoints:
        widths = QUICK_WIDTHS if effort.quick else UNBOUNDED_WIDTHS
        url = endpoints.urls[0]
        sweep = sweep_of(url, widths, varied(1), effort.point, effort.warm_up)
        log = ask(url, "auto", varied(2), effort.adaptive)
        results.append(result_of(f"{SLOTS} slots, unbounded queue", log, sweep, steady=effort.steady))
        if not effort.quick:
            results += _steps(endpoints, sweep, effort)
    tell(f"fake endpoint, {SLOTS} slots, at most {BOUNDED_QUEUE} queue")
    with running_endpoints([{**BATCHING, "slots": SLOTS, "max_queue": BOUNDED_QUEUE}]) as endpoints:
        widths = QUICK_WIDTHS if effort.quick else BOUNDED_WIDTHS
        bounded = sweep_of(endpoints.urls[0], widths, varied(1), effort.point, effort.warm_up)
        log = ask(endpoints.urls[0], "auto", varied(2), effort.adaptive)
        # No queue, no wait: the wait for the first token is held against that of the unbounded queue.
        result = result_of(f"{SLOTS} slots, at most {BOUNDED_QUEUE} queue (503)", log, bounded, steady=effort.steady)
        result.best = Best(result.best.tokens, result.best.width, sweep.get(2 * SLOTS))
        results.append(result)
    return results


def _steps(endpoints: Endpoints, first: dict[Width, Figures], effort: Effort) -> list[Result]:
    url = endpoints.urls[0]
    sweeps: dict[int, dict[Width, Figures]] = {SLOTS: first}
    for slots, widths in STEP_WIDTHS.items():
        tell(f"fake endpoint, {slots} slots")
        endpoints.resize(slots)
        sweeps[slots] = sweep_of(url, widths, varied(1), effort.point, effort.warm_up)
    tell(f"fake endpoint, slots {' -> '.join(map(str, STEPS))}")
    endpoints.resize(STEPS[0])
    phase = effort.adaptive
    events: list[Event] = [
        (number * phase, lambda slots=slots: endpoints.resize(slots)) for number, slots in enumerate(STEPS) if number
    ]
    log = ask(url, "auto", varied(3), phase * len(STEPS), events=events)
    return [
        result_of(
            f"slots {STEPS[number - 1]} -> {slots}",
            log,
            sweeps[slots],
            steady=effort.steady,
            begin=number * phase,
            end=(number + 1) * phase,
        )
        for number, slots in enumerate(STEPS)
        if number
    ]


# -- quotas ---------------------------------------------------------------------------------------------------------------


def rates(effort: Effort) -> list[Result]:
    """All quotas at once, each at an endpoint of its own, since they mostly wait: whole windows are counted."""
    quota = round(QUOTA * effort.rate_window / 60)
    common = {
        "server": "vllm",
        "latency": RATE_LATENCY,
        "rate_window": effort.rate_window,
        "requests_per_minute": quota,
    }
    widths: tuple[Width, ...] = (RATE_WIDTH, "auto")
    cases = [(name, options, width) for name, options in RATES.items() for width in widths]
    seconds = WINDOWS * effort.rate_window
    longest = RATE_LATENCY[0] + RATE_WORDS * RATE_LATENCY[1]

    async def all_of_them(urls: list[str]) -> list[Log]:
        return await asyncio.gather(
            *(run(url, case[2], even(RATE_WORDS), seconds + longest) for url, case in zip(urls, cases, strict=True))
        )

    tell(f"quotas, {seconds:g} s")
    endpoints_options = [{**common, **options} for _, options, _ in cases]
    with running_endpoints(endpoints_options) as endpoints, asyncio.Runner(loop_factory=new_loop) as runner:
        logs = runner.run(all_of_them(list(endpoints.urls)))
    results: list[Result] = []
    for number in range(0, len(cases), len(widths)):
        fixed, log = logs[number], logs[number + 1]
        # An answer counts when it was complete: that is so much after its request was let in.
        whole = figures(fixed, longest, seconds + longest)
        known = QUOTA / 60 * RATE_WORDS
        tell(f"{cases[number][0]}\n  {RATE_WIDTH:4}: {shown(whole)}")
        result = result_of(
            cases[number][0], log, {RATE_WIDTH: whole}, steady=effort.rate_window + longest, span=effort.rate_window / 6
        )
        result.whole = figures(log, longest, seconds + longest)
        result.best = Best(known, RATE_WIDTH, None)
        results.append(result)
    return results


# -- a real engine --------------------------------------------------------------------------------------------------------


def llamacpp(effort: Effort) -> list[Result]:
    """SmolLM2 on the embedded server."""
    from millstream.local import local_server

    results: list[Result] = []
    for slots in effort.slots:
        tell(f"llama.cpp, {slots} slots")
        server = local_server(slots=slots)
        try:
            options = {"max_tokens": LOCAL_TOKENS}
            ask(server.url, slots, chat(0), 1.0, **options)
            point, warm_up = effort.local_point, effort.local_warm_up
            sweep = sweep_of(server.url, LOCAL_WIDTHS[slots], chat(1), point, warm_up, **options)
            # Where the widest is the best: waits are held against those of its double.
            while (best := best_of(sweep, LOCAL_SAME)).double is None and best.width < MOST_WIDTH:
                sweep |= sweep_of(server.url, (2 * best.width,), chat(1), point, warm_up, **options)
            log = ask(server.url, "auto", chat(2), effort.local_adaptive, **options)
            name = f"llama.cpp, {slots} {'slot' if slots == 1 else 'slots'}"
            results.append(result_of(name, log, sweep, steady=effort.local_steady, span=4.0, same=LOCAL_SAME))
        finally:
            server.close()
    return results


def to_json(results: list[Result]) -> str:
    return json.dumps([asdict(each) for each in results])


def from_json(text: str) -> list[Result]:
    """What `to_json` wrote in another process."""
    results: list[Result] = []
    for each in json.loads(text):
        best = each.pop("best")
        double = best.pop("double")
        each["best"] = Best(**best, double=None if double is None else Figures(**double))
        for name in ("whole", "steady"):
            each[name] = Figures(**each[name])
        each["sweep"] = {int(width): Figures(**found) for width, found in each["sweep"].items()}
        results.append(Result(**each))
    return results
