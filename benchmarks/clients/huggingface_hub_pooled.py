"""huggingface_hub's `AsyncInferenceClient` on our pool."""

from __future__ import annotations

import httpx2
from huggingface_hub import set_async_client_factory

from benchmarks.clients import huggingface_hub as plain
from millstream.httpx2 import PooledTransport


class Bench(plain.Bench):
    label = "huggingface_hub, on millstream's pool"
    module = "huggingface_hub.inference._generated._async_client"
    distributions = ("huggingface_hub", "httpx2", "millstream")
    requirements = ("huggingface_hub==2.4.0", "httpx2==2.16.2", ".[httpx2]")

    def _choose_http_client(self) -> None:
        set_async_client_factory(lambda: httpx2.AsyncClient(transport=PooledTransport(), **plain.OPTIONS))
