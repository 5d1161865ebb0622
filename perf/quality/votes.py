"""NEZHA's drafts and the votes of item-kNN in one score: what counting who bought what together adds to a model.

A draft says which items are probable, and knows little of items that few users bought; a vote is the reverse. The score
of an item is log p + weight * log(votes + doubt). Items with the most votes that were not drafted are held to be as
probable as the least probable draft, less `below`. This is measured here, and not served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from genrec.evaluation.ranker import Ranker
from genrec.evaluation.scored import best_rows
from genrec.verifier import DRAFTED
from perf.quality.item_knn import ItemKnn

WEIGHTS, DOUBTS, BELOW = (0.5, 1.0, 2.0, 4.0, 8.0), (1e-3, 1e-2), (-2.0, -1.0, 0.0, 1.0)


@dataclass(frozen=True)
class VotesConfig:
    """weight, doubt, below: as in the formula, `below` in nats. voted: items with the most votes that are ranked."""

    weight: float = 1.0
    doubt: float = 1e-3
    below: float = 0.0
    voted: int = 50


def combined(drafts: np.ndarray, votes: np.ndarray, config: VotesConfig) -> np.ndarray:
    """Scores float [B, items], -inf for what is neither drafted nor among the most voted for.

    drafts: float [B, items], log p, -inf for what was not drafted. votes: float [B, items], 0 and more.
    """
    known = drafts > -np.inf
    # Of a user without any draft, the votes alone decide.
    least = np.where(known, drafts, np.inf).min(1, keepdims=True)
    least = np.where(np.isfinite(least), least, 0.0) - config.below
    most = min(config.voted, votes.shape[1])
    enough = -np.partition(-votes, most - 1, axis=1)[:, most - 1 : most]
    voted = (votes > 0) & (votes >= enough)
    probable = np.where(known, drafts, np.where(voted, least, -np.inf))
    return np.asarray(probable + config.weight * np.log(votes + config.doubt))


class NezhaWithVotes:
    """A `Scorer` of a bundle's drafts and a kNN's votes. ranker: of the bundle, masks on."""

    def __init__(self, ranker: Ranker, knn: ItemKnn, config: VotesConfig) -> None:
        self.ranker, self.knn, self.config = ranker, knn, config

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        return combined(drafted(self.ranker, histories), self.knn.votes(histories), self.config)


def drafted(ranker: Ranker, histories: Sequence[np.ndarray]) -> np.ndarray:
    """log p of all drafted items, float32 [B, items], -inf for others."""
    pipeline = ranker.pipeline
    scores = np.full((len(histories), len(pipeline.catalog)), -np.inf, np.float32)
    prompts = [pipeline.layout.encode_history(history, pipeline.catalog.sids) for history in histories]
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")  # alike in length: little padding
    for at in range(0, order.size, ranker.batch):
        users = order[at : at + ranker.batch]
        drafts = pipeline.engine.draft([prompts[user] for user in users], masked=ranker.masked)
        nothing = [np.empty(0, np.int32)] * users.size
        found = pipeline.verifier.verify(
            drafts.codes, drafts.scores, nothing, np.full(users.size, drafts.codes.shape[1])
        )
        owner = users.repeat(np.diff(found.offsets))
        real = found.source == DRAFTED
        scores[owner[real], found.rows[real]] = found.scores[real]
    return scores


def tuned_votes(
    ranker: Ranker,
    knn: ItemKnn,
    histories: Sequence[np.ndarray],
    metric: Callable[[np.ndarray], float],
    top_k: int,
    batch: int = 256,
) -> VotesConfig:
    """The best of WEIGHTS, DOUBTS and BELOW. metric: of rows int32 [E, top_k] of `histories`, higher is better."""
    settings = [VotesConfig(*each) for each in product(WEIGHTS, DOUBTS, BELOW)]
    rows = {config: np.empty((len(histories), top_k), np.int32) for config in settings}
    for at in range(0, len(histories), batch):
        some = histories[at : at + batch]
        drafts, votes = drafted(ranker, some), knn.votes(some)
        for config in settings:
            rows[config][at : at + batch] = best_rows(combined(drafts, votes, config), top_k)
    return max(settings, key=lambda config: metric(rows[config]))
