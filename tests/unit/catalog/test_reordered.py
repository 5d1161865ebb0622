"""Columns that are reordered on disk are those that are reordered in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.catalog import CatalogBase, Columns, SemanticIdSpace
from genrec.catalog.reordered import Reordered
from tests.unit.catalog.test_columns import ALL, TABLE, of, rows_in

SPACE = SemanticIdSpace((3, 2))


@settings(max_examples=60)
@given(st.lists(TABLE, max_size=3), st.integers(1, 5), st.randoms(use_true_random=False))
def test_rows_come_out_in_the_order_asked_for(tables: list[list[dict[str, Any]]], part: int, random: Any) -> None:
    rows = [row for table in tables for row in table]
    order = list(range(len(rows)))
    random.shuffle(order)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reordered = Reordered(ALL, folder / "scratch")
        for table in tables:
            reordered.add(of(table))
        reordered.write(folder / "made", np.array(order, np.int32), part)
        found = Columns.load(folder / "made", len(rows))
        assert rows_in(found) == [rows[at] for at in order]
        every = Columns.concatenate([Columns.empty(ALL), *map(of, tables)])
        for kind, column in every.items():
            assert found[kind].words.tolist() == column.words.tolist()
            assert found[kind].values.dtype == column.values.dtype
        assert [path.name for path in folder.iterdir()] == ["made"]


@settings(max_examples=40)
@given(st.lists(TABLE, max_size=3), st.data())
def test_a_base_that_is_written_has_the_attributes_of_one_that_is_built(tables: list, data: st.DataObject) -> None:
    count, begin, batches = sum(map(len, tables)), 0, []
    codes = np.array(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)), np.int64)
    available = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    ids = np.array([f"i{number}".encode() for number in range(count)] or [b"x"], np.bytes_)[:count]
    items = {"item_ids": ids, "codes": codes, "popularity": codes % 2, "available": available}
    for table in tables:
        end = begin + len(table)
        batches.append({name: array[begin:end] for name, array in items.items()} | {"columns": of(table)})
        begin = end
    every = Columns.concatenate([Columns.empty(ALL), *map(of, tables)])
    built = CatalogBase.build(SPACE, *items.values(), every)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = CatalogBase.write(folder / "base", SPACE, batches, folder / "scratch", 3, ALL)
        assert not list((folder / "scratch").iterdir())
        mapped = CatalogBase.load(folder / "base", SPACE)
        for one in (written, mapped):
            assert one.item_ids.tolist() == built.item_ids.tolist()
            assert rows_in(one.columns) == rows_in(built.columns)
