"""`genrec votes`: what it counts, what it may learn from, and the bundle that it writes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.bundle import MANIFEST, SIGNATURE, VOTES, Bundle, BundleError, seal_bundle
from genrec.evaluation.ranker import Ranker
from genrec.golden import check_items
from genrec.pipeline import Pipeline
from genrec.verifier import VOTED
from genrec.votes import VECTORS
from genrec_builders import votes as building
from genrec_builders.build import export_bundle
from genrec_builders.data import Dataset, split_interactions, write_dataset
from genrec_builders.votes import add_votes, nearest_items
from tests.conftest import silent
from tests.histories import sequences_of, swapped

ITEMS = 12


@given(
    users=st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=9), max_size=30),
    shrinkage=st.sampled_from([0.0, 0.5, 50.0]),
    neighbours=st.integers(1, ITEMS),
    pairs=st.integers(1, 60),
)
def test_neighbours_are_what_the_formula_says(
    users: list[list[int]], shrinkage: float, neighbours: int, pairs: int
) -> None:
    bought = {item: {user for user, items in enumerate(users) if item in items} for item in range(ITEMS)}

    def similarity(a: int, b: int) -> float:
        both = len(bought[a] & bought[b]) if a != b else 0
        return both / (math.sqrt(len(bought[a]) * len(bought[b])) + shrinkage) if both else 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_PAIRS", pairs)  # however the counting is cut up
        found = list(nearest_items(sequences_of(users), ITEMS, [7.0, shrinkage], neighbours))
    offsets, near, similar = found[1]
    assert offsets.dtype == np.int64 and near.dtype == np.int32 and similar.dtype == np.float32
    for item in range(ITEMS):
        others = [other for other in range(ITEMS) if similarity(item, other)]
        others.sort(key=lambda other, item=item: (-similarity(item, other), other))
        own = slice(offsets[item], offsets[item + 1])
        assert near[own].tolist() == others[:neighbours]
        np.testing.assert_allclose(similar[own], [similarity(item, o) for o in others[:neighbours]], rtol=1e-6)


def test_only_the_latest_items_of_a_user_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "LONGEST", 2)
    offsets, near, _ = next(nearest_items(sequences_of([[0, 1, 2], [3, 3, 4]]), 5, [0.0]))
    assert [near[offsets[item] : offsets[item + 1]].tolist() for item in range(5)] == [[], [2], [1], [4], [3]]


def test_held_out_items_are_not_counted(
    bundle: Bundle, voting_bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    # The test items alone: those of validation choose the settings.
    learned_of = []
    with pytest.MonkeyPatch.context() as patch:
        learn = building.learn_vectors
        patch.setattr(
            building, "learn_vectors", lambda train, *rest: (learned_of.append(train), learn(train, *rest))[1]
        )
        add_votes(bundle.path, tmp_path / "other", swapped(dataset, 1), silent, 100, 50)
    ours, theirs = voting_bundle.votes, Bundle(tmp_path / "other").votes
    assert ours is not None and theirs is not None and ours.config == theirs.config
    chosen = voting_bundle.manifest.training["votes"]
    train = split_interactions(dataset.interactions).train
    (counted,) = nearest_items(train, len(voting_bundle.catalog), [chosen["shrinkage"]], chosen["neighbours"])
    for name, of_the_training_part in zip(("offsets", "neighbours", "similarity"), counted, strict=True):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(getattr(ours, name), of_the_training_part)
    (of,) = learned_of
    np.testing.assert_array_equal(of.rows, train.rows)
    np.testing.assert_array_equal(of.offsets, train.offsets)
    assert ours.config.affinity_weight and ours.vectors is not None and theirs.vectors is not None
    # float32: a sum may be cut up among threads in another way.
    np.testing.assert_allclose(ours.vectors.after, theirs.vectors.after, atol=1e-3)


def test_the_command_writes_a_bundle_that_recommends_better(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]]
) -> None:
    write_dataset(dataset, tmp_path / "shop")
    status, said = run_genrec(
        "votes", bundle.path, tmp_path / "shop", tmp_path / "out", "--validation-users", 100, "--evaluate-users", 200
    )
    assert status == 0, said
    made = Bundle(tmp_path / "out")
    made.check()
    assert made.manifest.bundle_version == f"{bundle.manifest.bundle_version}-votes"
    assert made.manifest.summary.endswith("with votes")
    record = made.manifest.training["votes"]
    assert record["validation_ndcg"]["with"] > record["validation_ndcg"]["without"]
    quality = made.manifest.training["quality"]
    assert quality["users"] == 200 and quality["history_allowed"]["ndcg@10"] > 0
    users = [[bundle.catalog.item_ids[row].decode() for row in (3, 17, 29)]]
    (with_votes,), (without,) = (Pipeline.open(each).recommend(users, 20) for each in (made, bundle))
    assert VOTED in with_votes.source and VOTED not in without.source

    # A copy for another beam width keeps them, and so does one with votes made anew.
    export_bundle(tmp_path / "out", tmp_path / "narrow", 60)
    narrow = Bundle(tmp_path / "narrow")
    assert narrow.votes is not None and narrow.manifest.votes == made.manifest.votes
    Pipeline.open(narrow).recommend(users, 20)
    again = add_votes(tmp_path / "out", tmp_path / "again", dataset, silent, 100, 20)
    assert again.votes == made.manifest.votes and again.bundle_version == made.manifest.bundle_version

    # Without vectors there are none, though the bundle had some.
    options = ("--no-vectors", "--validation-users", 100, "--evaluate-users", 20)
    status, said = run_genrec("votes", tmp_path / "out", tmp_path / "shop", tmp_path / "counted", *options)
    assert status == 0, said
    counted = Bundle(tmp_path / "counted")
    counted.check()
    assert made.votes is not None and made.votes.vectors is not None and made.votes.config.affinity_weight
    assert counted.votes is not None and counted.votes.vectors is None and not counted.votes.config.affinity_weight
    assert narrow.votes.vectors is not None and not (counted.path / VOTES / VECTORS).exists()


def test_with_a_query_nobody_votes(text_bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    add_votes(text_bundle.path, tmp_path / "voted", dataset, silent, 100, 50)
    voted = Bundle(tmp_path / "voted")
    users = [[voted.catalog.item_ids[row].decode() for row in (3, 17, 29)]] * 2
    with_votes, without = (Pipeline.open(each) for each in (voted, text_bundle))
    (asked, silent_user), (asked_before, _) = (
        each.recommend(users, 20, queries=["vellum notebook", ""]) for each in (with_votes, without)
    )
    assert asked.item_ids == asked_before.item_ids and VOTED not in asked.source
    np.testing.assert_array_equal(asked.scores, asked_before.scores)
    assert VOTED in silent_user.source
    # The golden request has a query, so its answer is the model's, too.
    np.testing.assert_array_equal(voted.golden["items"], text_bundle.golden["items"])
    check_items(voted.golden, voted.catalog, voted.layout, with_votes.verifier)
    # Users who searched are ranked as they are served.
    histories = [np.array([3, 17, 29], np.int32)] * 2
    tokens = [voted.query_tokenizer.encode_batch([text])[0] for text in (b"vellum notebook", b"")]
    first, second = (Ranker(each).rank(histories, queries=tokens, top_k=20).rows for each in (with_votes, without))
    assert first[0].tolist() == second[0].tolist() and first[1].tolist() != second[1].tolist()


def test_a_signature_is_not_copied(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    signed = Path(shutil.copytree(bundle.path, tmp_path / "signed"))
    (signed / SIGNATURE).write_text("of the bundle without votes")
    add_votes(signed, tmp_path / "out", dataset, silent, 100, 50)
    assert not (tmp_path / "out" / SIGNATURE).exists() and (signed / SIGNATURE).exists()


def test_damaged_votes_are_refused_by_name(voting_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(voting_bundle.path, tmp_path / "copy"))
    neighbours = np.load(copy / VOTES / "neighbours.npy")
    neighbours[0] = len(voting_bundle.catalog)
    np.save(copy / VOTES / "neighbours.npy", neighbours)
    seal_bundle(copy, **voting_bundle.manifest.model_dump(exclude={"files"}))
    with pytest.raises(BundleError, match=r"votes/neighbours\.npy: has rows outside of the 400 items"):
        Bundle(copy).check()
    after = copy / VOTES / VECTORS / "after.npy"
    np.save(copy / VOTES / "neighbours.npy", voting_bundle.votes.neighbours)
    np.save(after, np.load(after) * np.inf)
    seal_bundle(copy, **voting_bundle.manifest.model_dump(exclude={"files"}))
    with pytest.raises(BundleError, match=r"votes/vectors/after\.npy: has values that are no finite numbers"):
        Bundle(copy).check()
    after.unlink()
    seal_bundle(copy, **voting_bundle.manifest.model_dump(exclude={"files"}))
    with pytest.raises(BundleError, match=r"votes/vectors/after\.npy: cannot be read as an array"):
        Bundle(copy).check()
    wrong = voting_bundle.manifest.model_dump_json().replace('"doubt":', '"doubt":-')
    (copy / MANIFEST).write_text(wrong)
    with pytest.raises(BundleError, match=r"votes\.doubt: Input should be greater than or equal to"):
        Bundle(copy)


def test_a_bundle_without_votes_says_nothing_of_them(bundle: Bundle) -> None:
    assert "votes" not in bundle.manifest.model_dump(exclude={"training"})
    assert '"votes"' not in (bundle.path / MANIFEST).read_text().partition('"training"')[0]


def test_what_cannot_be_done_is_said_before_anything_is_written(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = replace(dataset, items=replace(dataset.items, item_ids=[*dataset.items.item_ids[:-1], "another"]))
    with pytest.raises(ValueError, match="is not the 400 items of the data"):
        add_votes(bundle.path, tmp_path / "out", fewer, silent)
    shorter = replace(dataset, interactions=dataset.interactions.without_last())
    with pytest.raises(
        ValueError, match=r"was trained with [\d,]+ interactions, and this data has .* to train with: give"
    ):
        add_votes(bundle.path, tmp_path / "out", shorter, silent)
    monkeypatch.setattr(building, "WEIGHTS", (0.0,))
    monkeypatch.setattr(
        building,
        "nearest_items",
        lambda train, items, shrinkages: [
            (np.zeros(items + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)) for _ in shrinkages
        ],
    )
    with pytest.raises(ValueError, match="votes do not help: NDCG@10 of 50 validation users"):
        add_votes(bundle.path, tmp_path / "out", dataset, silent, 50)
    assert not (tmp_path / "out").exists()
