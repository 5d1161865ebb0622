"""Prices and stock that change all the time, and whether answers kept to their rules in the version that they name."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from genrec.bundle import Bundle
from genrec.catalog import CatalogBase, Column, Columns
from genrec.catalog.kinds import BOOLEAN, NUMBER
from genrec.live.changes import KEEPS, Changes
from genrec.live.store import CatalogStore
from genrec_client import Recommendations, Source
from perf.rules.shop import Shop

LIMIT = 12.0  # a price


@dataclass(frozen=True)
class Answer:
    """rule: which of those that were asked with. ms: that the request took."""

    rule: int
    ms: float
    answer: Recommendations


@dataclass(frozen=True)
class Checked:
    """The rule, and the changes of each version, which follow from its number."""

    shop: Shop
    per_second: int

    @property
    def where(self) -> dict[str, Any]:
        """The rule's condition."""
        every = [{"attribute": "price", "<": LIMIT}, {"attribute": "in_stock", "is": True}]
        return {"all": [*every, {"attribute": "markets", "is": "jp"}]}

    def verdict(self, answers: list[Answer]) -> dict[str, Any]:
        """How many answers and versions there were; how many items broke the rule; full answers, all from drafts."""
        base = self.shop.version.base
        columns, row_of = base.columns, base.rows_of
        price, stock = columns["price"].values.copy(), columns["in_stock"].values.copy()
        markets = columns["markets"]
        assert markets.offsets is not None
        wanted = int(markets.codes_of([b"jp"])[0])
        sellers = np.repeat(np.arange(len(base)), np.diff(markets.offsets))[markets.values == wanted]
        sold = np.bincount(sellers, minlength=len(base))
        broken, full, at = 0, 0, 0
        for one in sorted(answers, key=lambda one: int(one.answer.catalog_version)):
            while at < int(one.answer.catalog_version):
                at += 1
                rows, new_price, new_stock = drawn(at, len(base), self.per_second)
                price[rows], stock[rows] = new_price, new_stock
            ids = np.array([item_id.encode() for item_id in one.answer.item_ids], object)
            rows = row_of(ids)
            holds = (rows >= 0) & (price[rows] < LIMIT) & (stock[rows] == 1) & (sold[rows] > 0)
            broken += int((~holds).sum())
            full += len(one.answer.items) == 10 and all(item.source is Source.DRAFTED for item in one.answer.items)
        versions = len({one.answer.catalog_version for one in answers})
        share = full / max(1, len(answers))
        return {"answers": len(answers), "versions": versions, "broken_items": broken, "full_from_drafts": share}


def drawn(version: int, items: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a version changes: rows of the base, distinct; their prices; and whether they are in stock, int8."""
    rng = np.random.default_rng([11, version])
    rows = np.unique(rng.integers(0, items, size))
    return rows, np.round(rng.uniform(1, 40, rows.size), 2), (rng.random(rows.size) < 0.9).astype(np.int8)


def changes_of(version: int, base: CatalogBase, size: int) -> Changes:
    """The changes of a version: attributes alone."""
    rows, price, stock = drawn(version, len(base), size)
    told = {"price": Column(NUMBER, price), "in_stock": Column(BOOLEAN, stock)}
    columns = Columns({**base.columns.take(rows), **told}, rows.size)
    keep = np.full(rows.size, KEEPS)
    every = np.ones(rows.size, bool)
    return Changes(base.item_ids[rows], ~every, keep, keep, keep.astype(np.int8), columns, every)


@contextmanager
def changing(store: CatalogStore, checked: Checked) -> Iterator[None]:
    """A commit of the changes of a version every second meanwhile, from another process: this one measures."""
    spawn, shop = multiprocessing.get_context("spawn"), checked.shop
    ends, ready = spawn.Event(), spawn.Event()
    location = shop.folder / f"store-{shop.items}"
    arguments = shop.folder / f"grown-{shop.items}", shop.bundle.path, location, checked.per_second, ready, ends
    writer = spawn.Process(target=_write, args=arguments)
    writer.start()
    ready.wait(60)
    yield
    ends.set()
    writer.join()


def _write(grown: Path, bundle: Path, location: Path, size: int, ready: Any, ends: Any) -> None:
    """Commit the changes of version after version, one each second, until `ends` is set."""
    os.nice(10)
    base, store = CatalogBase.load(grown, Bundle(bundle).space), CatalogStore.open(str(location))
    began = time.monotonic()
    for version in count(1):
        store.commit(changes_of(version, base, size), version - 1, "bench")
        ready.set()
        if ends.wait(max(0.01, began + version - time.monotonic())):
            return
