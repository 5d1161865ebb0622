"""Counts of what a client has done."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the client was made. What is no failure and not cancelled was answered, or is still under way.

    requests: calls for one user that were sent at least once. retries: attempts beyond the first of a call. failures:
    calls that ended in an error after they were sent. retries_refused: retries that the retry budget did not allow.
    cancelled: calls that the caller gave up after they were sent: what `recommend_many` leaves when it raises, and
    cancelled tasks of an `AsyncRecommender`.
    """

    requests: int = 0
    retries: int = 0
    failures: int = 0
    retries_refused: int = 0
    cancelled: int = 0


class Counters:
    """The thread-safe counts behind `Statistics`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._retries = 0
        self._failures = 0
        self._retries_refused = 0
        self._cancelled = 0

    def count_request(self) -> None:
        """A call's first attempt is about to be sent."""
        with self._lock:
            self._requests += 1

    def count_retry(self) -> None:
        """A further attempt is about to be sent."""
        with self._lock:
            self._retries += 1

    def count_failure(self) -> None:
        """A call that was sent ended in an error."""
        with self._lock:
            self._failures += 1

    def count_refused_retry(self) -> None:
        """The budget did not allow a retry."""
        with self._lock:
            self._retries_refused += 1

    def count_cancelled(self) -> None:
        """A call that was sent was given up."""
        with self._lock:
            self._cancelled += 1

    def snapshot(self) -> Statistics:
        """The counts at one moment."""
        with self._lock:
            return Statistics(self._requests, self._retries, self._failures, self._retries_refused, self._cancelled)
