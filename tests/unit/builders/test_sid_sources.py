"""What semantic IDs are made of: as asked, of the training part alone, with a quantiser for whom a new item has one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.bundle import QUANTIZER, Bundle
from genrec.cli.main import main
from genrec.errors import DataError
from genrec_builders.build import build_bundle, is_built
from genrec_builders.config import BEHAVIOUR, BOTH, DATA, EMBEDDINGS, BuildConfig, TrainingConfig
from genrec_builders.data import Dataset, Interactions, ItemTable, popularity, split_interactions, write_dataset
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.fingerprint import build_fingerprint
from genrec_builders.semantic_ids import fit_residual_kmeans
from genrec_builders.sid_sources import SemanticIds, make_semantic_ids, sid_source, used_dataset

CONFIG = BuildConfig(levels=(16, 16, 16))


@pytest.fixture(scope="module")
def shop() -> Dataset:
    """300 items, of which 20 are in no history."""
    shop = make_demo_shop(n_items=280, n_users=300, seed=0)
    assert shop.items.embeddings is not None
    new = np.random.default_rng(0).normal(shop.items.embeddings[:20], 0.01).astype(np.float32)
    names = [*shop.items.item_ids, *(f"new-{row}" for row in range(20))]
    return Dataset(ItemTable(names, embeddings=np.concatenate([shop.items.embeddings, new])), shop.interactions)


def bare(dataset: Dataset) -> Dataset:
    return replace(dataset, items=ItemTable(dataset.items.item_ids))


def strangers(dataset: Dataset) -> np.ndarray:
    """Rows of the items that are in no history of the training part, where each has two items or more."""
    return np.flatnonzero(popularity(dataset.interactions, len(dataset.items)) == 0)


def made(dataset: Dataset, **settings: Any) -> SemanticIds:
    config = replace(CONFIG, **settings)
    split = split_interactions(dataset.interactions, config.split_at)
    return make_semantic_ids(used_dataset(dataset, config).items, split.train, config)


def with_other_held_out(dataset: Dataset, split_at: str | None) -> Dataset:
    """Everything that is held out is another item."""
    interactions = dataset.interactions
    rows = interactions.rows.copy()
    if split_at is None:
        last = interactions.offsets[1:]
        rows[np.concatenate([last - 1, last - 2])] += 7
    else:
        assert interactions.times is not None
        rows[interactions.times >= int(split_at)] += 7
    return replace(dataset, interactions=replace(interactions, rows=rows % len(dataset.items)))


@pytest.mark.parametrize("source", [BEHAVIOUR, BOTH])
@pytest.mark.parametrize("split_at", [None, "600"])
def test_nothing_of_what_is_held_out_is_known(shop: Dataset, source: str, split_at: str | None) -> None:
    """The demo shop's users have more than three interactions each, so that the last two are held out."""
    interactions = shop.interactions
    assert np.diff(interactions.offsets).min() >= 3
    places = np.arange(len(interactions.rows)) - np.repeat(interactions.offsets[:-1], np.diff(interactions.offsets))
    shop = replace(shop, interactions=replace(interactions, times=100 * places))
    one = made(shop, sid_source=source, split_at=split_at)
    other = made(with_other_held_out(shop, split_at), sid_source=source, split_at=split_at)
    np.testing.assert_array_equal(one.sids, other.sids)
    assert one.record == other.record
    if one.quantizer is not None and other.quantizer is not None:
        for ours, theirs in zip(one.quantizer.codebooks, other.quantizer.codebooks, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    # And what is trained on shapes them.
    rows = np.where(np.arange(len(interactions.rows)) % 2, interactions.rows, (interactions.rows + 7) % len(shop.items))
    changed = replace(shop, interactions=replace(shop.interactions, rows=rows.astype(np.int32)))
    assert (made(changed, sid_source=source, split_at=split_at).sids != one.sids).any()


def test_by_default_the_first_that_there_is(shop: Dataset) -> None:
    sids = np.zeros((300, 2), np.int32)
    given = replace(shop, items=replace(shop.items, sids=sids, levels=(4, 4)))
    assert [sid_source(each.items, CONFIG) for each in (given, shop, bare(shop))] == [DATA, EMBEDDINGS, BEHAVIOUR]
    assert made(given).sids is sids and made(given).levels == (4, 4) and made(given).quantizer is None
    asked = made(given, sid_source=EMBEDDINGS)
    assert asked.levels == CONFIG.levels
    embeddings = shop.items.embeddings
    assert embeddings is not None
    np.testing.assert_array_equal(asked.sids, fit_residual_kmeans(embeddings, CONFIG.levels).encode(embeddings))
    np.testing.assert_array_equal(made(bare(shop)).sids, made(given, sid_source=BEHAVIOUR).sids)


def test_the_quantiser_of_both_encodes_by_the_embedding_alone(shop: Dataset) -> None:
    both, embeddings = made(shop, sid_source=BOTH), shop.items.embeddings
    assert both.quantizer is not None and embeddings is not None
    assert both.quantizer.dim == embeddings.shape[1] and both.quantizer.fit is not None
    rows = strangers(shop)
    assert both.unknown == rows.size >= 20
    alone = both.quantizer.encode(embeddings)
    np.testing.assert_array_equal(both.sids[rows], alone[rows])
    assert 0 < (both.sids[:, 0] == alone[:, 0]).mean() < 1
    error = both.quantizer.squared_errors(embeddings, alone).mean()
    assert error < both.quantizer.fit.error < both.quantizer.fit.variance


@pytest.mark.parametrize("source", [EMBEDDINGS, BEHAVIOUR, BOTH])
def test_distinct_ones_are_nobodys_else(shop: Dataset, source: str) -> None:
    shared, distinct = (made(shop, sid_source=source, distinct_sids=each) for each in (False, True))
    assert shared.report.colliding_share > 0 == distinct.report.colliding_share
    assert shared.moved == 0 < distinct.moved == (shared.sids != distinct.sids).any(axis=1).sum()
    assert distinct.moved <= round(shared.report.colliding_share * 300)
    assert f"{distinct.moved} items moved to a free one" in str(distinct)


def test_items_that_nobody_took_are_all_alike_without_embeddings(shop: Dataset) -> None:
    found, rows = made(bare(shop)), strangers(shop)
    assert len(np.unique(found.sids[rows], axis=0)) == 1 and found.report.largest_bucket >= rows.size
    assert f"{rows.size} items that nobody took beside another in training are all taken as alike" in str(found)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sid_source": DATA}, "sid_source is data, but the items have no semantic IDs; add a column 'sid'"),
        ({"sid_source": EMBEDDINGS}, "sid_source is embeddings, but the items have no embeddings; add them, or use"),
        ({"sid_source": BOTH}, "sid_source is both, but the items have no embeddings"),
    ],
)
def test_what_is_not_there(shop: Dataset, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        made(bare(shop), **settings)


def test_semantic_ids_of_the_data_are_not_moved(shop: Dataset) -> None:
    given = replace(shop, items=replace(shop.items, sids=np.zeros((300, 2), np.int32), levels=(4, 4)))
    with pytest.raises(DataError, match=r"distinct_sids moves items .* came with the data"):
        made(given, distinct_sids=True)


def test_nobody_took_two_items() -> None:
    few = Dataset(ItemTable(["a", "b", "c"]), Interactions(["u"], np.array([0, 3]), np.array([0, 1, 2], np.int32)))
    with pytest.raises(DataError, match="nobody took two different items in training"):
        made(few)


def test_only_what_decides_is_in_the_fingerprint(shop: Dataset) -> None:
    def fingerprint(dataset: Dataset, **settings: Any) -> dict[str, str]:
        config = replace(CONFIG, **settings)
        return dict(build_fingerprint(used_dataset(dataset, config), config))

    plain = fingerprint(shop)
    assert not [name for name in plain if "sid source" in name or "distinct" in name]  # as before there was a choice
    assert plain == fingerprint(shop, sid_source=EMBEDDINGS)
    assert fingerprint(shop, sid_source=BEHAVIOUR) == fingerprint(bare(shop))
    assert fingerprint(shop, sid_source=BOTH) != plain != fingerprint(shop, distinct_sids=True)


@pytest.mark.training
def test_a_dataset_of_interactions_alone_is_built(
    shop: Dataset, tiny_build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, track = tiny_build
    config = replace(config, training=TrainingConfig(epochs=0), evaluate_users=20)
    build_bundle(bare(shop), tmp_path / "out", config, track)
    assert is_built(bare(shop), tmp_path / "out", config) and is_built(
        shop, tmp_path / "out", replace(config, sid_source=BEHAVIOUR)
    )
    assert "semantic IDs from behaviour: 3 levels of 16, 16, 16 codes" in capsys.readouterr().err
    bundle = Bundle(tmp_path / "out")
    bundle.check()
    kept = bundle.manifest.training["semantic_ids"]
    assert (kept["source"], kept["moved"], kept["without_behaviour"]) == (BEHAVIOUR, 0, strangers(shop).size)
    assert kept["codes_used"] == [16, 16, 16] and kept["largest_bucket"] >= 20
    assert not (bundle.path / QUANTIZER).exists() and bundle.quantizer is None


@pytest.mark.training
def test_a_bundle_of_both_takes_new_items_by_their_embeddings(
    shop: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An item that was moved at the build keeps its semantic ID, and one that comes later gets the quantiser's."""
    write_dataset(shop, tmp_path / "data")
    small = "--hidden-size=16 --layers=1 --heads=1 --state-size=8 --transition-size=8 --attention-heads=0"
    options = "--beam-width=40 --max-top-k=10 --epochs=0 --levels=16,16,16 --sid-source=both --distinct-sids"
    words = ["build", str(tmp_path / "data"), str(tmp_path / "out"), *small.split(), *options.split()]
    assert main(words) == 0, capsys.readouterr().err
    bundle, location = Bundle(tmp_path / "out"), str(tmp_path / "live")
    quantizer, embeddings, catalog = bundle.quantizer, shop.items.embeddings, bundle.catalog
    assert embeddings is not None and quantizer is not None
    assert len(np.unique(catalog.sids, axis=0)) == len(catalog)
    assert main(["catalog", "init", str(bundle.path), location]) == 0
    known = catalog.rows_of(np.array([item.encode() for item in shop.items.item_ids], object))
    other = int(np.flatnonzero((quantizer.encode(embeddings) != catalog.sids[known]).any(axis=1))[0])

    def add(item: str, **columns: list) -> int:
        file = tmp_path / "add.parquet"
        pq.write_table(pa.table({"item_id": [item], **{name: [value] for name, value in columns.items()}}), file)
        return main(["catalog", "apply", location, "--bundle", str(bundle.path), "--add", str(file)])

    embedding = embeddings[other].tolist()
    assert add("later", embedding=embedding) == 0
    capsys.readouterr()
    assert add(shop.items.item_ids[other], embedding=embedding) == 1
    assert f"item {shop.items.item_ids[other]!r} would get the sid" in capsys.readouterr().err
    assert add(shop.items.item_ids[other], embedding=embedding, sid=catalog.sids[known[other]].tolist()) == 0
