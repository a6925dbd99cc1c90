"""The command line: ``millstream generate``, ``millstream local``, ``millstream sim`` (extra ``[cli]``)."""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line on ``sys.argv``; ends the process with 0, 1 (it failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    try:
        from millstream.cli._commands import run  # noqa: PLC0415 - click is an extra
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print('millstream: the command line needs an extra: pip install "millstream[cli]"', file=sys.stderr)
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its number
    sys.exit(run())
