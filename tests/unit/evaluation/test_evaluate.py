import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec.bundle import Bundle
from genrec.cli.main import app
from genrec.evaluation.metrics import mean_metrics, metrics, target_ranks, user_values
from genrec.evaluation.ranker import Ranker, rank_popular, require_catalog
from genrec.pipeline import Pipeline
from genrec.verifier import Verifier
from genrec_builders.data import Dataset, sample, sample_users, split_leave_one_out, write_dataset
from genrec_builders.data.demo_shop import make_demo_shop
from tests.near import assert_same_ranking


def test_metrics_of_a_case_by_hand() -> None:
    rows = np.array([[4, 2, 9], [1, 5, 6], [7, 8, 3], [-1, -1, -1]])
    targets = np.array([4, 6, 0, 2])
    found = metrics(rows, targets, cutoffs=(1, 3))
    assert found["hit@1"] == 1 / 4
    assert found["hit@3"] == 2 / 4
    assert found["ndcg@1"] == 1 / 4
    assert found["ndcg@3"] == pytest.approx((1 + 1 / np.log2(4)) / 4)  # ranks 1 and 3


def test_every_place_of_the_target_counts_as_it_should() -> None:
    ranks = np.array([1, 5, 10, 11, 0], np.uint16)
    assert user_values(ranks, "hit@5").tolist() == [1, 1, 0, 0, 0]
    assert user_values(ranks, "hit@10").tolist() == [1, 1, 1, 0, 0]
    assert user_values(ranks, "ndcg@10") == pytest.approx([1, 1 / np.log2(6), 1 / np.log2(11), 0, 0])
    assert mean_metrics(ranks) == pytest.approx(
        {
            "hit@5": 0.4,
            "ndcg@5": (1 + 0.38685280723454163) / 5,
            "hit@10": 0.6,
            "ndcg@10": (1 + 0.38685280723454163 + 0.2890648263178879) / 5,
        }
    )


def test_ranks_of_targets() -> None:
    rows = np.array([[3, 8, 5], [3, 8, 5], [8, 8, 8], [5, -1, -1], [1, 2, 4]])
    ranks = target_ranks(rows, np.array([3, 5, 8, 8, 9]))
    assert ranks.dtype == np.uint16
    assert ranks.tolist() == [1, 3, 1, 0, 0]  # an item that occurs twice counts once, where it is first
    assert target_ranks(np.arange(50)[None], np.array([49])).tolist() == [50]


def test_a_cutoff_beyond_the_list_counts_the_whole_list() -> None:
    rows, targets = np.array([[4, 2], [1, 5]]), np.array([2, 9])
    assert metrics(rows, targets, cutoffs=(2,)) == pytest.approx({"hit@2": 0.5, "ndcg@2": 0.5 / np.log2(3)})
    assert metrics(rows, targets, cutoffs=(100,)) == pytest.approx({"hit@100": 0.5, "ndcg@100": 0.5 / np.log2(3)})


@pytest.fixture
def histories(bundle: Bundle, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, len(bundle.catalog), rng.integers(1, 30)).astype(np.int32) for _ in range(30)]


def test_ranking_does_not_depend_on_the_batch(bundle: Bundle, histories: list[np.ndarray]) -> None:
    pipeline = Pipeline.open(bundle, threads=1)
    alone, together = Ranker(pipeline, batch=1).rank(histories), Ranker(pipeline).rank(histories)
    assert alone.valid_share == 1.0
    ids = np.array([item_id.decode() for item_id in bundle.catalog.item_ids.tolist()])
    for history, ours, theirs in zip(histories, ids[alone.rows], ids[together.rows], strict=True):
        found = pipeline.recommend([ids[history].tolist()], top_k=30, allow_history=True)[0]
        score_of = dict(zip(found.item_ids, found.scores.tolist(), strict=True))
        our_scores, their_scores = ([score_of[item] for item in items] for items in (ours, theirs))
        assert_same_ranking(ours.tolist(), our_scores, theirs.tolist(), their_scores)
    excluded = Ranker(pipeline).rank(histories, exclude_history=True).rows
    assert all(not set(row.tolist()) & set(history.tolist()) for row, history in zip(excluded, histories, strict=True))


def test_both_histories_from_one_drafting_are_those_of_two(bundle: Bundle, histories: list[np.ndarray]) -> None:
    ranker = Ranker(Pipeline.open(bundle), masked=False)
    together = ranker.rank_both(histories, top_k=20)
    for excluded, ranking in zip((False, True), together, strict=True):
        alone = ranker.rank(histories, top_k=20, exclude_history=excluded)
        np.testing.assert_array_equal(ranking.rows, alone.rows)
        assert ranking.valid_share == alone.valid_share < 1.0
        assert 0 < ranking.drafting_ms < ranking.ms_per_user
    # Ten wanted are the first ten of twenty: one ranking serves every cutoff.
    np.testing.assert_array_equal(together[1].rows[:, :10], ranker.rank(histories, exclude_history=True).rows)


def test_the_popular_ranking_leaves_out_the_history(bundle: Bundle) -> None:
    popular = bundle.catalog.popular_rows
    histories, verifier = [popular[:3], popular[5:6]], Verifier(bundle.catalog, bundle.index)
    plain = rank_popular(verifier, histories, top_k=10, exclude_history=False)
    np.testing.assert_array_equal(plain, np.tile(popular[:10], (2, 1)))
    excluded = rank_popular(verifier, histories, top_k=10, exclude_history=True, batch=1)
    np.testing.assert_array_equal(excluded, [popular[3:13], np.delete(popular[:11], 5)])


def test_users_are_drawn_by_seed(dataset: Dataset) -> None:
    test = split_leave_one_out(dataset.interactions).test
    drawn = sample(test, 20, 3)
    assert drawn.tolist() == sorted(set(drawn.tolist())) == sample(test, 20, 3).tolist() != sample(test, 20, 4).tolist()
    np.testing.assert_array_equal(sample_users(test, 20, 3)[1], test.targets[drawn])
    assert len(sample(test, None)) == len(sample(test, 10**6)) == len(test)


def test_a_bundle_of_other_items_is_refused(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]]
) -> None:
    require_catalog(bundle, dataset.items.item_ids)
    other = make_demo_shop(n_items=300, n_users=50, seed=1)
    with pytest.raises(ValueError, match=r"catalogue of 400 items is not the 300 items of the data"):
        require_catalog(bundle, other.items.item_ids)
    write_dataset(other, tmp_path / "other")
    status, said = run_genrec("evaluate", bundle.path, tmp_path / "other")
    assert status == 1 and "catalogue of 400 items is not the 300 items of the data" in said


def test_a_dead_server_is_named_before_the_work(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]]
) -> None:
    with socket.socket() as bound:  # nothing listens, and nobody else takes it
        bound.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{bound.getsockname()[1]}"
        status, said = run_genrec("evaluate", bundle.path, tmp_path / "no-data", "--server", url)
    assert status == 1 and said.count("\n") == 1
    assert said.startswith(f"error: --server {url}: UNAVAILABLE") and "genrec serve" in said


@pytest.mark.parametrize("options", [[], ["--no-masked", "--exclude-history"], ["--engine", "torch"]])
def test_the_evaluate_command_prints_one_cell(bundle: Bundle, dataset: Dataset, tmp_path, options: list[str]) -> None:
    write_dataset(dataset, tmp_path / "shop")
    done = CliRunner().invoke(app, ["evaluate", str(bundle.path), str(tmp_path / "shop"), "--users", "20", *options])
    assert done.exit_code == 0, done.output
    assert "20 users" in done.output and "hit@10" in done.output and "offline" in done.output
