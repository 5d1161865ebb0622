"""In process and through the server: the same request, the same answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec.bundle import Bundle
from genrec.pipeline import Pipeline
from genrec_client import Recommender, RecommendRequest

USERS = 500
TOLERANCE = 1e-4  # batches of other sizes sum in another order


def test_500_users_get_the_same_answer(bundle: Bundle, shop: Any, recommender: Recommender) -> None:
    rng = np.random.default_rng(3)
    ids = np.array(shop.ids)
    # The shop's users, then users that nobody is, with ids that no item has.
    histories = [*shop.users, *(rng.choice([*ids, "gone"], rng.integers(0, 40)).tolist() for _ in range(USERS))][:USERS]
    pipeline = Pipeline.open(bundle)
    requests = [RecommendRequest(history, top_k=10) for history in histories]
    served = recommender.recommend_many(requests, concurrency=16, return_exceptions=False)
    same = 0
    for start in range(0, USERS, 16):
        here = pipeline.recommend(histories[start : start + 16], top_k=10)
        for ours, theirs in zip(here, served[start : start + 16], strict=True):
            scores = np.array([item.score for item in theirs.items], np.float32)
            np.testing.assert_allclose(ours.scores, scores, rtol=0, atol=TOLERANCE)
            assert (ours.drafted, ours.valid, ours.unknown, ours.filled) == (
                theirs.drafted,
                theirs.valid,
                theirs.unknown_history,
                theirs.filled,
            )
            same += ours.item_ids == list(theirs.item_ids)
            # Where an item differs, another one of the same score within the tolerance has its place.
            for place in [at for at, item in enumerate(ours.item_ids) if item != theirs.item_ids[at]]:
                gaps = np.abs(np.delete(ours.scores, place) - ours.scores[place])
                assert place == len(scores) - 1 or gaps.min() <= 2 * TOLERANCE
    assert same >= 0.99 * USERS
