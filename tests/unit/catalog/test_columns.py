"""Columns against plain Python values."""

from __future__ import annotations

import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import KINDS, Column, Columns
from genrec.catalog.columns import code_type
from genrec.catalog.kinds import check_kinds

TEXT = st.text(max_size=5).filter(lambda text: not text.endswith("\0"))
VALUES = {
    "string": st.none() | st.sampled_from(["", "a", "aé", "b"]) | TEXT,
    "number": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9).map(float),
    "boolean": st.none() | st.booleans(),
    "timestamp": st.none() | st.datetimes(timezones=st.just(timezone.utc)),
    "strings": st.lists(TEXT | st.sampled_from(["x", "y"]), max_size=3),
}
TABLE = st.lists(st.fixed_dictionaries(VALUES), max_size=12)
ALL = {kind: kind for kind in KINDS}


def of(rows: list[dict[str, Any]]) -> Columns:
    return Columns.of_values(ALL, {name: [row[name] for row in rows] for name in ALL}, len(rows))


def rows_in(columns: Columns) -> list[dict[str, Any]]:
    listed = {name: column.tolist() for name, column in columns.items()}
    return [{name: values[at] for name, values in listed.items()} for at in range(columns.count)]


@given(TABLE, st.data())
def test_columns_hold_what_they_were_made_of(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    columns = of(rows)
    assert rows_in(columns) == rows and columns.kinds == ALL
    at = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9) if rows else st.just([]))
    taken = columns.take(np.array(at, np.int64))
    assert rows_in(taken) == [rows[row] for row in at]
    begin, end = sorted((data.draw(st.integers(0, len(rows))), data.draw(st.integers(0, len(rows)))))
    assert rows_in(columns.slice(begin, end)) == rows[begin:end]
    joined = Columns.concatenate([taken, columns.slice(begin, end), Columns.empty(ALL, 2), columns])
    nothing = {name: [] if name == "strings" else None for name in ALL}
    assert rows_in(joined) == [rows[row] for row in at] + rows[begin:end] + [nothing] * 2 + rows
    with tempfile.TemporaryDirectory() as folder:
        joined.save(Path(folder) / "attributes")
        mapped = Columns.load(Path(folder) / "attributes", joined.count)
    assert rows_in(mapped) == rows_in(joined)
    for column in (*joined.values(), *mapped.values()):
        assert (column.words[1:] > column.words[:-1]).all()
        if column.kind in ("string", "strings"):
            assert column.values.dtype == code_type(len(column.words))
    assert not any(column.values.flags.writeable for column in mapped.values())


@given(st.lists(TEXT), st.lists(TEXT))
def test_codes_of_texts_find_their_items(held: list[str], asked: list[str]) -> None:
    column = Column.of_values("string", held)
    wanted = [text.encode() for text in [*asked, *held]] + [text.encode() + b"\0" for text in held]
    codes = column.codes_of(wanted)
    for text, code in zip(wanted, codes.tolist(), strict=True):
        assert [one.encode() == text for one in held] == (column.values == code).tolist() if code else True
        assert bool(code) == (text in [one.encode() for one in held])


def test_codes_grow_with_the_words() -> None:
    many = Column.of_values("string", [str(number) for number in range(70_000)])
    assert many.values.dtype == np.int32
    some = many.take(np.arange(60_000))
    assert some.values.dtype == np.uint16 and len(some.words) == 60_000
    assert Column.concatenate([some.take(np.arange(200)), some.take(np.arange(100))]).values.dtype == np.uint8


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("string", 3, "attribute 'a', string: value 1, '3', is no string"),
        ("string", "x" * 257, "257 bytes; a string has at most 256"),
        ("string", "x\0", "ends in NUL"),
        ("string", "\ud800", "not valid Unicode"),
        ("number", "3", "'3', is no number"),
        ("number", True, "is no number"),
        ("number", float("inf"), "not finite"),
        ("boolean", 1, "is not true or false"),
        ("timestamp", "2020", "is no datetime"),
        ("strings", "ab", "is no list of strings"),
        ("strings", ["a", None], "is no list of strings"),
    ],
)
def test_values_of_another_kind_are_refused(kind: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns.of_values({"a": kind}, {"a": [None, value]})


def test_a_time_without_a_zone_is_utc() -> None:
    plain, zoned = datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    assert Column.of_values("timestamp", [plain]).tolist() == [zoned]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"": "string"}, "1 to 64 characters"),
        ({"x" * 65: "string"}, "1 to 64 characters"),
        ({"\ud800": "string"}, "not valid Unicode"),
        ({"a": "text"}, "has kind 'text'; the kinds are string, number"),
        ({str(number): "string" for number in range(65)}, "65 attributes are more than 64"),
    ],
)
def test_names_and_kinds_have_limits(kinds: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_kinds(kinds)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    columns = Columns.of_values({"a": "string", "b": "strings"}, {"a": ["x", None], "b": [["y"], []]})
    columns.save(tmp_path)
    with pytest.raises(ValueError, match=r"0\.values\.npy: has shape \(2,\), expected \(3\)"):
        Columns.load(tmp_path, 3)
    (tmp_path / "1.words.npy").unlink()
    with pytest.raises(ValueError, match=r"1\.words\.npy: cannot be read"):
        Columns.load(tmp_path, 2)
    (tmp_path / "kinds.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"kinds\.json: cannot be read as the kinds"):
        Columns.load(tmp_path, 2)
    assert not Columns.load(tmp_path / "none", 2)
