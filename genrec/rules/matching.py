"""Which items fulfil a test: the one place where that is decided, for whole columns and for a few rows alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce

import numpy as np

from genrec.catalog import CatalogView
from genrec.catalog.columns import Column, Columns
from genrec.catalog.kinds import NO_TIME, is_absent
from genrec.catalog.ragged import runs
from genrec.catalog.value_classes import OTHERS
from genrec.rules.bound import Among, Between, Every, Inverse, Some, Test

Rows = np.ndarray | slice
Match = Callable[[Rows], np.ndarray]
OfClasses = Callable[[np.ndarray], np.ndarray]
_LIST = 64  # bytes that are as dear to read as a list of texts
_SPARSE = 8  # rows for each one that is left: from there on it is cheaper to look at these one by one
_FEW = 4  # values that are compared one by one; more are looked up in a table
_MANY = 1024  # rows from which on their classes are looked at first
_MOST_KEPT = 64


def matcher(test: Test, columns: Columns) -> Match:
    """Which rows of `columns` fulfil the test: rows (integers [m], or a slice from .. to) -> bool [m].

    An attribute that an item lacks has no value: nothing holds of it, and so every `Inverse` does.
    """
    if isinstance(test, Every):
        dear_last = sorted(test.tests, key=lambda one: _bytes_of(one, columns))
        return partial(_every, [matcher(one, columns) for one in dear_last])
    if isinstance(test, Some):
        return partial(_joined, np.logical_or, [matcher(one, columns) for one in test.tests])
    if isinstance(test, Inverse):
        inner = matcher(test.test, columns)
        return lambda rows: ~inner(rows)
    column = columns[test.attribute]
    exact = _exactly(test, column)
    if column.classes is None:
        return exact
    every, some = map(_class_matcher, _held(test, column))
    return partial(_by_classes, column.classes.of, every, some, exact)


def _exactly(test: Among | Between, column: Column) -> Match:
    """A matcher that looks at each value."""
    if isinstance(test, Between):
        return partial(_between, column.values, test, column.kind == "timestamp")
    if column.kind in ("string", "strings"):
        codes = column.codes_of(test.values)
        codes = codes[codes > 0].astype(column.values.dtype)
        return partial(_any_among, column, codes) if column.kind == "strings" else partial(_among, column.values, codes)
    return partial(_among, column.values, np.array(test.values, column.values.dtype))


def matches(test: Test, view: CatalogView, rows: np.ndarray, kept: Kept | None = None) -> np.ndarray:
    """Which items of a version fulfil the test: existing rows (integers [m]) -> bool [m]."""
    found = np.empty(rows.size, bool)
    for at, columns, own in view.attributes_of(rows):
        found[at] = (kept or matcher)(test, columns)(own)
    return found


class Kept:
    """Matchers that were made lately: looking texts up in a dictionary takes longer than matching a few rows."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, Test], tuple[Columns, Match]] = {}

    def __call__(self, test: Test, columns: Columns) -> Match:
        key = id(columns), test
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _MOST_KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = found = columns, matcher(test, columns)  # with the columns, so that the id stays theirs
        return found[1]


def values_of(name: str, view: CatalogView, rows: np.ndarray) -> np.ndarray:
    """Numbers that are equal where items have the same value of an attribute that is no list.

    rows: existing ones, integers [m]. Returns int64 [m], -1 for items without a value.
    """
    parts = [(at, columns[name], columns[name].values[own]) for at, columns, own in view.attributes_of(rows)]
    numbers = np.full(rows.size, -1)
    if len(parts) == 1 and parts[0][1].kind in ("string", "boolean"):  # the codes of one dictionary are such numbers
        at, column, stored = parts[0]
        numbers[at] = stored.astype(np.int64) - (column.kind == "string")
        return numbers
    absent = np.ones(rows.size, bool)
    values: np.ndarray = np.empty(rows.size, object)
    for at, column, stored in parts:
        there = ~is_absent(column.kind, stored)
        absent[at[there]] = False
        stored = stored[there]
        values[at[there]] = column.words[stored.astype(np.int64) - 1] if column.kind == "string" else stored
    numbers[~absent] = np.unique(values[~absent], return_inverse=True)[1]
    return numbers


def numbers_of(name: str, view: CatalogView, rows: np.ndarray) -> np.ndarray:
    """Values of a number or timestamp attribute of existing rows (integers [m]): float64 [m], NaN where absent."""
    found = np.full(rows.size, math.nan)
    for at, columns, own in view.attributes_of(rows):
        column = columns[name]
        stored = column.values[own]
        found[at] = np.where(is_absent(column.kind, stored), math.nan, stored)
    return found


def _bytes_of(test: Test, columns: Columns) -> int:
    """What a test reads of an item, about: it takes as long."""
    if isinstance(test, (Every, Some)):
        return sum(_bytes_of(one, columns) for one in test.tests)
    if isinstance(test, Inverse):
        return _bytes_of(test.test, columns)
    column = columns[test.attribute]
    if column.classes is not None:
        return 1
    return _LIST if column.offsets is not None else column.values.itemsize


def _every(parts: list[Match], rows: Rows) -> np.ndarray:
    """Where all hold; where few rows are left of many, the rest of the tests looks at these alone."""
    found = parts[0](rows)
    for number, part in enumerate(parts[1:], 1):
        if isinstance(rows, slice) and np.count_nonzero(found) * _SPARSE < found.size:
            left = np.flatnonzero(found)
            found[left] = _every(parts[number:], rows.start + left)
            return found
        np.logical_and(found, part(rows), out=found)
    return found


def _joined(join: np.ufunc, parts: list[Match], rows: Rows) -> np.ndarray:
    def both(found: np.ndarray, part: Match) -> np.ndarray:
        return join(found, part(rows), out=found)

    return reduce(both, parts[1:], parts[0](rows))


def _among(stored: np.ndarray, wanted: np.ndarray, rows: Rows) -> np.ndarray:
    values = stored[rows]
    if wanted.size > _FEW:
        if values.dtype.kind == "f" or values.dtype.itemsize > 4:
            return np.isin(values, wanted)
        table = np.zeros(1 + max(int(wanted.max()), int(values.max(initial=0))), bool)
        table[wanted] = True
        return table[values]
    found = np.zeros(values.shape, bool)
    for value in wanted:
        found |= values == value
    return found


def _any_among(column: Column, wanted: np.ndarray, rows: Rows) -> np.ndarray:
    assert column.offsets is not None
    if isinstance(rows, slice):
        ends = column.offsets[rows.start : rows.stop + 1]
        found = np.zeros(ends.size - 1, bool)
        at = np.flatnonzero(_among(column.values, wanted, slice(ends[0], ends[-1])))
        found[np.searchsorted(ends, at + ends[0], side="right") - 1] = True
        return found
    begin = column.offsets[rows]
    at, source = runs(begin, column.offsets[rows + 1] - begin)
    found = np.zeros(rows.size, bool)
    found[source[_among(column.values, wanted, at)]] = True
    return found


def _held(test: Among | Between, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Which classes of a column's values fulfil a test as a whole, and which in part: bool [256] each."""
    classes = column.classes
    assert classes is not None
    every, some = np.zeros((2, 256), bool)
    if classes.offsets is not None:
        lists = Column(column.kind, classes.bounds, column.words, classes.offsets)
        every[1 : 1 + len(lists)] = _exactly(test, lists)(slice(0, len(lists)))
        some[OTHERS] = True
        return every, some
    lows, highs = classes.ranges()
    own = slice(1, 1 + lows.size)
    if isinstance(test, Between):
        at_ends = _exactly(test, Column(column.kind, np.concatenate([lows, highs])))(slice(0, 2 * lows.size))
        every[own] = at_ends[: lows.size] & at_ends[lows.size :]
        # Bounds of times may be infinite: as numbers of 64 bits they are not, and as floats they would be rounded.
        low, high = (lows.dtype.type(min(max(end, lows[0]), highs[-1])) for end in (test.low, test.high))
        some[own] = (highs >= low) & (lows <= high)
    else:
        wanted = np.array(test.values, lows.dtype)
        some[np.searchsorted(classes.bounds, wanted, side="right") + 1] = True
        every[own] = some[own] & (lows == highs)
    return every, some & ~every


def _by_classes(classes: np.ndarray, every: OfClasses, some: OfClasses, exact: Match, rows: Rows) -> np.ndarray:
    """Many rows by their classes, with a look at the values where these do not tell."""
    if not isinstance(rows, slice) and rows.size < _MANY:
        return exact(rows)
    own = classes[rows]
    unsure = np.flatnonzero(some(own))
    if unsure.size * _FEW > own.size:
        return exact(rows)
    found = every(own)
    found[unsure] = exact(rows.start + unsure if isinstance(rows, slice) else rows[unsure])
    return found


def _class_matcher(wanted: np.ndarray) -> OfClasses:
    """What tells which items are of wanted classes, bool [256]: their classes, uint8 [m] -> bool [m]."""
    numbers = np.flatnonzero(wanted).astype(np.uint8)
    if not numbers.size:
        return lambda own: np.zeros(own.shape, bool)
    if numbers[-1] - numbers[0] + 1 == numbers.size:
        return lambda own: own - numbers[0] <= numbers[-1] - numbers[0]  # what is below turns round, and is large
    if numbers.size <= _FEW:
        return lambda own: reduce(np.logical_or, [own == number for number in numbers])
    # `bytes.translate` looks up a byte at a time; an index of numpy would be made of eight bytes an item first.
    table = wanted.tobytes()
    return lambda own: np.frombuffer(bytearray(own).translate(table), bool)


def _between(stored: np.ndarray, test: Between, is_time: bool, rows: Rows) -> np.ndarray:
    values = stored[rows]  # NaN, of an absent number, lies in no range
    if is_time and math.isfinite(test.low) and math.isfinite(test.high):
        low, high = int(test.low) + test.low_open, int(test.high) - test.high_open
        if low > high:
            return np.zeros(values.shape, bool)
        return (values - low).view(np.uint64) <= np.uint64(high - low)  # what is below turns round, and is large
    if is_time and test.low == -math.inf:  # the smallest number is that of an absent time
        found = values != NO_TIME
    else:
        found = values > test.low if test.low_open else values >= test.low
    if test.high < math.inf:
        found &= values < test.high if test.high_open else values <= test.high
    elif not is_time and test.low == -math.inf:
        found &= ~np.isnan(values)
    return found
