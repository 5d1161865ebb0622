"""What became of every item that was touched since a base, or since a delta over one."""

from __future__ import annotations

import numpy as np

from genrec.catalog import CatalogVersion, Columns, Delta
from genrec.catalog.kinds import Kinds
from genrec.catalog.version import GONE, KNOWN, LIVE
from genrec.live.changes import Changes

_ROOM = 1024


class Fold:
    """The touched items over `below`, kept up commit by commit. live: available items that `below` has."""

    def __init__(self, below: CatalogVersion, live: int) -> None:
        self.below, self.live = below, live
        self._place: dict[bytes, int] = {}
        self._state = np.empty(_ROOM, np.uint8)
        self._codes = np.empty(_ROOM, np.int64)
        self._popularity = np.empty(_ROOM, np.int64)
        self._columns = _Said(below.kinds)
        self._changed = np.zeros(_ROOM, np.int64)
        self._described = np.zeros(_ROOM, np.int64)  # which row of these says an item's attributes

    def __len__(self) -> int:
        return len(self._place)

    def apply(self, changes: Changes, version: int = 0) -> np.ndarray:
        """Take in the commit of `version`, whose ids are distinct.

        Returns the codes of which an item came or went: int64, rising. Raises ValueError for a new item without a code;
        nothing is changed then.
        """
        ids = changes.item_ids.tolist()
        fresh = [item_id for item_id in ids if item_id not in self._place]
        before = self._looked_up(fresh)
        known = np.fromiter((self._place.get(item_id, -1) for item_id in ids), np.int64, len(ids))
        new = known < 0
        old = known[~new]
        state = _filled(new, before[0], self._state[old])
        codes = _filled(new, before[1], self._codes[old])
        popularity = _filled(new, before[2], self._popularity[old])
        old_live, old_codes = state == LIVE, codes.copy()

        upsert = ~changes.removed
        born = upsert & (state == GONE)
        codes[born], popularity[born] = -1, 0
        codes = np.where(upsert & (changes.codes >= 0), changes.codes, codes)
        popularity = np.where(upsert & (changes.popularity >= 0), changes.popularity, popularity)
        if (upsert & (codes < 0)).any():
            item_id = ids[int(np.argmax(upsert & (codes < 0)))].decode(errors="replace")
            raise ValueError(f"item {item_id!r} is new and has neither a semantic ID nor an embedding")
        state = np.where(born, np.uint8(LIVE), state)
        state = np.where(upsert & (changes.available == 1), np.uint8(LIVE), state)
        state = np.where(upsert & (changes.available == 0), np.uint8(KNOWN), state)
        state[changes.removed] = GONE

        described = self._describe(changes, new, before[3], old)
        for item_id in fresh:
            self._place[item_id] = len(self._place)
        self._grow()
        place = np.fromiter((self._place[item_id] for item_id in ids), np.int64, len(ids))
        self._state[place], self._codes[place], self._popularity[place] = state, codes, popularity
        self._described[place], self._changed[place] = described, version
        if self._columns.count > 2 * len(self) + _ROOM:  # most of it is of the past
            said = self._columns.take(self._described[: len(self)])
            self._columns = _Said(said.kinds)
            self._described[: len(self)] = self._columns.add(said)
        new_live = state == LIVE
        self.live += int(new_live.sum()) - int(old_live.sum())
        moved = (old_live != new_live) | (old_codes != codes)
        return np.unique(np.concatenate([old_codes[old_live & moved], codes[new_live & moved]]))

    def knows(self, item_ids: np.ndarray) -> np.ndarray:
        """Whether ids, bytes S[w] [n], are of items that exist: bool [n]."""
        state = self._looked_up(item_ids.tolist())[0]
        place = np.fromiter((self._place.get(item_id, -1) for item_id in item_ids.tolist()), np.int64, item_ids.size)
        return np.where(place >= 0, self._state[place], state) != GONE

    def delta(self, most_popular: int) -> Delta:
        """The delta that this makes; see `Delta`."""
        count = len(self)
        ids = np.array(list(self._place), np.bytes_) if count else np.empty(0, "S1")
        state, codes, popularity = (array[:count].copy() for array in (self._state, self._codes, self._popularity))
        columns = self._columns.take(self._described[:count])
        changed = self._changed[:count].copy()
        return Delta.build(self.below, ids, state, codes, popularity, columns, changed, most_popular)

    def _describe(self, changes: Changes, new: np.ndarray, below: np.ndarray, old: np.ndarray) -> np.ndarray:
        """Which row of `_columns` says what each item of a commit has from now on: int64 [n].

        new: bool [n], items that were not touched before. below: their rows there, -1 for none. old: places of the
        others.
        """
        rows = _filled(new, np.zeros(len(below), np.int64), self._described[old])
        if not self.below.kinds:
            return rows
        below = _filled(new, below, np.full(old.size, -1, below.dtype))
        said = np.flatnonzero(changes.described & ~changes.removed)
        kept = np.flatnonzero((below >= 0) & ~changes.described & ~changes.removed)
        rows[changes.removed] = 0
        rows[said] = self._columns.add(changes.columns.take(said))
        rows[kept] = self._columns.add(self.below.columns_of(below[kept]))
        return rows

    def _looked_up(self, ids: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """State, code, popularity and row of items below."""
        wanted = np.empty(len(ids), object)
        wanted[:] = ids
        rows = self.below.rows_of(wanted)
        there = np.flatnonzero(rows >= 0)
        state = np.full(rows.size, GONE, np.uint8)
        codes, popularity = np.full(rows.size, -1, np.int64), np.zeros(rows.size, np.int64)
        state[there] = self.below.states_of(rows[there])
        codes[there], popularity[there] = self.below.codes_of(rows[there]), self.below.popularity_of(rows[there])
        return state, codes, popularity, rows

    def _grow(self) -> None:
        if len(self) > self._state.size:
            size = 2 * len(self)
            for name in ("_state", "_codes", "_popularity", "_described", "_changed"):
                array = getattr(self, name)
                grown = np.empty(size, array.dtype)
                grown[: array.size] = array
                setattr(self, name, grown)


class _Said:
    """Attributes of items as they were said, one behind the other; row 0 has none."""

    def __init__(self, kinds: Kinds) -> None:
        self._parts = [Columns.empty(kinds, 1)]
        self.count = 1

    def add(self, columns: Columns) -> np.ndarray:
        """The rows that these get: int64 [n]. Needs no columns for no items."""
        rows = np.arange(self.count, self.count + columns.count)
        if columns.count:
            self._parts.append(columns)
            self.count += columns.count
        # Each part is larger than those behind it, so there are few, and none is copied often.
        while len(self._parts) > 1 and self._parts[-2].count <= 2 * self._parts[-1].count:
            self._parts[-2:] = [Columns.concatenate(self._parts[-2:])]
        return rows

    def take(self, rows: np.ndarray) -> Columns:
        """Attributes of rows, int64 [m]."""
        return Columns.concatenate(self._parts).take(rows)


def _filled(where: np.ndarray, there: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """An array of values: `there` where bool `where` says so, `elsewhere` in all other places."""
    array = np.empty(where.size, there.dtype)
    array[where], array[~where] = there, elsewhere
    return array
