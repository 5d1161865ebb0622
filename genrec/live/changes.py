"""Changes of a catalogue, as arrays. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from genrec.catalog import Columns

KEEPS = -1


@dataclass(frozen=True)
class Changes:
    """n changes, in order.

    item_ids: bytes S[w] [n]. removed: bool [n], whether the item is forgotten; its other fields then mean nothing.
    codes: int64 [n], mixed-radix semantic IDs. popularity: int64 [n]. available: int8 [n], 1 or 0.
    In `codes`, `popularity` and `available`, -1 keeps what the item had. An item that is new has popularity 0 and is
    available where that is not said, and always says its code.
    columns: attributes of the n items; described: bool [n], for which of them they are said, all of them together. The
    others keep what they had, or have none if they are new. By default nothing is said of any.
    """

    item_ids: np.ndarray
    removed: np.ndarray
    codes: np.ndarray
    popularity: np.ndarray
    available: np.ndarray
    columns: Columns = field(default_factory=lambda: Columns({}, 0))
    described: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", Columns({}, len(self)))
            object.__setattr__(self, "described", np.zeros(len(self), bool))

    @classmethod
    def empty(cls) -> Changes:
        """No changes."""
        return cls(
            np.empty(0, "S1"), np.empty(0, bool), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8)
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Changes]) -> Changes:
        """The changes of `parts`, one part behind the other; ids get the width of the widest."""
        if not parts:
            return cls.empty()
        kinds = next((part.columns.kinds for part in parts if part.columns), {})
        columns = [part.columns or Columns.empty(kinds, len(part)) for part in parts]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(**joined, columns=Columns.concatenate(columns))

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: np.ndarray) -> Changes:
        """The changes at `rows`: int [m], or bool [n]."""
        return Changes(**{name: getattr(self, name)[rows] for name in _ARRAYS}, columns=self.columns.take(rows))

    def last_of_each(self) -> Changes:
        """One change for each id, which does what all of its changes do in turn; by id.

        A later field wins. A removal forgets the fields before it, so an item that comes back behind one is new.
        """
        ids, key = np.unique(self.item_ids, return_inverse=True)
        forgotten = last_where(key, len(ids), self.removed)
        last = last_where(key, len(ids), np.ones(len(self), bool))
        removed = forgotten == last
        since = forgotten[key]

        def latest(values: np.ndarray, of_new: int) -> np.ndarray:
            at = last_where(key, len(ids), (values != KEEPS) & ~self.removed, since)
            left = np.where((forgotten >= 0) & ~removed, of_new, KEEPS)
            return np.where(at >= 0, values[at], left).astype(values.dtype)

        codes, popularity, available = latest(self.codes, KEEPS), latest(self.popularity, 0), latest(self.available, 1)
        at = last_where(key, len(ids), self.described & ~self.removed, since)
        # Behind the columns that are said stands one item that has none.
        said = Columns.concatenate([self.columns.take(at[at >= 0]), Columns.empty(self.columns.kinds, 1)])
        columns = said.take(np.where(at >= 0, np.cumsum(at >= 0) - 1, said.count - 1))
        return Changes(ids, removed, codes, popularity, available, columns, (at >= 0) | ((forgotten >= 0) & ~removed))


_ARRAYS = [field.name for field in fields(Changes) if field.name != "columns"]


def last_where(key: np.ndarray, count: int, holds: np.ndarray, since: np.ndarray | None = None) -> np.ndarray:
    """Where each key occurs last among the places that `holds` says, and behind `since`; -1 for nowhere.

    key: int [n], in [0, count). holds: bool [n]. since: int [n], for each place. Returns int64 [count].
    """
    places = np.arange(len(key))
    at = np.flatnonzero(holds if since is None else holds & (places > since))
    last = np.full(count, -1, np.int64)
    np.maximum.at(last, key[at], at)
    return last
