"""Drift against sums in plain Python, and its limits on a shop whose new items are like the old ones, or are not."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.catalog import Catalog, CatalogVersion, SemanticIdSpace
from genrec.live.drift import ERROR_LIMIT, PSI_LIMIT, added_codes, first_levels, is_added, stability, trained_levels
from genrec.live.fold import Fold
from tests.unit.live.test_fold import SPACE, Commit, Item, applied, base_of, bases, changes_of, commits

SPACES = [(3,), (2, 3), (3, 2, 2), (4, 1, 3, 2), (5, 2**31)]


def index(one: list[int], other: list[int]) -> float:
    """Population stability index; both sides count ten items more, spread as both together are."""
    total = 0.0
    for here, there in zip(one, other, strict=True):
        if here + there:
            prior = 10 * (here + there) / (sum(one) + sum(other))
            p, q = (here + prior) / (sum(one) + 10), (there + prior) / (sum(other) + 10)
            total += (p - q) * log(p / q)
    return total


def by_levels(space: SemanticIdSpace, distinct: list[int], one: list[int], other: list[int]) -> list[float]:
    """The index of level 0, and for each of its codes what level 1 brings besides."""
    size = space.levels[0]

    def first(counts: list[int]) -> list[int]:
        return [
            sum(n for code, n in zip(distinct, counts, strict=True) if code % size == value) for value in range(size)
        ]

    level_0 = index(first(one), first(other))
    return [level_0, index(one, other) - level_0][: space.depth]


@given(st.sampled_from(SPACES), st.data())
@settings(max_examples=60)
def test_stability_is_the_sum_over_codes_less_what_chance_makes(levels: tuple[int, ...], data: st.DataObject) -> None:
    space = SemanticIdSpace(levels)
    codes = st.lists(st.integers(0, space.size - 1), min_size=1, max_size=40)
    trained, added = data.draw(codes), data.draw(codes)
    size = levels[0] * (levels[1] if len(levels) > 1 else 1)
    distinct = sorted({code % size for code in trained + added})
    old, new = ([sum(code % size == one for code in part) for one in distinct] for part in (trained, added))
    both = [a + b for a, b in zip(old, new, strict=True)]
    draws = np.random.default_rng(0)
    chance = [0.0] * min(2, space.depth)
    for _ in range(10):
        part = draws.multivariate_hypergeometric(both, len(added), method="marginals").tolist()
        found = by_levels(space, distinct, part, [a - b for a, b in zip(both, part, strict=True)])
        chance = [max(pair) for pair in zip(chance, found, strict=True)]
    expected = [max(0.0, a - b) for a, b in zip(by_levels(space, distinct, new, old), chance, strict=True)]
    catalog = Catalog.build(
        [f"i{n}" for n in range(len(trained))], space.decode(np.array(trained)), np.zeros(len(trained))
    )
    found = stability(space, trained_levels(catalog, space), first_levels(space, np.array(added)))
    assert found == pytest.approx(expected, abs=1e-9)


@given(bases, st.lists(commits, max_size=5), bases, st.none() | st.integers(0, 4))
def test_what_is_added_is_unknown_or_elsewhere(
    first: dict[str, Item], history: list[Commit], old: dict, merged_at: int | None
) -> None:
    old = old or {"x": (0, 0, True)}
    trained = Catalog.build(list(old), SPACE.decode(np.array([item[0] for item in old.values()])), np.zeros(len(old)))
    base, state = base_of(first), first
    fold = Fold(CatalogVersion(0, base), base.live)
    for number, commit in enumerate(history):
        if number == merged_at:  # one layer more
            fold = Fold(CatalogVersion(1, base, fold.delta(20)), fold.live)
        try:
            state = applied(state, commit)
        except KeyError:
            continue
        fold.apply(changes_of(commit))
    expected = [code for name, (code, _, live, *_) in state.items() if live and old.get(name, (-1,))[0] != code]
    found = added_codes(CatalogVersion(2, base, *fold.below.deltas, fold.delta(20)), trained)
    assert sorted(found.tolist()) == sorted(expected)
    ids = np.array([name.encode() for name in [*state, "never"]], np.bytes_)
    codes = np.array([item[0] for item in state.values()] + [0])
    there = [old.get(name, (-1,))[0] != code for name, code in zip([*state, "never"], codes.tolist(), strict=True)]
    assert is_added(trained, SPACE, ids, codes).tolist() == there


@pytest.mark.parametrize(("items", "codes"), [(2000, 32), (5000, 128), (20_000, 128)])
def test_the_limits_tell_drift_from_none(items: int, codes: int) -> None:
    """New items as the old ones; moved ones; and some of a kind that was not there. docs/catalogue.md has the figures.

    Codebooks of few items a code describe those items much better than any others, so this is where limits are wrong
    first.
    """
    from genrec_builders.data.demo_shop import make_demo_shop
    from genrec_builders.semantic_ids import fit_residual_kmeans, measure_fit

    embeddings = make_demo_shop(n_items=items, n_users=50, seed=0).items.embeddings
    assert embeddings is not None
    order = np.random.default_rng(1).permutation(items)
    old, new = embeddings[order[items // 10 :]], embeddings[order[: items // 10]]
    quantizer = fit_residual_kmeans(old, (codes,) * 3)
    fit, space = measure_fit(quantizer, old), SemanticIdSpace((codes,) * 3)
    assert fit is not None
    trained = first_levels(space, space.encode(quantizer.encode(old)))

    def drift(added: np.ndarray) -> tuple[float, float]:
        sids = quantizer.encode(added)
        ratio = quantizer.squared_errors(added, sids).mean() / fit.error
        return max(stability(space, trained, first_levels(space, space.encode(sids)))), ratio

    index, ratio = drift(new)
    assert index < 0.1 and 0.85 < ratio < 1.15
    half = new.copy()
    half[::2] += 0.1
    assert drift(half)[1] > ERROR_LIMIT
    rng, strange = np.random.default_rng(2), new.copy()
    strange[: len(new) * 3 // 10] = rng.normal(size=64) / 8 + rng.normal(size=(len(new) * 3 // 10, 64)) / 20
    index, ratio = drift(strange)
    assert index > PSI_LIMIT and ratio > ERROR_LIMIT
    near = embeddings[np.square(embeddings - new[0]).sum(1).argsort()[: len(new)]]  # one department alone
    index, ratio = drift(near)
    assert index > PSI_LIMIT and ratio < ERROR_LIMIT
