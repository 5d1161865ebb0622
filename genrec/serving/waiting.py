"""How long a request will wait for the backbone, known to the step before it: so that it can be refused at once.

The steps run in processes of their own. Both map one small array: `preprocessing` numbers the requests that it lets
through, and each engine notes the last number that it began with, until when it is busy, and how long a batch takes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from genrec.serving.triton.launch import WAITING

_ENGINES = 64  # places, of one engine each
_BEGUN, _BUSY, _FREE_NS, _FIRST_NS, _MORE_NS, _MOST = range(6)
_LET_THROUGH, _REFUSED = range(2)  # places in the first row, the gate's
_IDLE_NS = 50_000_000  # of engines: as often a request goes through, whatever is ahead
_AFTER_NS = 5_000_000  # what comes after the engine
_BETWEEN_NS = 10_000_000  # batches of a queue follow each other sooner
_SAFETY = 2.0  # times what is expected has to be left: a request that is let through and comes too late helps nobody
_SHED = 2.0  # times the wait that counts for one that may be shed: the others have half of the queue for themselves
_ENOUGH = 0.9  # of the requests a second of the largest batches: smaller ones that reach it answer sooner
_LEARNT = 0.1  # the weight of the last batch in what is expected of the next


def waiting_file(server: int) -> Path:
    """The array's file of a server, by the number of its process and by when that began."""
    began = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[19]
    shared = Path("/dev/shm")
    return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / f"{WAITING}{server}-{began}"


def _mapped(path: Path) -> np.ndarray:
    """int64 [1 + _ENGINES, 6] in a file: how many requests were let through or not, and what each engine notes."""
    shape = 1 + _ENGINES, 6
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(
            descriptor, 0, 8 * shape[0] * shape[1]
        )  # where there is no room: an error, not a signal later
    finally:
        os.close(descriptor)
    return np.asarray(np.memmap(path, np.int64, "r+", shape=shape))


def in_time(expected_ns: int, left_ns: int, sheddable: bool) -> bool:
    """Whether a request may go through that has left_ns, and is answered in expected_ns for sure."""
    return (_SHED if sheddable else 1.0) * expected_ns <= left_ns


class Gate:
    """The step that lets requests through to the engines. path: of `waiting_file`."""

    def __init__(self, path: Path) -> None:
        self._path, self._values = path, _mapped(path)
        self._tried_ns = 0

    def expected_ns(self) -> tuple[int, int]:
        """How many requests are ahead of the next one, and in how many nanoseconds it is answered for sure.

        It is what the engines' last batches took, for batches that are as full as they can be, and some more. 0 if none
        is ahead: so it is learnt how long they take now. 0 now and then, too, if no engine does anything: those who are
        ahead may have been given up by their clients, of which nobody tells.
        """
        engines = self._values[1:]
        ahead, now = int(self._values[0, _LET_THROUGH] - engines[:, _BEGUN].max()), time.monotonic_ns()
        if ahead <= 0:
            return 0, 0
        _, busy, free, first, more, most = engines[engines[:, _FIRST_NS] > 0].T
        if not first.size:  # none that tells
            return 0, 0
        if not busy.any() and max(int(free.max()), self._tried_ns) + _IDLE_NS < now:
            self._tried_ns = now
            return 0, 0
        batch = int(most.min())
        batches, rest = divmod(ahead, batch)
        first_ns, more_ns = float(first.mean()), float(more.mean())
        work = batches * (first_ns + batch * more_ns) + first_ns + (rest + 1) * more_ns
        return ahead, int(_SAFETY * (max(0, int(free.min()) - now) + work / first.size + _AFTER_NS))

    def let_through(self) -> int:
        """The number of one more request."""
        self._values[0, _LET_THROUGH] += 1
        return int(self._values[0, _LET_THROUGH])

    def refuse(self) -> None:
        """Count a request that was not let through, for `Refusals`."""
        self._values[0, _REFUSED] += 1

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


class Refusals:
    """What the gate refused, for the step that shows metrics. path: of `waiting_file`."""

    def __init__(self, path: Path) -> None:
        self._values = _mapped(path)
        self._told = int(self._values[0, _REFUSED])

    def more(self) -> int:
        """Requests that were refused since the last time."""
        before, self._told = self._told, int(self._values[0, _REFUSED])
        return self._told - before


class Pace:
    """One engine's side.

    place: its number among the server's, from 0. one_s, full_s: seconds that a batch of one request takes, and one of
    `most`, when nothing else runs. most_at_once: requests that it should take at once, at most.
    """

    def __init__(self, path: Path, place: int, one_s: float, full_s: float, most: int) -> None:
        self._own = _mapped(path)[1 + place % _ENGINES]
        self._more_ns = 1e9 * max(0.0, full_s - one_s) / max(1, most - 1)
        self._first_ns = max(1.0, 1e9 * one_s - self._more_ns)
        # Powers of two, for which engines that pad batches have a shape.
        sizes = np.array([*(1 << power for power in range((most - 1).bit_length())), most])
        rates = sizes / (self._first_ns + sizes * self._more_ns)
        self.most_at_once = int(sizes[np.argmax(rates >= _ENOUGH * rates[-1])])
        self._own[_MOST] = self.most_at_once
        self._slower, self._began, self._ended, self._plain_ns = 1.0, 0, 0, 0.0
        self._note()

    @contextmanager
    def batch(self, last: int, size: int) -> Iterator[None]:
        """Runs a batch, whose last request has the number `last`."""
        now = time.monotonic_ns()
        if self._plain_ns:  # the time between two batches belongs to the first, unless nothing was there to be done
            took = (now if now - self._ended < _BETWEEN_NS else self._ended) - self._began
            self._slower += _LEARNT * (took / self._plain_ns - self._slower)
            self._note()
        self._began, self._plain_ns = now, self._first_ns + size * self._more_ns
        self._own[_FREE_NS] = now + int(self._slower * self._plain_ns)
        self._own[_BUSY] = 1
        self._own[_BEGUN] = max(last, int(self._own[_BEGUN]))
        try:
            yield
        finally:
            self._ended = time.monotonic_ns()
            self._own[_FREE_NS] = self._ended
            self._own[_BUSY] = 0

    def _note(self) -> None:
        self._own[_FIRST_NS] = max(1, int(self._slower * self._first_ns))
        self._own[_MORE_NS] = int(self._slower * self._more_ns)
