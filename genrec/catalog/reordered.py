"""Attributes that come part by part and are wanted in another order, without having them in memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from genrec.arrays import NewArray, in_folder
from genrec.catalog.columns import FIXED, Columns, merged_words, note_kinds, used_words
from genrec.catalog.kinds import STRINGS, Kinds, is_text
from genrec.catalog.ragged import runs
from genrec.catalog.value_classes import classes_of


@dataclass
class _Waiting:
    """One attribute of all parts so far. ends: of each part's values. words: of each part, those in use."""

    values: Path
    sizes: Path
    ends: list[int] = field(default_factory=lambda: [0])
    words: list[np.ndarray] = field(default_factory=list)


class Reordered:
    """Takes columns of `kinds`, and writes them in another order.

    In memory are the words of each part, and what `part` items have. scratch: a folder to make, with about as many
    bytes as the columns have; it is gone in the end.
    """

    def __init__(self, kinds: Kinds, scratch: Path) -> None:
        self._kinds, self._scratch = dict(kinds), scratch
        scratch.mkdir(parents=True)
        names = (f"{place}" for place in range(len(kinds)))
        self._waiting = [_Waiting(scratch / f"{name}.values", scratch / f"{name}.sizes") for name in names]

    def add(self, columns: Columns) -> None:
        """Take a part of these kinds. Raises OSError if it cannot be written."""
        for name, waiting in zip(self._kinds, self._waiting, strict=True):
            column = columns[name]
            values = column.values
            if is_text(column.kind):
                used = used_words(values, column.words)
                become = np.zeros(len(column.words) + 1, np.int32)
                become[used + 1] = np.arange(1, used.size + 1)
                values = become[values]
                waiting.words.append(column.words[used])
            _append(waiting.values, values)
            waiting.ends.append(waiting.ends[-1] + len(values))
            if column.offsets is not None:
                _append(waiting.sizes, np.diff(column.offsets))

    def write(self, folder: Path, order: np.ndarray, part: int) -> None:
        """Write what was taken as `Columns.save` does. order: int [n], which item, as they came, each row is.

        part: items that are reordered at a time. Raises OSError.
        """
        new = in_folder(folder)
        for place, (kind, waiting) in enumerate(zip(self._kinds.values(), self._waiting, strict=True)):
            if is_text(kind):
                values = self._with_common_words(place, waiting, new)
            else:
                values = _mapped(waiting.values, FIXED[kind])
            found = new(f"{place}.values", values.shape, values.dtype)
            if kind != STRINGS:
                for start in range(0, len(order), part):
                    found[start : start + part] = values[order[start : start + part]]
                classes_of(kind, found, None, new, place)
                continue
            sizes = _mapped(waiting.sizes, np.int64)
            begins = in_folder(self._scratch)(f"{place}.begins", sizes.shape, np.int64)
            np.cumsum(sizes[:-1], out=begins[1:])
            offsets = new(f"{place}.offsets", (len(order) + 1,), np.int64)
            for start in range(0, len(order), part):
                rows = order[start : start + part]
                ends = offsets[start] + sizes[rows].cumsum()
                offsets[start + 1 : start + 1 + rows.size] = ends
                at, _ = runs(begins[rows], sizes[rows])
                found[offsets[start] : ends[-1]] = values[at]
            classes_of(kind, found, offsets, new, place)
        if self._kinds:
            note_kinds(folder, self._kinds)
        shutil.rmtree(self._scratch)

    def _with_common_words(self, place: int, waiting: _Waiting, new: NewArray) -> np.ndarray:
        """Codes of the words of all parts, which are written; each part came with codes of its own."""
        words, moved = merged_words([(own, np.arange(len(own))) for own in waiting.words])
        new(f"{place}.words", words.shape, words.dtype)[:] = words
        came = _mapped(waiting.values, np.int32)
        dtype = moved[0].dtype if moved else np.dtype(np.uint8)
        codes = in_folder(self._scratch)(f"{place}.codes", came.shape, dtype)
        for become, (begin, end) in zip(moved, pairwise(waiting.ends), strict=True):
            codes[begin:end] = become[came[begin:end]]
        return codes


def _append(path: Path, values: np.ndarray) -> None:
    with path.open("ab") as file:
        np.ascontiguousarray(values).tofile(file)


def _mapped(path: Path, dtype: type) -> np.ndarray:
    """What was appended, mapped."""
    if not path.exists() or not path.stat().st_size:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r"))
