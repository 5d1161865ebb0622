"""The catalogue, the interactions with it, and sequences cut from these."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from genrec.catalog import Columns
from genrec.errors import DataError


@dataclass(frozen=True, eq=False)
class ItemTable:
    """The catalogue, one row per item.

    item_ids: n distinct ids, each 1 to 128 bytes of UTF-8. sids: int32 [n, L] semantic-ID codes, or None if the
    catalogue has none yet. levels: codes per level (T_1 .. T_L), or None without `sids`; files that do not say how many
    codes a level has give the largest code + 1, rounded up to a power of two. embeddings: float32 [n, D], finite, or
    None. attributes: columns of text, n values each, such as title, category, brand, for people and for texts. columns:
    attributes with their kinds, which rules filter by; None for none.
    """

    item_ids: list[str]
    sids: np.ndarray | None = None
    levels: tuple[int, ...] | None = None
    embeddings: np.ndarray | None = None
    attributes: dict[str, list[str]] = field(default_factory=dict)
    columns: Columns | None = None

    def __post_init__(self) -> None:
        n = len(self.item_ids)
        if (self.sids is None) != (self.levels is None):
            raise DataError("ItemTable: give sids and levels together, or neither")
        if self.sids is not None and self.levels is not None:
            if self.sids.shape != (n, len(self.levels)) or self.sids.dtype != np.int32:
                raise DataError(
                    f"ItemTable: sids are {self.sids.dtype} {list(self.sids.shape)}; "
                    f"{n} items and {len(self.levels)} levels need int32 [{n}, {len(self.levels)}]"
                )
            if n and (self.sids.min() < 0 or (self.sids >= np.asarray(self.levels)).any()):
                raise DataError(f"ItemTable: a code lies outside its level; levels are {self.levels}")
        if self.embeddings is not None and (
            self.embeddings.ndim != 2 or len(self.embeddings) != n or self.embeddings.dtype != np.float32
        ):
            raise DataError(
                f"ItemTable: embeddings are {self.embeddings.dtype} {list(self.embeddings.shape)}; "
                f"{n} items need float32 [{n}, D]"
            )
        for name, column in self.attributes.items():
            if len(column) != n:
                raise DataError(f"ItemTable: attribute {name!r} has {len(column)} values for {n} items")

        if self.columns is not None and self.columns.count != n:
            raise DataError(f"ItemTable: columns are of {self.columns.count} items, not of {n}")

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def typed(self) -> Columns:
        """`columns`, without any if they are None."""
        return Columns({}, len(self)) if self.columns is None else self.columns


@dataclass(frozen=True, eq=False)
class Interactions:
    """Every user's items in time order, as compressed sparse rows.

    user_ids: U distinct ids. offsets: int64 [U + 1]; user u owns `rows[offsets[u]:offsets[u + 1]]`. rows: int32 [N],
    rows of the item table, oldest first within a user. queries: large_string [N], the text query that led to each item,
    "" for none; or None if there are no queries. times: int64, float64 or datetime64 [N], as the file has them, not
    decreasing within a user; or None if only the order is known.
    """

    user_ids: list[str]
    offsets: np.ndarray
    rows: np.ndarray
    queries: pa.LargeStringArray | None = None
    times: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (
            self.offsets.shape != (len(self.user_ids) + 1,)
            or self.offsets[0] != 0
            or self.offsets[-1] != len(self.rows)
        ):
            raise DataError(
                f"Interactions: offsets must run from 0 to {len(self.rows)} with {len(self.user_ids) + 1} entries, "
                f"got shape {list(self.offsets.shape)}"
            )
        if (np.diff(self.offsets) < 0).any():
            raise DataError("Interactions: offsets must not decrease")
        queries = self.queries
        if queries is not None and (
            len(queries) != len(self.rows) or not pa.types.is_large_string(queries.type) or queries.null_count
        ):
            raise DataError(
                f"Interactions: queries are {queries.type} [{len(queries)}] with {queries.null_count} nulls; "
                f"{len(self.rows)} interactions need large_string [{len(self.rows)}] without nulls"
            )
        if self.times is not None and (self.times.shape != self.rows.shape or self.times.dtype.kind not in "ifM"):
            raise DataError(
                f"Interactions: times are {self.times.dtype} {list(self.times.shape)}; {len(self.rows)} interactions "
                f"need int64, float64 or datetime64 [{len(self.rows)}]"
            )

    def __len__(self) -> int:
        return len(self.user_ids)

    def without_last(self) -> Interactions:
        """The same without each user's last item: what tuning works on, so that the test items have no say in it.

        Split again, the validation items are what is ranked, and a prompt ends with an item that training has not seen
        in that place, as a test prompt does.
        """
        lengths = np.maximum(np.diff(self.offsets).astype(np.int64) - 1, 0)
        starts = self.offsets[:-1].astype(np.int64)
        kept = slices(np.arange(len(self)), self.rows, self.queries, starts, lengths)
        times = None if self.times is None else self.times[_inside(len(self.rows), starts, lengths)]
        return Interactions(self.user_ids, kept.offsets, kept.rows, kept.queries, times)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue and the interactions with it."""

    items: ItemTable
    interactions: Interactions

    def __post_init__(self) -> None:
        rows = self.interactions.rows
        if rows.size and (rows.min() < 0 or rows.max() >= len(self.items)):
            raise DataError(
                f"Dataset: interactions name rows {rows.min()} to {rows.max()} of an item table of {len(self.items)}"
            )


@dataclass(frozen=True, eq=False)
class Sequences:
    """Item sequences of some of the users, as compressed sparse rows.

    users: int64 [E], positions in `Interactions.user_ids`. offsets: int64 [E + 1]. rows: int32 [N], rows of the item
    table, oldest first. queries: large_string [N], the query that led to each item, "" for none; or None if there are
    no queries.
    """

    users: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    queries: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> np.ndarray:
        """int32 [n]: the sequence at `index` (a view)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        index %= len(self)
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    def recent(self, limit: int) -> Sequences:
        """The same sequences, each cut to its `limit` most recent items. Raises ValueError if limit < 1."""
        if limit < 1:
            raise ValueError(f"limit is {limit}; keep at least 1 item")
        lengths = np.minimum(np.diff(self.offsets), limit)
        return slices(self.users, self.rows, self.queries, self.offsets[1:] - lengths, lengths)


def slices(
    users: np.ndarray, rows: np.ndarray, queries: pa.Array | None, starts: np.ndarray, lengths: np.ndarray
) -> Sequences:
    """Copies `rows[starts[i]:starts[i] + lengths[i]]` of every i into one compressed array, and so the queries.

    The slices lie one behind the other, without overlap.
    """
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    inside = _inside(len(rows), starts, lengths)
    return Sequences(users, offsets, rows[inside], None if queries is None else queries.filter(pa.array(inside)))


def _inside(count: int, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """bool [count]: which places lie in a slice. One byte each, where places to gather from would take eight."""
    edges = np.zeros(count + 1, dtype=np.int8)
    some = lengths > 0
    edges[starts[some]] += 1
    edges[(starts + lengths)[some]] -= 1
    return np.cumsum(edges[:count], dtype=np.int8).view(bool)


def taken(queries: pa.Array | None, places: np.ndarray) -> pa.Array | None:
    return None if queries is None else queries.take(pa.array(places))
