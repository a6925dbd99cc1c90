"""huggingface_hub's `AsyncInferenceClient` with as many connections as are in flight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import httpx2

from benchmarks.clients._hub_on import HubOn


class Bench(HubOn):
    label = "huggingface_hub, with a connection for each"
    module = "huggingface_hub.inference._generated._async_client"
    distributions = ("huggingface_hub", "httpx2")
    requirements = ("huggingface_hub==2.4.0", "httpx2==2.16.2")
    skips: ClassVar[Mapping[str, str]] = {
        "generate-1": "it is what huggingface_hub is",
        "generate-8": "it is what huggingface_hub is",
        "generate-64": "it is what huggingface_hub is",
        "stream-coalesced-1": "it is what huggingface_hub is",
        "stream-coalesced-64": "it is what huggingface_hub is",
        "stream-spaced-1": "it is what huggingface_hub is",
        "stream-spaced-64": "it is what huggingface_hub is",
        "first": "it is what huggingface_hub is",
        "import": "it is what huggingface_hub is",
        "import-memory": "it is what huggingface_hub is",
    }

    def different(self) -> dict[str, Any]:
        return {"limits": httpx2.Limits(max_connections=self.concurrency)}
