"""A Redis server of one's own, on a free port, that keeps nothing on disk."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as BrokenConnectionError

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")
needs_server = pytest.mark.skipif(BINARY is None, reason="redis-server is not installed (apt-get install redis-server)")


class Server:
    def __init__(self, port: int, directory: str) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert BINARY is not None
        command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([*command, "--dir", self._directory], stdout=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(BrokenConnectionError), self.client() as client:
                client.ping()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
        raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Redis:
        return Redis(port=self.port, decode_responses=True)

    def command(self, *words: str):
        with self.client() as client:
            return client.execute_command(*words)

    def hash(self, key: str, what: str, seconds: int = 60) -> dict[str, str]:
        """Of a quota with windows of so many seconds: its ``counts`` or its ``members``."""
        with self.client() as client:
            return client.hgetall(f"millstream:{{{key}}}:{seconds}/{seconds}:{what}")


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        server = Server(port, directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
