"""Folders of Parquet: all columns of all parts, with types that fit the values of each."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.errors import DataError
from genrec_builders.data import Dataset, read_dataset
from tests.histories import sequences

ITEMS = {"item_id": ["x", "y"]}
EVENTS = {"user_id": ["u", "u"], "item_id": ["x", "y"], "timestamp": [1, 2]}


def read(folder: Path, **parts: Any) -> Dataset:
    """The dataset of `items` and `interactions`, each a table or the tables of parts by their paths."""
    for name, tables in ({"items": ITEMS, "interactions": EVENTS} | parts).items():
        several = any(isinstance(value, dict) for value in tables.values())
        for part, table in (tables if several else {"": tables}).items():
            path = folder / f"{name}.parquet" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(table), path)
    return read_dataset(folder)


def test_columns_that_only_a_later_part_has_are_read(tmp_path: Path) -> None:
    dataset = read(
        tmp_path,
        items={"a": ITEMS | {"sid": ["0-1", "0-2"]}, "b": {"item_id": ["z"], "title": ["Tent"], "sid": ["1-2"]}},
        interactions={"a": EVENTS, "b": {name: values[:1] for name, values in EVENTS.items()} | {"query": ["tent"]}},
    )
    assert dataset.items.attributes == {"title": ["", "", "Tent"]}
    assert dataset.items.sids is not None and dataset.items.sids.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert dataset.interactions.queries is not None
    assert dataset.interactions.queries.to_pylist() == ["", "tent", ""]


MAY = datetime(2024, 5, 1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.nulls(2), pa.array(["a"]), [None, None, "a"]),
        (pa.array([1, 2]), pa.array([0.5]), [1.0, 2.0, 0.5]),
        (pa.array(["a", "b"]), pa.array(["c"]).dictionary_encode(), ["a", "b", "c"]),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["c"], pa.large_string()), ["a", "b", "c"]),
        (pa.array(["a", "b"]), pa.array(["c"], pa.string_view()), ["a", "b", "c"]),
    ],
    ids=lambda values: str(getattr(values, "type", "")),
)
def test_types_that_have_one_in_common(tmp_path: Path, one: pa.Array, other: pa.Array, expected: list[Any]) -> None:
    items = {"a": ITEMS | {"value": one}, "b": {"item_id": ["z"], "value": other}}
    assert read(tmp_path, items=items).items.typed["value"].tolist() == expected


def test_times_with_and_without_a_zone_are_in_utc(tmp_path: Path) -> None:
    zoned = pa.array([datetime(2024, 5, 1, 1), datetime(2024, 5, 1, 1)], pa.timestamp("ms")).cast(pa.timestamp("us"))
    events = {"a": EVENTS | {"timestamp": pa.array([MAY, MAY])}}
    events["b"] = EVENTS | {"item_id": ["y", "y"], "timestamp": zoned.cast(pa.timestamp("us", "Asia/Tokyo"))}
    times = read(tmp_path, interactions=events).interactions.times
    assert (
        times is not None and [str(time)[:16] for time in times] == ["2024-05-01T00:00"] * 2 + ["2024-05-01T01:00"] * 2
    )


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_numbers_here_and_text_there_are_refused(column: str, tmp_path: Path) -> None:
    """Otherwise 007 and 7 would become one."""
    parts = {"a": EVENTS | {column: [7, 7]}, "b": EVENTS | {column: [7, 7]}, "deep/c": EVENTS | {column: ["007", "7"]}}
    with pytest.raises(
        DataError,
        match=rf"interactions\.parquet: column '{column}' is int64 in a and string in deep/c; write it with one type",
    ):
        read(tmp_path, interactions=parts)


def test_keys_of_folders_are_text(tmp_path: Path) -> None:
    part = {name: values for name, values in EVENTS.items() if name != "user_id"}
    dataset = read(tmp_path, interactions={"user_id=007/a": part, "user_id=7/a": part, "user_id=%C3%B8/a": part})
    assert sequences(dataset) == {user: ["x", "y"] for user in ("007", "7", "ø")}


def test_a_key_that_the_parts_have_as_well_has_their_type(tmp_path: Path) -> None:
    items = {f"year={year}/a": {"item_id": [item], "year": [year]} for year, item in ((2023, "x"), (2024, "y"))}
    assert read(tmp_path, items=items).items.typed["year"].tolist() == [2023, 2024]


def test_folders_around_the_data_are_no_columns(tmp_path: Path) -> None:
    folder = tmp_path / "user_id=3" / "seed=1"
    dataset = read(folder, items={"a": ITEMS}, interactions=EVENTS)
    assert sequences(dataset) == {"u": ["x", "y"]} and not dataset.items.attributes
