"""The live measurements: what is noted, and what becomes of it. Nothing here depends on how fast anything is."""

from __future__ import annotations

import asyncio
import math

import pytest
from benchmarks.live.endpoints import running_endpoints, words
from benchmarks.live.figures import best_of, figures, quantile, seconds_to
from benchmarks.live.groups import Result, from_json, result_of, to_json
from benchmarks.live.load import Log, even, run, varied
from benchmarks.live.report import missed_by, report, write_readme
from benchmarks.live.wire import Exchange

from benchmarks import governor_cost


def exchange(sent, first, count, *, gap=0.1, end="complete", status=200):
    made = Exchange(sent)
    made.status = status
    made.arrivals = [(first + number * gap, 1) for number in range(count)]
    made.end, made.ended_at = end, first + count * gap
    return made


def log_of(*exchanges, seconds=10.0):
    return Log(100.0, 100.0 + seconds, exchanges=list(exchanges))


def steady_log(per_second=2, tokens=5, wait=0.2, seconds=10):
    sent = [100 + number / per_second for number in range(seconds * per_second)]
    return log_of(*(exchange(at, at + wait, tokens, gap=0.01) for at in sent), seconds=float(seconds))


def test_figures_count_tokens_when_they_came_and_waits_from_the_sending():
    found = figures(steady_log(), 2, 8)
    assert (found.tokens, found.answers, found.first_tokens) == (10.0, 2.0, 12)
    assert found.ttft_p50 == pytest.approx(0.2)


def test_refused_and_broken_answers_are_no_goodput_but_what_the_end_cut_off_is():
    found = figures(
        log_of(
            exchange(101, 101.5, 4),
            exchange(101, 101.5, 4, end="broken"),
            exchange(101, math.nan, 0, status=503),
            exchange(109, 109.2, 8, end="left"),
        ),
        0,
    )
    assert found.tokens == pytest.approx((4 + 8) / 10)
    assert (found.answers, found.refused) == (0.1, 0.25)


def test_of_widths_that_are_as_good_the_smallest_is_the_best():
    good, poor = figures(steady_log(10), 0), figures(steady_log(4), 0)
    best = best_of({4: poor, 8: good, 16: good, 32: poor})
    assert (best.width, best.tokens, best.double) == (8, good.tokens, good)


def test_seconds_until_the_goodput_is_there():
    log = steady_log()
    log.exchanges = [each for each in log.exchanges if each.sent_at >= 104]
    assert seconds_to(log, 9.0) == 4.0
    assert seconds_to(log, 11.0) is None


def test_quantiles_of_few():
    assert quantile([], 0.5) is None
    assert quantile([1.0, 2.0, 3.0], 0.99) == 3.0


def test_a_result_survives_the_way_between_processes_and_says_what_was_missed(tmp_path):
    result = result_of(
        "an endpoint", steady_log(4), {2: figures(steady_log(5), 0), 4: figures(steady_log(5), 0)}, steady=5
    )
    assert missed_by(result) == ["goodput", "TTFT"]
    (back,) = from_json(to_json([result]))
    assert back == result
    text = report([result], ["0.0", "0.0"])
    assert "| **missed**: goodput, TTFT |" in text
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- live -->\nold\n<!-- /live -->\nafter\n")
    write_readme(text, readme)
    assert readme.read_text() == f"before\n<!-- live -->\n\n{text}\n\n<!-- /live -->\nafter\n"


def test_failures_are_told():
    result = Result(
        "one", best_of({1: figures(steady_log(), 0)}), figures(steady_log(), 0), figures(steady_log(), 0), None
    )
    result.errors = ["OSError: no"]
    assert "- one: 1 calls failed, the first by OSError: no" in report([result], ["0.0", "0.0"])


def test_prompts_ask_for_a_number_of_words_and_get_it():
    lengths = [len(words(prompt).split()) for prompt, _ in zip(varied(1), range(2000), strict=False)]
    assert 30 < sum(lengths) / len(lengths) < 34
    assert len(words(next(even(7))).split()) == 7


def test_a_run_against_a_process_of_fake_endpoints():
    with running_endpoints([{"server": "vllm", "slots": 2, "latency": [0.005, 0.001, 0.0, 0.0]}]) as endpoints:
        endpoints.resize(4)
        log = asyncio.run(run(endpoints.urls[0], "auto", even(5), 0.4))
    assert log.errors == []
    complete = [each for each in log.exchanges if each.end == "complete"]
    assert complete
    assert {sum(count for _, count in each.arrivals) for each in complete} == {5}
    assert all(each.sent_at < each.arrivals[0][0] for each in complete)
    assert log.looks


def test_the_cost_is_measured_and_told(capsys):
    governor_cost.main(["--rounds", "1", "--passes", "50", "--waiting", "10,20"])
    printed = capsys.readouterr().out
    assert printed.count("| `AsyncCaller") == 2
    assert "µs a call" in printed
