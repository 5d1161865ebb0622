"""One version of a live catalogue: a base, and over it whatever changed since, in one layer or two.

The lower layer is large and seldom made, the upper one is small and made for every version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.base import CatalogBase
from genrec.catalog.columns import Columns
from genrec.catalog.hash_table import HashTable
from genrec.catalog.items import ATTRIBUTES, growing_slices, id_keys, rows_of_ids
from genrec.catalog.ragged import runs
from genrec.catalog.row_sets import is_in
from genrec.catalog.semantic_id import SemanticIdSpace

_LOAD = 0.3  # most of what is asked is not in a delta, and only full buckets make that take longer
_SLICE = 1 << 18  # items
GONE, KNOWN, LIVE = 0, 1, 2  # states of an item: forgotten; known but not available; available


@dataclass(frozen=True)
class Delta:
    """What replaces parts of what is below: every item touched since, and every bucket that one of them was or is in.

    item_ids: bytes S[w] [m], distinct. state: uint8 [m], GONE, KNOWN or LIVE. codes: int64 [m], -1 where no item ever
    was. popularity: int64 [m]. They are rows n .. n + m - 1 over n rows below, of which those of these ids are void.
    offsets: int64 [b + 1]; bucket_rows: int32, the rows of bucket i at offsets[i]:offsets[i + 1], from below or of
    these, by falling popularity; empty for a code that has no live item any more.
    popular_rows: int32, the most popular live rows of both, as many as any answer can need.
    columns: attributes of the m items; those that are GONE have none.
    changed: int64 [m], the version that touched each item last. void: int32, rising, the live rows below of these ids.
    """

    item_ids: np.ndarray
    state: np.ndarray
    codes: np.ndarray
    popularity: np.ndarray
    offsets: np.ndarray
    bucket_rows: np.ndarray
    popular_rows: np.ndarray
    columns: Columns
    changed: np.ndarray
    void: np.ndarray
    _row_of_id: HashTable
    _bucket_of_code: HashTable

    @classmethod
    def build(
        cls,
        below: CatalogVersion,
        item_ids: np.ndarray,
        state: np.ndarray,
        codes: np.ndarray,
        popularity: np.ndarray,
        columns: Columns,
        changed: np.ndarray,
        most_popular: int,
    ) -> Delta:
        """The delta over `below` with these touched items; see the class.

        most_popular: rows of the popularity fallback that are needed; `below` has as many more as items are touched, or
        all of its own.
        """
        count = len(below)
        void = below.rows_of(item_ids.astype(object))
        void = void[void >= 0]
        void = np.sort(void[below.states_of(void) == LIVE])  # live rows below that do not count any more
        live = np.flatnonzero(state == LIVE)
        touched = np.unique(np.concatenate([below.codes_of(void), codes[live]]))

        buckets = below.buckets_of(touched)
        there = np.flatnonzero(buckets >= 0)
        rows, source = below.expand(buckets[there])
        kept = ~is_in(rows, void)
        old, bucket = rows[kept], there[source[kept]]
        rows = np.concatenate([old, count + live])
        bucket = np.concatenate([bucket, np.searchsorted(touched, codes[live])])
        sold = np.concatenate([below.popularity_of(old), popularity[live]])
        order = np.lexsort((-sold, bucket))
        sizes = np.bincount(bucket, minlength=touched.size)

        head = below.popular_rows[: most_popular + void.size]  # at most so many of them can be void
        head = head[~is_in(head, void)][:most_popular]
        popular = np.concatenate([head, count + live])
        sold = np.concatenate([below.popularity_of(head), popularity[live]])
        return cls(
            item_ids=item_ids,
            state=state.astype(np.uint8),
            codes=codes.astype(np.int64),
            popularity=popularity.astype(np.int64),
            offsets=np.concatenate([[0], sizes.cumsum()]),
            bucket_rows=rows[order].astype(np.int32),
            popular_rows=popular[np.argsort(-sold, kind="stable")][:most_popular].astype(np.int32),
            columns=columns,
            changed=changed.astype(np.int64),
            void=void.astype(np.int32),
            _row_of_id=HashTable.build(id_keys(item_ids), np.arange(item_ids.size, dtype=np.int32), _LOAD),
            _bucket_of_code=HashTable.build(touched, np.arange(touched.size, dtype=np.int32), _LOAD),
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def buckets(self) -> int:
        """b, the buckets that it has anew."""
        return len(self.offsets) - 1

    @property
    def touched_codes(self) -> np.ndarray:
        """The codes of all its buckets, int64 [b], in no order."""
        keys = self._bucket_of_code.keys
        return keys[keys >= 0]

    def rows_of(self, item_ids: np.ndarray) -> np.ndarray:
        """Places of item ids among its own: object array of bytes [k] -> int32 [k], -1 for those not touched."""
        return rows_of_ids(item_ids, self.item_ids, self._row_of_id)

    def buckets_of(self, codes: np.ndarray) -> np.ndarray:
        """Numbers of the buckets that it has anew: int64, any shape -> int32, same shape, -1 for other codes."""
        return self._bucket_of_code.get(codes)

    def save(self, folder: Path) -> None:
        """Write the delta's arrays into `folder`."""
        for name in ("item_ids", "state", "codes", "popularity", "offsets", "bucket_rows", "popular_rows"):
            save_array(folder / f"{name}.npy", getattr(self, name))
        for name, table in (("id", self._row_of_id), ("code", self._bucket_of_code)):
            table.save(folder / f"{name}_keys.npy", folder / f"{name}_values.npy")
        save_array(folder / "changed.npy", self.changed)
        save_array(folder / "void.npy", self.void)
        self.columns.save(folder / ATTRIBUTES)

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """Map the delta in `folder`. Raises ValueError that names the file at fault."""
        ids = load_array(folder / "item_ids.npy", "S", (None,))
        return cls(
            item_ids=ids,
            state=load_array(folder / "state.npy", np.uint8, ids.shape),
            codes=load_array(folder / "codes.npy", np.int64, ids.shape),
            popularity=load_array(folder / "popularity.npy", np.int64, ids.shape),
            offsets=load_array(folder / "offsets.npy", np.int64, (None,)),
            bucket_rows=load_array(folder / "bucket_rows.npy", np.int32, (None,)),
            popular_rows=load_array(folder / "popular_rows.npy", np.int32, (None,)),
            changed=load_array(folder / "changed.npy", np.int64, ids.shape),
            void=load_array(folder / "void.npy", np.int32, (None,)),
            columns=Columns.load(folder / ATTRIBUTES, len(ids)),
            _row_of_id=HashTable.load(folder / "id_keys.npy", folder / "id_values.npy"),
            _bucket_of_code=HashTable.load(folder / "code_keys.npy", folder / "code_values.npy"),
        )


class CatalogVersion:
    """A base with deltas over it, each over those before it, as `CatalogView` and `BucketView`.

    A bucket is the first row of one of the base's, or a number behind them for those of the deltas, in turn.
    base_version: that the base holds, `version` if None.
    """

    def __init__(self, version: int, base: CatalogBase, *deltas: Delta, base_version: int | None = None) -> None:
        self.version, self.base, self.deltas = version, base, deltas
        self.base_version = version if base_version is None else base_version
        sizes, buckets = [len(base)], [len(base)]
        for delta in deltas:
            sizes.append(sizes[-1] + len(delta))
            buckets.append(buckets[-1] + delta.buckets)
        self._first_rows, self._first_buckets, self._rows = sizes[:-1], buckets[:-1], sizes[-1]

    def __len__(self) -> int:
        return self._rows

    @property
    def space(self) -> SemanticIdSpace:
        return self.base.space

    @property
    def popular_rows(self) -> np.ndarray:
        return self.deltas[-1].popular_rows if self.deltas else self.base.popular_rows

    def rows_of(self, item_ids: np.ndarray) -> np.ndarray:
        rows = self.base.rows_of(item_ids)
        for delta, first in zip(self.deltas, self._first_rows, strict=True):
            own = delta.rows_of(item_ids)
            at = np.flatnonzero(own >= 0)
            rows[at] = np.where(delta.state[own[at]] == GONE, np.int32(-1), own[at] + np.int32(first))
        return rows

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        return self._gathered(rows, "item_ids", object)

    def sids_of(self, rows: np.ndarray) -> np.ndarray:
        return self.space.decode(self.codes_of(rows))

    def codes_of(self, rows: np.ndarray) -> np.ndarray:
        """Codes of existing `rows` (integers [m]): int64 [m]."""
        return self._gathered(rows, "codes", np.int64)

    def popularity_of(self, rows: np.ndarray) -> np.ndarray:
        """Popularity of existing `rows` (integers [m]): int64 [m]."""
        return self._gathered(rows, "popularity", np.int64)

    def states_of(self, rows: np.ndarray) -> np.ndarray:
        """Whether existing `rows` (integers [m]) are KNOWN or LIVE: uint8 [m]."""
        states = np.where(rows < self.base.live, np.uint8(LIVE), np.uint8(KNOWN))
        for at, delta, first in self._in_deltas(rows):
            states[at] = delta.state[rows[at] - first]
        return states

    def buckets_of(self, codes: np.ndarray) -> np.ndarray:
        buckets = self.base.first_rows(codes)
        for delta, first in zip(self.deltas, self._first_buckets, strict=True):
            anew = delta.buckets_of(codes)
            at = np.nonzero(anew >= 0)
            if at[0].size:
                own = anew[at]
                filled = delta.offsets[own + 1] > delta.offsets[own]
                buckets[at] = np.where(filled, own + np.int32(first), np.int32(-1))
        return buckets

    def expand(self, buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_base = buckets < len(self.base)
        if of_base.all():
            rows, source = self.base.bucket_rows(buckets)
            return rows.astype(np.int32), source
        begin, sizes = buckets.astype(np.int64), np.empty(buckets.size, np.int64)
        sizes[of_base] = self.base.bucket_sizes(buckets[of_base])
        layer = np.searchsorted(self._first_buckets, buckets, side="right") - 1
        for number, (delta, first) in enumerate(zip(self.deltas, self._first_buckets, strict=True)):
            own = (layer == number) & ~of_base
            at = buckets[own] - first
            begin[own], sizes[own] = delta.offsets[at], delta.offsets[at + 1] - delta.offsets[at]
        rows, source = runs(begin, sizes)
        layer = np.where(of_base, -1, layer).take(source)
        for number, delta in enumerate(self.deltas):
            mine = layer == number
            rows[mine] = delta.bucket_rows[rows[mine]]
        return rows.astype(np.int32), source

    @property
    def kinds(self) -> dict[str, str]:
        return self.base.columns.kinds

    def attributes_of(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Columns, np.ndarray]]:
        at = np.flatnonzero(rows < len(self.base))
        if at.size:
            yield at, self.base.columns, rows[at]
        for at, delta, first in self._in_deltas(rows):
            yield at, delta.columns, rows[at] - first

    def columns_of(self, rows: np.ndarray) -> Columns:
        """Attributes of existing `rows` (integers [m]), in that order."""
        parts, places = [Columns.empty(self.kinds)], [np.empty(0, np.int64)]
        for at, columns, own in self.attributes_of(rows):
            parts.append(columns.take(own))
            places.append(at)
        return Columns.concatenate(parts).take(np.argsort(np.concatenate(places)))

    @property
    def live_items(self) -> int:
        if not self.deltas:
            return self.base.live
        return self.base.live + sum(int((delta.state == LIVE).sum()) - delta.void.size for delta in self.deltas)

    def are_live(self, rows: np.ndarray) -> np.ndarray:
        live = self.states_of(rows) == LIVE
        for delta in self.deltas:
            live &= ~is_in(rows, delta.void)
        return live

    def parts(self) -> Iterator[tuple[int, Columns, np.ndarray | None, int]]:
        yield 0, self.base.columns, None, self.base.live
        for delta, first in zip(self.deltas, self._first_rows, strict=True):
            yield first, delta.columns, delta.state == LIVE, len(delta)

    def popular_slices(self) -> Iterator[np.ndarray]:
        own = [
            first + np.flatnonzero(delta.state == LIVE)
            for delta, first in zip(self.deltas, self._first_rows, strict=True)
        ]
        rest = np.concatenate([np.empty(0, np.int64), *own])
        rest = rest[self.are_live(rest)]
        rest = rest[np.argsort(-self.popularity_of(rest), kind="stable")]
        sold = -self.popularity_of(rest)
        for rows in growing_slices(self.base.popular_rows):
            rows = rows[self.are_live(rows)].astype(np.int64)
            if not rows.size:
                continue
            # What of the deltas sells as well as the least of these comes with them.
            count = int(np.searchsorted(sold, -self.base.popularity[rows[-1]], side="right"))
            both = np.concatenate([rows, rest[:count]])
            yield both[np.argsort(-self.popularity_of(both), kind="stable")]
            rest, sold = rest[count:], sold[count:]
        yield rest

    def sample_rows(self, count: int) -> np.ndarray:
        """See `CatalogView`; of the base, which is most of it."""
        count = min(count, self.base.live)
        return np.arange(count) * self.base.live // max(1, count)

    def changed_since(self, version: int) -> np.ndarray | None:
        if version < self.base_version:
            return None
        rows = [
            first + np.flatnonzero((delta.changed > version) & (delta.state == LIVE))
            for delta, first in zip(self.deltas, self._first_rows, strict=True)
        ]
        return np.concatenate([np.empty(0, np.int64), *rows])

    def touched_codes(self) -> np.ndarray:
        """Codes of which items came or went since the base: int64 [k]."""
        return np.concatenate([np.empty(0, np.int64), *(delta.touched_codes for delta in self.deltas)])

    def current(self) -> Iterator[tuple[CatalogBase | Delta, np.ndarray, np.ndarray]]:
        """What it holds, some items at a time: a part, rows in it that count, int64 [k], and whether these are live."""
        parts: list[CatalogBase | Delta] = [self.base, *self.deltas]
        for number, part in enumerate(parts):
            void = np.sort(np.concatenate([np.empty(0, np.int32), *_rows_above(part, self.deltas[number:])]))
            for start in range(0, len(part), _SLICE):
                end = min(len(part), start + _SLICE)
                if isinstance(part, Delta):
                    state = part.state[start:end]
                    counts, live = state != GONE, state == LIVE
                else:
                    counts, live = np.ones(end - start, bool), np.arange(start, end) < part.live
                counts[void[slice(*np.searchsorted(void, [start, end]))] - start] = False
                at = np.flatnonzero(counts)
                yield part, start + at, live[at]

    def _gathered(self, rows: np.ndarray, name: str, dtype: type) -> np.ndarray:
        """What the parts' arrays `name` hold of existing rows."""
        found: np.ndarray = np.empty(rows.size, dtype)
        at = rows < len(self.base)
        found[at] = getattr(self.base, name)[rows[at]]
        for own, delta, first in self._in_deltas(rows):
            found[own] = getattr(delta, name)[rows[own] - first]
        return found

    def _in_deltas(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Delta, int]]:
        """Where the rows of each delta are among `rows`: int64 [k], the delta, and its first row."""
        if not rows.size or rows.max() < len(self.base):
            return
        for delta, first in zip(self.deltas, self._first_rows, strict=True):
            at = np.flatnonzero((rows >= first) & (rows < first + len(delta)))
            if at.size:
                yield at, delta, first


def _rows_above(part: CatalogBase | Delta, above: Iterable[Delta]) -> Iterator[np.ndarray]:
    """Rows of `part` that deltas above it replace, some at a time."""
    for delta in above:
        for start in range(0, len(delta), _SLICE):
            rows = part.rows_of(delta.item_ids[start : start + _SLICE].astype(object))
            yield rows[rows >= 0]
