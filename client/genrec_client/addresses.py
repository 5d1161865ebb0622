"""Which address a request goes to."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection


class AddressPool:
    """Round robin over addresses, passing over those that failed a short while ago. Thread-safe.

    Addresses are their indices, 0 to count - 1. The start is random, so that a fleet of clients with the same list
    does not begin on the same server.
    """

    def __init__(self, count: int, cool_down_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._lock = threading.Lock()
        self._next = random.randrange(count)
        self._cool_until = [0.0] * count

    def pick(self, tried: Collection[int] = ()) -> int:
        """The next address: first one that the call has not tried and that is not cooling down, then any that it has
        not tried, and when it has tried all of them, the one whose cool-down ends first."""
        if self._count == 1:
            return 0
        with self._lock:
            now = self._clock()
            order = [(self._next + step) % self._count for step in range(self._count)]
            picked = min(order, key=lambda index: (index in tried, max(now, self._cool_until[index])))
            self._next = (picked + 1) % self._count
            return picked

    def set_aside(self, index: int) -> None:
        """The address failed: pass over it until its cool-down ends.

        A success does not end it early: a stopping server still answers what it has accepted before.
        """
        with self._lock:
            self._cool_until[index] = self._clock() + self._cool_down_s

    def has_fresh(self, tried: Collection[int]) -> bool:
        """Whether there is an address that was not tried and is not cooling down."""
        with self._lock:
            now = self._clock()
            return any(index not in tried and until <= now for index, until in enumerate(self._cool_until))
