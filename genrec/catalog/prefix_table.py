"""Which codes may follow a drafted prefix: hash tables of bit sets, one per level, that change in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import NewArray, in_memory, load_array, save_array
from genrec.catalog.items import Catalog
from genrec.catalog.placement import GROUP, SLOTS, find_new_places, find_places, home_buckets
from genrec.catalog.prefixes import Parts, bits_of, distinct, in_order, levels_of, mask_shape
from genrec.catalog.semantic_id import SemanticIdSpace, checked_codes

_EMPTY = -1
_ROWS = 0.65  # rows per slot
_SPARE = 4096
_PART = 1 << 21  # codes
_SAMPLE = 1 << 12  # keys


class TableFull(Exception):
    """Codes that a `PrefixTable` has no room for, in both buckets of one of their prefixes. Nothing was changed."""


@dataclass(frozen=True)
class PrefixTable:
    """Valid prefixes of a catalogue, as arrays that a graph can gather from, and that may change meanwhile.

    bits: per level, uint8 [rows, width]; bit `c % 8` of byte `c // 8` of a row says that code c may follow. Row 0 is
        what an absent prefix allows, nothing; at level 0 it is the empty prefix's, the only one.
    keys: per level but the first, [buckets, 16]: the keys of a bucket's 8 slots, -1 where empty, and their rows. A key
        is `prefix * chunks + code // (8 * width)`, the prefix in mixed radix, with chunks and width of `mask_shape`.
        int32 if that holds all keys of the level, else int64.
    used: int64 [L], rows that are in use, row 0 among them.

    A key stands in one of two buckets of one group of 64. Of n groups, a prime number,
        group = key % n,   q = key // n,   buckets 64 group + q % 31 and 64 group + 31 + q % 33.
    No product is larger than the table, so 32 bits do where they hold the keys. A new table has rows in the order of
    the semantic IDs: prefixes that start alike, as those of a beam do, are neighbours.

    One process may change what others read, in a shared mapping of the arrays. Readers need no lock: a row is whole
    before its key is there, and a prefix is there before its parent allows it. Keys are never removed; a row of zeros
    is that of a prefix that has nothing left.
    """

    space: SemanticIdSpace
    bits: tuple[np.ndarray, ...]
    keys: tuple[np.ndarray, ...]
    used: np.ndarray

    @classmethod
    def build(
        cls,
        space: SemanticIdSpace,
        codes: np.ndarray,
        spare: int = _SPARE,
        new: NewArray = in_memory,
        part: int = _PART,
    ) -> PrefixTable:
        """Table of semantic IDs by their codes: integers [n], in any order, repeats allowed.

        spare: prefixes per level that there is room for besides, before some are left over. new: makes the arrays, with
        the names of `save`. part: codes that are looked at at a time; what else is in memory grows with the prefixes.
        Raises ValueError for a code outside the space.
        """
        bits: list[np.ndarray] = []
        keys: list[np.ndarray] = []
        used = new("used", (space.depth,), np.int64)
        used[:] = 1
        prefixes = codes
        for level in reversed(range(space.depth)):
            chunks, width = mask_shape(level, space.levels[level])
            parts = Parts(space, level, prefixes, part)
            found = parts.keys()
            if level == 0:
                rows, table = np.zeros(found.size, np.int64), new("bits_0", (1, width), np.uint8)
            else:
                # No more than there can be, so that small levels stay small.
                most = int(space.radix[level]) * chunks
                groups, bucket, slot = find_new_places(found, min(found.size + spare, most))
                slots = _no_keys(new(f"keys_{level}", (groups * GROUP, 2 * SLOTS), _key_type(space, level)))
                rows = np.empty(found.size, slots.dtype)
                rows[in_order(space, level, found)] = np.arange(1, 1 + rows.size, dtype=rows.dtype)
                slots[bucket, slot], slots[bucket, SLOTS + slot] = found, rows
                del bucket, slot
                keys.insert(0, slots)
                used[level] += rows.size
                table = new(f"bits_{level}", (1 + min(most, int(_ROWS * SLOTS * len(slots))), width), np.uint8)
            for one in parts:
                row = rows if one.keys is found else rows[np.searchsorted(found, one.keys)]
                table[row[one.key_of], one.byte] |= one.value
            bits.insert(0, table)
            prefixes = distinct(found // chunks)
        return cls(space, tuple(bits), tuple(keys), used)

    @classmethod
    def of(cls, space: SemanticIdSpace, catalog: Catalog) -> PrefixTable:
        """Table of the available items of `catalog`."""
        return cls.build(space, space.encode(catalog.sids[catalog.popular_rows]))

    def unrestricted(self) -> PrefixTable:
        """A table of the same space that allows every tuple, for drafting without masks: without a key, row 0 all ones.

        It cannot be changed.
        """
        bits = tuple(np.full_like(rows[:1], 0xFF) for rows in self.bits)
        return PrefixTable(
            self.space,
            bits,
            tuple(_no_keys(np.zeros_like(keys[:GROUP])) for keys in self.keys),
            np.ones_like(self.used),
        )

    def add(self, codes: np.ndarray) -> None:
        """Allow semantic IDs: their codes, int64 [n], in any order; those that are allowed already change nothing.

        Raises ValueError for a code outside the space, TableFull where there is no room: `build` a larger table. The
        table is then as before.
        """
        plans = []
        for level, found in levels_of(self.space, codes):
            rows = self._rows(level, found.keys)
            new = np.flatnonzero(rows == 0) if level else np.empty(0, np.int64)
            rows[new] = self.used[level] + np.arange(new.size)
            plans.append((level, found, rows, new, self._free_slots(level, found.keys[new])))
        # The deepest level first, and a key last: whoever finds a bit or a key finds all that it leads to.
        for level, found, rows, new, (bucket, slot) in plans:
            bits = self.bits[level]
            self.used[level] += new.size
            bits[rows[new]] = 0  # an earlier writer may have ended between a row and its key
            bits[rows[found.key_of], found.byte] |= found.value
            if new.size:
                keys = self.keys[level - 1]
                keys[bucket, SLOTS + slot] = rows[new]
                keys[bucket, slot] = found.keys[new]

    def discard(self, codes: np.ndarray) -> None:
        """Forbid semantic IDs: codes that no item has any more, int64 [n], in any order; unknown ones change nothing.

        Raises ValueError for a code outside the space.
        """
        prefixes = checked_codes(self.space, codes)
        for level in reversed(range(self.space.depth)):
            chunks, _ = mask_shape(level, self.space.levels[level])
            found, bits = bits_of(self.space, level, prefixes), self.bits[level]
            rows = self._rows(level, found.keys)
            known = np.flatnonzero((rows > 0)[found.key_of]) if level else slice(None)
            bits[rows[found.key_of[known]], found.byte[known]] &= ~found.value[known]
            if level == 0:
                break
            parents = distinct(found.keys[(rows > 0) & ~bits[rows].any(1)] // chunks)
            siblings = self._rows(level, (parents[:, None] * chunks + np.arange(chunks)).reshape(-1))
            there = np.flatnonzero(siblings)  # few of them
            empty = np.ones(parents.size, bool)
            empty[there[bits[siblings[there]].any(1)] // chunks] = False
            prefixes = parents[empty]

    def slots(self, codes: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """What `add` or `discard` of these codes, int64 [n], may have changed: per level, rows and buckets, int64 each.

        A copy of the table on a device needs these rows of `bits` and these buckets of `keys` anew. Raises ValueError
        for a code outside the space.
        """
        changed: list[tuple[np.ndarray, np.ndarray]] = []
        for level, found in levels_of(self.space, codes):
            bucket, slot = self._find(level, found.keys)
            there = bucket >= 0
            rows = (
                self.keys[level - 1][bucket[there], SLOTS + slot[there]].astype(np.int64)
                if level
                else np.zeros(1, np.int64)
            )
            changed.insert(0, (rows, np.unique(bucket[there])))
        return tuple(changed)

    def allows(self, codes: np.ndarray) -> np.ndarray:
        """Whether codes, int64 [n], can be drafted, found as a graph finds it: bool [n]."""
        allowed = np.ones(codes.shape, bool)
        for level, size in enumerate(self.space.levels):
            chunks, width = mask_shape(level, size)
            code = codes // self.space.radix[level] % size
            rows = self._rows(level, codes % self.space.radix[level] * chunks + code // (8 * width))
            allowed &= (self.bits[level][rows, code // 8 % width] >> (code % 8).astype(np.uint8) & 1) == 1
        return allowed

    def following(self) -> np.ndarray:
        """The share of the codes of a row that follow its key, on average, by a sample: float64 [L]. 1 if all may."""
        shares = []
        for bits, used, size in zip(self.bits, self.used.tolist(), self.space.levels, strict=True):
            rows = bits[:1] if used == 1 else bits[1 : used : 1 + used // _SAMPLE]
            shares.append(min(1.0, np.unpackbits(rows).sum() / len(rows) / min(size, 8 * rows.shape[1])))
        return np.array(shares)

    def save(self, folder: Path) -> None:
        """Write the table's arrays into `folder`."""
        save_array(folder / "used.npy", self.used)
        for level, bits in enumerate(self.bits):
            save_array(folder / f"bits_{level}.npy", bits)
        for level, keys in enumerate(self.keys, 1):
            save_array(folder / f"keys_{level}.npy", keys)

    @classmethod
    def load(cls, folder: Path, space: SemanticIdSpace, writable: bool = False) -> PrefixTable:
        """Map the table in `folder`. writable: for the one process that changes it; others see what it writes.

        Raises ValueError that names the file at fault.
        """
        bits = tuple(
            load_array(folder / f"bits_{level}.npy", np.uint8, (None, mask_shape(level, size)[1]), writable)
            for level, size in enumerate(space.levels)
        )
        keys = tuple(
            load_array(folder / f"keys_{level}.npy", _key_type(space, level), (None, 2 * SLOTS), writable)
            for level in range(1, space.depth)
        )
        used = load_array(folder / "used.npy", np.int64, (space.depth,), writable)
        for level, (rows, table) in enumerate(zip(bits, (np.empty(GROUP), *keys), strict=True)):
            if not 1 <= used[level] <= len(rows):
                raise ValueError(f"{folder / f'bits_{level}.npy'}: has {len(rows)} rows, used.npy says {used[level]}")
            if not len(table) or len(table) % GROUP:
                path = folder / f"keys_{level}.npy"
                raise ValueError(f"{path}: has {len(table)} buckets, expected a multiple of {GROUP}")
        return cls(space, bits, keys, used)

    def _rows(self, level: int, keys: np.ndarray) -> np.ndarray:
        """Rows of a level's keys, int64 [n], 0 for those that are not there."""
        bucket, slot = self._find(level, keys)
        rows = np.zeros(keys.size, np.int64)
        if level:
            there = bucket >= 0
            rows[there] = self.keys[level - 1][bucket[there], SLOTS + slot[there]]
        return rows

    def _find(self, level: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bucket and slot of a level's keys, int64 [n] each, -1 for those that are not there."""
        bucket, slot = np.full((2, keys.size), -1)
        if level:
            table = self.keys[level - 1]
            homes = np.stack(home_buckets(keys, len(table)), 1)
            # Compared in the table's own type: that of `keys` takes twice the memory.
            same = table[homes, :SLOTS] == keys.astype(table.dtype)[:, None, None]
            at, place = np.divmod(np.flatnonzero(same), 2 * SLOTS)
            bucket[at], slot[at] = homes[at, place // SLOTS], place % SLOTS
        return bucket, slot

    def _free_slots(self, level: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bucket and slot for distinct keys that are not there yet: int64 [n] each. Raises TableFull."""
        if not keys.size:
            return keys, keys
        table = self.keys[level - 1]
        # Only the buckets in question are looked at: a table may have millions.
        touched, homes = np.unique(np.stack(home_buckets(keys, len(table))), return_inverse=True)
        first, second = homes.reshape(2, -1)
        # Up to the last key: a writer that was killed may have left an empty slot before it.
        taken = ((table[touched, :SLOTS] != _EMPTY) * np.arange(1, 1 + SLOTS, dtype=np.uint8)).max(1)
        placed = find_places(first, second, taken)
        if placed is None or self.used[level] + keys.size > len(self.bits[level]):
            raise TableFull(
                f"level {level}: no room for {keys.size} new prefixes beside {self.used[level] - 1} in "
                f"{SLOTS * len(table)} slots and {len(self.bits[level])} rows; build a larger table"
            )
        return touched[placed[0]], placed[1]


def _key_type(space: SemanticIdSpace, level: int) -> type[np.signedinteger]:
    """Of a level's keys and rows."""
    keys = int(space.radix[level]) * mask_shape(level, space.levels[level])[0]
    return np.int32 if keys <= np.iinfo(np.int32).max + 1 else np.int64


def _no_keys(table: np.ndarray) -> np.ndarray:
    """The level's keys in an array of zeros, without a key so far."""
    table[:, :SLOTS] = _EMPTY
    return table
