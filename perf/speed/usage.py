"""CPU and memory of a process and all that it started."""

from __future__ import annotations

import contextlib
import threading
import time

import psutil

_EVERY_S = 1.0  # reading proportional sizes costs CPU


def processes(pid: int) -> list[psutil.Process]:
    """The process `pid` and its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def processor_seconds(pid: int) -> float:
    """Processor time that `pid` and its descendants have had, those that have ended left out."""
    total = 0.0
    for process in processes(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Usage:
    """Watches the process `pid` and its descendants while the block runs.

    cores: CPU seconds per second. peak_mb: largest sum of proportional set sizes (shared pages counted once), in MB.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.cores = self.peak_mb = 0.0

    def __enter__(self) -> Usage:
        self._began, self._before = time.monotonic(), processor_seconds(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.cores = (processor_seconds(self._pid) - self._before) / (time.monotonic() - self._began)

    def _watch(self) -> None:
        while True:
            used = 0
            for process in processes(self._pid):
                with contextlib.suppress(psutil.Error):
                    used += process.memory_full_info().pss
            self.peak_mb = max(self.peak_mb, used / 1e6)
            if self._stop.wait(_EVERY_S):
                return
