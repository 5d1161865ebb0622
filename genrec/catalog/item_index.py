"""The hash set that verifies drafts without a model: code of a semantic ID -> the items that carry it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.hash_table import HashTable
from genrec.catalog.items import Catalog
from genrec.catalog.ragged import runs
from genrec.catalog.semantic_id import SemanticIdSpace


@dataclass(frozen=True)
class ItemIndex:
    """Exact, O(1) per code, for whole beams and batches at once. Holds available items only.

    offsets: int64 [buckets + 1]; rows: int32 [items], the catalogue rows of bucket b at offsets[b]:offsets[b + 1],
    by falling popularity, then row.
    """

    offsets: np.ndarray
    rows: np.ndarray
    _bucket_of_code: HashTable

    @classmethod
    def build(cls, space: SemanticIdSpace, catalog: Catalog) -> ItemIndex:
        """Index of the available items of `catalog`."""
        live = catalog.popular_rows  # by popularity already: a stable sort by code keeps that order in each bucket
        codes = space.encode(catalog.sids[live])
        order = np.argsort(codes, kind="stable")
        distinct, starts = np.unique(codes[order], return_index=True)
        return cls(
            offsets=np.append(starts, live.size).astype(np.int64),
            rows=live[order].astype(np.int32),
            _bucket_of_code=HashTable.build(distinct, np.arange(distinct.size, dtype=np.int32)),
        )

    def buckets_of(self, codes: np.ndarray) -> np.ndarray:
        """Buckets of codes: int64, any shape -> int32, same shape, -1 where no live item has the code."""
        return self._bucket_of_code.get(codes)

    def expand(self, buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items of existing `buckets` (int32 [m]), in order: rows int32 [n], and which bucket of m each is from."""
        begin = self.offsets.take(buckets)
        sizes = self.offsets.take(buckets + 1) - begin
        at, source = runs(begin, sizes)
        return self.rows.take(at), source

    def problems(self, catalog: Catalog, space: SemanticIdSpace) -> Iterator[str]:
        """Where the index does not hold exactly the live items of `catalog`; nothing if it does."""
        live = np.flatnonzero(catalog.available)
        if not np.array_equal(np.sort(catalog.popular_rows), live):
            yield "catalog/popular_rows.npy: does not hold the available items"
        if not np.array_equal(np.sort(self.rows), live):
            yield "index/rows.npy: does not hold the available items of the catalogue"
            return
        try:
            codes = space.encode(catalog.sids[self.rows])
        except ValueError as error:
            yield f"catalog/sids.npy: {error}"
            return
        sizes = np.diff(self.offsets)
        whole = sizes.size and self.offsets[0] == 0 and self.offsets[-1] == live.size and sizes.min() > 0
        if not whole or not np.array_equal(self.buckets_of(codes), np.repeat(np.arange(sizes.size), sizes)):
            yield "index: its buckets are not those of the catalogue's semantic IDs"

    def save(self, folder: Path) -> None:
        """Write the index's arrays into `folder`."""
        save_array(folder / "offsets.npy", self.offsets)
        save_array(folder / "rows.npy", self.rows)
        self._bucket_of_code.save(folder / "code_keys.npy", folder / "code_buckets.npy")

    @classmethod
    def load(cls, folder: Path) -> ItemIndex:
        """Map the index in `folder`. Raises ValueError that names the file at fault."""
        return cls(
            offsets=load_array(folder / "offsets.npy", np.int64, (None,)),
            rows=load_array(folder / "rows.npy", np.int32, (None,)),
            _bucket_of_code=HashTable.load(folder / "code_keys.npy", folder / "code_buckets.npy"),
        )
