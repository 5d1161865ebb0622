"""CPU and memory of a process and all that it started."""

from __future__ import annotations

import contextlib
import threading
import time

import psutil

_EVERY_S = 1.0  # reading proportional sizes costs CPU


class Usage:
    """Watches the process `pid` and its descendants while the block runs.

    cores: CPU seconds per second. peak_mb: largest sum of proportional set sizes (shared pages counted once), in MB.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.cores = self.peak_mb = 0.0

    def __enter__(self) -> Usage:
        self._began, self._before = time.monotonic(), self._seconds()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.cores = (self._seconds() - self._before) / (time.monotonic() - self._began)

    def _tree(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _seconds(self) -> float:
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _watch(self) -> None:
        while True:
            used = 0
            for process in self._tree():
                with contextlib.suppress(psutil.Error):
                    used += process.memory_full_info().pss
            self.peak_mb = max(self.peak_mb, used / 1e6)
            if self._stop.wait(_EVERY_S):
                return
