"""Attributes that rules filter by: what a build reads from each form of file, and what it refuses."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from genrec.bundle import Bundle
from genrec.catalog import Columns
from genrec.errors import DataError
from genrec.live.init import init_catalog
from genrec.live.store import CatalogStore
from genrec_builders.data import Dataset, ItemTable, read_dataset, write_dataset
from genrec_builders.data.demo_shop import make_demo_shop

MAY = datetime(2024, 5, 1, tzinfo=timezone.utc)
TABLE = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "sid": [[0, 1], [1, 0], [1, 1]],
        "brand": pa.array(["x", None, "é"]).dictionary_encode(),
        "price": pa.array([1, None, 3], pa.int32()),
        "weight": pa.array([None, 2, 3], pa.decimal128(4, 1)),
        "in_stock": [True, None, False],
        "since": pa.array([MAY, None, MAY], pa.timestamp("ms", "Asia/Tokyo")),
        "day": pa.array([19844, None, 0], pa.date32()),
        "markets": [["de", "fr"], [], None],
        "boxes": [[1], [2], [3]],
    }
)
KINDS = {"brand": "string", "price": "number", "weight": "number", "in_stock": "boolean", "since": "timestamp"}
KINDS |= {"day": "timestamp", "markets": "strings"}
VALUES = {
    "brand": ["x", None, "é"],
    "price": [1.0, None, 3.0],
    "weight": [None, 2.0, 3.0],
    "in_stock": [True, None, False],
    "since": [MAY, None, MAY],
    "day": [MAY, None, datetime(1970, 1, 1, tzinfo=timezone.utc)],
    "markets": [["de", "fr"], [], []],
}


def folder_of(path: Path, items: pa.Table, ending: str = "parquet") -> Path:
    path.mkdir(exist_ok=True)
    (path / "interactions.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u,{i},{n}\n" for n, i in enumerate("abcb"))
    )
    if ending == "parquet":
        pq.write_table(items, path / "items.parquet")
    else:
        pa_csv.write_csv(items, path / "items.csv")
    return path


def values_of(columns: Columns) -> dict[str, list]:
    return {name: column.tolist() for name, column in columns.items()}


def test_parquet_has_kinds_of_its_own(tmp_path: Path) -> None:
    lines: list[str] = []
    items = read_dataset(folder_of(tmp_path, TABLE), lines.append).items
    assert items.typed.kinds == KINDS and values_of(items.typed) == VALUES
    assert "'boxes'" in lines[1] and "markets" not in lines[1]
    assert items.attributes["price"] == ["1", "", "3"] and "markets" not in items.attributes


CSV = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "sid": ["0-1", "1-0", "1-1"],
        "brand": ["x", "", "é"],
        "price": ["1", "", "3.0"],
        "in_stock": ["true", "", "0"],
        "since": ["2024-05-01T09:00:00+09:00", "", "2024-05-01"],
        "markets": ["de, fr", "", "[]"],
        "code": ["007", "", "1e5"],
    }
)
TYPES = {"price": "number", "in_stock": "boolean", "since": "timestamp", "markets": "strings"}


def test_csv_is_text_unless_a_type_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, CSV, "csv")
    assert set(read_dataset(folder).items.typed.kinds.values()) == {"string"}
    items = read_dataset(folder, attribute_types=TYPES).items
    known = {name: VALUES[name] for name in ("brand", "price", "in_stock", "since", "markets")}
    assert values_of(items.typed) == known | {"code": ["007", None, "1e5"]}
    assert items.attributes["price"] == ["1", "", "3.0"]


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"prise": "number"}, "names 'prise', which is no attribute; the attributes are brand, price, in_stock"),
        ({"price": "money"}, "price=money: the kinds are string, number"),
        ({"brand": "number"}, "item 'a': attribute 'brand' is 'x', which is no number"),
        ({"code": "timestamp"}, "item 'a': attribute 'code' is '007', which is no timestamp"),
        ({"sid": "string"}, "names 'sid', which is no attribute"),
    ],
)
def test_types_that_do_not_fit_are_refused(tmp_path: Path, types: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(folder_of(tmp_path, CSV, "csv"), attribute_types=types)


def test_a_column_that_cannot_be_made_a_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'boxes': list.* is no attribute; give another --attribute-type"):
        read_dataset(folder_of(tmp_path, TABLE), attribute_types={"boxes": "strings"})


def test_what_was_text_before_and_no_attribute_is_told_and_built_without(tmp_path: Path) -> None:
    many = {f"c{number}": ["x", "y", "z"] for number in range(70)}
    long = TABLE.append_column("description", pa.array(["short", "x" * 300, ""]))
    long = long.append_column("n" * 65, pa.array(["", "", ""]))
    for name, values in many.items():
        long = long.append_column(name, pa.array(values))
    lines: list[str] = []
    items = read_dataset(folder_of(tmp_path, long), lines.append).items
    assert len(items.typed) == 64 and "description" not in items.typed and "description" in items.attributes
    assert "column 'description' of items.parquet in rules: item 'b': attribute 'description' is" in lines[1]
    assert "must have 1 to 64 characters" in lines[1] and "one more than the 64" in lines[1]
    # What is asked for comes first.
    assert "c69" in read_dataset(tmp_path, attribute_types={"c69": "string"}).items.typed


def test_attributes_stand_beside_an_index(tmp_path: Path) -> None:
    folder_of(tmp_path, TABLE.drop_columns(["sid"]))
    index = {"c": [0, 0], "new": [1, 1], "a": [0, 1], "b": [1, 0]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    typed = read_dataset(tmp_path).items.typed
    assert typed["price"].tolist() == [3.0, None, 1.0, None] and typed["markets"].tolist()[2] == ["de", "fr"]
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(DataError, match="names 'price', which is no attribute; the attributes are none"):
        read_dataset(tmp_path, attribute_types={"price": "number"})


def test_a_dataset_is_read_as_it_was_written(tmp_path: Path) -> None:
    shop = make_demo_shop(200, 20)
    columns = shop.items.typed
    assert list(columns.kinds) == ["title", "category", "brand", "price", "in_stock", "released", "markets"]
    assert 0.9 < (columns["in_stock"].values == 1).mean() < 1 and (columns["price"].values > 0).all()
    several = np.diff(columns["markets"].offsets)  # type: ignore[arg-type]
    assert several.min() >= 1 and (several > 1).mean() > 0.5
    write_dataset(shop, tmp_path / "shop")
    again = read_dataset(tmp_path / "shop").items
    assert again.typed.kinds == columns.kinds and values_of(again.typed) == values_of(columns)
    assert again.attributes == shop.items.attributes  # of which queries and texts are made


def test_the_shops_offers_change_nothing_else() -> None:
    one, other = make_demo_shop(200, 20, 1), make_demo_shop(200, 20, 2)
    assert values_of(one.items.typed)["price"] != values_of(other.items.typed)["price"]
    assert values_of(one.items.typed) == values_of(make_demo_shop(200, 30, 1).items.typed)


def test_columns_are_of_all_items() -> None:
    with pytest.raises(DataError, match="columns are of 2 items, not of 1"):
        ItemTable(["a"], columns=Columns({}, 2))


# --- bundles


@pytest.mark.training
def test_a_bundle_has_the_attributes_of_its_data(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    assert bundle.manifest.catalog.attributes == bundle.catalog.kinds == dataset.items.typed.kinds
    assert values_of(bundle.catalog.columns) == values_of(dataset.items.typed)
    init_catalog(bundle, str(tmp_path / "catalog"))
    store = CatalogStore.open(str(tmp_path / "catalog"))
    assert store.kinds == bundle.catalog.kinds
    [batch] = store.read_base(store.latest())
    assert values_of(batch.columns) == values_of(dataset.items.typed)


@pytest.mark.training
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_bundle_of_files_and_its_copy(tmp_path: Path, run_genrec: Any, ending: str) -> None:
    table = TABLE.select(["item_id", "sid", "price", "since", "markets"])
    if ending == "csv":
        table = CSV.select(["item_id", "sid", "price", "since", "markets"])
    folder = folder_of(tmp_path / "data", table, ending)
    types = [f"--attribute-type={name}={TYPES[name]}" for name in ("price", "since", "markets")]
    small = ["--epochs=0", "--hidden-size=16", "--layers=1", "--heads=1", "--state-size=8", "--transition-size=8"]
    small += ["--attention-heads=0", "--beam-width=4", "--max-top-k=2"]
    status, error = run_genrec("build", folder, tmp_path / "bundle", *small, *(types if ending == "csv" else []))
    assert status == 0, error
    status, error = run_genrec("export", tmp_path / "bundle", tmp_path / "copy")
    assert status == 0, error
    for path in (tmp_path / "bundle", tmp_path / "copy"):
        made = Bundle(path)
        made.check()
        assert made.manifest.catalog.attributes == {name: TYPES[name] for name in ("price", "since", "markets")}
        assert values_of(made.catalog.columns) == {name: VALUES[name] for name in ("price", "since", "markets")}
    arguments = ["build", folder, tmp_path / "bundle", *small, "--keep"]
    status, error = run_genrec(*arguments, *(types[1:] if ending == "csv" else ["--attribute-type=price=string"]))
    assert status == 1 and "kinds of the attributes" in error


def test_options_that_name_no_kind_are_refused(tmp_path: Path, run_genrec: Any) -> None:
    folder = folder_of(tmp_path / "data", CSV, "csv")
    for option, message in (
        ("price", "write it as NAME=KIND"),
        ("price=money", "the kinds are string"),
        ("=number", "1 to 64 characters"),
    ):
        status, error = run_genrec("data", "check", folder, "--attribute-type", option)
        assert status == 2 and message in error
