"""Ranks the catalogue for many users with the code that serves, offline or through a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec.bundle import Bundle
from genrec.catalog import Catalog
from genrec.engines.base import Drafts
from genrec.evaluation.metrics import CUTOFFS
from genrec.pipeline import Pipeline
from genrec.verifier import Verified, Verifier

_NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True)
class Ranking:
    """Ranked items of E users: rows int32 [E, K], catalogue rows, best first, -1 behind the last.

    valid_share: live items' semantic IDs among the drafts with a finite score. ms_per_user: wall time of drafting and
    verifying, in batches; drafting_ms: the drafting in it.
    """

    rows: np.ndarray
    valid_share: float
    ms_per_user: float
    drafting_ms: float


class Ranker:
    """Ranks the catalogue of a pipeline for users whose histories are catalogue rows.

    batch: users drafted at a time. masked: whether only prefixes that exist are drafted.
    """

    def __init__(self, pipeline: Pipeline, batch: int = 16, masked: bool = True) -> None:
        self.pipeline, self.batch, self.masked = pipeline, batch, masked

    def warm_up(self, histories: Sequence[np.ndarray]) -> None:
        """Draft once for the longest of `histories`: the first call of an engine sets up memory."""
        self._draft(self._prompts(sorted(histories, key=len)[-self.batch :], None))

    def rank(self, histories: Sequence[np.ndarray], *, exclude_history: bool = False, **options: Any) -> Ranking:
        """One of `rank_both`, whose options it takes: with the history's items excluded, or not."""
        return self.rank_both(histories, exclusions=(exclude_history,), **options)[0]

    def rank_both(
        self,
        histories: Sequence[np.ndarray],
        *,
        exclusions: Sequence[bool] = (False, True),
        queries: Sequence[np.ndarray] | None = None,
        top_k: int = max(CUTOFFS),
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Ranking]:
        """Rank for users with `histories` (int32 rows, oldest first).

        exclusions: whether the history's items are left out; one ranking each, from the same drafts, because only the
        verifier knows of it. queries: tokens of each user's query (int32, as a QueryTokenizer makes them), for models
        trained with queries. progress(done): called with the number of users ranked so far.
        """
        verifier = self.pipeline.verifier
        ranked = [np.full((len(histories), top_k), -1, np.int32) for _ in exclusions]
        prompts = self._prompts(histories, queries)
        voters = [
            _NOTHING if queries is not None and queries[user].size else self.pipeline.layout.recent(history)
            for user, history in enumerate(histories)
        ]
        done = drafted = valid = 0
        drafting, verifying = 0.0, [0.0] * len(exclusions)
        for users in alike_in_length(prompts, self.batch):
            started = time.perf_counter()
            drafts = self._draft([prompts[user] for user in users])
            ended = time.perf_counter()
            drafting += ended - started
            for number, excluded in enumerate(exclusions):
                blocked = [np.unique(histories[user]) if excluded else _NOTHING for user in users]
                wanted, their = np.full(users.size, top_k), [voters[user] for user in users]
                result = verifier.verify(drafts.codes, drafts.scores, blocked, wanted, histories=their)
                place(ranked[number], users, result)
                started, ended = ended, time.perf_counter()
                verifying[number] += ended - started
            drafted, valid = drafted + result.drafted.sum(), valid + result.valid.sum()
            done += users.size
            progress(done)
        each = 1e3 / max(1, len(histories))
        share = float(valid / max(1, drafted))
        return [
            Ranking(rows, share, each * (drafting + spent), each * drafting)
            for rows, spent in zip(ranked, verifying, strict=True)
        ]

    def _prompts(self, histories: Sequence[np.ndarray], queries: Sequence[np.ndarray] | None) -> list[np.ndarray]:
        layout, sids = self.pipeline.layout, self.pipeline.catalog.sids
        if queries is None:
            return [layout.encode_history(history, sids) for history in histories]
        return [layout.encode_history(history, sids, query) for history, query in zip(histories, queries, strict=True)]

    def _draft(self, prompts: list[np.ndarray]) -> Drafts:
        return self.pipeline.engine.draft(prompts, masked=self.masked)


def alike_in_length(prompts: Sequence[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    """The numbers of all prompts, int64 [batch] at a time, such that little of a batch is padding."""
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    for at in range(0, order.size, batch):
        yield order[at : at + batch]


def rank_popular(
    verifier: Verifier,
    histories: Sequence[np.ndarray],
    *,
    top_k: int = max(CUTOFFS),
    exclude_history: bool = False,
    batch: int = 1024,
) -> np.ndarray:
    """What serving answers without any draft, the most popular items: int32 [E, K] rows, -1 behind the last.

    The floor that a model has to beat.
    """
    ranked = np.full((len(histories), top_k), -1, np.int32)
    for at in range(0, len(histories), batch):
        part = histories[at : at + batch]
        codes, scores = np.full((len(part), 1), -1, np.int64), np.full((len(part), 1), -np.inf, np.float32)
        blocked = [np.unique(history) if exclude_history else _NOTHING for history in part]
        nobody = [_NOTHING] * len(part)  # votes for anything
        result = verifier.verify(codes, scores, blocked, np.full(len(part), top_k), histories=nobody)
        place(ranked, np.arange(at, at + len(part)), result)
    return ranked


def place(ranked: np.ndarray, users: np.ndarray, result: Verified) -> None:
    """Write a verified batch into the rows of its `users` (int64 [B]) of `ranked`, int32 [E, K]."""
    sizes = np.diff(result.offsets)
    rank = np.arange(result.rows.size) - np.repeat(result.offsets[:-1], sizes)
    ranked[np.repeat(users, sizes), rank] = result.rows


def require_catalog(bundle: Bundle, item_ids: Sequence[str]) -> None:
    """Raises ValueError unless the bundle has these items in this order: rows would mean other items."""
    ids = np.array([item_id.encode() for item_id in item_ids], np.bytes_)
    if not np.array_equal(ids, bundle.catalog.item_ids):
        raise ValueError(
            f"{bundle.path}: its catalogue of {len(bundle.catalog)} items is not the {ids.size} items of the data"
        )


def rank_served(
    url: str,
    catalog: Catalog,
    histories: Sequence[np.ndarray],
    *,
    top_k: int = max(CUTOFFS),
    exclude_history: bool = False,
) -> np.ndarray:
    """Rank through a running server: int32 [E, K] catalogue rows, -1 behind the last."""
    from genrec_client import Recommender, RecommendRequest

    ids = [item_id.decode() for item_id in catalog.item_ids.tolist()]
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    requests = [
        RecommendRequest([ids[row] for row in history], top_k=top_k, allow_history=not exclude_history)
        for history in histories
    ]
    with Recommender(url, timeout_s=30.0) as client:
        answers = client.recommend_many(requests, concurrency=8, return_exceptions=False)
    ranked = np.full((len(histories), top_k), -1, np.int32)
    for user, answer in enumerate(answers):
        ranked[user, : len(answer.items)] = [row_of[item.item_id] for item in answer.items]
    return ranked
