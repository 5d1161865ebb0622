"""A step's own figures on Triton's `/metrics` page. Imported inside Triton only."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

PUBLISH_EVERY_S = 0.5
# Upper bounds of the histograms' buckets, in seconds: a quantile is then known to about a third of itself. Limits of
# alerts are exact where they are one of these.
BOUNDS_S = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03),
    *(0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0),
)
_LES = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")


class Histogram:
    """Times in seconds, as Prometheus has them: counters NAME_bucket, by upper bound `le`, NAME_sum and NAME_count.

    Triton has a kind of its own, but that takes a message to the server for each time. Here they are counted when the
    page is written.
    """

    def __init__(self, page: Page, name: str, text: str, labels: Mapping[str, str]) -> None:
        self._buckets = [
            page.counter(f"{name}_bucket", f"{text}: at most `le` seconds", le=le, **labels) for le in _LES
        ]
        self._sum = page.counter(f"{name}_sum", f"{text}: seconds, all together", **labels)
        self._count = page.counter(f"{name}_count", f"{text}: how many", **labels)
        self._bounds = np.array(BOUNDS_S)
        self._ended: deque[tuple[int, Sequence[int]]] = deque()

    def observe(self, ended_ns: int, began_ns: Sequence[int]) -> None:
        """Count what ended together, by when each began."""
        self._ended.append((ended_ns, began_ns))

    def publish(self) -> None:
        batches = [self._ended.popleft() for _ in range(len(self._ended))]
        if not batches:
            return
        seconds = np.array([ended - began for ended, together in batches for began in together]) / 1e9
        found = np.bincount(np.searchsorted(self._bounds, seconds), minlength=len(_LES))
        self._sum.increment(float(seconds.sum()))
        self._count.increment(seconds.size)
        # The largest first: whoever reads the page meanwhile never finds more in a bucket than in the next one.
        for bucket, more in zip(reversed(self._buckets), reversed(np.cumsum(found).tolist()), strict=True):
            if more:
                bucket.increment(more)


class Page:
    """Counters, gauges and histograms of one step; labels: that all of them have.

    Each increment is a message to the server and back, so a thread publishes the sums now and then, from `start` on.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._families: dict[str, Any] = {}  # Triton keeps a family only as long as the object that made it
        self._histograms: list[Histogram] = []
        self._pending: Counter[Any] = Counter()  # by Triton's counter
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._before: list[Callable[[], None]] = []
        self._publisher = threading.Thread(target=self._publish_regularly, name="metrics", daemon=True)

    def counter(self, name: str, text: str, **labels: str) -> Any:
        """Triton's counter; `add` to it. text: what it counts."""
        return self._metric(name, text, pb.MetricFamily.COUNTER, labels)

    def gauge(self, name: str, text: str, **labels: str) -> Any:
        """Triton's gauge, to set in `before`. text: what it shows."""
        return self._metric(name, text, pb.MetricFamily.GAUGE, labels)

    def histogram(self, name: str, text: str, **labels: str) -> Histogram:
        self._histograms.append(Histogram(self, name, text, labels))
        return self._histograms[-1]

    def add(self, amounts: Mapping[Any, float]) -> None:
        """Add to counters."""
        with self._lock:
            self._pending.update(amounts)

    def before(self, publish: Callable[[], None]) -> None:
        """Have `publish` called whenever the page is written."""
        self._before.append(publish)

    def start(self) -> None:
        self._publisher.start()

    def close(self) -> None:
        """Publish what is left, and stop."""
        self._closed.set()
        if self._publisher.ident is not None:
            self._publisher.join()

    def _metric(self, name: str, text: str, kind: Any, labels: Mapping[str, str]) -> Any:
        if name not in self._families:
            self._families[name] = pb.MetricFamily(name=name, description=text, kind=kind)
        return self._families[name].Metric(labels={**self._labels, **labels})

    def _publish_regularly(self) -> None:
        closing = False
        while not closing:
            closing = self._closed.wait(PUBLISH_EVERY_S)
            for publish in self._before:
                publish()
            with self._lock:
                amounts, self._pending = self._pending, Counter()
            for counter, amount in amounts.items():
                if amount:
                    counter.increment(amount)
            for histogram in self._histograms:
                histogram.publish()


class StepTimes:
    """How long requests wait for a step, and how long it computes. waits: for a step before it."""

    def __init__(self, page: Page, step: str, waits: bool) -> None:
        self._queue = None
        if waits:
            self._queue = page.histogram("genrec_step_queue_seconds", "Time of a request between two steps", step=step)
        self._compute = page.histogram("genrec_step_compute_seconds", "Time of a request's batch in a step", step=step)

    def observe(self, handed_ns: list[int], began_ns: int, ended_ns: int) -> None:
        """Count a batch: when the step before handed each request over, when its work began and when it ended.

        All on CLOCK_MONOTONIC.
        """
        self._compute.observe(ended_ns, [began_ns] * len(handed_ns))
        if self._queue is not None:
            self._queue.observe(began_ns, handed_ns)
