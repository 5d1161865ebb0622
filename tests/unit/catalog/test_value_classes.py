"""A scan by classes of values finds what a look at each value finds."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.catalog import value_classes
from genrec.catalog.columns import Column, Columns
from genrec.catalog.kinds import NO_TIME
from genrec.catalog.reordered import Reordered
from genrec.catalog.value_classes import ABSENT, FEWEST, OTHERS, classes_of
from genrec.rules import matching
from genrec.rules.bound import Among, Between, Inverse, Test

NUMBERS = st.sampled_from([-1e300, -3.5, -0.0, 0.0, 5e-324, 1.0, np.nextafter(1.0, 2.0), 2.5, 1e300]).map(float)
TIMES = st.sampled_from([NO_TIME + 1, -5, 0, 1, 2, 1_764_000_000_000_000, 2**62, 2**63 - 1])
LISTS = st.lists(st.sampled_from(["a", "b", "c", "ä"]), max_size=3)


def with_classes(column: Column, classes: int) -> Column:
    with patch.object(value_classes, "_CLASSES", classes), patch.object(value_classes, "_COMMON", 0.0):
        return replace(column, classes=classes_of(column.kind, column.values, column.offsets, fewest=0))


@st.composite
def ranges(draw: st.DrawFn, ends: st.SearchStrategy[Any]) -> Between:
    low, high = draw(ends | st.just(-math.inf)), draw(ends | st.just(math.inf))
    return Between("a", low, high, draw(st.booleans()), draw(st.booleans()))


@st.composite
def columns_and_tests(draw: st.DrawFn) -> tuple[Column, Test]:
    kind = draw(st.sampled_from(["number", "timestamp", "strings"]))
    if kind == "strings":
        column = Column.of_values(kind, draw(st.lists(LISTS, min_size=1, max_size=40)))
        test: Test = Among("a", tuple(draw(st.lists(st.sampled_from([b"a", b"c", b"new"]), min_size=1, max_size=3))))
    else:
        values, absent, dtype = (NUMBERS, math.nan, np.float64) if kind == "number" else (TIMES, NO_TIME, np.int64)
        found = draw(st.lists(values | st.just(absent), min_size=1, max_size=40))
        column = Column(kind, np.array(found, dtype))
        test = draw(ranges(values) | st.lists(values, min_size=1, max_size=3).map(lambda one: Among("a", tuple(one))))
    return column, draw(st.sampled_from([test, Inverse(test)]))


@settings(max_examples=400)
@given(columns_and_tests(), st.sampled_from([2, 3, 8, 254]), st.data())
def test_classes_find_what_values_find(drawn: tuple[Column, Test], classes: int, data: st.DataObject) -> None:
    column, test = drawn
    count = len(column)
    exact = matching.matcher(test, Columns({"a": column}, count))
    by_classes = matching.matcher(test, Columns({"a": with_classes(column, classes)}, count))
    begin, end = sorted((data.draw(st.integers(0, count)), data.draw(st.integers(0, count))))
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), np.int64)
    with patch.object(matching, "_MANY", 0), patch.object(matching, "_FEW", data.draw(st.sampled_from([0, 4]))):
        assert by_classes(slice(begin, end)).tolist() == exact(slice(begin, end)).tolist()
        assert by_classes(rows).tolist() == exact(rows).tolist()


@given(st.lists(LISTS, min_size=1, max_size=40))
def test_lists_with_one_hash_are_told_apart(lists: list[list[str]]) -> None:
    column = Column.of_values("strings", lists)

    def one_for_all(values: np.ndarray, begin: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return np.full(sizes.size, 7, np.uint64)

    with patch.object(value_classes, "_hashes", one_for_all):
        found = with_classes(column, 254).classes
    assert found is not None and found.offsets is not None
    codes = np.split(column.values, column.offsets[1:-1])  # type: ignore[index]
    common = found.bounds.tolist()
    for own, of in zip(codes, found.of.tolist(), strict=True):
        assert (of == ABSENT) == (own.size == 0)
        assert of in (ABSENT, OTHERS) or own.tolist() == common


def test_a_value_of_very_many_items_is_a_class_of_its_own() -> None:
    values = np.where(np.arange(100_000) % 10 < 3, 9.99, np.linspace(0, 20, 100_000))
    found = classes_of("number", values, None)
    assert found is not None
    lows, highs = found.ranges()
    own = np.unique(found.of[values == 9.99])
    assert own.size == 1 and lows[own[0] - 1] == highs[own[0] - 1] == 9.99
    sizes = np.bincount(found.of, minlength=256)
    assert np.delete(sizes, own).max() < 2 * 100_000 / 150  # the others are of about one size


def test_lists_that_hardly_occur_twice_get_no_classes() -> None:
    words = np.char.add("w", np.arange(1000).astype(str)).tolist()
    drawn = np.random.default_rng(0).integers(0, 1000, (FEWEST, 2))
    column = Column.of_values("strings", [[words[one], words[other]] for one, other in drawn.tolist()])
    assert classes_of(column.kind, column.values, column.offsets) is None


@pytest.fixture(scope="module")
def long() -> Columns:
    """Of as many items as need classes."""
    rng = np.random.default_rng(1)
    began = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)
    times = [
        None if day == 0 else began + datetime.timedelta(days=day) for day in rng.integers(0, 300, FEWEST).tolist()
    ]
    kinds = {"price": "number", "released": "timestamp", "markets": "strings", "brand": "string", "stock": "boolean"}
    values = {
        "price": rng.exponential(20.0, FEWEST).tolist(),
        "released": times,
        "markets": [["de", "fr", "jp"][:size] for size in rng.integers(0, 4, FEWEST).tolist()],
        "brand": [f"b{number}" for number in rng.integers(0, 9, FEWEST).tolist()],
        "stock": (rng.random(FEWEST) < 0.5).tolist(),
    }
    return Columns.of_values(kinds, values)


def test_long_columns_have_classes_on_disk_however_they_are_written(long: Columns, tmp_path: Path) -> None:
    long.save(tmp_path / "saved")
    reordered = Reordered(long.kinds, tmp_path / "scratch")
    reordered.add(long.slice(0, 1000))
    reordered.add(long.slice(1000, FEWEST))
    reordered.write(tmp_path / "written", np.arange(FEWEST, dtype=np.int32), 10_000)
    for folder in ("saved", "written"):
        found = Columns.load(tmp_path / folder, FEWEST)
        for name, column in found.items():
            assert (column.classes is not None) == (name in ("price", "released", "markets"))
            if column.classes is None:
                continue
            made = classes_of(column.kind, column.values, column.offsets)
            assert made is not None
            assert np.array_equal(column.classes.of, made.of)
            assert np.array_equal(column.classes.bounds, made.bounds)
        assert found.take(np.arange(5))["price"].classes is None  # they would be those of other items
        assert found.slice(0, 5)["markets"].classes is None
        some = Between("price", 10.0, 11.0)
        prices = found["price"].values
        assert np.array_equal(matching.matcher(some, found)(slice(0, FEWEST)), (prices >= 10) & (prices <= 11))


def test_columns_without_classes_are_read_as_before(long: Columns, tmp_path: Path) -> None:
    long.save(tmp_path / "old")
    for path in [*(tmp_path / "old").glob("*.classes.npy"), *(tmp_path / "old").glob("*.bound*.npy")]:
        path.unlink()
    found = Columns.load(tmp_path / "old", FEWEST)
    assert all(column.classes is None for column in found.values())
    assert found["markets"].tolist() == long["markets"].tolist()


def test_a_damaged_file_of_classes_is_named(long: Columns, tmp_path: Path) -> None:
    long.save(tmp_path / "damaged")
    path = tmp_path / "damaged" / "0.classes.npy"
    np.save(path, np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"0\.classes\.npy"):
        Columns.load(tmp_path / "damaged", FEWEST)
