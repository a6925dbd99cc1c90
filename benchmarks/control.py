"""A measurement's word with the origin, on a connection of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

_LONGEST_LINE = 16 * 1024 * 1024


async def tell(port: int, word: str) -> Any:
    """What the port's behaviour says to `word` (see `told` there)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LONGEST_LINE)
    try:
        writer.write(f"{word}\r\n\r\n".encode())
        return json.loads(await reader.readline())
    finally:
        writer.close()
        await writer.wait_closed()
