import numpy as np
import pytest

from builders.evaluate import metrics, rank_offline
from genrec.bundle import Bundle
from genrec.engines import open_engine
from genrec.verifier import Verifier


def test_metrics_of_a_case_by_hand() -> None:
    rows = np.array([[4, 2, 9], [1, 5, 6], [7, 8, 3], [-1, -1, -1]])
    targets = np.array([4, 6, 0, 2])
    found = metrics(rows, targets, cutoffs=(1, 3))
    assert found["hit@1"] == 1 / 4
    assert found["hit@3"] == 2 / 4
    assert found["ndcg@1"] == 1 / 4
    assert found["ndcg@3"] == pytest.approx((1 + 1 / np.log2(4)) / 4)  # ranks 1 and 3


def test_ranking_does_not_depend_on_the_batch(bundle: Bundle, rng: np.random.Generator) -> None:
    histories = [rng.integers(0, len(bundle.catalog), rng.integers(1, 30)).astype(np.int32) for _ in range(30)]
    parts = open_engine(bundle), Verifier(bundle.catalog, bundle.index), bundle.catalog, bundle.layout, histories
    alone, together = rank_offline(*parts, batch=1), rank_offline(*parts, batch=16)
    assert (alone.rows == together.rows).mean() > 0.99  # near ties may swap
    assert alone.valid_share == 1.0
    excluded = rank_offline(*parts, exclude_history=True).rows
    assert all(not set(row.tolist()) & set(history.tolist()) for row, history in zip(excluded, histories, strict=True))
