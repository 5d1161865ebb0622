"""What attributes of a live catalogue take: reading them from the store's JSON, writing them, files, versions, a scan.

python -m perf.catalog.attributes build/catalog-bench --items 1000000

Random items with six attributes: two strings, a number, a boolean, a timestamp and a list of strings.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.catalog import CatalogVersion, Column, Columns, SemanticIdSpace
from genrec.catalog.published import BASES
from genrec.live.attributes import parse, texts_of
from genrec.live.bases import LocalBase, base_of_batches
from genrec.live.changes import Changes
from genrec.live.fold import Fold
from genrec.reporting.machine import provenance
from genrec.rules.bound import Among, Between, Every, Filter
from genrec.rules.scan import allowed_rows
from perf.catalog.base import batches, used

SPACE = SemanticIdSpace((256,) * 4)
CHANGED, REPEATS = 100, 20
console = Console(stderr=True, soft_wrap=True)


def described(count: int, rng: np.random.Generator) -> Columns:
    """Attributes of random items."""
    brands = np.array([f"brand-{number:05d}" for number in range(5000)], np.bytes_)
    categories = np.array([f"category {number}" for number in range(200)], np.bytes_)
    markets = np.array(["de", "fr", "it", "jp", "uk", "us"], np.bytes_)
    sold = rng.random((count, 6)) < 0.6
    offsets = np.concatenate([[0], sold.sum(axis=1).cumsum()])
    columns = {
        "brand": Column.of_words("string", rng.integers(0, 5000, count), brands),
        "category": Column.of_words("string", rng.integers(0, 200, count), categories),
        "price": Column("number", np.round(rng.exponential(30.0, count), 2)),
        "in_stock": Column("boolean", (rng.random(count) < 0.95).astype(np.int8)),
        "released": Column("timestamp", rng.integers(1_500_000_000, 1_750_000_000, count) * 1_000_000),
        "markets": Column.of_words("strings", np.nonzero(sold)[1], markets, offsets),
    }
    return Columns(columns, count)


def with_attributes(parts: Iterator[Changes]) -> Iterator[Changes]:
    rng = np.random.default_rng(1)
    for part in parts:
        columns = described(len(part), rng)
        yield Changes(
            part.item_ids,
            part.removed,
            part.codes,
            part.popularity,
            part.available,
            columns,
            np.ones(len(part), bool),
        )


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the base, removed again, and of `attributes-ITEMS.json`.")],
    items: Annotated[int, typer.Option(min=1000)] = 1_000_000,
) -> None:
    """Measure, and write down what was found."""
    root, part = out / "attributes", min(items, 1 << 18)
    shutil.rmtree(root, ignore_errors=True)
    (root / BASES).mkdir(parents=True)
    found: dict[str, Any] = {"settings": provenance(items=items)}
    columns = described(part, np.random.default_rng(2))
    texts = texts_of(columns)
    found["written_rows_per_s"] = part / min(seconds(lambda: texts_of(columns)) for _ in range(3))
    found["read_rows_per_s"] = part / min(seconds(lambda: parse(texts, columns.kinds)) for _ in range(3))
    found["json_bytes_per_item"] = texts.nbytes / part
    try:
        name = ""

        def make() -> None:
            nonlocal name
            parts = with_attributes(batches(SPACE, items))
            name = base_of_batches(root, "bench", SPACE, 0, parts, columns.kinds)

        found["base_s"] = seconds(make)
        folder = root / BASES / name
        found["bytes_per_item"] = used(folder / "attributes") / items
        found["load_ms"] = 1e3 * min(seconds(lambda: LocalBase.load(root, name, SPACE)) for _ in range(5))
        base = LocalBase.load(root, name, SPACE).items
        version = CatalogVersion(0, base)

        rule = Filter(None, Every((Between("price", high=20.0), Among("in_stock", (True,)))))
        found["scan_s"] = min(seconds(lambda: allowed_rows(version, [rule])) for _ in range(3))
        rng = np.random.default_rng(3)
        fold, changes = Fold(version, base.live), []
        for _ in range(REPEATS):
            rows = np.unique(rng.integers(0, items, CHANGED))
            none, ids = np.full(rows.size, -1), base.item_ids[rows]
            said = described(rows.size, rng)
            keeps = (none, none, none.astype(np.int8))
            changes.append(Changes(ids, np.zeros(rows.size, bool), *keeps, said, np.ones(rows.size, bool)))
        found["fold_ms"] = 1e3 * seconds(lambda: [fold.apply(each) for each in changes]) / REPEATS
        found["delta_ms"] = 1e3 * seconds(lambda: fold.delta(100).save(root / "delta"))
    finally:
        shutil.rmtree(root)
    (out / f"attributes-{items}.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print_json(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
