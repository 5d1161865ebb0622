"""Reads a Triton log."""

from __future__ import annotations

import re
from collections.abc import Iterable

# I0102 03:04:05.678901 1234 file.cc:56] "message, escaped as in C"
_LOG_ENTRY = re.compile(r"(?P<severity>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ [\w.]+:\d+\] (?P<text>.*)")
# what every server without a GPU says
_HARMLESS_ERRORS = ("CudaDriverHelper has not been initialized", "CUDA driver version is insufficient")


def error_lines(log: Iterable[str], limit: int = 40) -> list[str]:
    """The lines of a Triton log that say what went wrong.

    Those are the error lines (``E0102 03:04:05.6 ...``) with their messages unescaped, such as the traceback of a
    ``model.py``, and what the dynamic loader, a Python process or Triton's last words put there without that prefix.

    Args:
        log: lines of a log, oldest first.
        limit: lines to return at most; the middle is left out.
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
