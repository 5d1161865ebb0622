"""Rankings by models that score every item."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genrec.evaluation import bootstrap
from genrec.evaluation.comparison import UserSample, described
from genrec.evaluation.report import write_report
from genrec.evaluation.results import POOLED, Record, Results, this_run
from genrec.evaluation.scored import add_scored, best_rows, rank_scored
from tests.unit.evaluation.test_report import made_up, trained_as

SCORES = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=st.sampled_from([-np.inf, 0, 1, 2.5])
)


@given(SCORES, st.integers(1, 15))
def test_the_best_rows_are_those_of_a_sort(scores: np.ndarray, top_k: int) -> None:
    ranked = best_rows(scores, top_k)
    assert ranked.shape == (len(scores), top_k) and ranked.dtype == np.int32
    for found, user in zip(ranked.tolist(), scores.tolist(), strict=True):
        expected = sorted((row for row, score in enumerate(user) if score > -np.inf), key=lambda row: (-user[row], row))
        assert found == (expected + [-1] * top_k)[:top_k]


class ByHistory:
    """Scores that differ from user to user: items near the last one of the history are high."""

    def __init__(self, items: int) -> None:
        self.items = items

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        last = np.array([history[-1] for history in histories])
        return -np.abs(np.arange(self.items) - last[:, None]).astype(np.float64)


def test_the_history_is_left_out_where_it_is_asked_for_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 30, size).astype(np.int32) for size in rng.integers(1, 9, 23)]
    for batch in (4, 100):
        (allowed, _), (excluded, _) = rank_scored(ByHistory(30), histories, exclusions=(False, True), batch=batch)
        for history, one, other in zip(histories, allowed.tolist(), excluded.tolist(), strict=True):
            ranked = sorted(range(30), key=lambda row: (abs(row - history[-1]), row))
            assert one == ranked[:10]
            assert other == [row for row in ranked if row not in history][:10]


def test_a_model_without_beams_is_compared_at_every_beam_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(bootstrap.relative_difference, resamples=100)  # the intervals are tested in test_bootstrap.py
    monkeypatch.setattr("genrec.evaluation.results.relative_difference", few)
    results = made_up({"nezha": [0, 1]}, widths=(20, 128))
    rng = np.random.default_rng(1)
    count = results.record.data.users
    users = UserSample(
        name="shop",
        item_ids=[f"i{row}" for row in range(400)],
        user_ids=[f"u{user}" for user in range(count)],
        histories=[rng.integers(0, 400, 5).astype(np.int32) for _ in range(count)],
        targets=rng.integers(0, 400, count).astype(np.int32),
        test_users=count,
        seed=0,
    )
    rival = trained_as("item-knn", None, beams=False)
    add_scored(results, this_run("scores", "cpu", 32, 1), rival, ByHistory(400), users)
    found = results.compare()
    assert {(d.beam_width, d.masked, d.history_excluded) for d in found} == {
        (width, masked, excluded) for width in (20, 128) for masked in (True, False) for excluded in (False, True)
    }
    for difference in found:
        ours = results.cells("nezha", (difference.beam_width, difference.masked, difference.history_excluded))
        (theirs,) = results.cells("item-knn", (None, None, difference.history_excluded))
        if difference.pair == POOLED:
            assert difference.ours == pytest.approx(np.mean([cell.metrics[difference.metric] for cell in ours]))
        assert difference.theirs == pytest.approx(theirs.metrics[difference.metric])
    page = write_report(results, tmp_path).read_text()
    assert "against item-knn" in page and "do not share their semantic IDs" not in page
    assert (tmp_path / "quality-history-allowed.svg").exists()
    # The other way round, a rival is the first.
    alone = Results(Record(data=described(users, np.ones(400, bool))), {})
    add_scored(alone, this_run("scores", "cpu", 32, 1), rival, ByHistory(400), users)
    add_scored(alone, this_run("scores", "cpu", 32, 1), trained_as("other", 0, beams=False), ByHistory(400), users)
    assert {(d.beam_width, d.masked, d.history_excluded) for d in alone.compare()} == {
        (None, None, False),
        (None, None, True),
    }
    write_report(alone, tmp_path / "alone")  # no beam width at all
    assert all(d.relative == 0 for d in alone.compare() if d.relative is not None)
