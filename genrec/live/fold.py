"""What became of every item that was touched since a base, or since a delta over one."""

from __future__ import annotations

import numpy as np

from genrec.catalog import CatalogVersion, Delta
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

    def __len__(self) -> int:
        return len(self._place)

    def apply(self, changes: Changes) -> np.ndarray:
        """Take in a commit, whose ids are distinct. Returns the codes of which an item came or went: int64, rising.

        Raises ValueError for a new item without a code; nothing is changed then.
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

        for item_id in fresh:
            self._place[item_id] = len(self._place)
        self._grow()
        place = np.fromiter((self._place[item_id] for item_id in ids), np.int64, len(ids))
        self._state[place], self._codes[place], self._popularity[place] = state, codes, popularity
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
        return Delta.build(self.below, ids, state, codes, popularity, most_popular)

    def _looked_up(self, ids: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """State, code and popularity of items below."""
        wanted = np.empty(len(ids), object)
        wanted[:] = ids
        rows = self.below.rows_of(wanted)
        there = np.flatnonzero(rows >= 0)
        state = np.full(rows.size, GONE, np.uint8)
        codes, popularity = np.full(rows.size, -1, np.int64), np.zeros(rows.size, np.int64)
        state[there] = self.below.states_of(rows[there])
        codes[there], popularity[there] = self.below.codes_of(rows[there]), self.below.popularity_of(rows[there])
        return state, codes, popularity

    def _grow(self) -> None:
        if len(self) > self._state.size:
            size = 2 * len(self)
            for name in ("_state", "_codes", "_popularity"):
                array = getattr(self, name)
                grown = np.empty(size, array.dtype)
                grown[: array.size] = array
                setattr(self, name, grown)


def _filled(where: np.ndarray, there: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """An array of values: `there` where bool `where` says so, `elsewhere` in all other places."""
    array = np.empty(where.size, there.dtype)
    array[where], array[~where] = there, elsewhere
    return array
