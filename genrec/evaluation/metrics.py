"""Hit@K, NDCG@K, and how alike two engines draft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.engines.base import Drafts

CUTOFFS = (5, 10)


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
