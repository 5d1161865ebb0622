"""The model-free verifier: drafts in, items that exist out. It is the authority on what a user gets to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from genrec.catalog import BucketView, CatalogView
from genrec.catalog.row_sets import first_of_each
from genrec.rules import Applied, Ruled

DRAFTED, FALLBACK = 0, 1
FALLBACK_SCORE = np.float32(-1e9)


@dataclass(frozen=True)
class Verified:
    """Ranked items of a batch of B requests, one after the other.

    rows: int32 [n], catalogue rows, best first. scores: float32 [n], finite. source: uint8 [n], DRAFTED or FALLBACK.
    offsets: int64 [B + 1]; request b has the items offsets[b]:offsets[b + 1]: as many as it asked for, fewer only
    where the live catalogue has no more that are not blocked, and that its rules leave.
    drafted, valid, filled: int64 [B]: drafts with a finite score, those that are live items' semantic IDs, and
    items filled in from the popularity fallback. boosts: float32 [n], what rules added to the scores for the order.
    ruled: what rules did, for each request with any, by its number.
    """

    rows: np.ndarray
    scores: np.ndarray
    source: np.ndarray
    offsets: np.ndarray
    drafted: np.ndarray
    valid: np.ndarray
    filled: np.ndarray
    boosts: np.ndarray
    ruled: Mapping[int, Ruled] = field(default_factory=dict)


class Verifier:
    """Looks drafts up in the index, applies the rules, fills up by popularity."""

    def __init__(self, catalog: CatalogView, index: BucketView) -> None:
        self._index = index
        self._items = len(catalog)
        self._popular = np.asarray(catalog.popular_rows, np.int64)

    def verify(
        self,
        codes: np.ndarray,
        scores: np.ndarray,
        blocked: Sequence[np.ndarray],
        top_k: np.ndarray,
        rules: Sequence[Applied | None] = (),
    ) -> Verified:
        """Verify and rank a batch.

        codes: int64 [B, K], mixed-radix semantic IDs, best first (as `Drafts`). scores: float32 [B, K].
        blocked: B arrays of int32 catalogue rows that must not be returned. top_k: int [B], items wanted.
        rules: of each request, None for one without; nothing at all where none has any.
        """
        ruled = [number for number, applied in enumerate(rules) if applied is not None]
        if not ruled:
            return self._verified(codes, scores, blocked, top_k)
        finite = scores > -np.inf
        buckets = self._index.buckets_of(codes)
        valid = finite & (buckets >= 0)
        answers = {}
        for number in ruled:
            applied = rules[number]
            assert applied is not None
            beams = np.flatnonzero(valid[number])
            expand = partial(self._expanded, buckets[number, beams])
            answers[number] = applied.answer(expand, scores[number, beams], blocked[number], int(top_k[number]))
        plain = [number for number, applied in enumerate(rules) if applied is None]
        if plain:
            others = self._verified(codes[plain], scores[plain], [blocked[number] for number in plain], top_k[plain])
        else:
            others = None
        return _together(len(codes), answers, plain, others, finite.sum(1), valid.sum(1))

    def _expanded(self, buckets: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The items of buckets begin .. end - 1, and which bucket each is of."""
        rows, source = self._index.expand(buckets[begin:end])
        return rows, source + begin

    def _verified(
        self, codes: np.ndarray, scores: np.ndarray, blocked: Sequence[np.ndarray], top_k: np.ndarray
    ) -> Verified:
        """As `verify`, without rules."""
        batch = len(codes)
        # A request's rows live in a range of their own, so that one operation serves the whole batch.
        first_key = np.arange(batch) * self._items
        blocked_sizes = np.fromiter(map(len, blocked), np.int64, batch)
        blocked_keys = np.concatenate(blocked) + first_key.repeat(blocked_sizes)

        finite = scores > -np.inf
        buckets = self._index.buckets_of(codes)
        valid = finite & (buckets >= 0)
        valid_before = valid.cumsum(1)
        valid_count = valid_before[:, -1]
        # So many drafts hold enough items that are not blocked, unless a draft comes twice; then all are looked at.
        needed = top_k + blocked_sizes
        first = valid & (valid_before <= needed[:, None])
        owner, keys, item_scores = self._ranked(buckets, scores, first, blocked_keys, top_k)
        found = np.bincount(owner, minlength=batch)
        if ((found < top_k) & (valid_count > needed)).any():
            owner, keys, item_scores = self._ranked(buckets, scores, valid, blocked_keys, top_k)
            found = np.bincount(owner, minlength=batch)
        result = Verified(
            rows=(keys - first_key[owner]).astype(np.int32),
            scores=item_scores,
            source=np.full(keys.size, DRAFTED, np.uint8),
            offsets=np.concatenate([[0], found.cumsum()]),
            drafted=finite.sum(1),
            valid=valid_count,
            filled=np.zeros(batch, np.int64),
            boosts=np.zeros(keys.size, np.float32),
        )
        missing = top_k - found
        if missing.max() > 0:
            taken = np.concatenate([keys, blocked_keys])
            return self._filled(result, owner, missing, found + blocked_sizes, taken)
        return result

    def _ranked(
        self, buckets: np.ndarray, scores: np.ndarray, chosen: np.ndarray, blocked_keys: np.ndarray, top_k: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first `top_k` distinct items of the `chosen` (bool [B, K]) drafts that are not blocked.

        Returns of each item its request, int64 [n], its key there and its score, in order.
        """
        request, beam = chosen.nonzero()
        rows, source = self._index.expand(buckets[request, beam])
        owner = request.take(source)
        keys = rows + owner * self._items
        # What has occurred before, as blocked or as drafted, is not taken again.
        keep = first_of_each(np.concatenate([blocked_keys, keys]))[blocked_keys.size :].nonzero()[0]
        owner = owner.take(keep)
        wanted = _rank_in_group(owner, len(top_k)) < top_k.take(owner)
        keep, owner = keep[wanted], owner[wanted]
        return owner, keys.take(keep), scores[owner, beam[source[keep]]]

    def _filled(
        self, drafted: Verified, owner: np.ndarray, missing: np.ndarray, taken: np.ndarray, taken_keys: np.ndarray
    ) -> Verified:
        """`drafted` filled up from the popularity fallback.

        owner: int64 [n], the request of each drafted item. missing: int64 [B], items wanted beyond them. taken: int64
        [B], at most how many of the popular items are out of the question; taken_keys: int64 [t], which ones.
        """
        needing = np.flatnonzero(missing > 0)
        # So many of the most popular rows are sure to hold enough that are free.
        enough = int(min(self._popular.size, (missing + taken)[needing].max()))
        free = ~np.isin(self._popular[:enough] + (needing * self._items)[:, None], taken_keys)
        free &= free.cumsum(1) <= missing[needing, None]
        at, place = np.nonzero(free)
        filled = np.bincount(needing[at], minlength=missing.size)
        order = np.argsort(np.concatenate([owner, needing[at]]), kind="stable")
        return replace(
            drafted,
            rows=np.concatenate([drafted.rows, self._popular[place].astype(np.int32)])[order],
            scores=np.concatenate([drafted.scores, np.full(at.size, FALLBACK_SCORE)])[order],
            source=np.concatenate([drafted.source, np.full(at.size, FALLBACK, np.uint8)])[order],
            offsets=drafted.offsets + np.concatenate([[0], filled.cumsum()]),
            filled=filled,
            boosts=np.zeros(order.size, np.float32),
        )


def _together(
    batch: int,
    ruled: Mapping[int, Ruled],
    plain: Sequence[int],
    others: Verified | None,
    drafted: np.ndarray,
    valid: np.ndarray,
) -> Verified:
    """The answers of a batch, of which some have rules. others: of the requests `plain`, in this order."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = [()] * batch  # type: ignore[list-item]
    for number, one in ruled.items():
        source = np.full(one.rows.size, FALLBACK, np.uint8)
        source[: one.drafted] = DRAFTED
        scores = np.where(source == DRAFTED, one.scores, FALLBACK_SCORE)
        parts[number] = one.rows, scores, source, one.boosts
    if others is not None:
        for place, number in enumerate(plain):
            own = slice(others.offsets[place], others.offsets[place + 1])
            parts[number] = others.rows[own], others.scores[own], others.source[own], others.boosts[own]
    rows, scores, sources, boosts = map(np.concatenate, zip(*parts, strict=True))
    sizes = [part[0].size for part in parts]
    filled = np.array([int(part[2].sum()) for part in parts])
    return Verified(
        rows=rows.astype(np.int32),
        scores=scores.astype(np.float32),
        source=sources,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        drafted=drafted,
        valid=valid,
        filled=filled,
        boosts=boosts.astype(np.float32),
        ruled=ruled,
    )


def _rank_in_group(owner: np.ndarray, groups: int) -> np.ndarray:
    """Position of each element within its group: owner int64 [n], ascending -> int64 [n]."""
    sizes = np.bincount(owner, minlength=groups)
    return np.arange(owner.size) - (sizes.cumsum() - sizes).take(owner)
