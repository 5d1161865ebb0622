"""Learning item vectors: what follows what is found again, from the training part alone, and the best epoch is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from genrec.evaluation.scored import rank_scored
from genrec.item_vectors import ItemVectors
from genrec_builders.item_vectors import VectorTraining, _Vectors, learn_vectors
from tests.histories import sequences_of

ITEMS = 40
QUICK = VectorTraining(size=16, dropout=0.1, learning_rate=2e-2, batch_size=64, epochs=12)


def nothing_said(done: int, total: int, note: str) -> None:
    pass


def ever_better() -> Callable[[ItemVectors], float]:
    """A validation metric that keeps the last epoch."""
    epochs = count()
    return lambda _: float(next(epochs))


def rings(rng: np.random.Generator, users: int) -> list[list[int]]:
    """Users who take items one after the other, each the last one's number and 7 more, from anywhere on."""
    return [
        [(start + 7 * step) % ITEMS for step in range(length)]
        for start, length in zip(rng.integers(0, ITEMS, users), rng.integers(2, 6, users), strict=True)
    ]


def found_next(vectors: ItemVectors, histories: list[list[int]]) -> list[int]:
    """The item of the highest affinity for each history."""
    ((rows, _),) = rank_scored(vectors.affinities, [np.array(each, np.int64) for each in histories])
    return rows[:, 0].tolist()


@pytest.mark.parametrize("candidates", [10, 1000])
def test_what_follows_is_learned_with_a_sample_and_with_the_whole_catalogue(candidates: int) -> None:
    rng = np.random.default_rng(0)
    config = replace(QUICK, candidates=candidates)
    vectors = learn_vectors(sequences_of(rings(rng, 400)), ITEMS, 5, ever_better(), nothing_said, config)
    assert not list(vectors.problems()) and vectors.before.shape == vectors.after.shape == (ITEMS, 16)
    histories = rings(rng, 50)
    expected = [(history[-1] + 7) % ITEMS for history in histories]
    assert np.mean(np.equal(found_next(vectors, histories), expected)) > 0.9  # one of 40 by chance


def test_the_best_epoch_is_kept_and_what_gets_worse_ends() -> None:
    seen: list[ItemVectors] = []
    metric = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.2, 0.9])

    def validate(vectors: ItemVectors) -> float:
        seen.append(vectors)
        return next(metric)

    train = sequences_of(rings(np.random.default_rng(0), 50))
    kept = learn_vectors(train, ITEMS, 5, validate, nothing_said, replace(QUICK, patience=3))
    assert len(seen) == 5  # the first 0.3, and three epochs that are no better
    for name in ("before", "after", "bias", "places"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(seen[1], name))
    assert (seen[1].after != seen[4].after).any()  # later epochs do not write into earlier ones


def test_the_same_seed_learns_the_same_and_another_does_not() -> None:
    train = sequences_of(rings(np.random.default_rng(0), 50))
    config = replace(QUICK, epochs=2)
    first, again, other = (
        learn_vectors(train, ITEMS, 5, lambda _: 0.0, nothing_said, replace(config, seed=seed)) for seed in (0, 0, 1)
    )
    # float32: a sum may be cut up among threads in another way.
    np.testing.assert_allclose(first.after, again.after, atol=1e-4)
    assert np.abs(first.after - other.after).max() > 0.01


def test_large_data_takes_larger_batches() -> None:
    train, sizes = sequences_of(rings(np.random.default_rng(0), 300)), []
    with pytest.MonkeyPatch.context() as patch:
        loss = _Vectors.loss
        patch.setattr(_Vectors, "loss", lambda self, *of: (sizes.append(len(of[1])), loss(self, *of))[1])
        learn_vectors(train, ITEMS, 5, lambda _: 0.0, nothing_said, replace(QUICK, epochs=1, most_batches=3))
    targets = train.rows.size - len(train.users)
    assert len(sizes) == 3 and sum(sizes) == targets and max(sizes) - min(sizes) <= 1


def test_each_target_has_what_the_same_user_took_before_it() -> None:
    users, seen = [[1, 2, 3, 4, 5], [6], [], [7, 8], [9, 9]], []
    with pytest.MonkeyPatch.context() as patch:
        loss = _Vectors.loss
        patch.setattr(_Vectors, "loss", lambda self, *of: (seen.append(of), loss(self, *of))[1])
        learn_vectors(sequences_of(users), ITEMS, 3, lambda _: 0.0, nothing_said, replace(QUICK, epochs=1))
    told = sorted(
        (target, [row for row in history if row < ITEMS])
        for histories, targets in seen
        for history, target in zip(histories.tolist(), targets.tolist(), strict=True)
    )
    assert told == [(2, [1]), (3, [2, 1]), (4, [3, 2, 1]), (5, [4, 3, 2]), (8, [7]), (9, [9])]


@pytest.mark.parametrize("candidates", [7, ITEMS, 1000])
def test_the_loss_is_that_of_what_is_served(candidates: int) -> None:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, ITEMS, rng.integers(1, 6)) for _ in range(20)]
    targets = rng.integers(0, ITEMS, 20)
    model = _Vectors(ITEMS, 5, replace(QUICK, candidates=candidates)).eval()
    torch.nn.init.normal_(model.bias.weight)
    affinities = model.vectors().affinities(histories).astype(float)
    padded = np.array([np.pad(each[::-1], (0, 5 - each.size), constant_values=ITEMS) for each in histories])

    torch.manual_seed(3)
    drawn = torch.randperm(ITEMS)[:candidates].tolist()
    torch.manual_seed(3)
    loss = model.loss(torch.from_numpy(padded), torch.from_numpy(targets)).item()

    expected = []
    for row, target in zip(affinities, targets.tolist(), strict=True):
        others = [math.exp(row[other]) for other in drawn if other != target]
        expected.append(math.log(math.exp(row[target]) + sum(others) * ITEMS / len(drawn)) - row[target])
    # float32 sums of 16 products and 40 exponentials.
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_little_data_is_learned_with_the_defaults_and_long_histories_are_served() -> None:
    rng = np.random.default_rng(0)
    vectors = learn_vectors(sequences_of(rings(rng, 300)), ITEMS, 600, ever_better(), nothing_said)
    assert not list(vectors.problems())
    histories = rings(rng, 50)
    assert np.mean(np.equal(found_next(vectors, histories), [(each[-1] + 7) % ITEMS for each in histories])) > 0.5


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="no user has two items"):
        learn_vectors(sequences_of([[1], [], [2]]), ITEMS, 5, lambda _: 0.0, nothing_said)
