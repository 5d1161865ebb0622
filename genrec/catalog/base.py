"""The base of a live catalogue: a whole catalogue as sorted, immutable arrays that processes map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.columns import Columns
from genrec.catalog.hash_table import HashTable
from genrec.catalog.items import ATTRIBUTES, id_keys, rows_of_ids
from genrec.catalog.ragged import runs
from genrec.catalog.semantic_id import SemanticIdSpace


@dataclass(frozen=True)
class CatalogBase:
    """Items by row. The live ones come first: in order of their code, then by falling popularity, then as given.

    So one array answers both ways: it holds the code of each row, and the rows of a code are next to each other.

    codes: uint32 or int64 (`code_dtype`) [n]. popularity: int64 [n]. item_ids: bytes S[w] [n], distinct.
    live: rows [0, live) are available; the rest are known only. popular_rows: int32 [live], by falling popularity, then
    row. columns: attributes of the n items.
    """

    space: SemanticIdSpace
    codes: np.ndarray
    popularity: np.ndarray
    item_ids: np.ndarray
    live: int
    popular_rows: np.ndarray
    columns: Columns
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
        columns: Columns | None = None,
    ) -> CatalogBase:
        """Base of n items: bytes S[w] [n], int64 [n], int64 [n], bool [n]. Raises ValueError for repeated ids."""
        available = np.asarray(available, bool)
        order = np.flatnonzero(available)
        popular = order[np.argsort(-popularity[order], kind="stable")]  # of equally popular ones, as given
        order = popular[np.argsort(codes[popular], kind="stable")]
        live = order.size
        rank = np.empty(len(codes), np.int32)
        rank[order] = np.arange(live, dtype=np.int32)
        popular_rows = rank[popular]
        del rank, popular
        order = np.concatenate([order, np.flatnonzero(~available)])
        sorted_codes = codes[order].astype(code_dtype(space))
        firsts = np.flatnonzero(np.concatenate([[True], sorted_codes[1:] != sorted_codes[:-1]])[:live])
        ids = item_ids[order]
        return cls(
            space=space,
            codes=sorted_codes,
            popularity=np.asarray(popularity, np.int64)[order],
            item_ids=ids,
            live=live,
            popular_rows=popular_rows,
            columns=Columns({}, ids.size) if columns is None else columns.take(order),
            _row_of_code=HashTable.build(sorted_codes[firsts], firsts.astype(np.int32)),
            _row_of_id=HashTable.build(id_keys(ids), np.arange(ids.size, dtype=np.int32)),
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
        self.columns.save(folder / ATTRIBUTES)

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
            columns=Columns.load(folder / ATTRIBUTES, len(codes)),
            _row_of_code=HashTable.load(folder / "code_keys.npy", folder / "code_rows.npy"),
            _row_of_id=HashTable.load(folder / "id_keys.npy", folder / "id_rows.npy"),
        )


def code_dtype(space: SemanticIdSpace) -> type[np.unsignedinteger] | type[np.signedinteger]:
    """The smallest type that codes of `space` are kept in."""
    return np.uint32 if space.size <= 2**32 else np.int64
