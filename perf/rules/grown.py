"""The demo shop grown to any number of items: every new item is much like one of the shop's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.bundle import Bundle
from genrec.catalog import CatalogBase, CatalogVersion, Column, Columns, PrefixTable
from genrec.live.init import quantizer_of
from genrec_builders.data import Dataset, read_dataset, split_leave_one_out

_SLICE = 1 << 16
NOISE = 0.5  # of an embedding, in standard deviations of the shop's


@dataclass(frozen=True)
class GrownShop:
    """The shop's items first, as its bundle has them, then new ones with semantic IDs of the bundle's quantiser.

    view: the catalogue, with the attributes `category` and `brand` of the item that one is like; `price`, as that
    item's with noise; `aisle`, a number of 0 to 1 that says nothing about the item.
    """

    bundle: Bundle
    view: CatalogVersion
    masks: PrefixTable
    histories: list[np.ndarray]
    targets: list[bytes]


def grow(bundle_path: Path, data: Path, items: int, users: int) -> GrownShop:
    """The shop at `data`, with the bundle that was built of it, grown to `items`; with the histories of some users."""
    bundle, dataset = Bundle(bundle_path), read_dataset(data)
    catalog, space = bundle.catalog, bundle.space
    rng = np.random.default_rng(0)
    own = len(catalog)
    like = np.concatenate([np.arange(own), rng.integers(0, own, items - own)])
    codes = np.empty(items, np.int64)
    codes[:own] = space.encode(catalog.sids)
    embeddings = _embeddings(dataset, bundle)
    quantizer, spread = quantizer_of(bundle), embeddings.std(0)
    assert quantizer is not None, "the bundle was built without embeddings"
    for start in range(own, items, _SLICE):
        rows = like[start : start + _SLICE]
        moved = embeddings[rows] + NOISE * spread * rng.standard_normal((rows.size, spread.size), np.float32)
        codes[start : start + _SLICE] = space.encode(quantizer.encode(moved.astype(np.float32)))
    ids = np.concatenate([catalog.item_ids, np.char.add(b"new-", np.arange(items - own).astype("S10"))])
    price = catalog.columns["price"].values[like] * rng.lognormal(0, 0.2, items)
    columns = {
        **{name: catalog.columns[name].take(like) for name in ("category", "brand")},
        "price": Column("number", np.round(price, 2)),
        "aisle": Column("number", rng.random(items)),
    }
    sold = catalog.popularity[like] // np.where(np.arange(items) < own, 1, 10)
    base = CatalogBase.build(space, ids, codes, sold, np.ones(items, bool), Columns(columns, items))
    test = split_leave_one_out(dataset.interactions).test
    chosen = rng.permutation(len(test.targets))[:users].tolist()
    names = np.array([item_id.encode() for item_id in dataset.items.item_ids], object)
    return GrownShop(
        bundle,
        CatalogVersion(1, base),
        PrefixTable.build(space, np.unique(codes)),
        [names[test.histories[user]] for user in chosen],
        [names[test.targets[user]] for user in chosen],
    )


def _embeddings(dataset: Dataset, bundle: Bundle) -> np.ndarray:
    """Of the bundle's items in its order: float32 [n, D]."""
    row = {item_id: at for at, item_id in enumerate(dataset.items.item_ids)}
    assert dataset.items.embeddings is not None, "the data has no embeddings"
    return dataset.items.embeddings[[row[item_id.decode()] for item_id in bundle.catalog.item_ids.tolist()]]
