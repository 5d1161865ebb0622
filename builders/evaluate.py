"""Ranks held-out items with a bundle: Hit@K, NDCG@K and the share of valid drafts, offline or through a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from builders.dataset import Dataset, Holdout
from genrec.bundle import Bundle
from genrec.catalog import Catalog
from genrec.engines.base import Drafts, Engine
from genrec.prompt import PromptLayout
from genrec.verifier import Verified, Verifier

CUTOFFS = (5, 10)
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


def rank_offline(
    engine: Engine,
    verifier: Verifier,
    catalog: Catalog,
    layout: PromptLayout,
    histories: Sequence[np.ndarray],
    *,
    exclude_history: bool = False,
    **options: Any,
) -> Ranking:
    """One of `rankings`, whose options it takes: with the history's items excluded, or not."""
    return rankings(engine, verifier, catalog, layout, histories, exclusions=(exclude_history,), **options)[0]


def rankings(
    engine: Engine,
    verifier: Verifier,
    catalog: Catalog,
    layout: PromptLayout,
    histories: Sequence[np.ndarray],
    *,
    exclusions: Sequence[bool] = (False, True),
    queries: Sequence[np.ndarray] | None = None,
    top_k: int = max(CUTOFFS),
    masked: bool = True,
    batch: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Ranking]:
    """Rank the catalogue for users with `histories` (int32 rows, oldest first), with the code that serves.

    exclusions: whether the history's items are left out; one ranking each, from the same drafts, because only the
    verifier knows of it. queries: tokens of each user's query (int32, as a QueryTokenizer makes them), for models
    trained with queries. progress(done): called with the number of users ranked so far.
    """
    ranked = [np.full((len(histories), top_k), -1, np.int32) for _ in exclusions]
    recent = [catalog.sids[layout.recent(history)] for history in histories]
    if queries is None:
        prompts = [layout.encode(sids) for sids in recent]
    else:
        prompts = [layout.encode(sids, query) for sids, query in zip(recent, queries, strict=True)]
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")  # alike in length: little padding
    drafted = valid = 0
    drafting, verifying = 0.0, [0.0] * len(exclusions)
    for at in range(0, order.size, batch):
        users = order[at : at + batch]
        started = time.perf_counter()
        drafts = engine.draft([prompts[user] for user in users], masked=masked)
        ended = time.perf_counter()
        drafting += ended - started
        for number, excluded in enumerate(exclusions):
            blocked = [np.unique(histories[user]) if excluded else _NOTHING for user in users]
            result = verifier.verify(drafts.codes, drafts.scores, blocked, np.full(users.size, top_k))
            _place(ranked[number], users, result)
            started, ended = ended, time.perf_counter()
            verifying[number] += ended - started
        drafted, valid = drafted + result.drafted.sum(), valid + result.valid.sum()
        progress(int(at + users.size))
    each = 1e3 / max(1, len(histories))
    share = float(valid / max(1, drafted))
    return [
        Ranking(rows, share, each * (drafting + spent), each * drafting)
        for rows, spent in zip(ranked, verifying, strict=True)
    ]


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
        result = verifier.verify(codes, scores, blocked, np.full(len(part), top_k))
        _place(ranked, np.arange(at, at + len(part)), result)
    return ranked


def _place(ranked: np.ndarray, users: np.ndarray, result: Verified) -> None:
    """Write a verified batch into the rows of its `users` (int64 [B])."""
    sizes = np.diff(result.offsets)
    place = np.arange(result.rows.size) - np.repeat(result.offsets[:-1], sizes)
    ranked[np.repeat(users, sizes), place] = result.rows


def target_ranks(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """uint16 [E]: the place of each user's target in their list, from 1; 0 if it is not there.

    rows: int32 [E, K], ranked. targets: int32 [E].
    """
    found = rows == targets[:, None]
    return np.where(found.any(1), found.argmax(1) + 1, 0).astype(np.uint16)


def user_values(ranks: np.ndarray, metric: str) -> np.ndarray:
    """A metric of every user: ranks uint16 [...] -> float64 [...].

    metric: "hit@K", 1 for a target among the first K, or "ndcg@K", 1 / log2(1 + rank) for one (one relevant item per
    user, so the ideal ranking scores 1); 0 otherwise.
    """
    name, cutoff = metric.split("@")
    within = (ranks > 0) & (ranks <= int(cutoff))
    if name == "hit":
        return within.astype(np.float64)
    return np.where(within, 1 / np.log2(1 + np.maximum(ranks, 1).astype(np.float64)), 0.0)


def mean_metrics(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Hit@K and NDCG@K averaged over users: ranks as `target_ranks` gives them."""
    names = [f"{name}@{cutoff}" for cutoff in cutoffs for name in ("hit", "ndcg")]
    return {name: float(user_values(ranks, name).mean()) for name in names}


def metrics(rows: np.ndarray, targets: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`mean_metrics` of ranked rows, int32 [E, K], and targets, int32 [E]."""
    return mean_metrics(target_ranks(rows, targets), cutoffs)


def likeness(ours: Drafts, theirs: Drafts) -> dict[str, float]:
    """Share of the ten best drafts that both have, and by how much the scores in one place differ at most."""
    overlap = np.mean([np.isin(a[:10], b[:10]).mean() for a, b in zip(ours.codes, theirs.codes, strict=True)])
    return {"overlap": float(overlap), "gap": float(np.abs(ours.scores[:, :10] - theirs.scores[:, :10]).max())}


def require_catalog(bundle: Bundle, dataset: Dataset) -> None:
    """Raises ValueError unless the bundle has the dataset's items in their order: rows would mean other items."""
    ids = np.array([item_id.encode() for item_id in dataset.items.item_ids], np.bytes_)
    if not np.array_equal(ids, bundle.catalog.item_ids):
        raise ValueError(
            f"{bundle.path}: its catalogue of {len(bundle.catalog)} items is not the {ids.size} items of the data"
        )


def sample(holdout: Holdout, users: int | None, seed: int = 0) -> np.ndarray:
    """int64 [E], ascending: which of a holdout's users are ranked, `users` of them at random, all if None."""
    count = len(holdout)
    if users is None or users >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, users, replace=False))


def sample_users(holdout: Holdout, users: int | None, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Histories and targets (int32 [E]) of `users` users of a holdout, of all if None."""
    chosen = sample(holdout, users, seed)
    return [holdout.histories[int(user)] for user in chosen], holdout.targets[chosen]


def sample_queries(holdout: Holdout, users: int | None, seed: int = 0) -> list[str]:
    """The queries that led to the targets of the same users, "" for none."""
    chosen = sample(holdout, users, seed)
    return [""] * chosen.size if holdout.queries is None else holdout.queries.take(chosen).to_pylist()


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
