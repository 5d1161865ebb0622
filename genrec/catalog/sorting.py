"""Sorting of rows that do not fit into memory: sorted runs on disk, merged part by part."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

_SAMPLES = 512  # rows of a run of the common size that are noted: they say where the parts of the result end
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
Columns = Mapping[str, np.ndarray]


def stable_order(values: np.ndarray) -> np.ndarray:
    """The order that sorts integers [n], equal ones as they stand: int64 [n]."""
    if not values.size:
        return np.empty(0, np.int64)
    least, places = int(values.min()), (values.size - 1).bit_length()
    if (int(values.max()) - least).bit_length() + places > 64:
        return np.argsort(values, kind="stable")
    # Each value with its place behind it is one number, and plain numbers are sorted some times as fast.
    packed = (values.astype(np.int64) - least).astype(np.uint64)
    packed <<= np.uint64(places)
    packed |= np.arange(values.size, dtype=np.uint64)
    packed.sort()
    packed &= np.uint64((1 << places) - 1)
    return packed.view(np.int64)


@dataclass(frozen=True)
class _Run:
    """Sorted rows, `size` of them. samples: the columns that they are sorted by, of every so many-th row.

    columns: the rows, if they stay in memory. places: else of each column its dtype, and where in its file it begins.
    """

    size: int
    samples: Columns
    columns: Columns
    places: Mapping[str, tuple[np.dtype, int]]


class Sorter:
    """Takes rows, column by column, and gives them back in order, without having many of them in memory.

    by: the columns that they are sorted by, the first one first, integers of one dtype each; rows that are equal there
    stay as they came. size: rows that are sorted at a time; twice as many may be in memory. folder: for the rows, each
    written and read once, in a new folder; None keeps them in memory. Other columns may be of any fixed width, also of
    another one each time.

    What is merged at a time is cut by sampled rows, each of which stands for as many as are between two samples. So it
    is bounded whatever the rows are: by `size`, and a sample's share for each run.
    """

    def __init__(self, by: Sequence[str], size: int, folder: Path | None = None) -> None:
        self._by, self._size, self._folder = tuple(by), size, folder
        self._step = max(1, size // _SAMPLES)
        self._waiting: list[Columns] = []
        self._runs: list[_Run] = []
        self._rows = self._sorted_rows = 0
        if folder is not None:
            folder.mkdir(parents=True)

    def __len__(self) -> int:
        return self._rows

    def add(self, columns: Columns) -> None:
        """Take rows: arrays [n] by name, the same names each time. Raises OSError if they cannot be written."""
        count = len(next(iter(columns.values())))
        for start in range(0, count, self._size):
            self._waiting.append({name: column[start : start + self._size] for name, column in columns.items()})
            self._rows += min(self._size, count - start)
            if self._rows - self._sorted_rows >= self._size:
                self._sort()

    def merged(self) -> Iterator[dict[str, np.ndarray]]:
        """All rows in order, part by part, once: they are forgotten behind it. Raises OSError."""
        if self._waiting:
            self._sort()
        cuts = self._cuts()
        for begin, end in pairwise(cuts):
            pieces = zip(self._runs, begin, end, strict=True)
            rows = [self._read(run, first, last) for run, first, last in pieces if first < last]
            if rows:
                yield self._in_order(rows) if len(rows) > 1 else dict(rows[0])
        self._runs.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def _sort(self) -> None:
        """Make a run of the rows that wait."""
        columns = self._in_order(self._waiting)
        self._waiting, self._sorted_rows = [], self._rows
        samples = {name: columns[name][:: self._step].copy() for name in self._by}
        size = len(next(iter(columns.values())))
        if self._folder is None:
            self._runs.append(_Run(size, samples, columns, {}))
            return
        places = {}
        for name, column in columns.items():
            with (self._folder / name).open("ab") as file:
                places[name] = column.dtype, file.tell()
                column.tofile(file)
        self._runs.append(_Run(size, samples, {}, places))

    def _in_order(self, rows: Sequence[Columns]) -> dict[str, np.ndarray]:
        columns = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
        if not self._by:
            return columns
        order = stable_order(columns[self._by[-1]])
        for name in reversed(self._by[:-1]):
            order = order.take(stable_order(columns[name].take(order)))
        return {name: column.take(order) for name, column in columns.items()}

    def _read(self, run: _Run, begin: int, end: int, names: Sequence[str] = ()) -> Columns:
        """Rows [begin, end) of a run; names: of the columns that are wanted, all by default."""
        if self._folder is None:
            return {name: column[begin:end] for name, column in run.columns.items()}
        found = {}
        for name in names or run.places:
            dtype, start = run.places[name]
            path = self._folder / name
            found[name] = np.fromfile(path, dtype, end - begin, offset=start + begin * dtype.itemsize)
            if len(found[name]) < end - begin:
                raise OSError(f"{path}: was cut while it was in use; leave the folder to this process")
        return found

    def _cuts(self) -> list[list[int]]:
        """How many rows of each run come before each part of the result, and at last all."""
        sizes = [run.size for run in self._runs]
        starts = [np.arange(0, size, self._step) for size in sizes]
        if not starts:
            return [[]]
        number = np.repeat(np.arange(len(starts)), [len(start) for start in starts])
        place = np.concatenate(starts)
        sampled = [np.concatenate([run.samples[name] for run in self._runs]) for name in self._by]
        order = np.lexsort([place, number, *reversed(sampled)])[:: max(1, self._size // self._step)][1:]
        before = []  # of each run, at each cut
        for own, run in enumerate(self._runs):
            read = self._read(run, 0, run.size, self._by) if self._by else {}
            keys = [read[name] for name in self._by]
            found = [_before(keys, run.size, [key[at] for key in sampled], own < number[at]) for at in order]
            before.append(np.where(number[order] == own, place[order], found))
        return [[0] * len(sizes), *np.array(before, np.int64).T.tolist(), sizes]


def _before(keys: Sequence[np.ndarray], size: int, values: Sequence[np.generic], equal: bool) -> int:
    """How many of `size` rows that are sorted by `keys` come before `values`; equal: those that are equal do, too."""
    begin, end = 0, size
    for key, value in zip(keys, values, strict=True):
        left, right = (int(np.searchsorted(key[begin:end], value, side=side)) for side in _SIDES)
        begin, end = begin + left, begin + right
    return end if equal else begin
