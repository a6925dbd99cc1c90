"""An environment of its own for each set of requirements, made when it is first wanted and kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .described import Description

ROOT = Path(__file__).resolve().parent.parent
_ALWAYS = ("uvloop; sys_platform != 'win32'",)
_READY = "ready"
_LONGEST_SECONDS = 600

_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = "not installed"
print(json.dumps(found))
"""


class EnvironmentNotReadyError(Exception):
    """An environment could not be made; the message says why."""


@dataclass(frozen=True)
class Environment:
    """Where a client runs."""

    python: str = sys.executable
    folder: Path | None = None

    def variables(self) -> dict[str, str]:
        found = dict(os.environ)
        # An installed package has its bytecode: without it our own sources would be compiled by each process.
        found.pop("PYTHONDONTWRITEBYTECODE", None)
        if self.folder is not None:
            found["NODE_PATH"] = str(self.folder / "node_modules")
        return found


Install = Callable[[Description, Environment], None]
"""Fills the folder of an environment; raises `EnvironmentNotReadyError`."""


def default_folder() -> Path:
    """In the user's folder for caches."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "millstream-benchmarks"


def environment_of(client: Description, folder: Path, install: Install | None = None) -> Environment:
    """The client's environment, made (by `install`; None: by pip or npm) if it is not there.

    Raises:
        EnvironmentNotReadyError: it could not be made.
    """
    if not client.requirements:
        return Environment()
    own = folder / _key(client)
    environment = Environment(str(_python_in(own)), own) if not client.foreign else Environment(folder=own)
    if not (own / _READY).exists():
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        try:
            (install or _install)(client, environment)
        except (OSError, subprocess.SubprocessError) as error:
            raise EnvironmentNotReadyError(f"{type(error).__name__}: {error}") from error
        (own / _READY).write_text("\n".join(client.requirements))
    return environment


def versions_in(environment: Environment, client: Description) -> dict[str, str]:
    """The versions of the client's distributions where it runs."""
    if client.foreign:
        return {name: _node_version(environment, name) for name in client.distributions}
    command = [environment.python, "-c", _VERSIONS, *client.distributions]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def _key(client: Description) -> str:
    """Whatever the environment depends on; the checkout too, where that is installed in it."""
    parts = [*client.requirements, *client.foreign[:1], sys.version]
    if any(each.startswith(".") for each in client.requirements):
        parts.append(str(ROOT))
    return f"{client.name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


def _python_in(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _install(client: Description, environment: Environment) -> None:
    print(f"an environment for {client.name}: {', '.join(client.requirements)}", file=sys.stderr, flush=True)
    folder = environment.folder
    assert folder is not None
    if client.foreign:
        npm = shutil.which("npm")
        if npm is None:
            raise EnvironmentNotReadyError("npm is not here")
        _run([npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", *client.requirements])
        return
    venv.create(folder, with_pip=True)
    pip = [environment.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    wanted: list[str] = [*_ALWAYS]
    for each in client.requirements:
        wanted += ["--editable", each] if each.startswith(".") else [each]
    _run([*pip, *wanted])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_LONGEST_SECONDS,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        errors = [line for line in said if "ERROR" in line or "npm error" in line]
        raise EnvironmentNotReadyError((errors or said)[-1].strip()[:300])


def _node_version(environment: Environment, name: str) -> str:
    if name == "node":
        node = shutil.which("node")
        return (
            subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
            if node
            else "not installed"
        )
    assert environment.folder is not None
    try:
        return str(json.loads((environment.folder / "node_modules" / name / "package.json").read_text())["version"])
    except OSError:
        return "not installed"
