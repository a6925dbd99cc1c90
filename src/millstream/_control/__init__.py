"""How many requests may be in flight at an endpoint, and how fast they may leave: the adaptive window.

Pure: times are arguments (monotonic seconds), chance is a function given, nothing here waits or sends.
"""

from __future__ import annotations

from millstream._control._facts import RejectKind, WindowChange, WindowStatistics
from millstream._control._window import Window

__all__ = ["RejectKind", "Window", "WindowChange", "WindowStatistics"]
