"""One version of a live catalogue: a base, and over it whatever changed since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.base import CatalogBase
from genrec.catalog.hash_table import HashTable
from genrec.catalog.items import id_keys, rows_of_ids
from genrec.catalog.ragged import runs
from genrec.catalog.semantic_id import SemanticIdSpace

_LOAD = 0.3  # most of what is asked is not in a delta, and only full buckets make that take longer
GONE, KNOWN, LIVE = 0, 1, 2  # states of an item: forgotten; known but not available; available


@dataclass(frozen=True)
class Delta:
    """What replaces parts of a base: every item that was touched since, and every bucket that one of them was or is in.

    item_ids: bytes S[w] [m], distinct. state: uint8 [m], GONE, KNOWN or LIVE. codes: int64 [m], -1 where no item ever
    was. popularity: int64 [m]. They are rows n .. n + m - 1 over a base of n; its own rows of these ids are void.
    offsets: int64 [b + 1]; bucket_rows: int32, the rows of bucket i at offsets[i]:offsets[i + 1], of the base or of
    these, by falling popularity; empty for a code that has no live item any more.
    popular_rows: int32, the most popular live rows of both, as many as any answer can need.
    """

    item_ids: np.ndarray
    state: np.ndarray
    codes: np.ndarray
    popularity: np.ndarray
    offsets: np.ndarray
    bucket_rows: np.ndarray
    popular_rows: np.ndarray
    _row_of_id: HashTable
    _bucket_of_code: HashTable

    @classmethod
    def build(
        cls,
        base: CatalogBase,
        item_ids: np.ndarray,
        state: np.ndarray,
        codes: np.ndarray,
        popularity: np.ndarray,
        most_popular: int,
    ) -> Delta:
        """The delta over `base` with these touched items; see the class.

        most_popular: rows of the popularity fallback that any answer can need.
        """
        count = len(base)
        void = base.rows_of(item_ids.astype(object))
        void = np.sort(void[(void >= 0) & (void < base.live)])  # live rows of the base that do not count any more
        live = np.flatnonzero(state == LIVE)
        touched = np.unique(np.concatenate([base.codes[void].astype(np.int64), codes[live]]))

        first = base.first_rows(touched)
        there = np.flatnonzero(first >= 0)
        rows, source = base.bucket_rows(first[there])
        kept = ~_is_in(rows, void)
        rows, bucket = rows[kept], there[source[kept]]
        rows = np.concatenate([rows, count + live])
        bucket = np.concatenate([bucket, np.searchsorted(touched, codes[live])])
        of_base = rows.size - live.size
        sold = np.concatenate([base.popularity[rows[:of_base]], popularity[live]])
        order = np.lexsort((-sold, bucket))
        sizes = np.bincount(bucket, minlength=touched.size)

        # At most so many of the base's most popular rows can be void.
        head = base.popular_rows[: most_popular + void.size]
        head = head[~_is_in(head, void)][:most_popular]
        popular = np.concatenate([head, count + live])
        sold = np.concatenate([base.popularity[head], popularity[live]])
        return cls(
            item_ids=item_ids,
            state=state.astype(np.uint8),
            codes=codes.astype(np.int64),
            popularity=popularity.astype(np.int64),
            offsets=np.concatenate([[0], sizes.cumsum()]),
            bucket_rows=rows[order].astype(np.int32),
            popular_rows=popular[np.argsort(-sold, kind="stable")][:most_popular].astype(np.int32),
            _row_of_id=HashTable.build(id_keys(item_ids), np.arange(item_ids.size, dtype=np.int32), _LOAD),
            _bucket_of_code=HashTable.build(touched, np.arange(touched.size, dtype=np.int32), _LOAD),
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def touched_codes(self) -> np.ndarray:
        """The codes of all its buckets, int64 [b], in no order."""
        keys = self._bucket_of_code.keys
        return keys[keys >= 0]

    def save(self, folder: Path) -> None:
        """Write the delta's arrays into `folder`."""
        for name in ("item_ids", "state", "codes", "popularity", "offsets", "bucket_rows", "popular_rows"):
            save_array(folder / f"{name}.npy", getattr(self, name))
        for name, table in (("id", self._row_of_id), ("code", self._bucket_of_code)):
            save_array(folder / f"{name}_keys.npy", table.keys)
            save_array(folder / f"{name}_values.npy", table.values)

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """Map the delta in `folder`. Raises ValueError that names the file at fault."""
        ids = load_array(folder / "item_ids.npy", "S", (None,))

        def table(name: str) -> HashTable:
            keys = load_array(folder / f"{name}_keys.npy", np.int64, (None, None))
            return HashTable(keys, load_array(folder / f"{name}_values.npy", np.int32, keys.shape))

        return cls(
            item_ids=ids,
            state=load_array(folder / "state.npy", np.uint8, ids.shape),
            codes=load_array(folder / "codes.npy", np.int64, ids.shape),
            popularity=load_array(folder / "popularity.npy", np.int64, ids.shape),
            offsets=load_array(folder / "offsets.npy", np.int64, (None,)),
            bucket_rows=load_array(folder / "bucket_rows.npy", np.int32, (None,)),
            popular_rows=load_array(folder / "popular_rows.npy", np.int32, (None,)),
            _row_of_id=table("id"),
            _bucket_of_code=table("code"),
        )


class CatalogVersion:
    """A base with a delta over it, as `CatalogView` and `BucketView`.

    A bucket is the first row of one of the base's, or n + i for the i-th of the delta's.
    """

    def __init__(self, version: int, base: CatalogBase, delta: Delta) -> None:
        self.version, self.base, self.delta = version, base, delta

    def __len__(self) -> int:
        return len(self.base) + len(self.delta)

    @property
    def space(self) -> SemanticIdSpace:
        return self.base.space

    @property
    def popular_rows(self) -> np.ndarray:
        return self.delta.popular_rows

    def rows_of(self, item_ids: np.ndarray) -> np.ndarray:
        touched = rows_of_ids(item_ids, self.delta.item_ids, self.delta._row_of_id)
        rows = self.base.rows_of(item_ids)
        if not len(self.delta):
            return rows
        gone = self.delta.state.take(touched) == GONE  # of an untouched item: anything
        return np.where(touched < 0, rows, np.where(gone, np.int32(-1), touched + np.int32(len(self.base))))

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        ids = np.empty(rows.size, object)
        for mine, array, first in self._parts(rows):
            ids[mine] = array.item_ids[rows[mine] - first]
        return ids

    def sids_of(self, rows: np.ndarray) -> np.ndarray:
        codes = np.empty(rows.size, np.int64)
        for mine, array, first in self._parts(rows):
            codes[mine] = array.codes[rows[mine] - first]
        return self.space.decode(codes)

    def buckets_of(self, codes: np.ndarray) -> np.ndarray:
        buckets = self.base.first_rows(codes)
        changed = self.delta._bucket_of_code.get(codes)
        at = np.nonzero(changed >= 0)
        if at[0].size:
            bucket, offsets = changed[at], self.delta.offsets
            filled = offsets[bucket + 1] > offsets[bucket]
            buckets[at] = np.where(filled, bucket + np.int32(len(self.base)), np.int32(-1))
        return buckets

    def expand(self, buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        changed = buckets - len(self.base)
        anew = changed >= 0
        if not anew.any():
            rows, source = self.base.bucket_rows(buckets)
            return rows.astype(np.int32), source
        begin, sizes = buckets.astype(np.int64), np.empty(buckets.size, np.int64)
        begin[anew] = self.delta.offsets[changed[anew]]
        sizes[anew] = self.delta.offsets[changed[anew] + 1] - begin[anew]
        sizes[~anew] = self.base.bucket_sizes(buckets[~anew])
        rows, source = runs(begin, sizes)
        of_delta = anew.take(source)
        rows[of_delta] = self.delta.bucket_rows[rows[of_delta]]
        return rows.astype(np.int32), source

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, CatalogBase | Delta, int]]:
        """Which of `rows` are the base's, and which the delta's: bool [m], their arrays, and the first row there."""
        of_delta = rows >= len(self.base)
        yield ~of_delta, self.base, 0
        if of_delta.any():
            yield of_delta, self.delta, len(self.base)


def _is_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """bool [n]: whether each of `values` is in `ordered` (rising)."""
    if not ordered.size:
        return np.zeros(values.size, bool)
    return ordered.take(np.searchsorted(ordered, values), mode="clip") == values
