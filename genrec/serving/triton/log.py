"""Reads a Triton log: while it is written, and for what went wrong."""

from __future__ import annotations

import collections
import contextlib
import re
import sys
import threading
from collections.abc import Iterable
from typing import IO

_LINES_KEPT = 5000
# I0102 03:04:05.678901 1234 file.cc:56] "message, escaped as in C"
_LOG_ENTRY = re.compile(r"(?P<severity>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ [\w.]+:\d+\] (?P<text>.*)")
# what every server without a GPU says
_HARMLESS_ERRORS = ("CudaDriverHelper has not been initialized", "CUDA driver version is insufficient")


def error_lines(log: Iterable[str], limit: int = 40) -> list[str]:
    """The lines of a Triton log that say what went wrong.

    Those are the error lines (`E0102 03:04:05.6 ...`) with their messages unescaped, such as the traceback of a
    `model.py`, and what the dynamic loader, a Python process or Triton's last words put there without that prefix.

    log: lines of a log, oldest first. limit: lines to return at most; the middle is left out.
    """
    kept: dict[str, None] = {}  # ordered, and each line once: Triton repeats a failure at every level that it passes
    following = False
    for line in log:
        entry = _LOG_ENTRY.match(line)
        if entry:
            following = entry["severity"] in "EF" and not any(noise in line for noise in _HARMLESS_ERRORS)
            line = entry["text"]
            if line.startswith('"') and line.endswith('"'):
                line = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), line[1:-1])
        elif line.startswith("[libprotobuf ERROR"):
            # What is wrong with a config.pbtxt, which the error line leaves out.
            kept[re.sub(r"^\[.*?\] ", "", line)] = None
            continue
        elif line.startswith(("Traceback (most recent", "error:")) or "error while loading shared libraries" in line:
            following = True
        if following:
            kept.update((part, None) for part in line.splitlines() if part.strip(" ;"))
    lines = list(kept)
    if len(lines) > limit:
        half = limit // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half} lines left out ...", *lines[-half:]]
    return lines


class LogPump:
    """Reads a server's output in a thread of its own, passes it on, and keeps the recent lines.

    source: the output; closed at its end, as is `file`. file: where it goes; None passes it to this process's standard
    error.
    """

    def __init__(self, source: IO[bytes], file: IO[bytes] | None) -> None:
        self._source, self._file = source, file
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        """The recent lines, oldest first."""
        return list(self._lines)

    def join(self) -> None:
        """Waits for the end of the output, 2 seconds at most."""
        self._thread.join(2)

    def _read(self) -> None:
        with self._source, self._file or contextlib.nullcontext():
            for line in self._source:
                self._lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                # A full disk or a closed stream must not stop the reading: the server would block on its next line.
                with contextlib.suppress(OSError, ValueError):
                    if self._file is not None:
                        self._file.write(line)
                        self._file.flush()
                    else:
                        sys.stderr.write(self._lines[-1] + "\n")
