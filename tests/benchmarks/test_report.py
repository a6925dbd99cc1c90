"""Tables, targets and the picture of made-up measurements."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from benchmarks.plot import picture
from benchmarks.report import Circumstances, report
from benchmarks.results import Results
from benchmarks.scenarios import SCENARIOS, chosen
from benchmarks.targets import TARGETS, Target

HOW = Circumstances(3, 2, 0.5, {"openai": {"openai": "3.57.0"}}, ["0.0", "0.1"], 12.0)


def line(client, figure=None, *, scenario="generate-64", turn=0, **further):
    told = {} if figure is None else {"figure": figure, "figure_unit": "CPU us a request"}
    return {"client": client, "label": client, "scenario": scenario, "round": turn, **told, **further}


def told(*lines, scenarios="generate-64"):
    return report(Results(lines), chosen(scenarios), HOW)


def test_figures_stand_beside_their_ratio_to_the_compared_client():
    text = told(line("floor", 10.0), line("openai_sdk", 1234.0), line("millstream_llm", 40.0))
    assert "| floor | 10.0 (0.25x) |" in text
    assert "| openai_sdk | 1234 (30.9x) |" in text
    assert "| **millstream_llm** | **40.0** |" in text


def test_what_failed_is_told_with_its_reason():
    text = told(
        line("openai_sdk", error="no environment"),
        line("millstream_llm", 40.0),
        line("millstream_llm", turn=1, error="OSError: no"),
    )
    assert "| openai_sdk | **failed** |" in text
    assert "| **millstream_llm** | **40.0** (**1 of 2 failed**) |" in text
    assert "- openai_sdk: generate-64: no environment" in text
    assert "- millstream_llm: generate-64: OSError: no" in text


def test_what_was_not_tried_is_told_with_its_reason_once():
    reason = "its pool looks through all connections"
    lines = [
        line(client, scenario=scenario, skipped=reason)
        for scenario in ("generate-4096", "generate-10000")
        for client in ("openai_sdk", "litellm")
    ]
    text = told(*lines, scenarios="generate")
    assert "| openai_sdk | - | - | - | - | - | - | - |" in text
    assert f"- openai_sdk, litellm: generate-4096, generate-10000: {reason}" in text


def test_versions_are_told():
    assert "- openai: openai 3.57.0" in told(line("millstream_llm", 40.0))


def test_without_the_compared_client_there_are_no_ratios():
    text = told(line("floor", 10.0))
    assert "| floor | 10.0 |" in text
    assert "multiple" not in text


def test_a_ratio_is_taken_within_each_round():
    lines = [
        line(client, figure, turn=turn)
        for turn, figures in enumerate([(10, 20), (100, 200), (1000, 2000)])
        for client, figure in zip(["floor", "millstream_llm"], figures, strict=True)
    ]
    assert Results(lines).ratio("generate-64", "millstream_llm", "floor") == 2.0


def test_a_round_without_the_other_does_not_count():
    lines = [line("floor", 10.0), line("millstream_llm", 20.0), line("millstream_llm", 90.0, turn=1)]
    results = Results(lines)
    assert results.ratio("generate-64", "millstream_llm", "floor") == 2.0
    assert results.added("generate-64", "millstream_llm", "floor") == 10.0


def test_growth_is_from_one_scenario_to_another():
    lines = [line("millstream_llm", 50.0), line("millstream_llm", 60.0, scenario="generate-10000")]
    assert Results(lines).growth("generate-10000", "generate-64", "millstream_llm") == 1.2


@pytest.mark.parametrize(
    ("better", "value", "goal", "must"),
    [
        ("less", 1.0, True, True),
        ("less", 1.5, False, True),
        ("less", 2.1, False, False),
        ("more", 2.0, True, True),
        ("more", 1.5, False, True),
        ("more", 0.9, False, False),
    ],
)
def test_a_target_is_met_or_missed(better, value, goal, must):
    limits = (1.0, 2.0) if better == "less" else (2.0, 1.0)
    target = Target("speed", (), lambda results: value, *limits, better=better)
    assert (target.met(value, target.goal), target.met(value, target.must)) == (goal, must)


def test_targets_are_judged_by_goal_and_must():
    text = told(
        line("aiohttp_loop", 100.0, scenario="generate-256"),
        line("millstream_llm", 60.0, scenario="generate-256"),
        scenarios="generate-256",
    )
    assert "against aiohttp in a bare loop | 0.40x | 0.70x | 0.60x | **missed** | met |" in text
    assert "against the floor" not in text  # it is not in this run


def test_a_target_whose_peer_failed_is_not_measured():
    text = told(
        line("openai_sdk", scenario="generate-256", error="no environment"),
        line("millstream_llm", 60.0, scenario="generate-256"),
        scenarios="generate-256",
    )
    assert "against openai | 25.0x less | 15.0x less | not measured | - | - |" in text


def test_every_target_is_made_of_what_is_measured():
    names = {scenario.name for scenario in SCENARIOS}
    assert {scenario for target in TARGETS for scenario, _ in target.needs} <= names
    everything = Results(
        [line(client, 3.0, scenario=scenario) for target in TARGETS for scenario, client in target.needs]
    )
    assert all(target.value(everything) is not None for target in TARGETS)
    assert all(target.met(target.goal, target.must) for target in TARGETS)


def test_the_picture_has_a_line_for_each_client_that_was_measured():
    lines = [
        line(client, figure, scenario=f"generate-{width}")
        for client, figure in (("floor", 9.0), ("openai_sdk", 2000.0))
        for width in (1, 64, 10_000)
    ]
    lines.append(line("litellm", scenario="generate-64", error="no"))
    lines.append(line("openai_sdk", 140.0, scenario="stream-coalesced-64"))
    drawn = picture(Results(lines))
    root = ET.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert len(re.findall("<polyline", drawn)) == 2
    assert "openai_sdk" in drawn
    assert "litellm" not in drawn


def test_a_picture_of_nothing_is_still_a_picture():
    assert ET.fromstring(picture(Results([]))).tag.endswith("svg")
