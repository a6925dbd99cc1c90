"""huggingface_hub's `AsyncInferenceClient` on our pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from benchmarks.clients._hub_on import HubOn
from millstream.httpx2 import PooledTransport


class Bench(HubOn):
    label = "huggingface_hub, on millstream's pool"
    module = "huggingface_hub.inference._generated._async_client"
    distributions = ("huggingface_hub", "httpx2", "millstream")
    requirements = ("huggingface_hub==2.4.0", "httpx2==2.16.2", ".[httpx2]")
    skips: ClassVar[Mapping[str, str]] = {}

    def different(self) -> dict[str, Any]:
        return {"transport": PooledTransport()}
