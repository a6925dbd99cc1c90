"""Slots in a forked process."""

from __future__ import annotations

import os

import pytest

from millstream._limits import Slots


@pytest.mark.filterwarnings("ignore:.*fork")  # other threads of the test run do not matter to the child
def test_a_forked_process_begins_with_all_slots():
    slots = Slots(1)
    held = slots.acquire_nowait()
    assert held is not None
    child = os.fork()
    if child == 0:
        os._exit(0 if slots.acquire_nowait() is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert slots.acquire_nowait() is None
    held.release()
