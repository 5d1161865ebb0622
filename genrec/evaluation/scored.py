"""Ranks by models that score every item, such as rivals of a generative model, for the tables of a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from genrec.catalog.ragged import joined
from genrec.evaluation.comparison import DEPTH, HISTORIES, UserSample
from genrec.evaluation.metrics import CUTOFFS, mean_metrics, target_ranks
from genrec.evaluation.results import RankingCell, Results, Run, Trained, ranks_name


class Scorer(Protocol):
    """A model that scores a whole catalogue."""

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float [B, items], -inf for what is never recommended. histories: int32 catalogue rows, oldest first."""


def best_rows(scores: np.ndarray, top_k: int) -> np.ndarray:
    """int32 [B, top_k]: the rows with the highest scores of each user, the lower row of equal ones first.

    scores: float [B, items]. -1 stands behind the last row whose score is above -inf.
    """
    last = min(top_k, scores.shape[1]) - 1
    least = -np.partition(-scores, last, axis=1)[:, last]  # the lowest score that is ranked
    ranked = np.full((len(scores), top_k), -1, np.int32)
    for user in range(len(scores)):
        rows = np.flatnonzero((scores[user] >= least[user]) & (scores[user] > -np.inf))
        order = np.argsort(-scores[user, rows], kind="stable")[:top_k]
        ranked[user, : order.size] = rows[order]
    return ranked


def rank_scored(
    score: Scorer,
    histories: Sequence[np.ndarray],
    *,
    exclusions: Sequence[bool] = (False,),
    top_k: int = max(CUTOFFS),
    batch: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[np.ndarray, float]]:
    """Rank the catalogue for users with `histories` (int32 rows, oldest first): int32 [E, top_k] and ms per user.

    exclusions: whether the history's items are left out; one ranking each, from the same scores.
    """
    parts: list[list[np.ndarray]] = [[] for _ in exclusions]
    spent = [0.0] * len(exclusions)
    for at in range(0, len(histories), batch):
        some = histories[at : at + batch]
        started = time.perf_counter()
        scores = score(some)
        scoring = time.perf_counter() - started
        for number, excluded in enumerate(exclusions):
            started = time.perf_counter()
            left = scores
            if excluded:
                left = scores.copy()
                left[joined(some)] = -np.inf
            parts[number].append(best_rows(left, top_k))
            spent[number] += scoring + time.perf_counter() - started
        progress(at + len(some))
    each = 1e3 / max(1, len(histories))
    return [(np.concatenate(part), each * seconds) for part, seconds in zip(parts, spent, strict=True)]


def add_scored(
    results: Results,
    run: Run,
    trained: Trained,
    score: Scorer,
    users: UserSample,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Rank all `users` by `score`, the history excluded and not, and add both rankings to `results`."""
    ranked = rank_scored(score, users.histories, exclusions=HISTORIES, top_k=DEPTH, batch=run.batch, progress=progress)
    if run not in results.record.runs:
        results.record.runs.append(run)
    results.record.models.append(trained)
    for excluded, (rows, ms_per_user) in zip(HISTORIES, ranked, strict=True):
        name = ranks_name(trained, None, None, excluded)
        results.ranks[name] = ranks = target_ranks(rows, users.targets)
        results.record.cells.append(
            RankingCell(
                model=trained.model,
                weights=trained.weights,
                beam_width=None,
                masked=None,
                history_excluded=excluded,
                depth=DEPTH,
                metrics=mean_metrics(ranks, (*CUTOFFS, DEPTH)),
                valid_drafts=None,
                ms_per_user=ms_per_user,
                drafting_ms=None,
                run=results.record.runs.index(run),
                ranks=name,
            )
        )
