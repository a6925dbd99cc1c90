from __future__ import annotations

import anyio


def assert_quiet(transport):
    """Nothing is under way."""
    now = transport.statistics()
    assert (now.active, now.opening, now.waiting) == (0, 0, 0)
    assert now.open == now.idle


async def settle(condition):
    """Let the loop run until something that is under way has happened."""
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.001)
