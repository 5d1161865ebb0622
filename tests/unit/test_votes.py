"""Votes in the verifier: the ranks that the formula says, whatever the catalogue's version and the rules."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec import votes as voting
from genrec.arrays import save_array
from genrec.catalog import Catalog, CatalogBase, CatalogVersion, Delta, ItemIndex, SemanticIdSpace
from genrec.catalog.columns import Columns
from genrec.catalog.version import GONE, LIVE
from genrec.item_vectors import ItemVectors
from genrec.rules import RuleBook
from genrec.verifier import DRAFTED, FALLBACK, FALLBACK_SCORE, VOTED, Verifier
from genrec.votes import ItemVotes, VotesConfig, Voting

SPACE = SemanticIdSpace((6, 6, 6))


def random_votes(rng: np.random.Generator, items: int, most: int) -> ItemVotes:
    near = [rng.permutation(items)[: rng.integers(0, most + 1)] for _ in range(items)]
    config = VotesConfig(
        decay=rng.choice([0.5, 1.0]),
        weight=rng.choice([0.0, 0.7, 4.0]),
        doubt=rng.choice([0.01, 1.0]),
        affinity_weight=rng.choice([0.0, 0.3, 2.0]),
    )
    return ItemVotes(
        config=config,
        vectors=random_vectors(rng, items) if config.affinity_weight else None,
        offsets=np.cumsum([0, *map(len, near)]),
        neighbours=np.concatenate(near).astype(np.int32),
        similarity=(1 - rng.random(sum(map(len, near)))).astype(np.float32),
    )


def random_vectors(rng: np.random.Generator, items: int) -> ItemVectors:
    before, after = rng.normal(size=(2, items, 3)).astype(np.float32)
    places = (0.1 + rng.random(rng.integers(1, 12))).astype(np.float32)
    return ItemVectors(before, after, rng.normal(size=items).astype(np.float32), places)


def affinity_of(vectors: ItemVectors, history: list[int], item: int) -> float:
    weights = [float(vectors.places[min(age, vectors.places.size - 1)]) for age in range(len(history))]
    parts = zip(weights, reversed(history), strict=True)
    reader = sum(weight * vectors.before[past].astype(float) for weight, past in parts) / math.sqrt(sum(weights))
    return float(reader @ vectors.after[item].astype(float) + vectors.bias[item])


def votes_of(votes: ItemVotes, history: list[int]) -> dict[int, float]:
    found: dict[int, float] = {}
    for age, item in enumerate(reversed(history)):
        for at in range(votes.offsets[item], votes.offsets[item + 1]):
            other = int(votes.neighbours[at])
            found[other] = found.get(other, 0.0) + votes.config.decay**age * float(votes.similarity[at])
    return found


def expected_scores(
    votes: ItemVotes,
    drafted: list[tuple[int, float]],
    history: list[int],
    known: set[int],
    live: set[int],
    most: int = voting.MOST_VOTED,
) -> dict[int, tuple[float, int]]:
    """Score and source of every candidate, one item at a time.

    drafted: items and log p, best first; known: items of the bundle.
    """
    drafts = dict(reversed(drafted))
    history = [item for item in history if item in known]
    cast = votes_of(votes, history)
    seen = {item for item in known if item in cast or votes.offsets[item + 1] > votes.offsets[item]}

    def affinity(item: int) -> float:
        return affinity_of(votes.vectors, history, item) if votes.vectors is not None and history else 0.0

    affinities = [affinity(item) for item, _ in drafted if item in seen]  # one that comes twice counts twice
    if not affinities:  # nothing to set others against but themselves
        others = sorted(cast.keys() - drafts.keys(), key=lambda item: -cast[item])[:most]
        affinities = [affinity(item) for item in others if item in live]
    usual = sum(affinities) / len(affinities) if affinities else 0.0

    def worth(item: int) -> float:
        counted = votes.config.weight * math.log(1 + cast.get(item, 0.0) / votes.config.doubt)
        return counted + votes.config.affinity_weight * (affinity(item) - usual)

    worths = [worth(item) for item, _ in drafted if item in seen]
    mean = sum(worths) / len(worths) if worths else 0.0
    found = {item: (p + (worth(item) if item in seen else mean), DRAFTED) for item, p in drafts.items()}
    least = min((p for _, p in drafted), default=0.0)
    for item in sorted(cast.keys() - drafts.keys(), key=lambda item: -cast[item])[:most]:
        if item in live:
            found[item] = (least + worth(item), VOTED)
    return found


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(1, 150), batch=st.integers(1, 5), width=st.integers(1, 60))
def test_answers_are_those_of_the_formula(seed: int, items: int, batch: int, width: int) -> None:
    most = 20 if seed % 2 else voting.MOST_VOTED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voting, "MOST_VOTED", most)
        check_answers(seed, items, batch, width, most)


def check_answers(seed: int, items: int, batch: int, width: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    available = rng.random(items) < 0.7
    available[rng.integers(items)] = True
    sids = rng.integers(0, SPACE.levels, (items, 3))
    catalog = Catalog.build([str(i) for i in range(items)], sids, rng.integers(0, 5, items), available)
    votes = random_votes(rng, items, 90)
    verifier = Verifier(catalog, ItemIndex.build(SPACE, catalog), Voting(votes, catalog, catalog))
    codes = rng.choice(np.concatenate([SPACE.encode(sids), rng.integers(0, SPACE.size, items)]), (batch, width))
    scores = -np.sort(rng.exponential(size=(batch, width)).astype(np.float32), axis=1)
    scores[rng.random((batch, width)) < rng.random()] = -np.inf
    blocked = [rng.integers(0, items, rng.integers(0, 20)).astype(np.int32) for _ in range(batch)]
    histories = [rng.integers(0, items, rng.integers(0, 9)).astype(np.int32) for _ in range(batch)]
    top_k = rng.integers(1, 40, batch)

    result = verifier.verify(codes, scores, blocked, top_k, histories=histories)

    code_of, live = SPACE.encode(sids), set(np.flatnonzero(available).tolist())
    for b in range(batch):
        part = slice(result.offsets[b], result.offsets[b + 1])
        drafts = [
            (row, score)
            for code, score in zip(codes[b].tolist(), scores[b].tolist(), strict=True)
            for row in live
            if math.isfinite(score) and code_of[row] == code
        ]
        expected = expected_scores(votes, drafts, histories[b].tolist(), set(range(items)), live, most)
        free = {row: one for row, one in expected.items() if row not in set(blocked[b].tolist())}
        best = sorted((score for score, _ in free.values()), reverse=True)[: top_k[b]]
        rows, source = result.rows[part].tolist(), result.source[part].tolist()
        ours = [row for row, where in zip(rows, source, strict=True) if where != FALLBACK]
        # float32: the sum of a log-probability, up to some 20 nats of votes and as many of affinity.
        np.testing.assert_allclose(result.scores[part][: len(ours)], best, rtol=1e-5, atol=2e-5)
        for row, score, where in zip(rows, result.scores[part].tolist(), source, strict=True):
            if where == FALLBACK:
                assert row not in free and score == FALLBACK_SCORE
            else:
                assert where == free[row][1] and score == pytest.approx(free[row][0], rel=1e-5, abs=2e-5)
        assert len(set(rows)) == len(rows) and not set(rows) & set(blocked[b].tolist())
        assert len(rows) == min(top_k[b], len(live - set(blocked[b].tolist())))
        assert result.filled[b] == source.count(FALLBACK)


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(2, 80), width=st.integers(1, 60))
def test_a_live_catalogue_gives_what_a_bundle_of_its_items_would(seed: int, items: int, width: int) -> None:
    """Rows differ, items that are gone do not come back, and what is new is worth what others are on average."""
    rng = np.random.default_rng(seed)
    ids = [f"i{number}" for number in range(items)]
    sids = rng.integers(0, SPACE.levels, (items, 3))
    catalog = Catalog.build(ids, sids, np.arange(items))
    votes = random_votes(rng, items, 20)
    base = CatalogBase.build(
        SPACE, np.array(ids, np.bytes_), SPACE.encode(sids), np.arange(items), np.ones(items, bool)
    )
    gone = rng.permutation(items)[: items // 4].tolist()
    new = [f"n{number}" for number in range(5)]
    touched = np.array([ids[row] for row in gone] + new, np.bytes_)
    new_codes = rng.integers(0, SPACE.size, 5)
    count = len(touched)
    delta = Delta.build(
        CatalogVersion(1, base),
        touched,
        np.array([GONE] * len(gone) + [LIVE] * 5, np.uint8),
        np.concatenate([np.full(len(gone), -1), new_codes]),
        np.zeros(count, np.int64),
        Columns({}, count),
        np.full(count, 2),
        100,
    )
    version = CatalogVersion(2, base, delta)
    verifier = Verifier(version, version, Voting(votes, catalog, version))
    all_codes = dict(zip([*ids, *new], [*SPACE.encode(sids).tolist(), *new_codes.tolist()], strict=True))
    live = [item for item in all_codes if item not in {ids[row] for row in gone}]
    codes = rng.permutation(np.unique(list(all_codes.values())))[None, :width]
    scores = -np.sort(rng.exponential(size=codes.shape).astype(np.float32), axis=1)
    history = rng.choice(live, rng.integers(0, 6)).tolist()

    rows = version.rows_of(np.array([item.encode() for item in history], object))
    result = verifier.verify(codes, scores, [np.empty(0, np.int32)], np.array([200]), histories=[rows])

    number = {item: place for place, item in enumerate([*ids, *new])}
    drafts = [
        (number[item], score)
        for code, score in zip(codes[0].tolist(), scores[0].tolist(), strict=True)
        for item in live
        if all_codes[item] == code
    ]
    known = set(range(items))
    expected = expected_scores(
        votes, drafts, [number[item] for item in history], known, {number[item] for item in live}
    )
    found = [number[item.decode()] for item in version.ids_of(result.rows).tolist()]
    sources = result.source.tolist()
    for item, score, source in zip(found, result.scores.tolist(), sources, strict=True):
        if source != FALLBACK:
            assert score == pytest.approx(expected[item][0], rel=1e-5, abs=2e-5) and source == expected[item][1]
    assert {item for item, source in zip(found, sources, strict=True) if source != FALLBACK} == set(expected)
    assert set(found) == {number[item] for item in live}


def test_rules_hold_for_what_is_voted_for_and_boosts_come_on_top() -> None:
    sids = np.array([[0, 0, n] for n in range(6)])
    columns = Columns.of_values({"price": "number"}, {"price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    catalog = Catalog.build([str(n) for n in range(6)], sids, np.zeros(6), columns=columns)
    votes = ItemVotes(
        VotesConfig(weight=1.0, doubt=1.0),
        np.array([0, 3, 3, 3, 3, 3, 3]),
        np.array([3, 4, 5], np.int32),
        np.array([1.0, 0.9, 0.8], np.float32),
    )
    verifier = Verifier(catalog, ItemIndex.build(SPACE, catalog), Voting(votes, catalog, catalog))
    book = RuleBook(catalog.kinds)
    codes, scores = SPACE.encode(sids[[1, 2]])[None], np.array([[-1.0, -2.0]], np.float32)

    def answer(rules: str) -> tuple[list[int], list[int]]:
        applied = book.applied(catalog, book.read(rules.encode()))
        found = verifier.verify(codes, scores, [np.array([0])], np.array([4]), [applied], [np.array([0])])
        score_of = {1: -1.0, 2: -2.0, 3: -2 + math.log(2), 4: -2 + math.log(1.9), 5: -2 + math.log(1.8)}
        np.testing.assert_allclose(found.scores, [score_of[row] for row in found.rows.tolist()], rtol=1e-6)
        return found.rows.tolist(), found.source.tolist()

    assert answer('{"deny": ["4"]}') == ([1, 3, 5, 2], [DRAFTED, VOTED, VOTED, DRAFTED])
    assert answer('{"where": {"attribute": "price", ">=": 5}}') == ([4, 5], [VOTED, VOTED])
    boost = '{"boost": [{"where": {"attribute": "price", ">=": 6}, "add": 9}]}'
    assert answer(boost) == ([5, 1, 3, 4], [VOTED, DRAFTED, VOTED, VOTED])


@pytest.mark.parametrize("affinity_weight", [0.0, 0.5])
def test_votes_are_saved_and_damage_is_named(tmp_path: Path, affinity_weight: float) -> None:
    rng = np.random.default_rng(0)
    made = random_votes(rng, 20, 5)
    config = made.config.model_copy(update={"affinity_weight": affinity_weight})
    votes = replace(made, config=config, vectors=random_vectors(rng, 20) if affinity_weight else None)
    votes.save(tmp_path)
    loaded = ItemVotes.load(tmp_path, votes.config, 20)
    for name in ("offsets", "neighbours", "similarity"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(votes, name))
    assert not list(loaded.problems()) and (loaded.vectors is None) == (not affinity_weight)
    with pytest.raises(ValueError, match=r"offsets\.npy: has shape \(21,\), expected \(20\)"):
        ItemVotes.load(tmp_path, votes.config, 19)
    for name, value in (("offsets", 10**6), ("neighbours", 20), ("similarity", np.nan)):
        array = getattr(votes, name).copy()
        array[3] = value
        damaged = replace(votes, **{name: array})
        assert [problem.partition(":")[0] for problem in damaged.problems()] == [f"{name}.npy"]
    if votes.vectors is None or loaded.vectors is None:
        return
    for name in ("before", "after", "bias", "places"):
        array = getattr(votes.vectors, name)
        np.testing.assert_array_equal(getattr(loaded.vectors, name), array)
        (problem,) = replace(votes, vectors=replace(votes.vectors, **{name: array * np.inf})).problems()
        assert problem == f"vectors/{name}.npy: has values that are no finite numbers"
    (problem,) = replace(votes, vectors=replace(votes.vectors, places=-votes.vectors.places)).problems()
    assert problem == "vectors/places.npy: has weights that are not above 0"
    far = replace(votes, vectors=replace(votes.vectors, bias=votes.vectors.bias + 6e5))
    assert list(far.problems()) == ["vectors: may add 3e+05 to a score, where at most 2.5e+05 is kept apart"]
    save_array(tmp_path / "vectors" / "after.npy", votes.vectors.after[:, :2])
    with pytest.raises(ValueError, match=r"after\.npy: has shape \(20, 2\), expected \(20, 3\)"):
        ItemVotes.load(tmp_path, votes.config, 20)


def test_only_votes_with_vectors_say_so() -> None:
    assert "affinity_weight" not in VotesConfig(decay=0.5).model_dump()  # which a genrec of before can read
    for weight in (0.0, 0.5):
        config = VotesConfig(affinity_weight=weight)
        assert VotesConfig.model_validate_json(config.model_dump_json()) == config


def test_a_verifier_with_votes_asks_for_histories() -> None:
    catalog = Catalog.build(["a"], np.zeros((1, 3), int), np.zeros(1))
    voting = Voting(random_votes(np.random.default_rng(0), 1, 0), catalog, catalog)
    verifier = Verifier(catalog, ItemIndex.build(SPACE, catalog), voting)
    with pytest.raises(ValueError, match="give the histories"):
        verifier.verify(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32), [np.empty(0, int)], np.array([1]))
