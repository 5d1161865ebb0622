"""Attributes of items as typed columns, which rules are matched against. Files of them are mapped.

| kind | in a column |
| --- | --- |
| string | `words`, sorted; `values` hold the place in them, from 1 on; 0 for absent |
| number | float64, NaN for absent |
| boolean | int8, 0 or 1, -1 for absent |
| timestamp | int64, microseconds since 1970 UTC, `NO_TIME` for absent |
| strings | as string, without 0, list by list; `offsets` say where each begins. Absent is empty |
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from genrec.arrays import in_folder, load_array, save_array
from genrec.catalog.kinds import (
    BOOLEAN,
    EPOCH,
    NO_TIME,
    NO_VALUE,
    NUMBER,
    STRING,
    STRINGS,
    TIMESTAMP,
    Kinds,
    boolean_of,
    bytes_of,
    check_kinds,
    is_text,
    microseconds_of,
    number_of,
)
from genrec.catalog.ragged import runs
from genrec.catalog.value_classes import ValueClasses, classes_of
from genrec.errors import in_words
from genrec.json_files import read_json

FIXED: dict[str, type] = {NUMBER: np.float64, BOOLEAN: np.int8, TIMESTAMP: np.int64}
_NOTE = "kinds.json"


def code_type(words: int) -> np.dtype:
    """The smallest type for codes of so many words and of 0: uint8, uint16 or int32."""
    return np.dtype(np.uint8 if words < 2**8 else np.uint16 if words < 2**16 else np.int32)


@dataclass(frozen=True)
class Column:
    """One attribute of n items; see the module for what `values` hold.

    values: [n], of strings [m]. words: bytes S[w], rising, distinct, of text alone; there may be some that no item has.
    offsets: int64 [n + 1], of strings alone: item i has values[offsets[i]:offsets[i + 1]].
    classes: of the values, where a scan of a long column gains by them.
    """

    kind: str
    values: np.ndarray
    words: np.ndarray = field(default_factory=lambda: np.empty(0, "S1"))
    offsets: np.ndarray | None = None
    classes: ValueClasses | None = None

    def __len__(self) -> int:
        return len(self.values if self.offsets is None else self.offsets) - (self.offsets is not None)

    def codes_of(self, texts: Sequence[bytes]) -> np.ndarray:
        """What `values` hold for texts: int64 [k], 0 for those that no item has."""
        asked = np.array(texts, object)
        place = np.searchsorted(self.words, asked.astype(np.bytes_)) if len(asked) else np.empty(0, np.int64)
        found = np.zeros(len(asked), np.int64)
        inside = np.flatnonzero(place < len(self.words))
        same = self.words[place[inside]].astype(object) == asked[inside]
        found[inside[same]] = place[inside[same]] + 1
        return found

    def take(self, rows: np.ndarray) -> Column:
        """The items at `rows`, integers [k], in that order."""
        if self.offsets is None:
            return self._of_fewer(self.values[rows])
        begin = self.offsets[rows]
        sizes = self.offsets[np.asarray(rows) + 1] - begin
        at, _ = runs(begin, sizes)
        return self._of_fewer(self.values[at], np.concatenate([[0], sizes.cumsum()]))

    def slice(self, begin: int, end: int) -> Column:
        """Items begin .. end - 1, without a copy of their values."""
        if self.offsets is None:
            return replace(self, values=self.values[begin:end], classes=None)
        offsets = self.offsets[begin : end + 1]
        return replace(self, values=self.values[offsets[0] : offsets[-1]], offsets=offsets - offsets[0], classes=None)

    def tolist(self) -> list[Any]:
        """Python values, None for absent ones; an empty list for strings."""
        if self.kind == NUMBER:
            return [None if value != value else value for value in self.values.tolist()]
        if self.kind == BOOLEAN:
            return [None if value < 0 else bool(value) for value in self.values.tolist()]
        if self.kind == TIMESTAMP:
            return [
                None if value == NO_TIME else EPOCH + timedelta(microseconds=value) for value in self.values.tolist()
            ]
        words = [None, *(word.decode() for word in self.words.tolist())]
        found = [words[code] for code in self.values.tolist()]
        if self.offsets is None:
            return found
        edges = self.offsets.tolist()
        return [found[begin:end] for begin, end in pairwise(edges)]

    def _of_fewer(self, values: np.ndarray, offsets: np.ndarray | None = None) -> Column:
        """The same with other values, without the words that few values leave unused."""
        if not is_text(self.kind) or len(values) >= len(self.words):
            return replace(self, values=values, offsets=offsets, classes=None)
        used = np.unique(values[values > 0])
        codes = np.searchsorted(used, values) + 1
        return Column(
            self.kind, np.where(values > 0, codes, 0).astype(code_type(used.size)), self.words[used - 1], offsets
        )

    @classmethod
    def of_words(cls, kind: str, codes: np.ndarray, words: np.ndarray, offsets: np.ndarray | None = None) -> Column:
        """Text of words in any order: codes int [m], places in `words` (bytes S[w], distinct), -1 for absent."""
        order = np.argsort(words)
        rank = np.empty(len(words) + 1, code_type(len(words)))
        rank[order] = np.arange(1, len(words) + 1)
        rank[-1] = 0
        return cls(kind, rank[codes], words[order], offsets)

    @classmethod
    def of_values(cls, kind: str, values: Sequence[Any]) -> Column:
        """Of Python values, None for absent. Raises ValueError that says which is at fault and why, by its place."""
        if kind == STRINGS:
            lists = [[] if value is None else value for value in values]
            for at, value in enumerate(lists):
                if not isinstance(value, (list, tuple)) or None in value:
                    raise ValueError(f"value {at}, {str(value)[:80]!r}, is no list of strings")
            offsets = np.concatenate([[0], np.cumsum([len(value) for value in lists], dtype=np.int64)])
            flat = cls.of_values(STRING, [text for value in lists for text in value])
            return replace(flat, kind=STRINGS, offsets=offsets.astype(np.int64))
        if kind == STRING:
            encoded = [None if value is None else bytes_of(at, value) for at, value in enumerate(values)]
            words = sorted({text for text in encoded if text is not None})
            code = {text: place for place, text in enumerate(words)} | {None: -1}
            codes = np.array([code[text] for text in encoded], np.int64)
            return cls.of_words(STRING, codes, np.array(words, np.bytes_) if words else np.empty(0, "S1"))
        plain = {NUMBER: number_of, BOOLEAN: boolean_of, TIMESTAMP: microseconds_of}[kind]
        absent = NO_VALUE[kind]
        found = [absent if value is None else plain(at, value) for at, value in enumerate(values)]
        return cls(kind, np.array(found, FIXED[kind]))

    @classmethod
    def concatenate(cls, parts: Sequence[Column]) -> Column:
        """Columns of one kind, one behind the other; at least one."""
        kind = parts[0].kind
        offsets = None
        if kind == STRINGS:
            sizes = np.concatenate([np.diff(part.offsets) for part in parts if part.offsets is not None])
            offsets = np.concatenate([[0], sizes.cumsum()])
        if not is_text(kind):
            return cls(kind, np.concatenate([part.values for part in parts]))
        # Only words in use: else those of items that were forgotten would stay for ever.
        words, moved = merged_words([(part.words, used_words(part.values, part.words)) for part in parts])
        codes = [become[part.values] for become, part in zip(moved, parts, strict=True)]
        return cls(kind, np.concatenate(codes), words, offsets)


class Columns(Mapping[str, Column]):
    """Attributes of `count` items by their names. False if there are none, whatever `count` is."""

    def __init__(self, columns: Mapping[str, Column], count: int) -> None:
        """Raises ValueError if a column has another number of items."""
        self._columns, self.count = dict(columns), count
        for name, column in columns.items():
            if len(column) != count:
                raise ValueError(f"attribute {name!r} has {len(column)} items, expected {count}")

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Columns({self.kinds}, count={self.count})"

    @property
    def kinds(self) -> dict[str, str]:
        return {name: column.kind for name, column in self.items()}

    def take(self, rows: np.ndarray) -> Columns:
        """The items at `rows`, integers [k] or bool [count], in that order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Columns({name: column.take(rows) for name, column in self.items()}, len(rows))

    def slice(self, begin: int, end: int) -> Columns:
        """Items begin .. end - 1, without a copy of their values."""
        return Columns({name: column.slice(begin, end) for name, column in self.items()}, end - begin)

    @classmethod
    def empty(cls, kinds: Kinds, count: int = 0) -> Columns:
        """Of `count` items that have none of the attributes."""
        return cls({name: _absent(kind, count) for name, kind in kinds.items()}, count)

    @classmethod
    def of_values(cls, kinds: Kinds, values: Mapping[str, Sequence[Any]], count: int | None = None) -> Columns:
        """Of Python values by name, None for absent; a name that has none is absent throughout.

        count: of items, needed where there are no values. Raises ValueError that names attribute, value and kind.
        """
        count = len(next(iter(values.values()))) if count is None else count
        columns = {}
        for name, kind in kinds.items():
            try:
                columns[name] = Column.of_values(kind, values[name]) if name in values else _absent(kind, count)
            except ValueError as error:
                raise ValueError(f"attribute {name!r}, {kind}: {error}") from None
        return cls(columns, count)

    @classmethod
    def concatenate(cls, parts: Sequence[Columns]) -> Columns:
        """Items of columns with the same kinds, one behind the other; at least one part."""
        columns = {name: Column.concatenate([part[name] for part in parts]) for name in parts[0]}
        return cls(columns, sum(part.count for part in parts))

    def save(self, folder: Path) -> None:
        """Write the columns and their kinds as `folder`, in place of any that is there; no folder for no columns."""
        if folder.exists():  # who has mapped its files keeps them
            shutil.rmtree(folder)
        if not self:
            return
        for place, column in enumerate(self.values()):
            save_array(folder / f"{place}.values.npy", column.values)
            if is_text(column.kind):
                save_array(folder / f"{place}.words.npy", column.words)
            if column.offsets is not None:
                save_array(folder / f"{place}.offsets.npy", column.offsets)
            classes_of(column.kind, column.values, column.offsets, in_folder(folder), place)
        note_kinds(folder, self.kinds)

    @classmethod
    def load(cls, folder: Path, count: int) -> Columns:
        """Map what `save` wrote for `count` items, read-only; none if there is no such folder.

        Raises ValueError that names the file at fault.
        """
        if not folder.exists():
            return cls({}, count)
        note = folder / _NOTE
        try:
            kinds = dict(read_json(note))
            check_kinds(kinds)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{note}: cannot be read as the kinds of attributes: {in_words(error)}") from error
        files = enumerate(kinds.items())
        return cls({name: _load(folder, place, kind, count) for place, (name, kind) in files}, count)


def note_kinds(folder: Path, kinds: Kinds) -> None:
    """Write the kinds of columns beside these."""
    (folder / _NOTE).write_text(json.dumps(list(kinds.items()), ensure_ascii=False) + "\n", encoding="utf-8")


def used_words(codes: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Places of the words that are in use: int64 [k], rising."""
    return np.flatnonzero(np.bincount(codes, minlength=len(words) + 1)[1:])


def merged_words(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The words of all parts that are in use, rising, and for each part what its codes become.

    parts: words, and places of those in use. Returns bytes S[w], and for each part codes [its words + 1].
    """
    every = np.unique(np.concatenate([np.empty(0, "S1"), *(words[used] for words, used in parts)]))
    moved = []
    for words, used in parts:
        become = np.zeros(len(words) + 1, code_type(len(every)))
        become[used + 1] = np.searchsorted(every, words[used]) + 1
        moved.append(become)
    return every, moved


def _load(folder: Path, place: int, kind: str, count: int) -> Column:
    path = folder / f"{place}.values.npy"
    if kind in FIXED:
        values = load_array(path, FIXED[kind], (count,))
        return Column(kind, values, classes=ValueClasses.load(folder, place, kind, values.dtype, count))
    words = load_array(folder / f"{place}.words.npy", "S", (None,))
    codes = code_type(len(words)).type
    if kind == STRING:
        return Column(kind, load_array(path, codes, (count,)), words)
    offsets = load_array(folder / f"{place}.offsets.npy", np.int64, (count + 1,))
    values = load_array(path, codes, (int(offsets[-1]),))
    return Column(kind, values, words, offsets, ValueClasses.load(folder, place, kind, values.dtype, count))


def _absent(kind: str, count: int) -> Column:
    if kind in FIXED:
        return Column(kind, np.full(count, NO_VALUE[kind], FIXED[kind]))
    if kind == STRING:
        return Column(kind, np.zeros(count, np.uint8))
    return Column(kind, np.empty(0, np.uint8), offsets=np.zeros(count + 1, np.int64))
