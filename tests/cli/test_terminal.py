"""The command line as a process: terminals, pipes, Ctrl-C, encodings, servers."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import anyio
import httpx
import pytest

from millstream.testing import FakeEndpoint, Fault, Latency

SECONDS = 20  # for a process to do what it is to do; none comes near that
COMMAND = (sys.executable, "-m", "millstream.cli")


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


def environment(**more: str) -> dict[str, str]:
    """That of the tests, with Python's usual buffers."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | more


@contextmanager
def started(*arguments: str, command: Sequence[str] = COMMAND, **options) -> Iterator[subprocess.Popen[bytes]]:
    usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    with subprocess.Popen([*command, *arguments], **{**usual, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    process.send_signal(signal.SIGINT)
    return finished(process)


def wait(endpoint: FakeEndpoint, condition) -> None:
    """Until something holds at the endpoint, which runs in a thread."""
    assert endpoint._portal is not None

    async def until() -> None:
        with anyio.fail_after(SECONDS):
            await endpoint.wait_for(condition)

    endpoint._portal.call(until)


# -- a terminal ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pty")
def test_on_a_terminal_tokens_come_at_once_and_can_not_drive_it(endpoint):
    import pty

    endpoint.reply = "a\x1b[2Jb\x9b \t😀 end"
    endpoint.fail(Fault.stall(2))
    leader, follower = pty.openpty()
    with started("generate", "--endpoint", endpoint.url, "x", stdout=follower, stderr=follower) as process:
        os.close(follower)
        seen = b""
        while "😀".encode() not in seen:
            assert select.select([leader], [], [], SECONDS)[0], seen
            seen += os.read(leader, 1024)
        assert process.poll() is None  # it still waits for the rest
        assert seen.decode() == "a\\x1b[2Jb\\x9b \t😀"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
    os.close(leader)


# -- Ctrl-C -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_an_interrupt_while_requests_stall(endpoint, prompts):
    endpoint.fail(Fault.stall(times=2))
    with started("generate", "--endpoint", endpoint.url, *prompts) as process:
        wait(endpoint, lambda: endpoint.in_flight == len(prompts))
        code, _, err = interrupt(process)
    assert code == 130
    assert err == "\n"
    wait(endpoint, lambda: endpoint.in_flight == 0)  # and the server was told to stop


def test_an_interrupt_between_attempts(endpoint):
    endpoint.fail(Fault.status(503, headers={"retry-after": "30"}, times=9))
    with started("generate", "--endpoint", endpoint.url, "x") as process:
        assert process.stderr is not None
        assert re.search(rb"next in 3\d\.\d s", process.stderr.readline())
        assert interrupt(process)[0] == 130


def test_an_interrupt_while_it_reads_standard_input(endpoint):
    with started("generate", "--endpoint", endpoint.url, "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * 300_000)  # more than a pipe holds: it is reading when this returns
        for _ in range(SECONDS):  # one that comes between two reads is noticed after the next
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
                break
        assert process.returncode == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"\n"
    assert endpoint.requests == []


# -- pipes and encodings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["b"], ["b", "--json"]])
def test_a_reader_that_leaves(endpoint, more):
    endpoint.reply = "a line\n" * 20
    endpoint.latency = Latency(inter_token=0.01)
    with started("generate", "--endpoint", endpoint.url, "a", *more) as process:
        assert process.stdout is not None
        if "--json" not in more:
            process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        assert finished(process) == (1, "", "")


def test_a_terminal_that_lacks_a_character(endpoint):
    endpoint.reply = "blåbær 😀"
    latin = environment(PYTHONIOENCODING="latin-1")
    with started("generate", "--endpoint", endpoint.url, "x", env=latin) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert out.decode("latin-1").splitlines() == ["blåbær \\U0001f600"]
    assert err == b""
    with started("generate", "--json", "--endpoint", endpoint.url, "x", env=latin) as process:
        assert "blåbær 😀" in finished(process)[1]


# -- servers ------------------------------------------------------------------------------------------------------------


def test_sim_serves_until_it_is_interrupted():
    with started("sim", "--model", "mill", "--first-token", "0", "--inter-token", "0", "--slots", "2") as process:
        assert process.stdout is not None
        first = process.stdout.readline().decode()
        url = re.fullmatch(r"Serving a simulated tgi at (http://127\.0\.0\.1:\d+) \(Ctrl-C stops\)\n", first)[1]
        assert process.stdout.readline().decode() == (
            f"Try: millstream generate --endpoint {url} 'Why is the sky blue?'\n"
        )
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "mill"
        with started("generate", "--endpoint", url, "--max-tokens", "3", "x", "y") as asking:
            code, out, err = finished(asking)
        assert (code, err) == (0, "")
        assert [len(line.split()) for line in out.splitlines()] == [2, 3, 0, 2, 3]
        assert interrupt(process) == (0, "", "\n")


@pytest.mark.local_model
def test_local_serves_until_it_is_interrupted(needs_local_model):
    with started("local", "--slots", "1") as process:
        assert process.stdout is not None
        first = process.stdout.readline().decode()
        url = re.fullmatch(r"Serving SmolLM2-135M-Instruct at (http://\S+) \(Ctrl-C stops\)\n", first)[1]
        with started("generate", "--endpoint", url, "--temperature", "0", "--max-tokens", "4", "Hi") as asking:
            code, out, err = finished(asking)
        assert (code, err) == (0, "")
        assert out.strip()
        assert interrupt(process)[::2] == (0, "\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.local_model
def test_local_on_a_port_that_is_taken(needs_local_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started("local", "--port", port) as process:
            code, out, err = finished(process)
    assert (code, out) == (2, "")
    assert err.startswith(f"millstream: port {port} can't be listened on: ")
    assert err.count("\n") == 1


@pytest.mark.local_model
def test_the_embedded_model_answers(needs_local_model):
    arguments = ("generate", "--endpoint", "local", "--temperature", "0", "--max-tokens", "8")
    with started(*arguments, "--api", "completions", "One, two, three,") as process:
        code, out, err = finished(process)
    assert (code, err) == (0, "")
    assert "four" in out


# -- starting -----------------------------------------------------------------------------------------------------------


def test_click_is_missing():
    program = (
        "import sys; sys.modules['click'] = None; sys.argv = ['millstream', '--help']; "
        "from millstream.cli import main; main()"
    )
    with started(command=(sys.executable, "-c", program)) as process:
        assert finished(process) == (
            2,
            "",
            'millstream: the command line needs an extra: pip install "millstream[cli]"\n',
        )
