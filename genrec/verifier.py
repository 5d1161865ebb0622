"""The model-free verifier: drafts in, items that exist out. It is the authority on what a user gets to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from genrec.catalog import BucketView, CatalogView
from genrec.catalog.ragged import rank_in_group
from genrec.catalog.row_sets import first_of_each, is_in
from genrec.rules import Applied, Ruled
from genrec.rules.applied import Expand
from genrec.votes import Candidates, Voting

DRAFTED, FALLBACK, VOTED = 0, 1, 2
FALLBACK_SCORE = np.float32(-1e9)


@dataclass(frozen=True)
class Verified:
    """Ranked items of a batch of B requests, one after the other.

    rows: int32 [n], catalogue rows, best first. scores: float32 [n], finite. source: uint8 [n], DRAFTED, FALLBACK or
    VOTED.
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
    """Looks drafts up in the index, adds votes, applies the rules, fills up by popularity.

    voting: on this catalogue; None for a bundle without votes.
    """

    def __init__(self, catalog: CatalogView, index: BucketView, voting: Voting | None = None) -> None:
        self._index, self._voting = index, voting
        self._items = len(catalog)
        self._popular = np.asarray(catalog.popular_rows, np.int64)

    def verify(
        self,
        codes: np.ndarray,
        scores: np.ndarray,
        blocked: Sequence[np.ndarray],
        top_k: np.ndarray,
        rules: Sequence[Applied | None] = (),
        histories: Sequence[np.ndarray] | None = None,
    ) -> Verified:
        """Verify and rank a batch.

        codes: int64 [B, K], mixed-radix semantic IDs, best first (as `Drafts`). scores: float32 [B, K].
        blocked: B arrays of int32 catalogue rows that must not be returned. top_k: int [B], items wanted.
        rules: of each request, None for one without; nothing at all where none has any. histories: B arrays of
        catalogue rows, oldest first, as the prompts hold them, none for a request with a query: `Prepared.voters`. With
        votes they have to be given.
        """
        ruled = [number for number, applied in enumerate(rules) if applied is not None]
        if not ruled and self._voting is None:
            return self._verified(codes, scores, blocked, top_k)
        finite = scores > -np.inf
        buckets = self._index.buckets_of(codes)
        valid = finite & (buckets >= 0)
        candidates = None if self._voting is None else self._candidates(self._voting, buckets, scores, valid, histories)
        expand: Expand
        answers: dict[int, Ruled] = {}
        voted: dict[int, np.ndarray] = {}
        for number in ruled:
            applied = rules[number]
            assert applied is not None
            if candidates is None:
                beams = np.flatnonzero(valid[number])
                expand, its_scores = partial(self._expanded, buckets[number, beams]), scores[number, beams]
            else:
                ties = candidates.of(number)
                expand, its_scores, voted[number] = ties.expand, ties.scores, ties.voted
            answers[number] = applied.answer(expand, its_scores, blocked[number], int(top_k[number]))
        plain = [number for number in range(len(codes)) if number not in answers]
        others = None
        if plain:
            their_blocked, wanted = [blocked[number] for number in plain], top_k[plain]
            if candidates is None:
                others = self._verified(codes[plain], scores[plain], their_blocked, wanted)
            else:
                others = self._best(candidates, plain, finite[plain], valid[plain], their_blocked, wanted)
        if others is not None and not answers:
            return others
        return _together(len(codes), answers, voted, plain, others, finite.sum(1), valid.sum(1))

    def _expanded(self, buckets: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The items of buckets begin .. end - 1, and which bucket each is of."""
        rows, source = self._index.expand(buckets[begin:end])
        return rows, source + begin

    def _candidates(
        self,
        voting: Voting,
        buckets: np.ndarray,
        scores: np.ndarray,
        valid: np.ndarray,
        histories: Sequence[np.ndarray] | None,
    ) -> Candidates:
        """The items of all valid drafts, and those that the histories vote for."""
        if histories is None:
            raise ValueError("this verifier adds votes; give the histories that vote")
        request, beam = valid.nonzero()
        rows, source = self._index.expand(buckets[request, beam])
        owner, beam = request.take(source), beam.take(source)
        least = np.where(valid, scores, np.float32(np.inf)).min(1)
        least[least == np.inf] = 0.0  # without a draft the votes alone decide
        return voting.candidates(owner, beam, rows, scores[owner, beam], least, histories)

    def _best(
        self,
        candidates: Candidates,
        requests: Sequence[int],
        finite: np.ndarray,
        valid: np.ndarray,
        blocked: Sequence[np.ndarray],
        top_k: np.ndarray,
    ) -> Verified:
        """The answers of some of the batch's `requests`, rising, without rules; the other arrays are theirs alone."""
        # A request's place among `requests`.
        owner = np.searchsorted(requests, candidates.request)
        own = np.asarray(requests).take(owner, mode="clip") == candidates.request
        owner, rows = owner[own], candidates.rows[own]
        blocked_keys, blocked_sizes = self._blocked_keys(blocked)
        keys = rows + owner * self._items
        chosen = self._first_of_each(owner, keys, blocked_keys, top_k)
        scores = candidates.scores[own].take(chosen)
        source = np.where(candidates.voted[own].take(chosen), np.uint8(VOTED), np.uint8(DRAFTED))
        found = owner.take(chosen), keys.take(chosen), scores, source
        return self._answers(*found, finite, valid.sum(1), blocked_keys, blocked_sizes, top_k)

    def _verified(
        self, codes: np.ndarray, scores: np.ndarray, blocked: Sequence[np.ndarray], top_k: np.ndarray
    ) -> Verified:
        """As `verify`, without rules and votes."""
        batch = len(codes)
        blocked_keys, blocked_sizes = self._blocked_keys(blocked)
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
        source = np.full(keys.size, DRAFTED, np.uint8)
        return self._answers(owner, keys, item_scores, source, finite, valid_count, blocked_keys, blocked_sizes, top_k)

    def _blocked_keys(self, blocked: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of a batch: the blocked rows, each request's in a range of its own, so that one operation serves all; and
        how many each request has, int64 [B]."""
        sizes = np.fromiter(map(len, blocked), np.int64, len(blocked))
        return np.concatenate(blocked) + (np.arange(sizes.size) * self._items).repeat(sizes), sizes

    def _answers(
        self,
        owner: np.ndarray,
        keys: np.ndarray,
        scores: np.ndarray,
        source: np.ndarray,
        finite: np.ndarray,
        valid: np.ndarray,
        blocked_keys: np.ndarray,
        blocked_sizes: np.ndarray,
        top_k: np.ndarray,
    ) -> Verified:
        """The answers of a batch, filled up. owner, keys, scores, source: [n], of the items found; valid: int64 [B]."""
        found = np.bincount(owner, minlength=top_k.size)
        result = Verified(
            rows=(keys - owner * self._items).astype(np.int32),
            scores=scores,
            source=source,
            offsets=np.concatenate([[0], found.cumsum()]),
            drafted=finite.sum(1),
            valid=valid,
            filled=np.zeros(top_k.size, np.int64),
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
        keep = self._first_of_each(owner, keys, blocked_keys, top_k)
        owner = owner.take(keep)
        return owner, keys.take(keep), scores[owner, beam[source[keep]]]

    @staticmethod
    def _first_of_each(owner: np.ndarray, keys: np.ndarray, blocked_keys: np.ndarray, top_k: np.ndarray) -> np.ndarray:
        """Places of the first `top_k` (int [B]) items of each request that are not blocked and have not come before.

        owner, keys: int64 [n], of items in order, request by request.
        """
        # What has occurred before, as blocked or as drafted, is not taken again.
        keep = first_of_each(np.concatenate([blocked_keys, keys]))[blocked_keys.size :].nonzero()[0]
        owner = owner.take(keep)
        return keep[rank_in_group(owner, len(top_k)) < top_k.take(owner)]

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
    voted: Mapping[int, np.ndarray],
    plain: Sequence[int],
    others: Verified | None,
    drafted: np.ndarray,
    valid: np.ndarray,
) -> Verified:
    """The answers of a batch, of which some have rules. others: of the requests `plain`, in this order.

    voted: of requests with rules, the rows that were voted for and not drafted, rising.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = [()] * batch  # type: ignore[list-item]
    for number, one in ruled.items():
        source = np.full(one.rows.size, FALLBACK, np.uint8)
        source[: one.drafted] = DRAFTED
        scores = np.where(source == DRAFTED, one.scores, FALLBACK_SCORE)
        if number in voted:
            source[: one.drafted][is_in(one.rows[: one.drafted], voted[number])] = VOTED
        parts[number] = one.rows, scores, source, one.boosts
    if others is not None:
        for place, number in enumerate(plain):
            own = slice(others.offsets[place], others.offsets[place + 1])
            parts[number] = others.rows[own], others.scores[own], others.source[own], others.boosts[own]
    rows, scores, sources, boosts = map(np.concatenate, zip(*parts, strict=True))
    sizes = [part[0].size for part in parts]
    filled = np.array([int((part[2] == FALLBACK).sum()) for part in parts])
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
