"""The model-free verifier: drafts in, items that exist out. It is the authority on what a user gets to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.catalog import Catalog
from genrec.item_index import ItemIndex

DRAFTED, FALLBACK = 0, 1
FALLBACK_SCORE = np.float32(-1e9)


@dataclass(frozen=True)
class Verified:
    """Ranked items of a batch of B requests, one after the other.

    rows: int32 [n], catalogue rows, best first. scores: float32 [n], finite. source: uint8 [n], DRAFTED or FALLBACK.
    offsets: int64 [B + 1]; request b has the items offsets[b]:offsets[b + 1]: as many as it asked for, fewer only
    where the live catalogue has no more that are not blocked.
    drafted, valid, filled: int64 [B]: drafts with a finite score, those that are live items' semantic IDs, and
    items filled in from the popularity fallback.
    """

    rows: np.ndarray
    scores: np.ndarray
    source: np.ndarray
    offsets: np.ndarray
    drafted: np.ndarray
    valid: np.ndarray
    filled: np.ndarray


class Verifier:
    """Looks drafts up in the index, applies the rules, fills up by popularity."""

    def __init__(self, catalog: Catalog, index: ItemIndex) -> None:
        self._index = index
        self._items = len(catalog)
        self._popular = np.asarray(catalog.popular_rows, np.int64)

    def verify(
        self, codes: np.ndarray, scores: np.ndarray, blocked: Sequence[np.ndarray], top_k: np.ndarray
    ) -> Verified:
        """Verify and rank a batch.

        codes: int64 [B, K], mixed-radix semantic IDs, best first (as `Drafts`). scores: float32 [B, K].
        blocked: B arrays of int32 catalogue rows that must not be returned. top_k: int [B], items wanted.
        """
        batch = len(codes)
        # A request's rows live in a range of their own, so that one operation serves the whole batch.
        first_key = np.arange(batch, dtype=np.int64) * self._items
        blocked_sizes = np.fromiter(map(len, blocked), np.int64, batch)
        blocked_keys = np.concatenate(blocked) + np.repeat(first_key, blocked_sizes)

        finite = np.isfinite(scores)
        buckets = self._index.buckets_of(codes)
        valid = finite & (buckets >= 0)
        request, beam = np.nonzero(valid)
        rows, source = self._index.expand(buckets[request, beam])
        keys = rows + first_key[request[source]]
        keep = first_of_each(keys)
        if blocked_keys.size:
            keep &= ~np.isin(keys, blocked_keys)
        source, keys = source[keep], keys[keep]
        owner = request[source]
        chosen = _rank_in_group(owner, batch) < top_k[owner]
        owner, keys = owner[chosen], keys[chosen]
        item_scores = scores[request, beam][source[chosen]]
        found = np.bincount(owner, minlength=batch)

        missing = np.maximum(0, top_k - found)
        filled = np.zeros(batch, np.int64)
        fill_owner, fill_keys = self._fill(missing, found + blocked_sizes, np.concatenate([keys, blocked_keys]))
        if fill_keys.size:
            filled = np.bincount(fill_owner, minlength=batch)
            order = np.argsort(np.concatenate([owner, fill_owner]), kind="stable")
            owner = np.concatenate([owner, fill_owner])[order]
            keys = np.concatenate([keys, fill_keys])[order]
            item_scores = np.concatenate([item_scores, np.full(fill_keys.size, FALLBACK_SCORE)])[order]
            is_fill = order >= chosen.sum()
        else:
            is_fill = np.zeros(keys.size, bool)
        return Verified(
            rows=(keys - first_key[owner]).astype(np.int32),
            scores=item_scores.astype(np.float32, copy=False),
            source=np.where(is_fill, FALLBACK, DRAFTED).astype(np.uint8),
            offsets=np.concatenate([[0], np.cumsum(found + filled)]),
            drafted=finite.sum(1),
            valid=valid.sum(1),
            filled=filled,
        )

    def _fill(self, missing: np.ndarray, taken: np.ndarray, taken_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The most popular items that are not taken: (request int64 [m], keys int64 [m]), in order.

        missing, taken: int64 [B], items wanted and at most how many of the popular ones are out of the question.
        """
        needing = np.flatnonzero(missing)
        if not needing.size:
            return needing, needing
        # So many of the most popular rows are sure to hold enough that are free.
        enough = int(min(self._popular.size, (missing + taken)[needing].max()))
        keys = self._popular[:enough] + (needing * self._items)[:, None]
        free = ~np.isin(keys, taken_keys)
        free &= free.cumsum(1) <= missing[needing, None]
        request, _ = np.nonzero(free)
        return needing[request], keys[free]


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """bool [n]: whether a key (int64 [n]) has not occurred before in the array."""
    first = np.zeros(keys.size, bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _rank_in_group(owner: np.ndarray, groups: int) -> np.ndarray:
    """Position of each element within its group: owner int64 [n], ascending -> int64 [n]."""
    sizes = np.bincount(owner, minlength=groups)
    return np.arange(owner.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
