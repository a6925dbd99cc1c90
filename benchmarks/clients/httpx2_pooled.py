"""The same loop with httpx2 on our pool."""

from __future__ import annotations

import httpx2

from benchmarks.clients._like_httpx import LikeHttpx
from millstream.httpx2 import PooledTransport


class Bench(LikeHttpx):
    label = "httpx2 in a bare loop, on millstream's pool"
    module = "millstream.httpx2"
    distributions = ("httpx2", "millstream")
    requirements = ("httpx2==2.16.2", ".[httpx2]")
    library = httpx2

    def _new_client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, timeout=None, transport=PooledTransport())
