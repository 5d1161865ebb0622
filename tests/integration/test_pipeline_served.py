"""In process and through the server: the same request, the same answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec.bundle import Bundle
from genrec.pipeline import Pipeline
from genrec_client import Recommender, RecommendRequest
from tests.near import assert_same_ranking

USERS = 500


def test_500_users_get_the_same_answer(bundle: Bundle, shop: Any, recommender: Recommender) -> None:
    rng = np.random.default_rng(3)
    ids = np.array(shop.ids)
    # The shop's users, then users that nobody is, with ids that no item has.
    histories = [*shop.users, *(rng.choice([*ids, "gone"], rng.integers(0, 40)).tolist() for _ in range(USERS))][:USERS]
    pipeline = Pipeline.open(bundle)
    requests = [RecommendRequest(history, top_k=10) for history in histories]
    served = recommender.recommend_many(requests, concurrency=16, return_exceptions=False)
    for start in range(0, USERS, 16):
        here = pipeline.recommend(histories[start : start + 16], top_k=10)
        for ours, theirs in zip(here, served[start : start + 16], strict=True):
            counts = theirs.drafted, theirs.valid, theirs.unknown_history, theirs.filled
            assert (ours.drafted, ours.valid, ours.unknown, ours.filled) == counts
            scores = [item.score for item in theirs.items]
            assert_same_ranking(ours.item_ids, ours.scores, theirs.item_ids, scores)
