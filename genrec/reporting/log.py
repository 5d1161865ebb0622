"""What processes that run for long say on standard error."""

from __future__ import annotations

import contextlib
import sys


def say(line: str) -> None:
    """Writes a line. Where it cannot be written, such as on a full disk, what it is about goes on without it."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
