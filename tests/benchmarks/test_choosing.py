"""Which scenarios and clients are measured, how often, and in which environment."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benchmarks.described import Description, describe, description_in, module_of, names_in
from benchmarks.environments import EnvironmentNotReadyError, environment_of, versions_in
from benchmarks.processes import Ready
from benchmarks.rounds import Effort, Step, plan, too_long
from benchmarks.run import effort_of, parse
from benchmarks.scenarios import CORE, SCENARIOS, chosen, in_order

FLOOR, OURS, PEER = (Description(name) for name in ("floor", "millstream_llm", "peer"))


def test_scenarios_are_chosen_by_name_or_beginning_in_the_order_of_the_tables():
    assert [each.name for each in chosen("hold-2000,generate-64,generate-1")] == [
        "generate-1",
        "generate-64",
        "hold-2000",
    ]
    assert [each.name for each in chosen("hold")] == ["hold-500", "hold-2000", "hold-5000"]
    assert chosen(None) == list(SCENARIOS)
    assert 0 < len(chosen(None, quick=True)) < len(SCENARIOS) / 2


def test_an_unknown_scenario_is_told_with_those_that_there_are():
    with pytest.raises(LookupError, match="no scenario 'generat'; there are generate-1, "):
        chosen("generate-1,generat")


def test_scenario_names_are_unique():
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)


def test_clients_are_in_order_and_a_new_one_comes_before_the_last():
    names = ["newcomer", "millstream_llm", "openai_sdk", "floor"]
    assert in_order(names) == ("floor", "openai_sdk", "newcomer", "millstream_llm")


def steps(names, effort, clients=(FLOOR, PEER, OURS)):
    parts = {name: Description(name) for each in SCENARIOS for name in each.parts}
    return list(plan(chosen(names), clients, parts, effort))


def test_rounds_are_interleaved_and_who_is_first_changes():
    found = [(step.turn, step.client.name) for step in steps("generate-64", Effort(3, 3))]
    turns = [[name for turn, name in found if turn == number] for number in range(3)]
    assert turns == [
        ["floor", "peer", "millstream_llm"],
        ["peer", "millstream_llm", "floor"],
        ["millstream_llm", "floor", "peer"],
    ]


def test_peers_are_in_fewer_rounds():
    found = [step.client.name for step in steps("generate-64", Effort(5, 2))]
    assert (found.count("peer"), found.count("floor"), found.count("millstream_llm")) == (2, 5, 5)


def test_the_main_scenarios_are_measured_twice_as_often_unless_it_is_to_be_even():
    for even, others in ((False, [3, 1, 3]), (True, [5, 2, 5])):
        found = [
            (step.scenario.name, step.client.name) for step in steps("generate-64,generate-8", Effort(5, 2, even=even))
        ]
        assert [found.count(("generate-64", each.name)) for each in (FLOOR, PEER, OURS)] == [5, 2, 5]
        assert [found.count(("generate-8", each.name)) for each in (FLOOR, PEER, OURS)] == others


def test_a_client_says_where_it_makes_no_sense():
    shy = Description("shy", skips={"generate-10000": "minutes"})
    found = steps("generate-1,generate-10000", Effort(3, 3, even=True), [shy])
    assert [step.why_not for step in found if step.scenario.name == "generate-10000"] == ["minutes"]
    assert [step.why_not for step in found if step.scenario.name == "generate-1"] == [None] * 3


def test_a_beginning_skips_whole_words_only():
    shy = Description("shy", skips={"generate-1": "no", "hold": "never"})
    assert [shy.why_not(name) for name in ("generate-1", "generate-10000", "hold-2000")] == ["no", None, "never"]


def test_a_scenario_for_some_clients_says_why_it_is_not_for_the_others():
    found = {step.client.name: step.why_not for step in steps("latency", Effort(1, 1))}
    assert found["floor"] is None
    assert "CPU" in found["peer"]


@pytest.mark.parametrize(
    ("scenario", "measured", "figure", "reason"),
    [
        ("generate-4096", "generate-1024", 3000.0, "about 25 s, by its 3 ms a request with 1024 in flight"),
        ("generate-4096", "generate-1024", 300.0, None),
        ("generate-4096", "generate-10000", 3000.0, None),  # says nothing of fewer in flight
        ("generate-4096", "stream-coalesced-64", 3000.0, None),
        ("stream-spaced-1024", "stream-spaced-64", 500.0, "about 35 s, by its 0.5 ms a token with 64 in flight"),
        ("hold-5000", "hold-2000", 1e6, None),  # its figure is no time
    ],
)
def test_what_would_take_too_long_is_not_tried(scenario, measured, figure, reason):
    (one,) = chosen(scenario)
    lines = [
        {"client": "peer", "scenario": measured, "figure": figure},
        {"client": "floor", "scenario": measured, "figure": 1e6},
        {"client": "peer", "scenario": measured, "error": "no"},
    ]
    assert too_long(Step(0, one, PEER, None), lines, patience=10.0) == reason


def test_parts_stand_in_for_clients():
    found = steps("codec-decode-plain", Effort(2, 1))
    assert [step.client.name for step in found if not step.turn] == ["pydantic_result", "millstream_result"]


def test_what_lasts_is_measured_once():
    assert [step.turn for step in steps("map-10000", Effort(5, 2))] == [0]


@pytest.mark.parametrize(
    ("arguments", "effort"),
    [
        ([], Effort(5, 2, 0.5)),
        (["--quick"], Effort(1, 1, 0.2)),
        (["--rounds", "1"], Effort(1, 1, 0.5)),
        (["--clients", "floor", "--rounds", "7"], Effort(7, 7, 0.5)),
        (["--peer-rounds", "3", "--seconds", "1", "--patience", "60"], Effort(5, 3, 1.0, 60.0)),
        (["--scenarios", "hold"], Effort(5, 2, 0.5, even=True)),
    ],
)
def test_the_effort_is_what_was_asked_for(arguments, effort):
    assert effort_of(parse(arguments)) == effort


@pytest.mark.parametrize("name", [*names_in("clients"), *names_in("parts")])
def test_every_client_describes_itself(name):
    found = describe(name)
    assert found.label
    assert found.module or found.foreign
    assert all(any(scenario.name.startswith(part) for scenario in SCENARIOS) for part in found.skips)


def test_the_clients_of_every_round_and_the_parts_are_there():
    assert set(CORE) <= set(names_in("clients"))
    assert {name for each in SCENARIOS for name in each.parts} == set(names_in("parts"))


def test_a_description_is_read_without_importing():
    source = 'import nothing_there\nclass Bench(Client):\n    label = "x"\n    skips: dict = {"hold": "no"}\n    other = f()\n'
    assert description_in("one", source) == Description("one", label="x", skips={"hold": "no"})


@pytest.mark.parametrize(
    ("source", "message"),
    [("class Other: pass", "has no class Bench"), ("class Bench:\n    label = f()", "label is no literal")],
)
def test_what_can_not_be_read_is_told(source, message):
    with pytest.raises(ValueError, match=message):
        description_in("one", source)


def test_an_unknown_client_is_told_with_those_that_there_are():
    with pytest.raises(LookupError, match=r"no client 'flor'; there are aiohttp_loop, "):
        module_of("flor")


def test_without_requirements_a_client_runs_here(tmp_path):
    here = environment_of(FLOOR, tmp_path)
    assert here.python == sys.executable
    assert versions_in(here, Description("floor", distributions=("pytest", "nothing-there"))) == {
        "pytest": pytest.__version__,
        "nothing-there": "not installed",
    }


def test_an_environment_is_made_once_for_the_same_requirements(tmp_path):
    made = []

    def get(version):
        client = Description("peer", requirements=(f"peer=={version}",))
        return environment_of(client, tmp_path, lambda client, environment: made.append(client.requirements))

    one = get("1.0")
    assert get("1.0") == one != get("2.0")
    assert one.python.startswith(str(tmp_path))
    assert made == [("peer==1.0",), ("peer==2.0",)]


def test_a_peer_that_can_not_be_installed_says_so_for_each_measurement(tmp_path):
    tried = []

    def fail(client, environment):
        tried.append(client.name)
        raise EnvironmentNotReadyError("ERROR: no such version")

    client = Description("peer", requirements=("peer==1.0",))
    ready = Ready([client], tmp_path, fail)
    for scenario in SCENARIOS[:2]:
        line = ready.measure(client, scenario, 0, 0.1, None)
        assert line == {"error": "its environment could not be made: ERROR: no such version", "hopeless": True}
    Ready([client], tmp_path, fail)  # half an environment is none: it is tried again
    assert tried == ["peer", "peer"]


@pytest.mark.parametrize(
    ("program", "figures"),
    [
        ("print('{\"figure\": 1.5}')", {"figure": 1.5}),
        ("import sys; sys.exit('it broke')", {"error": "RuntimeError: exit status 1: it broke"}),
    ],
)
def test_a_foreign_program_prints_the_line(program, figures, tmp_path):
    client = Description("foreign", foreign=(sys.executable, "-c", program))
    assert Ready([client], tmp_path).measure(client, SCENARIOS[0], 0, 0.1, None) == figures


def test_measuring_imports_nothing_but_the_standard_library():
    code = "import sys; import benchmarks.measure; print(*{name.partition('.')[0] for name in sys.modules})"
    printed = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(printed.stdout.split())
    assert "benchmarks" in loaded
    assert not loaded & {"millstream", "anyio", "httpx", "msgspec", "aiohttp", "uvloop"}
