"""Reads a Triton log: while it is written, and for what went wrong."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import re
import sys
import threading
from collections.abc import Iterable
from typing import IO, TextIO

from genrec.serving.request_log import now

_LINES_KEPT = 5000
# I0102 03:04:05.678901 1234 file.cc:56] "message, escaped as in C"
_LOG_ENTRY = re.compile(r"(?P<severity>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ [\w.]+:\d+\] (?P<text>.*)")
# [WARNING]  (1234) : message
_FRONT_ENTRY = re.compile(r"\[(?P<severity>NOTICE|WARNING|ALERT)\] +\(\d+\) : (?P<text>.*)")
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "error"}
_LEVELS |= {"NOTICE": "info", "WARNING": "warning", "ALERT": "error"}
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
            line = _unescaped(entry["text"])
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


def _unescaped(text: str) -> str:
    """The text of an entry, which Triton escapes as in C."""
    if not (text.startswith('"') and text.endswith('"')):
        return text
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text[1:-1])


def json_line(line: str) -> str:
    """A line of what a server, its models, its front or this process writes, as a JSON object.

    It has time, level, source and message. A line that is one already, of a step's `RequestLog`, stays as it is.
    """
    level, source, text = "info", "genrec", line
    if line.startswith('{"time": '):
        return line
    if entry := _LOG_ENTRY.match(line):
        level, source, text = _LEVELS[entry["severity"]], "triton", _unescaped(entry["text"])
    elif entry := _FRONT_ENTRY.match(line):
        level, source, text = _LEVELS[entry["severity"]], "front", entry["text"]
    elif line.startswith("error:"):
        level = "error"
    elif line.startswith("warning:"):
        level = "warning"
    return json.dumps({"time": now(), "level": level, "source": source, "message": text})


class JsonLines(io.TextIOBase):
    """Passes each line on as JSON. Takes the place of `sys.stderr`, through which everything goes."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._begun, self._lock = out, "", threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                if line.strip():
                    self._out.write(json_line(line) + "\n")
        return len(text)

    def flush(self) -> None:
        self._out.flush()


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
