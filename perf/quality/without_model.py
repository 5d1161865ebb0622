"""Rivals that know nothing of semantic IDs: popularity, the floor of all models, item-kNN, item vectors, and both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from genrec.catalog.ragged import joined
from genrec.item_vectors import ItemVectors
from genrec.votes import ItemVotes
from genrec_builders.data import Sequences
from genrec_builders.votes import DOUBTS, Neighbourhood, tuned_neighbours

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of votes beside an affinity of weight 1


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
        keys, cast = self.votes.cast(*joined(recent), len(recent))
        scores = np.repeat(self.share[None], len(recent), 0)
        scores.ravel()[keys] = 1.0 + cast
        return scores


class Affinity:
    """How well the last `max_history` items of a history are followed, with which drafts can be ranked, alone."""

    def __init__(self, vectors: ItemVectors, max_history: int) -> None:
        self.vectors, self.max_history = vectors, max_history

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, items]."""
        return self.vectors.affinities([history[-self.max_history :] for history in histories])


class VotesAlone:
    """Votes and affinity in one score, as they count for drafts, without a model."""

    def __init__(self, votes: ItemVotes, affinity: Affinity) -> None:
        self.votes, self.affinity = votes, affinity

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [B, items]."""
        recent = [history[-self.affinity.max_history :] for history in histories]
        keys, cast = self.votes.cast(*joined(recent), len(recent))
        scores = self.affinity(recent).astype(np.float64)
        scores.ravel()[keys] += self.votes.worth(cast)
        return scores


def tuned_votes_alone(
    votes: ItemVotes, affinity: Affinity, validate: Callable[[VotesAlone], float]
) -> tuple[VotesAlone, dict[str, float]]:
    """The best weight and doubt of the votes. validate: a metric on validation items, higher is better."""

    def model(weight: float, doubt: float) -> VotesAlone:
        config = votes.config.model_copy(update={"weight": weight, "doubt": doubt})
        return VotesAlone(replace(votes, config=config), affinity)

    weight, doubt = max(product(WEIGHTS, DOUBTS), key=lambda settings: validate(model(*settings)))
    return model(weight, doubt), {"weight": weight, "doubt": doubt}


def tuned_item_knn(
    train: Sequences, counts: np.ndarray, max_history: int, validate: Callable[[ItemKnn], float]
) -> tuple[ItemKnn, Neighbourhood]:
    """The best of the settings that `genrec votes` tries. validate: a metric on validation items, higher is better."""
    votes, chosen = tuned_neighbours(train, counts.size, lambda votes: validate(ItemKnn(votes, counts, max_history)))
    return ItemKnn(votes, counts, max_history), chosen
