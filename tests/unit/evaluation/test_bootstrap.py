import itertools

import numpy as np
import pytest
from scipy import stats

from genrec.evaluation.bootstrap import relative_difference


def test_a_tiny_case_by_enumeration() -> None:
    ours, theirs = np.array([1.0, 0.5, 0.0, 1.0, 0.25]), np.array([0.5, 0.5, 0.25, 1.0, 1.0])
    draws = np.array(list(itertools.product(range(5), repeat=5)))  # every resample, all equally likely
    every = ours[draws].sum(1) / theirs[draws].sum(1) - 1
    found = relative_difference(ours, theirs, resamples=200_000, level=0.9, seed=1)
    assert found is not None
    assert found.relative == pytest.approx(ours.sum() / theirs.sum() - 1)
    # The exact quantiles lie between those a little to either side: steps of a discrete distribution.
    for bound, at in ((found.low, 0.05), (found.high, 0.95)):
        low, high = np.quantile(every, [at - 0.003, at + 0.003])
        assert low - 1e-9 <= bound <= high + 1e-9


def test_the_interval_is_that_of_scipy(rng: np.random.Generator) -> None:
    theirs = rng.choice([0, 0.3, 0.6, 1], 800, p=[0.7, 0.1, 0.1, 0.1])
    ours = np.where(rng.random(800) < 0.8, theirs, rng.choice([0, 0.3, 0.6, 1], 800))
    found = relative_difference(ours, theirs)
    expected = stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis: a.mean(axis) / b.mean(axis) - 1,
        paired=True,
        n_resamples=10_000,
        method="percentile",
        random_state=np.random.default_rng(5),
        batch=500,
    ).confidence_interval
    assert found is not None
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.04 * width)
    assert found.high == pytest.approx(expected.high, abs=0.04 * width)


def test_identical_models_differ_by_exactly_nothing(rng: np.random.Generator) -> None:
    values = rng.random(500)
    found = relative_difference(values, values.copy())
    assert found is not None
    assert (found.relative, found.low, found.high) == (0, 0, 0)


def test_the_seed_decides(rng: np.random.Generator) -> None:
    ours, theirs = rng.random(300), rng.random(300)
    once, again, other = (relative_difference(ours, theirs, seed=seed) for seed in (1, 1, 2))
    assert once == again != other


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    truth, covered = 0.30 / 0.25 - 1, 0
    for trial in range(200):
        ease, other = rng.random((2, 600))  # both models share how easy a user is
        ours, theirs = ease < 0.30, (ease + other) / 2 < np.sqrt(1 / 8)
        found = relative_difference(ours.astype(float), theirs.astype(float), resamples=500, seed=trial)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 180 <= covered <= 199  # 190 expected; 180 has probability 0.003


def test_many_users_with_many_distinct_values_stay_small() -> None:
    rng = np.random.default_rng(0)
    found = relative_difference(rng.random(25_000), rng.random(25_000), resamples=200)
    assert found is not None and found.low < found.relative < found.high


def test_without_a_hit_of_the_baseline_there_is_no_difference() -> None:
    assert relative_difference(np.ones(5), np.zeros(5)) is None
    assert relative_difference(np.ones(5), np.array([1.0, 0, 0, 0, 0])) is None  # resamples without the one hit


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_values_that_do_not_pair_are_refused(shapes: tuple) -> None:
    with pytest.raises(ValueError, match="equally long"):
        relative_difference(np.zeros(shapes[0]), np.zeros(shapes[1]))
