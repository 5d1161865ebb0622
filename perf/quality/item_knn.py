"""Rivals that need no training: item-kNN, and popularity, the floor of all models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.sparse import csr_matrix

from genrec_builders.data import Sequences

DECAYS, SHRINKAGES = (1.0, 0.9, 0.8, 0.7), (0.0, 10.0, 50.0, 100.0)


@dataclass(frozen=True)
class ItemKnnConfig:
    """decay: of the vote of each item of a history against the one after it, 1 for histories without an order.
    shrinkage: added to the product of two items' norms, against similarities that few users make. neighbours: the most
    similar items, for which an item votes."""

    decay: float = 1.0
    shrinkage: float = 0.0
    neighbours: int = 100


class Popularity:
    """Scores every item by how often it was bought. counts: int64 [items], of the training part."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [B, items], the same for every history."""
        return np.repeat(self.counts[None].astype(np.float64), len(histories), 0)


class ItemKnn:
    """Cosine similarity of two items' users, added up over the last `max_history` items of a history.

    Items without a vote follow by popularity. No item votes for itself.
    """

    def __init__(self, train: Sequences, items: int, max_history: int, config: ItemKnnConfig) -> None:
        """train: what each user bought, as rows of a catalogue of `items`."""
        self.max_history, self.decay = max_history, config.decay
        lengths = np.diff(train.offsets)
        user = np.repeat(np.arange(lengths.size), lengths)
        bought = csr_matrix((np.ones(train.rows.size), (user, train.rows)), (lengths.size, items))
        bought.data[:] = 1.0  # csr_matrix adds up what a user bought twice
        counts = np.asarray(bought.sum(0)).ravel()
        self.share = counts / (1.0 + counts.max(initial=0.0))
        similar = (bought.T @ bought).tocsr()
        similar.setdiag(0.0)
        similar.eliminate_zeros()
        item = np.repeat(np.arange(items), np.diff(similar.indptr))
        similar.data /= np.sqrt(counts[item] * counts[similar.indices]) + config.shrinkage
        order = np.lexsort((similar.indices, -similar.data, item))
        nearest = order[np.arange(order.size) - similar.indptr[item] < config.neighbours]
        self.similar = csr_matrix((similar.data[nearest], (item[nearest], similar.indices[nearest])), (items, items))

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [B, items]: 1 and the votes where there are any, else a share below 1."""
        votes = self.votes(histories)
        return np.where(votes > 0, 1.0 + votes, self.share)

    def votes(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [B, items], 0 for items without a vote."""
        recent = [history[-self.max_history :] for history in histories]
        lengths = np.array([len(each) for each in recent])
        weights = np.concatenate([self.decay ** np.arange(length - 1.0, -1.0, -1.0) for length in lengths])
        user = np.repeat(np.arange(lengths.size), lengths)
        said = csr_matrix((weights, (user, np.concatenate(recent))), (lengths.size, self.share.size))
        return np.asarray((said @ self.similar).toarray())


def tuned_item_knn(
    train: Sequences, items: int, max_history: int, validate: Callable[[ItemKnn], float]
) -> tuple[ItemKnn, ItemKnnConfig]:
    """The best of DECAYS and SHRINKAGES. validate: a metric on validation items, higher is better."""
    made = []
    for shrinkage, decay in product(SHRINKAGES, DECAYS):
        config = ItemKnnConfig(decay, shrinkage)
        model = ItemKnn(train, items, max_history, config)
        made.append((validate(model), model, config))
    _, model, config = max(made, key=lambda each: each[0])
    return model, config
