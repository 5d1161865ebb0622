"""The verifier's own metrics on Triton's `/metrics` page. Imported inside Triton only."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.catalog.published import OneVersion, Published
from genrec.live.drift import ERROR_LIMIT, PSI_LIMIT
from genrec.live.status import Status
from genrec.serving.step import open_folder

# Requests answered, then the wire contract's `counts` in their order.
_COUNTERS = {
    "genrec_requests_total": "Recommendations answered",
    "genrec_drafted_total": "Drafts with a finite score",
    "genrec_valid_total": "Drafts that are semantic IDs of live items",
    "genrec_unknown_items_total": "History items that are not in the catalogue",
    "genrec_fallback_items_total": "Items filled in from the popularity fallback",
}
_GAUGES = {
    "genrec_catalog_version": "Version of the catalogue that answers",
    "genrec_catalog_created_seconds": "When that version was made, seconds since 1970",
}
_LIVE_GAUGES = {
    "genrec_catalog_store_version": "Newest version in the live catalogue's store",
    "genrec_catalog_lag_seconds": "For how long what is served may have been older than the store",
    "genrec_catalog_refused_commits": "Commits since the follower's start that count as empty, for an invalid row",
    "genrec_catalog_stuck": "1 while the follower cannot go on: the store or a version cannot be read",
    "genrec_catalog_drift": "Population stability index of the codes of the items that were added to the bundle's: "
    f"from {PSI_LIMIT:g} on train again. 0 while it is not known",
    "genrec_catalog_error_ratio": "Quantisation error of the embeddings that came since the follower's start, over the "
    f"trained ones': from {ERROR_LIMIT:g} on train again. 0 while it is not known",
}
PUBLISH_EVERY_S = 0.5


class Metrics:
    """Counters over all answered requests, the catalogue's version and age; labelled with the bundle's version.

    versions: the catalogue's. root: the folder that a live catalogue is published in, "" for one that does not change.
    Each increment is a message to the server and back, about 0.1 ms, so a thread publishes the sums now and then.
    """

    def __init__(self, bundle_version: str, versions: Published[Any] | OneVersion[Any], root: str) -> None:
        self._versions, self._root = versions, open_folder(root) if root else None
        self._labels = {"bundle_version": bundle_version}
        self._families: list[Any] = []  # Triton keeps a family only as long as the object that made it
        self._counters = [self._metric(name, text, pb.MetricFamily.COUNTER) for name, text in _COUNTERS.items()]
        gauges = _GAUGES | (_LIVE_GAUGES if root else {})
        self._gauges = {name: self._metric(name, text, pb.MetricFamily.GAUGE) for name, text in gauges.items()}
        self._shown: dict[str, float] = {}
        self._pending = np.zeros(len(_COUNTERS), np.int64)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._show_catalog()
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

    def _metric(self, name: str, text: str, kind: Any) -> Any:
        self._families.append(pb.MetricFamily(name=name, description=text, kind=kind))
        return self._families[-1].Metric(labels=self._labels)

    def _publish_regularly(self) -> None:
        closing = False
        while not closing:
            closing = self._closed.wait(PUBLISH_EVERY_S)
            with self._lock:
                amounts, self._pending = self._pending.tolist(), np.zeros_like(self._pending)
            for counter, amount in zip(self._counters, amounts, strict=True):
                if amount:
                    counter.increment(amount)
            self._show_catalog()

    def _show_catalog(self) -> None:
        current = self._versions.current
        values = {"genrec_catalog_version": current.version, "genrec_catalog_created_seconds": current.created}
        if self._root is not None:
            with contextlib.suppress(OSError, ValueError):
                status = Status.load(self._root)
                values |= {
                    "genrec_catalog_store_version": status.seen,
                    "genrec_catalog_lag_seconds": status.lag_s(time.time()),
                    "genrec_catalog_refused_commits": status.refused,
                    "genrec_catalog_stuck": float(bool(status.problem)),
                    "genrec_catalog_drift": status.drift or 0.0,
                    "genrec_catalog_error_ratio": status.error_ratio or 0.0,
                }
        for name, value in values.items():
            if self._shown.get(name) != value:
                self._gauges[name].set(value)
                self._shown[name] = value
