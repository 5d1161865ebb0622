"""Rules on one version of a catalogue: which drafted items stay, in which order, and what fills up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from genrec.catalog import CatalogView
from genrec.catalog.items import MAX_ID_BYTES, id_keys
from genrec.catalog.row_sets import first_of_each, is_in
from genrec.rules.bound import BoundRules
from genrec.rules.caps import first_within_caps
from genrec.rules.form import MAX_BOOST
from genrec.rules.matching import Kept, matches, numbers_of, values_of
from genrec.rules.scan import popular_rows, rows_of

KINDS = ("where", "allow", "deny", "at_most", "boost", "bucket_order", "explain")
# Gives the items of drafts begin .. end - 1, and which draft each is of.
Expand = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
_FIRST_DRAFTS = 16  # that are looked at first; then four times as many, and so on
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Ruled:
    """The items of one request, best first.

    rows: int32 [n], catalogue rows. scores: float32 [n], of their drafts. boosts: float32 [n], what was added to them
    for the order. drafted: how many of them are drafts; the rest fill up, their score is 0 here. dropped: what was
    taken away, and how often, for drafts and votes alone. moved: drafts that stand elsewhere than their scores say.
    """

    rows: np.ndarray
    scores: np.ndarray
    boosts: np.ndarray
    drafted: int
    dropped: dict[str, int] = field(default_factory=dict)
    moved: int = 0


class Applied:
    """The rules of a deployment and of a request, which hold together, on one version.

    rules: by who gave them, such as "deployment"; those that come first win where they cannot both hold (the order of
    items that share a semantic ID).
    """

    def __init__(self, view: CatalogView, rules: dict[str, BoundRules], kept: Kept | None = None) -> None:
        self._view, self._rules, self._kept = view, rules, kept or Kept()
        self._caps = [cap for one in rules.values() for cap in one.caps]
        self._additions = [addition for one in rules.values() for addition in one.additions]
        # What a boost can add at most.
        sizes = [max(0.0, one.add) if one.where is not None else MAX_BOOST for one in self._additions]
        self._largest_boost = np.float32(min(MAX_BOOST, sum(sizes)))
        self._order = next((one.order for one in rules.values() if one.order is not None), None)
        self._more = popular_rows(view, [one.filter for one in rules.values()], self._kept)
        self._found: list[np.ndarray] = []
        self.explain = any(one.explain for one in rules.values())

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Which of KINDS, fields of the form, the rules have."""
        every = self._rules.values()
        has = (
            any(one.filter.where is not None for one in every),
            any(one.filter.allow is not None for one in every),
            any(one.deny for one in every),
            bool(self._caps),
            bool(self._additions),
            self._order is not None,
            self.explain,
        )
        return tuple(kind for kind, there in zip(KINDS, has, strict=True) if there)

    def answer(self, expand: Expand, scores: np.ndarray, blocked: np.ndarray, top_k: int) -> Ruled:
        """The items of one request.

        scores: float32 [n], of its drafts, falling. expand: gives the items of drafts begin .. end - 1, in order, and
        within one by falling popularity: rows int32 [m], and which of the n drafts each is of, int64 [m], rising.
        blocked: int32 [b], rows that must not be returned.

        No more drafts are looked at than are needed, unless all have to be explained.
        """
        dropped: Counter[str] = Counter()
        blocked_rows = np.sort(blocked)
        rows, draft = np.empty(0, np.int32), np.empty(0, np.int64)
        begin, end = 0, scores.size if self.explain else _FIRST_DRAFTS
        while True:
            more, its_draft = self._kept_of(*expand(begin, end), rows, blocked_rows, dropped)
            rows, draft = np.concatenate([rows, more]), np.concatenate([draft, its_draft])
            order, boosts = self._ordered(rows, draft, scores)
            taken = self._within_caps(rows if order is None else rows[order], top_k)
            if end >= scores.size:
                break
            if taken.size == top_k:
                last = taken[-1] if order is None else order[taken[-1]]
                if scores[draft[last]] + boosts[last] >= scores[end] + self._largest_boost:  # what no other draft beats
                    break
            begin, end = end, 4 * end
        if self._caps:
            last = int(taken[-1]) + 1 if taken.size == top_k else rows.size
            dropped["at_most"] += last - taken.size
        places = taken if order is None else order[taken]
        moved = 0 if order is None else int((places != np.sort(places)).sum())
        counts = {name: count for name, count in dropped.items() if count}
        found = Ruled(rows[places], scores[draft[places]], boosts[places], taken.size, counts, moved)
        return found if taken.size == top_k else self._filled(found, blocked, top_k)

    def _kept_of(
        self, rows: np.ndarray, draft: np.ndarray, before: np.ndarray, blocked: np.ndarray, dropped: Counter[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those of the items `rows` that may be answered, and their drafts. before: that were found already."""
        keep = first_of_each(rows) & ~is_in(rows, blocked)
        if before.size:
            keep &= ~is_in(rows, np.sort(before))
        kept = int(keep.sum())
        dropped["blocked"] += rows.size - kept
        for name, holds in self._checks(rows):
            keep &= holds
            left = int(keep.sum())
            dropped[name] += kept - left
            kept = left
        return rows[keep], draft[keep]

    def _ordered(self, rows: np.ndarray, draft: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Which item comes first, second and so on, None for as they are, and what boosts add to each."""
        boosts = self._boosts(rows)
        if not self._additions and self._order is None:
            return None, boosts
        return np.lexsort((self._within_bucket(rows), draft, -(scores[draft] + boosts))), boosts

    def _filled(self, found: Ruled, blocked: np.ndarray, top_k: int) -> Ruled:
        """`found` filled up from the most popular items, for which the rules hold as well."""
        out = np.concatenate([blocked, found.rows])
        more = np.empty(0, np.int32)
        taken = np.arange(found.rows.size)
        for part in self._popular():
            fresh = part[~np.isin(part, out)]
            for deny in self._denied:
                fresh = fresh[~np.isin(fresh, deny)]
            more = np.concatenate([more, fresh])
            # The drafts stay as they are: they were within the caps, and come first.
            rows = np.concatenate([found.rows, more])
            taken = self._within_caps(rows, top_k)
            if taken.size == top_k:
                break
        rows = np.concatenate([found.rows, more])[taken]
        extra = np.zeros(rows.size - found.rows.size, np.float32)
        scores, boosts = np.concatenate([found.scores, extra]), np.concatenate([found.boosts, extra])
        return Ruled(rows.astype(np.int32), scores, boosts, found.drafted, found.dropped, found.moved)

    def _popular(self) -> Iterator[np.ndarray]:
        """The most popular items that the filters leave, part by part; what was found once is kept."""
        for at in count():
            if at == len(self._found):
                part = next(self._more, None)
                if part is None:
                    return
                self._found.append(part.astype(np.int32))
            yield self._found[at]

    def _checks(self, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each rule that an item has to fulfil: its name, and where it holds: bool [n]."""
        for (who, one), allowed, denied in zip(self._rules.items(), self._allowed, self._denied, strict=True):
            if denied.size:
                yield f"{who}.deny", ~is_in(rows, denied)
            if allowed is not None:
                yield f"{who}.allow", is_in(rows, allowed)
            if one.filter.where is not None:
                yield f"{who}.where", matches(one.filter.where, self._view, rows, self._kept)

    @cached_property
    def _allowed(self) -> list[np.ndarray | None]:
        return [
            None if one.filter.allow is None else rows_of(self._view, one.filter.allow) for one in self._rules.values()
        ]

    @cached_property
    def _denied(self) -> list[np.ndarray]:
        return [rows_of(self._view, one.deny) for one in self._rules.values()]

    def _boosts(self, rows: np.ndarray) -> np.ndarray:
        if not self._additions:
            return np.zeros(rows.size, np.float32)
        total = np.zeros(rows.size)
        for addition in self._additions:
            if addition.where is not None:
                total += addition.add * matches(addition.where, self._view, rows, self._kept)
            else:
                total += addition.times * np.nan_to_num(numbers_of(addition.attribute, self._view, rows))
        return np.clip(total, -MAX_BOOST, MAX_BOOST).astype(np.float32)

    def _within_bucket(self, rows: np.ndarray) -> np.ndarray:
        """What orders items that share a semantic ID, the smallest first: [n]."""
        order = self._order
        if order is None:
            return np.arange(rows.size)  # by falling popularity, as they come
        if order.rotate is not None:
            ids = self._view.ids_of(rows).astype(f"S{MAX_ID_BYTES}")  # of one width, so that an id has one key
            mixed = (id_keys(ids).astype(np.uint64) ^ np.uint64(order.rotate)) * _MIX
            return mixed ^ (mixed >> np.uint64(31))
        if order.highest is not None:
            return -numbers_of(order.highest, self._view, rows)  # NaN comes last
        assert order.lowest is not None
        return numbers_of(order.lowest, self._view, rows)

    def _within_caps(self, rows: np.ndarray, top_k: int) -> np.ndarray:
        """The places of the first `top_k` of `rows` that the caps allow."""
        if not self._caps:
            return np.arange(min(rows.size, top_k))
        values = [values_of(name, self._view, rows) for name, _ in self._caps]
        return first_within_caps(values, [items for _, items in self._caps], top_k)
