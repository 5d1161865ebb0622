"""Work that threads do beside a test."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import ClassVar

from typing_extensions import Self


class GoesOn(ABC):
    """A context manager: so many `threads` do `go_on` while the block runs."""

    threads: ClassVar[int]

    def __enter__(self) -> Self:
        self.ends = threading.Event()
        self._running = [threading.Thread(target=self.go_on) for _ in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.set()
        for thread in self._running:
            thread.join()

    @abstractmethod
    def go_on(self) -> None:
        """Work until `ends` is set."""
