"""Ranks held-out items with a bundle: Hit@K, NDCG@K and the share of valid drafts, offline or through a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from builders.dataset import Holdout
from genrec.catalog import Catalog
from genrec.engines.base import Engine
from genrec.prompt import PromptLayout
from genrec.verifier import Verifier

CUTOFFS = (5, 10)


@dataclass(frozen=True)
class Ranking:
    """Ranked items of E users: rows int32 [E, K], catalogue rows, best first, -1 behind the last.

    valid_share: live items' semantic IDs among the drafts with a finite score. ms_per_user: wall time.
    """

    rows: np.ndarray
    valid_share: float
    ms_per_user: float


def rank_offline(
    engine: Engine,
    verifier: Verifier,
    catalog: Catalog,
    layout: PromptLayout,
    histories: Sequence[np.ndarray],
    *,
    top_k: int = max(CUTOFFS),
    exclude_history: bool = False,
    masked: bool = True,
    batch: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> Ranking:
    """Rank the catalogue for users with `histories` (int32 rows, oldest first), with the code that serves.

    progress(done): called with the number of users ranked so far.
    """
    ranked = np.full((len(histories), top_k), -1, np.int32)
    prompts = [layout.encode(catalog.sids[history[-layout.max_history :]]) for history in histories]
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")  # alike in length: little padding
    nothing = np.empty(0, np.int32)
    drafted = valid = 0
    started = time.perf_counter()
    for at in range(0, order.size, batch):
        users = order[at : at + batch]
        drafts = engine.draft([prompts[user] for user in users], masked=masked)
        blocked = [np.unique(histories[user]) if exclude_history else nothing for user in users]
        result = verifier.verify(drafts.codes, drafts.scores, blocked, np.full(users.size, top_k))
        owner = np.repeat(users, np.diff(result.offsets))
        place = np.arange(owner.size) - np.repeat(result.offsets[:-1], np.diff(result.offsets))
        ranked[owner, place] = result.rows
        drafted, valid = drafted + result.drafted.sum(), valid + result.valid.sum()
        progress(int(at + users.size))
    seconds = time.perf_counter() - started
    return Ranking(ranked, float(valid / max(1, drafted)), 1e3 * seconds / max(1, len(histories)))


def metrics(rows: np.ndarray, targets: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Hit@K and NDCG@K with one relevant item per user, averaged over users.

    rows: int32 [E, K], ranked. targets: int32 [E]. Hit@K: the share of users whose target is among the first K;
    NDCG@K: the mean of 1 / log2(1 + rank), 0 beyond K (the ideal ranking scores 1).
    """
    found = rows == targets[:, None]
    gain = found / np.log2(np.arange(2, rows.shape[1] + 2))
    out = {}
    for cutoff in cutoffs:
        out[f"hit@{cutoff}"] = float(found[:, :cutoff].any(1).mean())
        out[f"ndcg@{cutoff}"] = float(gain[:, :cutoff].sum(1).mean())
    return out


def popularity_ranking(catalog: Catalog, users: int, top_k: int = max(CUTOFFS)) -> np.ndarray:
    """The most popular items for everyone, int32 [users, K]: the floor that a model has to beat."""
    return np.tile(catalog.popular_rows[:top_k], (users, 1))


def sample_users(holdout: Holdout, users: int | None, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Histories and targets (int32 [E]) of `users` users of a holdout, of all if None."""
    count = len(holdout)
    if users is None or users >= count:
        chosen = np.arange(count)
    else:
        chosen = np.sort(np.random.default_rng(seed).choice(count, users, replace=False))
    return [holdout.histories[int(user)] for user in chosen], holdout.targets[chosen]


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
