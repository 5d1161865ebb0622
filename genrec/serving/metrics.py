"""The verifier's own metrics on Triton's `/metrics` page. Imported inside Triton only."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb

from genrec.bundle import Manifest

# In the order of the wire contract's `counts`.
_COUNTERS = {
    "genrec_drafted_total": "Drafts with a finite score",
    "genrec_valid_total": "Drafts that are semantic IDs of live items",
    "genrec_unknown_items_total": "History items that are not in the catalogue",
    "genrec_fallback_items_total": "Items filled in from the popularity fallback",
}


class Metrics:
    """Counters over all answered requests, and the catalogue's version; labelled with the bundle's version."""

    def __init__(self, manifest: Manifest) -> None:
        labels = {"bundle_version": manifest.bundle_version}

        def metric(name: str, text: str, kind: int) -> pb.Metric:
            # Triton keeps a family only as long as the object that made it.
            family = pb.MetricFamily(name=name, description=text, kind=kind)
            self._families.append(family)
            return family.Metric(labels=labels)

        self._families: list[pb.MetricFamily] = []
        self._requests = metric("genrec_requests_total", "Recommendations answered", pb.MetricFamily.COUNTER)
        self._counters = [metric(name, text, pb.MetricFamily.COUNTER) for name, text in _COUNTERS.items()]
        version = metric("genrec_catalog_version", "Version of the live catalogue", pb.MetricFamily.GAUGE)
        version.set(manifest.catalog.version)
        self._version = version

    def count(self, counts: np.ndarray) -> None:
        """Add a batch's `counts`, int32 [B, 4]."""
        self._requests.increment(len(counts))
        for counter, amount in zip(self._counters, counts.sum(0).tolist(), strict=True):
            if amount:
                counter.increment(amount)
