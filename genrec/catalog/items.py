"""The catalogue: items by row, with their ids, semantic IDs, popularity and availability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.columns import Columns
from genrec.catalog.hash_table import HashTable
from genrec.catalog.semantic_id import SemanticIdSpace

MAX_ID_BYTES = 128
ATTRIBUTES = "attributes"  # the folder of a catalogue's columns, beside its arrays
_FOLD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Catalog:
    """Items, one row each. Rows are internal; ids are what clients see.

    item_ids: bytes S[w] [n], distinct. sids: int32 [n, L]. popularity: int64 [n], interactions in the training data.
    available: bool [n]; items that are not live stay known (they occur in histories) but are never returned.
    popular_rows: int32 [m], the available rows by falling popularity, then row. columns: attributes of the n items.
    """

    item_ids: np.ndarray
    sids: np.ndarray
    popularity: np.ndarray
    available: np.ndarray
    popular_rows: np.ndarray
    columns: Columns
    _row_of_id: HashTable

    @classmethod
    def build(
        cls,
        item_ids: list[str],
        sids: np.ndarray,
        popularity: np.ndarray,
        available: np.ndarray | None = None,
        columns: Columns | None = None,
    ) -> Catalog:
        """Catalogue of `n` items; see the class for shapes. Raises ValueError that names the item at fault."""
        encoded = [item_id.encode() for item_id in item_ids]
        for item_id in encoded:
            if not 0 < len(item_id) <= MAX_ID_BYTES or item_id.endswith(b"\0"):
                raise ValueError(f"item id {item_id[:64]!r} must have 1 to {MAX_ID_BYTES} bytes and not end in NUL")
        ids = np.array(encoded, dtype=np.bytes_)
        if np.unique(ids).size != ids.size:
            values, counts = np.unique(ids, return_counts=True)
            raise ValueError(f"item id {values[counts > 1][0].decode()!r} occurs more than once")
        available = np.ones(ids.size, bool) if available is None else np.asarray(available, bool)
        popularity = np.asarray(popularity, np.int64)
        live = np.flatnonzero(available)
        if not live.size:
            raise ValueError("the catalogue has no available item")
        return cls(
            item_ids=ids,
            sids=np.ascontiguousarray(sids, np.int32),
            popularity=popularity,
            available=available,
            popular_rows=live[np.argsort(-popularity[live], kind="stable")].astype(np.int32),
            columns=Columns({}, ids.size) if columns is None else columns,
            _row_of_id=HashTable.build(id_keys(ids), np.arange(ids.size, dtype=np.int32)),
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def rows_of(self, item_ids: np.ndarray) -> np.ndarray:
        """Rows of item ids: object array of bytes [m] -> int32 [m], -1 for ids that are not in the catalogue."""
        return rows_of_ids(item_ids, self.item_ids, self._row_of_id)

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        """Ids of existing `rows` (integers [m]): object array of bytes [m]."""
        return self.item_ids[rows].astype(object)

    def sids_of(self, rows: np.ndarray) -> np.ndarray:
        """Semantic IDs of existing `rows` (integers [m]): int32 [m, L]."""
        return self.sids[rows]

    @property
    def live_items(self) -> int:
        return self.popular_rows.size

    @property
    def kinds(self) -> dict[str, str]:
        return self.columns.kinds

    def attributes_of(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Columns, np.ndarray]]:
        yield np.arange(rows.size), self.columns, rows

    def popularity_of(self, rows: np.ndarray) -> np.ndarray:
        """Popularity of existing `rows` (integers [m]): int64 [m]."""
        return self.popularity[rows]

    def are_live(self, rows: np.ndarray) -> np.ndarray:
        """Which of existing `rows` (integers [m]) are available: bool [m]."""
        return self.available[rows]

    def parts(self) -> Iterator[tuple[int, Columns, np.ndarray | None, int]]:
        """See `CatalogView`."""
        yield 0, self.columns, None if self.available.all() else self.available, len(self)

    def popular_slices(self) -> Iterator[np.ndarray]:
        """See `CatalogView`."""
        yield from growing_slices(self.popular_rows)

    def sample_rows(self, count: int) -> np.ndarray:
        """See `CatalogView`."""
        return evenly_of(self.popular_rows, count)

    def changed_since(self, version: int) -> np.ndarray | None:
        """See `CatalogView`; a bundle's catalogue does not change."""
        return np.empty(0, np.int64)

    def problems(self, space: SemanticIdSpace) -> Iterator[str]:
        """What would end whoever looks its items up: `file: problem` texts, none if it is whole."""
        if not self._row_of_id.leads_to(len(self)):
            yield f"id_rows.npy: has rows outside of the {len(self)} items"
        if self.sids.size and (self.sids.min() < 0 or (self.sids.max(0) >= space.levels).any()):
            yield f"sids.npy: has codes outside of the levels {space.levels}"

    def save(self, folder: Path) -> None:
        """Write the catalogue's arrays into `folder`."""
        for name in ("item_ids", "sids", "popularity", "available", "popular_rows"):
            save_array(folder / f"{name}.npy", getattr(self, name))
        self._row_of_id.save(folder / "id_keys.npy", folder / "id_rows.npy")
        self.columns.save(folder / ATTRIBUTES)

    @classmethod
    def load(cls, folder: Path, space: SemanticIdSpace) -> Catalog:
        """Map the catalogue in `folder`. Raises ValueError that names the file at fault."""
        ids = load_array(folder / "item_ids.npy", "S", (None,))
        count = ids.size
        return cls(
            item_ids=ids,
            sids=load_array(folder / "sids.npy", np.int32, (count, space.depth)),
            popularity=load_array(folder / "popularity.npy", np.int64, (count,)),
            available=load_array(folder / "available.npy", bool, (count,)),
            popular_rows=load_array(folder / "popular_rows.npy", np.int32, (None,)),
            columns=Columns.load(folder / ATTRIBUTES, count),
            _row_of_id=HashTable.load(folder / "id_keys.npy", folder / "id_rows.npy"),
        )


def growing_slices(rows: np.ndarray) -> Iterator[np.ndarray]:
    """`rows`, [n], in turn, in slices that double: who needs few looks at few."""
    begin, size = 0, 1024
    while begin < rows.size:
        yield rows[begin : begin + size]
        begin, size = begin + size, 2 * size


def evenly_of(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of `rows`, [n], at even distances."""
    return rows if rows.size <= count else rows[np.arange(count) * rows.size // count]


def rows_of_ids(item_ids: np.ndarray, known: np.ndarray, row_of_id: HashTable) -> np.ndarray:
    """Rows of item ids: object array of bytes [m] -> int32 [m], -1 where absent from `known` (bytes S[w] [n]).

    row_of_id: the row of each known id by its `id_keys`.
    """
    if not item_ids.size or not known.size:
        return np.full(item_ids.size, -1, np.int32)
    width = known.dtype.itemsize
    # One byte more than the longest known id: whatever is longer is cut there and still matches nothing.
    fixed = item_ids.astype(f"S{width + 1}")
    rows = row_of_id.get(id_keys(fixed.astype(known.dtype)))
    # Object comparison: exact for ids that end in NUL bytes, which fixed-width strings drop.
    same = known[rows].astype(object) == item_ids
    return np.where((rows >= 0) & same, rows, np.int32(-1))


def id_keys(ids: np.ndarray) -> np.ndarray:
    """63-bit polynomial hash of fixed-width ids: S[w] [n] -> int64 [n]. Needs the catalogue's own width."""
    width = ids.dtype.itemsize
    words = -(-width // 8)
    padded = ids.astype(f"S{8 * words}").view(np.uint64).reshape(-1, words)
    key = np.zeros(len(padded), np.uint64)
    for column in range(words):
        key = (key ^ padded[:, column]) * _FOLD
        key ^= key >> np.uint64(29)
    return (key >> np.uint64(1)).astype(np.int64)
