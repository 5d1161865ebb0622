"""The verifier's own metrics on Triton's `/metrics` page. Imported inside Triton only."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.catalog.published import OneVersion, Published
from genrec.live.drift import ERROR_LIMIT, PSI_LIMIT
from genrec.live.status import Status
from genrec.rules import Applied, Ruled
from genrec.rules.applied import KINDS
from genrec.serving.step import open_folder
from genrec.serving.triton.launch import RESTARTS
from genrec.serving.waiting import Refusals

# Requests answered, then the wire contract's `counts` in their order.
_COUNTERS = {
    "genrec_requests_total": "Recommendations answered",
    "genrec_drafted_total": "Drafts with a finite score",
    "genrec_valid_total": "Drafts that are semantic IDs of live items",
    "genrec_unknown_items_total": "History items that are not in the catalogue",
    "genrec_fallback_items_total": "Items filled in from the popularity fallback",
}
_OVERLOADED = "genrec_overloaded_requests_total"
_OVERLOADED_TEXT = "Requests refused at once, because too many were waiting for them to be answered in time"
_RESTARTED = "genrec_server_restarts_total"
_RESTARTED_TEXT = "Times that `genrec serve` started this server again"
_RULE_REQUESTS, _RULE_DROPPED = "genrec_rule_requests_total", "genrec_rule_dropped_total"
_RULE_NARROWED, _RULE_CHECKED = "genrec_rule_narrowed_total", "genrec_rule_checked_total"
# What is counted of requests with rules: the text, and the label with its values; "" for a counter without one.
_RULE_COUNTERS: dict[str, tuple[str, str, Sequence[str]]] = {
    _RULE_REQUESTS: ("Recommendations answered by rules of this kind, a deployment's or a request's", "kind", KINDS),
    _RULE_DROPPED: ("Items of drafts that this rule left out", "rule", ("where", "allow", "deny", "at_most")),
    _RULE_NARROWED: ("Recommendations by rules whose beam drafted allowed items alone", "", ("",)),
    _RULE_CHECKED: (
        "Recommendations by rules whose beam drafted from all items, and whose drafts were checked",
        "",
        ("",),
    ),
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
    refusals: of the step before. Each increment is a message to the server and back, about 0.1 ms, so a thread
    publishes the sums now and then.
    """

    def __init__(
        self, bundle_version: str, versions: Published[Any] | OneVersion[Any], root: str, refusals: Refusals
    ) -> None:
        self._versions, self._root = versions, open_folder(root) if root else None
        self._refusals = refusals
        self._labels = {"bundle_version": bundle_version}
        self._families: list[Any] = []  # Triton keeps a family only as long as the object that made it
        self._counters: dict[tuple[str, str], Any] = {}
        for name, text in (_COUNTERS | {_OVERLOADED: _OVERLOADED_TEXT, _RESTARTED: _RESTARTED_TEXT}).items():
            self._counters[name, ""] = self._family(name, text, pb.MetricFamily.COUNTER).Metric(labels=self._labels)
        for name, (text, label, values) in _RULE_COUNTERS.items():
            family = self._family(name, text, pb.MetricFamily.COUNTER)
            for value in values:
                labels = self._labels | ({label: value} if label else {})
                self._counters[name, value] = family.Metric(labels=labels)
        self._counters[_RESTARTED, ""].increment(int(os.environ.get(RESTARTS, "0")))
        gauges = _GAUGES | (_LIVE_GAUGES if root else {})
        self._gauges = {
            name: self._family(name, text, pb.MetricFamily.GAUGE).Metric(labels=self._labels)
            for name, text in gauges.items()
        }
        self._shown: dict[str, float] = {}
        self._pending: Counter[tuple[str, str]] = Counter()  # by name and label
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._show_catalog()
        self._publisher = threading.Thread(target=self._publish_regularly, name="metrics", daemon=True)
        self._publisher.start()

    def count(self, counts: np.ndarray) -> None:
        """Add a batch's `counts`, int32 [B, 4]."""
        amounts = (len(counts), *counts.sum(0).tolist())
        with self._lock:
            for name, amount in zip(_COUNTERS, amounts, strict=True):
                self._pending[name, ""] += amount

    def count_rules(
        self, applied: Sequence[Applied | None], ruled: Mapping[int, Ruled], narrowed: Sequence[bool]
    ) -> None:
        """Add the requests of a batch that have rules.

        applied: the rules of each request. ruled: what they did, by a request's number. narrowed: whether its beam
        drafted allowed items alone.
        """
        found: Counter[tuple[str, str]] = Counter()
        for number, one in ruled.items():
            rules = applied[number]
            assert rules is not None
            found.update((_RULE_REQUESTS, kind) for kind in rules.kinds)
            found[_RULE_NARROWED if narrowed[number] else _RULE_CHECKED, ""] += 1
            for name, count in one.dropped.items():
                rule = name.rpartition(".")[2]  # whose it is does not matter here
                if rule != "blocked":  # those are no rule's: the history, `exclude`, an item of two drafts
                    found[_RULE_DROPPED, rule] += count
        with self._lock:
            self._pending.update(found)

    def close(self) -> None:
        """Publish what is left, and stop."""
        self._closed.set()
        self._publisher.join()

    def _family(self, name: str, text: str, kind: Any) -> Any:
        self._families.append(pb.MetricFamily(name=name, description=text, kind=kind))
        return self._families[-1]

    def _publish_regularly(self) -> None:
        closing = False
        while not closing:
            closing = self._closed.wait(PUBLISH_EVERY_S)
            with self._lock:
                amounts, self._pending = self._pending, Counter()
            amounts[_OVERLOADED, ""] = self._refusals.more()
            for key, amount in amounts.items():
                if amount:
                    self._counters[key].increment(amount)
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
