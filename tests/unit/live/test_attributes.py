"""Attributes as JSON objects against what Python's JSON says."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.catalog import Column, Columns
from genrec.live import attributes
from genrec.live.arrow_columns import as_column, kind_of
from genrec.live.attributes import parse, texts_of

KINDS = {"brand": "string", "price": "number", "in_stock": "boolean", "since": "timestamp", "tags": "strings"}
NOTHING: dict[str, Any] = {"brand": None, "price": None, "in_stock": None, "since": None, "tags": []}
TEXT = st.text(max_size=6).filter(lambda text: not text.endswith("\0")) | st.sampled_from(
    ['"', "\\", "NaN", "[{", "\n"]
)
DESCRIBED = st.fixed_dictionaries(
    {
        "brand": st.none() | TEXT,
        "price": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "in_stock": st.none() | st.booleans(),
        "since": st.none() | st.datetimes(timezones=st.just(timezone.utc)),
        "tags": st.lists(TEXT, max_size=3),
    }
)
DAY = datetime(2024, 1, 2, tzinfo=timezone.utc)
OTHER = st.dictionaries(st.sampled_from(["x", "y", "Nn"]), st.none() | st.just({"a": [1]}) | st.integers() | TEXT)


def texts(*values: str | None) -> pa.Array:
    return pa.array(values, pa.large_string())


def said_by(columns: Columns) -> list[dict[str, Any]]:
    lists = {name: column.tolist() for name, column in columns.items()}
    return [{name: values[at] for name, values in lists.items()} for at in range(columns.count)]


@given(st.lists(st.none() | st.tuples(DESCRIBED, OTHER, st.booleans(), st.booleans()), max_size=8))
def test_texts_say_what_was_written(rows: list) -> None:
    written = [
        row and json.dumps(row[0] | row[1], default=datetime.isoformat, ensure_ascii=row[2], indent=row[3] or None)
        for row in rows
    ]
    found = parse(texts(*written), KINDS)
    assert not found.wrong and found.given.tolist() == [row is not None for row in rows]
    expected = [NOTHING if row is None else {name: row[0][name] for name in KINDS} for row in rows]
    assert said_by(found.columns) == expected


@given(st.lists(DESCRIBED, max_size=8))
def test_what_is_written_is_read_again(rows: list[dict]) -> None:
    columns = Columns.of_values(KINDS, {name: [row[name] for row in rows] for name in KINDS}, len(rows))
    written = texts_of(columns)
    assert [set(json.loads(text)) for text in written.to_pylist()] == [
        {name for name, value in row.items() if value is not None and value != []} for row in rows
    ]
    assert said_by(parse(written, KINDS).columns) == rows


PIECES = ["{", "}", "[", "]", ",", ":", '"brand"', '"price"', '"x"', '"', "\\", "1", "1e5", "NaN", "-Infinity", "true"]
PIECES += [
    "null",
    '"tags"',
    '["a"]',
    " ",
    "\n",
    "\0",
    "01",
    ".5",
    "{}",
    '{"price":1}',
    '"\\ud800"',
    "[[1]]",
    '"in_stock"',
]


@settings(max_examples=400)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), min_size=1, max_size=3))
def test_lines_that_are_read_together_say_what_they_say_alone(lines: list[str]) -> None:
    """A commit counts or does not, whatever it is read together with."""
    wrapped = [*lines, *("{" + line + "}" for line in lines)]
    together = parse(texts(*wrapped, "{}"), KINDS)
    for at, line in enumerate(wrapped):
        alone, problem = attributes._read_alone(line, KINDS)
        assert bool(problem) == (at in together.wrong), line
        if not problem:
            assert said_by(together.columns)[at] == NOTHING | alone
        assert (at in together.wrong) == bool(parse(texts(line), KINDS).wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"attributes '\[1\]' are no JSON object"),
        ("", "are no JSON object"),
        ('{"price": NaN}', "are no JSON object"),
        ('{"price": "12 euro"}', """attribute 'price' is "12 euro", which is no number"""),
        ('{"price": true}', "attribute 'price' is true, which is no number"),
        ('{"price": 1e400}', "attribute 'price' is Infinity, which is no number"),
        ('{"in_stock": 1}', "attribute 'in_stock' is 1.0, which is no boolean"),
        ('{"brand": "%s"}' % ("x" * 257), "attribute 'brand' is \"xxx.*, which is no string"),
        ('{"brand": "x\\u0000"}', "which is no string"),
        ('{"brand": "\\ud800"}', "which is no string"),
        ('{"since": "2024-02-30"}', "attribute 'since' is \"2024-02-30\", which is no timestamp"),
        ('{"since": "yesterday"}', "which is no timestamp"),
        ('{"since": ""}', "which is no timestamp"),
        ('{"since": "0000-01-01"}', "which is no timestamp"),
        ('{"since": 1717156800}', "which is no timestamp"),
        ('{"tags": "a"}', "attribute 'tags' is \"a\", which is no strings"),
        ('{"tags": ["a", null]}', "which is no strings"),
        ('{"x": ' + "[" * 101 + "]" * 101 + "}", "more than 100 lists or objects in each other"),
    ],
)
def test_what_is_of_another_kind_is_said(text: str, message: str) -> None:
    found = parse(texts("{}", text, None), KINDS)
    assert list(found.wrong) == [1] and re.search(message, found.wrong[1])


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2024-05-31", 0),
        ("2024-05-31T12:00", 12),
        ("2024-05-31 12:00:00", 12),
        ("2024-05-31T12:00:00.000000999z", 12),
        ("2024-05-31t12:00:00+02:00", 10),
        ("2024-05-31T12:00-0130", 13.5),
    ],
)
def test_times_are_iso_8601_in_utc_if_without_a_zone(text: str, hour: float) -> None:
    column, bad = as_column(texts(text, "2024-02-30", None), "timestamp")
    moment = datetime(2024, 5, 31, int(hour), 30 if hour % 1 else 0, tzinfo=timezone.utc)
    assert column.tolist() == [moment, None, None] and bad.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("array", "kind", "values"),
    [
        (texts("a", "", None).dictionary_encode(), "string", ["a", None, None]),
        (pa.array([1, None, -3]), "number", [1.0, None, -3.0]),
        (pa.array([1.5, float("nan"), None], pa.float32()), "number", [1.5, None, None]),
        (pa.array([1, 2], pa.decimal128(5, 2)), "number", [1.0, 2.0]),
        (texts(" 1.5 ", "-2e3", ""), "number", [1.5, -2000.0, None]),
        (pa.array([True, None]), "boolean", [True, None]),
        (texts("True", "0", ""), "boolean", [True, False, None]),
        (pa.array([1, 0, None]), "boolean", [True, False, None]),
        (pa.array([DAY.replace(tzinfo=None)], pa.timestamp("ns")), "timestamp", [DAY]),
        (pa.array([19724], pa.date32()), "timestamp", [DAY]),
        (pa.array([DAY], pa.timestamp("s", "Europe/Berlin")), "timestamp", [DAY]),
        (pa.array([["a", "b"], [], None]), "strings", [["a", "b"], [], []]),
        (texts("a, b", '["c", "d,e"]', "", None), "strings", [["a", "b"], ["c", "d,e"], [], []]),
        (pa.array([1, 2]), "string", ["1", "2"]),
        (pa.nulls(2), "number", [None, None]),
    ],
)
def test_arrow_columns(array: pa.Array, kind: str, values: list) -> None:
    column, bad = as_column(array, kind)
    assert column.kind == kind and column.tolist() == values and not bad.any()


@pytest.mark.parametrize(
    ("array", "kind", "bad"),
    [
        (texts("1", "one", "nan", None), "number", [False, True, True, False]),
        (pa.array([1.0, float("inf")]), "number", [False, True]),
        (texts("yes", "true"), "boolean", [True, False]),
        (pa.array([0.5, 1.0, 2.0]), "boolean", [True, False, True]),
        (texts("x" * 257, "é" * 128, "a\0"), "string", [True, False, True]),
        (pa.array([["a"], ["b\0"], ["c"], ["d", None], ["e"]]), "strings", [False, True, False, True, False]),
        (texts("[1]", "[a", '["a"]'), "strings", [True, True, False]),
    ],
)
def test_values_that_are_of_another_kind_are_told(array: pa.Array, kind: str, bad: list[bool]) -> None:
    column, found = as_column(array, kind)
    assert found.tolist() == bad
    good = column.take(np.flatnonzero(~found))
    expected = [value for value, wrong in zip(as_column(array, kind)[0].tolist(), bad, strict=True) if not wrong]
    assert good.tolist() == expected
    assert all(value in (None, []) for value in column.take(np.flatnonzero(found)).tolist())
    if kind == "strings":
        assert Column.concatenate([column, column]).tolist() == column.tolist() * 2


def test_types_have_their_kinds() -> None:
    kinds = {pa.string(): "string", pa.int8(): "number", pa.bool_(): "boolean", pa.date32(): "timestamp"}
    kinds |= {pa.list_(pa.string()): "strings", pa.dictionary(pa.int8(), pa.string()): "string"}
    assert {one: kind_of(one) for one in kinds} == kinds
    assert [kind_of(one) for one in (pa.binary(), pa.list_(pa.int8()), pa.struct([]), pa.time32("s"), pa.null())] == [
        None
    ] * 5
    with pytest.raises(TypeError, match="cannot be made timestamp"):
        as_column(pa.array([1]), "timestamp")
