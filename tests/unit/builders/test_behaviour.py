"""Embeddings of who bought what: of the training part alone, near for what is taken together, the same every time."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_builders.behaviour import SMOOTHING, WIDTH, WINDOW, _mutual_information, _neighbours, behaviour_embeddings
from tests.histories import sequences_of

HISTORIES = st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=6)


def information(histories: list[list[int]], items: int) -> np.ndarray:
    """The formula, pair by pair."""
    counts: dict[tuple[int, int], float] = defaultdict(float)
    for history in histories:
        for i, one in enumerate(history):
            for j, other in enumerate(history):
                if one != other and 0 < abs(i - j) <= WINDOW:
                    counts[one, other] += 1 / abs(i - j)
    sums = [sum(value for (a, _), value in counts.items() if a == item) for item in range(items)]
    smooth = sum(each**SMOOTHING for each in sums)
    found = np.zeros((items, items))
    for (a, b), value in counts.items():
        total = sum(sums)
        found[a, b] = max(0.0, math.log((value / total) / (sums[a] / total * sums[b] ** SMOOTHING / smooth)))
    return found


@given(HISTORIES)
def test_the_information_is_that_of_the_formula(histories: list[list[int]]) -> None:
    found = _mutual_information(_neighbours(sequences_of(histories), 7)).toarray()
    np.testing.assert_allclose(found, information(histories, 7), atol=1e-12)


@settings(max_examples=20)  # of two SVDs each
@given(HISTORIES)
def test_rows_have_length_one_or_zero(histories: list[list[int]]) -> None:
    found = behaviour_embeddings(sequences_of(histories), 7)
    assert found.shape == (7, 7) and found.dtype == np.float32
    told = information(histories, 7).any(axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), told, atol=1e-6)
    np.testing.assert_array_equal(found, behaviour_embeddings(sequences_of(histories), 7))


def test_the_products_are_those_of_the_best_rank(rng: np.random.Generator) -> None:
    """Cosines of U S, of a matrix with more columns than are kept."""
    train = sequences_of([rng.integers(0, 20, 8).tolist() + rng.integers(20, 60, 8).tolist() for _ in range(60)])
    left, strengths, _ = np.linalg.svd(_mutual_information(_neighbours(train, 60)).toarray())
    best = (left * strengths)[:, :WIDTH]
    best /= np.linalg.norm(best, axis=1, keepdims=True)
    found = behaviour_embeddings(train, 60)
    assert found.shape == (60, WIDTH)
    assert np.abs(found @ found.T - best @ best.T).mean() < 0.02  # the SVD is a randomised one


def test_what_is_taken_together_lies_together(rng: np.random.Generator) -> None:
    groups = [rng.permutation(np.arange(10) + 10 * (user % 4))[:6].tolist() for user in range(200)]
    found = behaviour_embeddings(sequences_of(groups), 41)
    near = found @ found.T
    same = np.arange(40)[:, None] // 10 == np.arange(40) // 10
    assert near[:40, :40][same].min() > near[:40, :40][~same].max() + 0.5
    assert not found[40].any()  # nobody took it


@pytest.mark.parametrize("histories", [[], [[]], [[3]], [[3, 3, 3]], [[1], [2]]])
def test_without_two_items_side_by_side_nothing_is_known(histories: list[list[int]]) -> None:
    assert not behaviour_embeddings(sequences_of(histories), 5).any()
