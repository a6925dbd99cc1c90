"""Admission in a forked process."""

from __future__ import annotations

import os

import pytest

from .test_admission import admission_of


@pytest.mark.filterwarnings("ignore:.*fork")  # other threads of the test run do not matter to the child
def test_a_forked_process_begins_with_all_places():
    admission = admission_of(1)
    held = admission.acquire_nowait()
    assert held is not None
    child = os.fork()
    if child == 0:
        mine = admission.acquire_nowait()
        held.release()  # the other process's: it must not make room here
        os._exit(0 if mine is not None and admission.acquire_nowait() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert admission.acquire_nowait() is None
    held.release()
