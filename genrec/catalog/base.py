"""The base of a live catalogue: a whole catalogue as sorted, immutable arrays that processes map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from genrec.arrays import in_folder, in_memory, load_array, save_array
from genrec.catalog.arranged import PART, Arranged, arranged
from genrec.catalog.hash_table import HashTable
from genrec.catalog.items import rows_of_ids
from genrec.catalog.ragged import runs
from genrec.catalog.semantic_id import SemanticIdSpace, code_dtype
from genrec.catalog.sorting import Columns


@dataclass(frozen=True)
class CatalogBase:
    """Items by row. The live ones come first: in order of their code, then by falling popularity, then as given.

    So one array answers both ways: it holds the code of each row, and the rows of a code are next to each other.

    codes: uint32 or int64 (`code_dtype`) [n]. popularity: int64 [n]. item_ids: bytes S[w] [n], distinct.
    live: rows [0, live) are available; the rest are known only. popular_rows: int32 [live], by falling popularity, then
    as given.
    """

    space: SemanticIdSpace
    codes: np.ndarray
    popularity: np.ndarray
    item_ids: np.ndarray
    live: int
    popular_rows: np.ndarray
    _row_of_code: HashTable
    _row_of_id: HashTable

    @classmethod
    def build(
        cls,
        space: SemanticIdSpace,
        item_ids: np.ndarray,
        codes: np.ndarray,
        popularity: np.ndarray,
        available: np.ndarray,
    ) -> CatalogBase:
        """Base of n items: bytes S[w] [n], int64 [n], int64 [n], bool [n]. Raises ValueError for repeated ids."""
        items = {"item_ids": item_ids, "codes": codes, "popularity": popularity, "available": available}
        return cls._of(space, arranged(space, [items], in_memory))

    @classmethod
    def write(
        cls, folder: Path, space: SemanticIdSpace, batches: Iterable[Columns], scratch: Path, part: int = PART
    ) -> CatalogBase:
        """Write the base of items that come in batches into `folder`, as `build` and `save` would, and map it.

        batches: each with columns `item_ids`, `codes`, `popularity` and `available` as `build` takes, ids of any width.
        Memory does not grow with their number. scratch: a folder to make and to fill with about as many bytes as the
        columns have; it is empty in the end. part: items that are sorted at a time.
        Raises ValueError for repeated ids and for codes outside the space, and OSError.
        """
        return cls._of(space, arranged(space, batches, in_folder(folder), scratch, part))

    @classmethod
    def _of(cls, space: SemanticIdSpace, made: Arranged) -> CatalogBase:
        columns = made.columns
        return cls(
            space=space,
            codes=columns["codes"],
            popularity=columns["popularity"],
            item_ids=columns["item_ids"],
            live=len(made.popular_rows),
            popular_rows=made.popular_rows,
            _row_of_code=made.row_of_code,
            _row_of_id=made.row_of_id,
        )

    def __len__(self) -> int:
        return len(self.codes)

    def rows_of(self, item_ids: np.ndarray) -> np.ndarray:
        """Rows of item ids: object array of bytes [m] -> int32 [m], -1 for ids that are not known."""
        return rows_of_ids(item_ids, self.item_ids, self._row_of_id)

    def first_rows(self, codes: np.ndarray) -> np.ndarray:
        """The first live row of codes: int64, any shape -> int32, same shape, -1 where no live item has the code."""
        return self._row_of_code.get(codes)

    def bucket_sizes(self, first_rows: np.ndarray) -> np.ndarray:
        """Live items of the buckets that begin at `first_rows` (existing ones, integers [m]): int64 [m]."""
        live = self._live_codes
        sizes = np.ones(first_rows.size, np.int64)
        several = np.flatnonzero(live.take(np.minimum(first_rows + 1, self.live - 1)) == live.take(first_rows))
        several = several[first_rows[several] + 1 < self.live]
        first = first_rows[several]
        sizes[several] = np.searchsorted(live, live[first], side="right") - first
        return sizes

    def bucket_rows(self, first_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 [n] of the buckets that begin at `first_rows` [m], in order, and which bucket each is from."""
        return runs(first_rows, self.bucket_sizes(first_rows))

    @cached_property
    def _live_codes(self) -> np.ndarray:
        return self.codes[: self.live]

    def save(self, folder: Path) -> None:
        """Write the base's arrays into `folder`."""
        for name in ("codes", "popularity", "item_ids", "popular_rows"):
            save_array(folder / f"{name}.npy", getattr(self, name))
        for name, table in (("code", self._row_of_code), ("id", self._row_of_id)):
            table.save(folder / f"{name}_keys.npy", folder / f"{name}_rows.npy")

    @classmethod
    def load(cls, folder: Path, space: SemanticIdSpace) -> CatalogBase:
        """Map the base in `folder`. Raises ValueError that names the file at fault."""
        codes = load_array(folder / "codes.npy", code_dtype(space), (None,))
        popular_rows = load_array(folder / "popular_rows.npy", np.int32, (None,))
        return cls(
            space=space,
            codes=codes,
            popularity=load_array(folder / "popularity.npy", np.int64, codes.shape),
            item_ids=load_array(folder / "item_ids.npy", "S", codes.shape),
            live=len(popular_rows),
            popular_rows=popular_rows,
            _row_of_code=HashTable.load(folder / "code_keys.npy", folder / "code_rows.npy"),
            _row_of_id=HashTable.load(folder / "id_keys.npy", folder / "id_rows.npy"),
        )
