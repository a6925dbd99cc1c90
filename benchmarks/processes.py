"""One measurement is one process, in the client's environment; and the origin is another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import machine
from .answers import ANSWER_TEXT, STREAM_TEXT
from .described import Description
from .environments import ROOT, Environment, EnvironmentNotReadyError, Install, environment_of, versions_in
from .results import Line
from .scenarios import Scenario

_IMPORT = """
import json, time
began = time.process_time()
import {}
seconds = time.process_time() - began
from benchmarks.machine import resident_bytes
print(json.dumps({{"seconds": seconds, "megabytes": resident_bytes() / 1e6}}))
"""


class Ready:
    """Clients with their environments, ready to be measured."""

    def __init__(self, clients: Sequence[Description], folder: Path, install: Install | None = None) -> None:
        self.clients = {client.name: client for client in clients}
        self.environments: dict[str, Environment] = {}
        self.problems: dict[str, str] = {}

        def prepare(client: Description) -> None:
            try:
                self.environments[client.name] = environment_of(client, folder, install)
            except EnvironmentNotReadyError as error:
                self.problems[client.name] = f"its environment could not be made: {error}"

        # Two at a time: one computes while the other downloads.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(prepare, clients))

    def versions(self) -> dict[str, dict[str, str]]:
        """By label, what is installed for each."""
        found: dict[str, dict[str, str]] = {}
        for name, client in self.clients.items():
            if name in self.environments:
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    found[client.label] = versions_in(self.environments[name], client)
        return found

    def measure(self, client: Description, scenario: Scenario, port: int, seconds: float, core: int | None) -> Line:
        """The figures, or what went wrong; then ``hopeless`` says whether to try again would only cost time."""
        if client.name in self.problems:
            return {"error": self.problems[client.name], "hopeless": True}
        try:
            return self._figures(client, scenario, port, seconds, core)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {scenario.longest:.0f} s", "hopeless": True}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _figures(self, client: Description, scenario: Scenario, port: int, seconds: float, core: int | None) -> Line:
        environment = self.environments[client.name]
        if client.foreign:
            texts = {"answer": ANSWER_TEXT, "stream": STREAM_TEXT}
            told = dataclasses.asdict(scenario) | {"port": port, "seconds": seconds} | texts
            return _line_of([*client.foreign, json.dumps(told)], environment, scenario.longest, core)
        if scenario.kind.startswith("import"):
            return _import(client, scenario, environment, core)
        command = [environment.python, "-m", "benchmarks.measure", client.name, scenario.name]
        command += ["--port", str(port), "--seconds", str(seconds)]
        return _line_of(command, environment, scenario.longest, core)


def _import(client: Description, scenario: Scenario, environment: Environment, core: int | None) -> Line:
    found = _line_of([environment.python, "-c", _IMPORT.format(client.module)], environment, scenario.longest, core)
    name, unit = ("seconds", "CPU seconds") if scenario.kind == "import" else ("megabytes", "MB")
    return {"figure": found[name], "figure_unit": unit}


def _line_of(command: Sequence[str], environment: Environment, seconds: float, core: int | None) -> Line:
    """The last line that a program prints, on one core."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment.variables(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        preexec_fn=None if core is None else lambda: machine.pin(core),
    )
    if done.returncode:
        last = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        raise RuntimeError(f"exit status {done.returncode}: {last[:300]}")
    line: Line = json.loads(done.stdout.strip().splitlines()[-1])
    return line


@contextlib.contextmanager
def running_origin(core: int | None) -> Iterator[dict[str, int]]:
    """The ports of an origin in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.origin"]
    if core is not None:
        command += ["--core", str(core)]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as origin,
    ):
        assert origin.stdin is not None
        assert origin.stdout is not None
        try:
            line = origin.stdout.readline()
            if not line:
                origin.wait()
                complaints.seek(0)
                raise RuntimeError(f"the origin did not start: {complaints.read()[-2000:]}")
            yield json.loads(line)
        finally:
            origin.stdin.close()  # its sign to leave
