"""huggingface_hub with an HTTP client that is made as its own is, but for one thing."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx2
from huggingface_hub import set_async_client_factory
from huggingface_hub.utils._http import (
    async_hf_request_event_hook,
    async_hf_response_event_hook,
    default_async_client_factory,
)

from benchmarks.clients import huggingface_hub as plain

_HOOKS = {"request": [async_hf_request_event_hook], "response": [async_hf_response_event_hook]}


class HubOn(plain.Bench):
    def different(self) -> dict[str, Any]:
        """That one thing."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        set_async_client_factory(
            lambda: httpx2.AsyncClient(event_hooks=_HOOKS, follow_redirects=True, timeout=None, **self.different())
        )
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        set_async_client_factory(default_async_client_factory)
