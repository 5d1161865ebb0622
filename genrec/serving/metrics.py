"""The verifier's own metrics on Triton's `/metrics` page. Imported inside Triton only."""

from __future__ import annotations

import datetime
import threading

import numpy as np
import triton_python_backend_utils as pb

from genrec.bundle import Manifest

# Requests answered, then the wire contract's `counts` in their order.
_COUNTERS = {
    "genrec_requests_total": "Recommendations answered",
    "genrec_drafted_total": "Drafts with a finite score",
    "genrec_valid_total": "Drafts that are semantic IDs of live items",
    "genrec_unknown_items_total": "History items that are not in the catalogue",
    "genrec_fallback_items_total": "Items filled in from the popularity fallback",
}
PUBLISH_EVERY_S = 0.5


class Metrics:
    """Counters over all answered requests, the catalogue's version and age; labelled with the bundle's version.

    Each increment is a message to the server and back, about 0.1 ms, so a thread publishes the sums now and then.
    """

    def __init__(self, manifest: Manifest) -> None:
        labels = {"bundle_version": manifest.bundle_version}
        # Triton keeps a family only as long as the object that made it.
        self._families = [
            pb.MetricFamily(name=n, description=t, kind=pb.MetricFamily.COUNTER) for n, t in _COUNTERS.items()
        ]
        self._counters = [family.Metric(labels=labels) for family in self._families]
        gauges = {
            "genrec_catalog_version": ("Version of the live catalogue", manifest.catalog.version),
            "genrec_catalog_created_seconds": (
                "When the live catalogue was made, seconds since 1970",
                datetime.datetime.fromisoformat(manifest.created).timestamp(),
            ),
        }
        self._gauges = []
        for name, (text, value) in gauges.items():
            self._families.append(pb.MetricFamily(name=name, description=text, kind=pb.MetricFamily.GAUGE))
            self._gauges.append(self._families[-1].Metric(labels=labels))
            self._gauges[-1].set(value)
        self._pending = np.zeros(len(_COUNTERS), np.int64)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._publisher = threading.Thread(target=self._publish_regularly, name="metrics", daemon=True)
        self._publisher.start()

    def count(self, counts: np.ndarray) -> None:
        """Add a batch's `counts`, int32 [B, 4]."""
        with self._lock:
            self._pending[0] += len(counts)
            self._pending[1:] += counts.sum(0)

    def close(self) -> None:
        """Publish what is left, and stop."""
        self._closed.set()
        self._publisher.join()

    def _publish_regularly(self) -> None:
        closing = False
        while not closing:
            closing = self._closed.wait(PUBLISH_EVERY_S)
            with self._lock:
                amounts, self._pending = self._pending.tolist(), np.zeros_like(self._pending)
            for counter, amount in zip(self._counters, amounts, strict=True):
                if amount:
                    counter.increment(amount)
