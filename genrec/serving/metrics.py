"""The verifier's own metrics on Triton's `/metrics` page. Imported inside Triton only."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec import __version__
from genrec.catalog.published import OneVersion, Published
from genrec.live.drift import ERROR_LIMIT, PSI_LIMIT
from genrec.live.status import Status
from genrec.rules import Applied, Ruled
from genrec.rules.applied import KINDS
from genrec.serving.page import Page
from genrec.serving.step import open_folder
from genrec.serving.triton.launch import RESTARTS
from genrec.serving.waiting import Refusals

# Requests answered, then the wire contract's `counts` in their order, and what was voted for.
_COUNTERS = {
    "genrec_requests_total": "Recommendations answered",
    "genrec_drafted_total": "Drafts with a finite score",
    "genrec_valid_total": "Drafts that are semantic IDs of live items",
    "genrec_unknown_items_total": "History items that are not in the catalogue",
    "genrec_fallback_items_total": "Items filled in from the popularity fallback",
    "genrec_voted_items_total": "Items that were voted for and not drafted",
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
    _RULE_DROPPED: (
        "Drafted or voted items that this rule left out",
        "rule",
        ("where", "allow", "deny", "at_most"),
    ),
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


class Metrics:
    """Counters over all answered requests and what they took, the catalogue's version and age.

    page: of the verifier. versions: the catalogue's. root: the folder that a live catalogue is published in, "" for one
    that does not change. refusals: of the step before.
    """

    def __init__(self, page: Page, versions: Published[Any] | OneVersion[Any], root: str, refusals: Refusals) -> None:
        self._versions, self._root = versions, open_folder(root) if root else None
        self._refusals, self._page = refusals, page
        self._counters = [page.counter(name, text) for name, text in _COUNTERS.items()]
        self._overloaded = page.counter(_OVERLOADED, _OVERLOADED_TEXT)
        page.add({page.counter(_RESTARTED, _RESTARTED_TEXT): int(os.environ.get(RESTARTS, "0"))})
        self._rules = {
            (name, value): page.counter(name, text, **({label: value} if label else {}))
            for name, (text, label, values) in _RULE_COUNTERS.items()
            for value in values
        }
        self._latency = page.histogram("genrec_request_seconds", "Time of an answered request")
        gauges = _GAUGES | (_LIVE_GAUGES if root else {})
        self._gauges = {name: page.gauge(name, text) for name, text in gauges.items()}
        page.gauge("genrec_build_info", "1, with the version of genrec that answers", version=__version__).set(1)
        self._shown: dict[str, float] = {}
        self._show()
        page.before(self._show)

    def count(self, counts: np.ndarray, voted: int, began_ns: list[int]) -> None:
        """Add a batch's `counts`, int32 [B, 4], and `voted` items.

        began_ns: when its requests began, on CLOCK_MONOTONIC.
        """
        amounts = (len(counts), *counts.sum(0).tolist(), voted)
        self._page.add(dict(zip(self._counters, amounts, strict=True)))
        self._latency.observe(time.monotonic_ns(), began_ns)

    def count_rules(
        self, applied: Sequence[Applied | None], ruled: Mapping[int, Ruled], narrowed: Sequence[bool]
    ) -> None:
        """Add the requests of a batch that have rules.

        applied: the rules of each request. ruled: what they did, by a request's number. narrowed: whether its beam
        drafted allowed items alone.
        """
        found: Counter[Any] = Counter()
        for number, one in ruled.items():
            rules = applied[number]
            assert rules is not None
            found.update(self._rules[_RULE_REQUESTS, kind] for kind in rules.kinds)
            found[self._rules[_RULE_NARROWED if narrowed[number] else _RULE_CHECKED, ""]] += 1
            for name, count in one.dropped.items():
                rule = name.rpartition(".")[2]  # whose it is does not matter here
                if rule != "blocked":  # those are no rule's: the history, `exclude`, an item of two drafts
                    found[self._rules[_RULE_DROPPED, rule]] += count
        self._page.add(found)

    def _show(self) -> None:
        """What is not counted here."""
        self._page.add({self._overloaded: self._refusals.more()})
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
