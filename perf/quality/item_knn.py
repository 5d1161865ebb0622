"""Rivals that need no training: item-kNN, and popularity, the floor of all models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from genrec.votes import ItemVotes
from genrec_builders.data import Sequences
from genrec_builders.votes import Neighbourhood, tuned_neighbours


class Popularity:
    """Scores every item by how often it was bought. counts: int64 [items], of the training part."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [B, items], the same for every history."""
        return np.repeat(self.counts[None].astype(np.float64), len(histories), 0)


class ItemKnn:
    """The votes of the last `max_history` items of a history, which a bundle's drafts can be ranked with, alone.

    counts: int [items], how often each was bought: items without a vote follow by popularity.
    """

    def __init__(self, votes: ItemVotes, counts: np.ndarray, max_history: int) -> None:
        self.votes, self.max_history = votes, max_history
        self.share = counts / (1.0 + counts.max(initial=0))

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [B, items]: 1 and the votes where there are any, else a share below 1."""
        recent = [history[-self.max_history :] for history in histories]
        request = np.repeat(np.arange(len(recent)), [len(each) for each in recent])
        keys, cast = self.votes.cast(request, np.concatenate(recent), len(recent))
        scores = np.repeat(self.share[None], len(recent), 0)
        scores.ravel()[keys] = 1.0 + cast
        return scores


def tuned_item_knn(
    train: Sequences, counts: np.ndarray, max_history: int, validate: Callable[[ItemKnn], float]
) -> tuple[ItemKnn, Neighbourhood]:
    """The best of the settings that `genrec votes` tries. validate: a metric on validation items, higher is better."""
    votes, chosen = tuned_neighbours(train, counts.size, lambda votes: validate(ItemKnn(votes, counts, max_history)))
    return ItemKnn(votes, counts, max_history), chosen
