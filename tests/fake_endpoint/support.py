"""Short ways to ask an endpoint."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import httpx

from millstream.testing import FakeEndpoint


@asynccontextmanager
async def asking(**options):
    """A running endpoint, and an HTTP client for it."""
    async with (
        FakeEndpoint(**options) as endpoint,
        httpx.AsyncClient(base_url=endpoint.url, timeout=10, verify=False) as client,
    ):
        yield endpoint, client


def events(response: httpx.Response) -> list:
    """The events of a stream, decoded; "[DONE]" as it is."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    payloads = [block.removeprefix("data: ") for block in blocks]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def chat(text: str = "Hi there", **fields):
    return {"messages": [{"role": "user", "content": text}], **fields}
