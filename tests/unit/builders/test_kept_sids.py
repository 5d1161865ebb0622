"""Semantic IDs that a build takes over from a bundle, and those of items that are new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.errors import DataError
from genrec_builders.behaviour import behaviour_embeddings
from genrec_builders.config import BuildConfig
from genrec_builders.data import Dataset, ItemTable, split_interactions, write_dataset
from genrec_builders.kept_sids import KeptSids, keep_sids

NEW = 10


def newer(dataset: Dataset, embeddings: bool = True) -> tuple[Dataset, np.ndarray]:
    """Items in another order, some gone, and NEW new ones, bought and described like the items `like`, int [NEW]."""
    items, interactions = dataset.items, dataset.interactions
    bought = np.bincount(interactions.rows, minlength=len(items))
    like = np.argsort(-bought, kind="stable")[:NEW]
    unbought = np.flatnonzero(bought == 0)
    gone = unbought[: unbought.size // 2]
    order = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(items)), gone))
    names = [*(items.item_ids[row] for row in order), *(f"new-{row}" for row in range(NEW))]
    place = np.full(len(items), -1)
    place[order] = np.arange(order.size)
    rows = place[interactions.rows]
    other = np.full(len(items), -1)
    other[like] = order.size + np.arange(NEW)
    swapped = (other[interactions.rows] >= 0) & (np.arange(rows.size) % 2 == 0)
    rows[swapped] = other[interactions.rows][swapped]
    assert items.embeddings is not None
    vectors = np.concatenate([items.embeddings[order], items.embeddings[like]]) if embeddings else None
    table = ItemTable(names, embeddings=vectors)
    return Dataset(table, replace(interactions, rows=rows.astype(np.int32), queries=None)), like


def kept(bundle: Bundle, dataset: Dataset, **settings: bool) -> KeptSids:
    config = BuildConfig(levels=bundle.space.levels, **settings)  # type: ignore[arg-type]
    return keep_sids(bundle.path, dataset.items, split_interactions(dataset.interactions).train, config)


def of_known(bundle: Bundle, dataset: Dataset) -> np.ndarray:
    ids = [item_id.encode() for item_id in dataset.items.item_ids[:-NEW]]
    return bundle.catalog.sids[bundle.catalog.rows_of(np.array(ids, object))]


def test_known_items_keep_theirs_and_new_ones_get_what_a_live_catalogue_gives(bundle: Bundle, dataset: Dataset) -> None:
    data, _ = newer(dataset)
    found, quantizer = kept(bundle, data), bundle.quantizer
    assert quantizer is not None and data.items.embeddings is not None
    np.testing.assert_array_equal(found.sids[:-NEW], of_known(bundle, data))
    np.testing.assert_array_equal(found.sids[-NEW:], quantizer.encode(data.items.embeddings[-NEW:]))
    assert (found.new, found.moved, found.alike) == (NEW, 0, 0) and found.quantizer is not None


def test_without_embeddings_behaviour_says_what_is_near(bundle: Bundle, dataset: Dataset) -> None:
    data, like = newer(dataset, embeddings=False)
    found = kept(bundle, data)
    known = of_known(bundle, data)
    np.testing.assert_array_equal(found.sids[:-NEW], known)
    # One item, one level and one code at a time.
    train = split_interactions(data.interactions).train
    vectors = behaviour_embeddings(train, len(data.items)).astype(float)
    left, mine = vectors[:-NEW].copy(), vectors[-NEW:].copy()
    for level in range(3):
        means = {code: left[known[:, level] == code].mean(axis=0) for code in set(known[:, level].tolist())}
        for row in range(NEW):
            distance = {code: np.square(mine[row] - mean).sum() for code, mean in means.items()}
            code = int(found.sids[len(known) + row, level])
            # float32 codebooks: one that is as near may win.
            assert distance[code] <= min(distance.values()) + 1e-5
            mine[row] -= means[code]
        left -= np.array([means[code] for code in known[:, level].tolist()])
    # Each is bought as one known item is: by chance 1 of 16 would begin with its code.
    assert (found.sids[-NEW:, 0] == bundle.catalog.sids[like, 0]).mean() >= 0.5


@pytest.mark.parametrize("embeddings", [True, False])
def test_new_items_get_free_ones_if_they_have_to_be_distinct(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]], embeddings: bool
) -> None:
    data, _ = newer(dataset, embeddings)
    with pytest.raises(DataError, match="items of it share semantic IDs, and they keep them"):
        kept(bundle, data, distinct_sids=True)
    write_dataset(dataset, tmp_path / "shop")
    small = "--epochs 0 --levels 16,16,16 --hidden-size 32 --heads 1 --layers 1 --evaluate-users 20".split()
    status, said = run_genrec("build", tmp_path / "shop", tmp_path / "distinct", "--distinct-sids", *small)
    assert status == 0, said
    distinct = Bundle(tmp_path / "distinct")
    found = kept(distinct, data, distinct_sids=True)
    np.testing.assert_array_equal(found.sids[:-NEW], of_known(distinct, data))
    assert len(np.unique(found.sids, axis=0)) == len(found.sids) and found.moved > 0


def test_a_build_goes_on_from_a_bundle(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]]
) -> None:
    data, _ = newer(dataset)
    write_dataset(data, tmp_path / "shop")
    words = ["build", tmp_path / "shop", tmp_path / "out", "--sids-of", bundle.path, "--checkpoint", bundle.path]
    words += ["--epochs", 0, "--decoder", "beam_search", "--evaluate-users", 200]
    status, said = run_genrec(*words)
    assert status == 0 and f"{NEW} items are new, the others keep theirs" in said, said
    made = Bundle(tmp_path / "out")
    made.check()
    np.testing.assert_array_equal(made.catalog.sids[:-NEW], of_known(bundle, data))
    assert made.manifest.training["semantic_ids"]["source"] == "a bundle" and made.quantizer is not None
    # The backbone is not trained, and recommends: its tokens mean the same.
    assert made.manifest.training["quality"]["history_allowed"]["hit@10"] > 0.05  # by chance 0.025
    assert run_genrec(*words, "--keep")[0] == 0
    status, said = run_genrec(*words, "--keep", "--distinct-sids")
    assert status == 1 and "distinct" in said, said


def test_what_cannot_be_kept_is_said(bundle: Bundle, dataset: Dataset) -> None:
    train = split_interactions(dataset.interactions).train
    levels = bundle.space.levels
    with pytest.raises(DataError, match=r"its levels are \(16, 16, 16\); build with these, not with \(8, 8\)"):
        keep_sids(bundle.path, dataset.items, train, BuildConfig(levels=(8, 8)))
    others = replace(dataset.items, item_ids=[f"other-{item_id}" for item_id in dataset.items.item_ids])
    with pytest.raises(DataError, match="has none of the 400 items of the data, such as 'other-"):
        keep_sids(bundle.path, others, train, BuildConfig(levels=levels))
    alone = replace(dataset.interactions, rows=np.zeros_like(dataset.interactions.rows))
    with pytest.raises(DataError, match="nothing says what is like its items"):
        keep_sids(
            bundle.path,
            ItemTable(dataset.items.item_ids),
            split_interactions(alone).train,
            BuildConfig(levels=levels),
        )
