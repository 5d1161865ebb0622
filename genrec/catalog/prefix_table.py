"""Which codes may follow a drafted prefix: hash tables of bit sets, one per level, that change in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.items import Catalog
from genrec.catalog.semantic_id import SemanticIdSpace

SLOTS = 8  # of a bucket: keys and rows are one cache line where a key has 32 bits
GROUP = 64  # buckets: 4 KiB then, so that both of a key are close to each other
LEFT, RIGHT = 31, 33  # buckets of a group for either choice: coprime, so that keys with one in common part in the other
_EMPTY = -1
_WHOLE, _CHUNK = 512, 256  # codes of a level whose prefixes have one row each, and codes of a row on larger levels
_LOAD = 0.5  # keys per slot of a new table; somewhere above 0.65 both buckets of one are full
_ROWS = 0.65  # rows per slot
_SPARE = 4096


class TableFull(Exception):
    """Codes that a `PrefixTable` has no room for, in both buckets of one of their prefixes. Nothing was changed."""


def mask_shape(level: int, size: int) -> tuple[int, int]:
    """Rows of a prefix of `level` codes that one of `size` codes may follow, and bytes of a row.

    A prefix of a large level has a row for each chunk of codes that holds any. The first level has one prefix, so it
    needs no chunks.
    """
    if level == 0 or size <= _WHOLE:
        return 1, -(-size // 8)
    return -(-size // _CHUNK), _CHUNK // 8


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
    def build(cls, space: SemanticIdSpace, codes: np.ndarray, spare: int = _SPARE) -> PrefixTable:
        """Table of semantic IDs by their codes: int64 [n], in any order, repeats allowed.

        spare: prefixes per level that there is room for besides, before some are left over. Raises ValueError for a
        code outside the space.
        """
        bits: list[np.ndarray] = []
        keys: list[np.ndarray] = []
        used = np.ones(space.depth, np.int64)
        for level, found in _levels(space, codes):
            chunks, width = mask_shape(level, space.levels[level])
            if level == 0:
                rows, table = np.zeros(found.keys.size, np.int64), np.zeros((1, width), np.uint8)
            else:
                # No more than there can be, so that small levels stay small.
                most = int(space.radix[level]) * chunks
                placed, slots = _placed(found.keys, min(found.keys.size + spare, most), _key_type(space, level))
                table = np.zeros((1 + min(most, int(_ROWS * SLOTS * len(slots))), width), np.uint8)
                rows = np.empty(found.keys.size, np.int64)
                rows[_in_order(space, level, found.keys)] = np.arange(1, 1 + rows.size)
                bucket, slot = placed
                slots[bucket, slot], slots[bucket, SLOTS + slot] = found.keys, rows
                keys.insert(0, slots)
                used[level] += rows.size
            table[rows[found.key_of], found.byte] = found.value
            bits.insert(0, table)
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
            self.space, bits, tuple(_no_keys(1, keys.dtype) for keys in self.keys), np.ones_like(self.used)
        )

    def add(self, codes: np.ndarray) -> None:
        """Allow semantic IDs: their codes, int64 [n], in any order; those that are allowed already change nothing.

        Raises ValueError for a code outside the space, TableFull where there is no room: `build` a larger table. The
        table is then as before.
        """
        plans = []
        for level, found in _levels(self.space, codes):
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
        prefixes = _checked(self.space, codes)
        for level in reversed(range(self.space.depth)):
            chunks, _ = mask_shape(level, self.space.levels[level])
            found, bits = _found(self.space, level, prefixes), self.bits[level]
            rows = self._rows(level, found.keys)
            known = np.flatnonzero((rows > 0)[found.key_of]) if level else slice(None)
            bits[rows[found.key_of[known]], found.byte[known]] &= ~found.value[known]
            if level == 0:
                break
            parents = _distinct(found.keys[(rows > 0) & ~bits[rows].any(1)] // chunks)
            siblings = (parents[:, None] * chunks + np.arange(chunks)).reshape(-1)
            left = bits[self._rows(level, siblings)].any(1).reshape(-1, chunks).any(1)
            prefixes = parents[~left]

    def slots(self, codes: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """What `add` or `discard` of these codes, int64 [n], may have changed: per level, rows and buckets, int64 each.

        A copy of the table on a device needs these rows of `bits` and these buckets of `keys` anew. Raises ValueError
        for a code outside the space.
        """
        changed: list[tuple[np.ndarray, np.ndarray]] = []
        for level, found in _levels(self.space, codes):
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
            homes = np.stack(_homes(keys, len(table)), 1)
            at, place = np.divmod(np.flatnonzero(table[homes, :SLOTS] == keys[:, None, None]), 2 * SLOTS)
            bucket[at], slot[at] = homes[at, place // SLOTS], place % SLOTS
        return bucket, slot

    def _free_slots(self, level: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bucket and slot for distinct keys that are not there yet: int64 [n] each. Raises TableFull."""
        if not keys.size:
            return keys, keys
        table = self.keys[level - 1]
        # Only the buckets in question are looked at: a table may have millions.
        touched, homes = np.unique(np.stack(_homes(keys, len(table))), return_inverse=True)
        first, second = homes.reshape(2, -1)
        # Up to the last key: a writer that was killed may have left an empty slot before it.
        taken = ((table[touched, :SLOTS] != _EMPTY) * np.arange(1, 1 + SLOTS, dtype=np.uint8)).max(1)
        placed = _place(first, second, taken)
        if placed is None or self.used[level] + keys.size > len(self.bits[level]):
            raise TableFull(
                f"level {level}: no room for {keys.size} new prefixes beside {self.used[level] - 1} in "
                f"{SLOTS * len(table)} slots and {len(self.bits[level])} rows; build a larger table"
            )
        return touched[placed[0]], placed[1]


class _Found(NamedTuple):
    """What the rows of a level hold of some prefixes: distinct keys, rising, and every byte that is not 0.

    keys: int64 [k]. key_of, byte: int64 [m], which key's row, and which byte of it. value: uint8 [m].
    """

    keys: np.ndarray
    key_of: np.ndarray
    byte: np.ndarray
    value: np.ndarray


def _levels(space: SemanticIdSpace, codes: np.ndarray) -> Iterator[tuple[int, _Found]]:
    """The levels, the last one first, with what they hold of semantic IDs. Raises ValueError."""
    prefixes = _checked(space, codes)
    for level in reversed(range(space.depth)):
        found = _found(space, level, prefixes)
        yield level, found
        prefixes = _distinct(found.keys // mask_shape(level, space.levels[level])[0])


def _found(space: SemanticIdSpace, level: int, prefixes: np.ndarray) -> _Found:
    """What a level holds of prefixes of level + 1 codes, int64 [n]."""
    size, (chunks, width) = space.levels[level], mask_shape(level, space.levels[level])
    code, parent = np.divmod(prefixes, space.radix[level])
    parent, code = np.divmod(np.unique(parent * size + code), size)
    keys, byte = parent * chunks + code // (8 * width), code // 8 % width
    starts = np.flatnonzero(_differs(keys) | _differs(byte))
    if not starts.size:
        return _Found(keys, keys, keys, np.empty(0, np.uint8))
    value = np.bitwise_or.reduceat(np.uint8(1) << (code % 8).astype(np.uint8), starts)
    keys = keys[starts]
    first = _differs(keys)
    return _Found(keys[first], first.cumsum() - 1, byte[starts], value)


def _differs(values: np.ndarray) -> np.ndarray:
    """Which of `values` differ from the one before; the first one does."""
    different = np.ones(values.size, bool)
    np.not_equal(values[1:], values[:-1], out=different[1:])
    return different


def _distinct(rising: np.ndarray) -> np.ndarray:
    return rising[_differs(rising)]


def _checked(space: SemanticIdSpace, codes: np.ndarray) -> np.ndarray:
    codes = np.asarray(codes, np.int64)
    if codes.size and not 0 <= (least := int(codes.min())) <= (most := int(codes.max())) < space.size:
        wrong = least if least < 0 else most
        raise ValueError(f"code {wrong} is outside the space of levels {space.levels}, 0 to {space.size - 1}")
    return codes


def _key_type(space: SemanticIdSpace, level: int) -> type[np.signedinteger]:
    """Of a level's keys and rows."""
    keys = int(space.radix[level]) * mask_shape(level, space.levels[level])[0]
    return np.int32 if keys <= np.iinfo(np.int32).max + 1 else np.int64


def _no_keys(groups: int, dtype: np.typing.DTypeLike) -> np.ndarray:
    table = np.zeros((groups * GROUP, 2 * SLOTS), dtype)
    table[:, :SLOTS] = _EMPTY
    return table


def _in_order(space: SemanticIdSpace, level: int, keys: np.ndarray) -> np.ndarray:
    """Which of a level's keys comes first, second and so on in the order of the semantic IDs: int64 [n]."""
    chunks = mask_shape(level, space.levels[level])[0]
    rest, chunk = np.divmod(keys, chunks)
    place = np.zeros_like(keys)
    for size in space.levels[:level]:
        rest, code = np.divmod(rest, size)
        place = place * size + code
    return np.argsort(place * chunks + chunk)


def _homes(keys: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """The two buckets of each key."""
    q, group = np.divmod(keys, buckets // GROUP)
    return GROUP * group + q % LEFT, GROUP * group + LEFT + q % RIGHT


def _placed(
    keys: np.ndarray, room: int, dtype: type[np.signedinteger]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Bucket and slot of distinct keys, int64 [n] each, in an empty table for `room` of them, and that table."""
    groups = ceil(room / _LOAD / SLOTS / GROUP)
    while True:
        groups = prime(groups)
        placed = _place(*_homes(keys, groups * GROUP), np.zeros(groups * GROUP, np.uint8))
        if placed is not None:
            return placed, _no_keys(groups, dtype)
        groups += groups // 8 + 1


def _place(first: np.ndarray, second: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Bucket and slot for each of n new keys that may stand in two buckets, int64 [n] each; None if one finds no room.

    taken: uint8, slots of every bucket that are in use; counted up. Each key goes into the emptier bucket, the first
    one if they are equal. Few are placed at a time, because what is placed at once does not see itself.
    """
    bucket, slot = np.empty((2, first.size), np.int64)
    claims = np.empty(taken.size, np.int64)
    parts = max(1, 4 * first.size // taken.size)
    for part in range(parts):
        pending = np.arange(part, first.size, parts)
        while pending.size:
            one, other = first[pending], second[pending]
            wanted = np.where(taken[other] < taken[one], other, one)
            if taken[wanted].max() >= SLOTS:
                return None
            claims[wanted] = pending  # of several that want a bucket, one stays and gets it
            won = claims[wanted] == pending
            winners, to = pending[won], wanted[won]
            bucket[winners], slot[winners] = to, taken[to]
            taken[to] += 1
            pending = pending[~won]
    return bucket, slot


def prime(least: int) -> int:
    """The smallest prime of at least `least`; 1 counts as one."""
    number = max(1, least)
    while any(number % divisor == 0 for divisor in range(2, isqrt(number) + 1)):
        number += 1
    return number
