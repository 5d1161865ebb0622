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

BUCKET = 8  # keys per bucket: one cache line
_EMPTY = -1
_WHOLE, _CHUNK = 512, 256  # codes of a level whose prefixes have one row each, and codes of a row on larger levels
_LOAD = 0.6  # keys per slot of a new table; at 0.7 to 0.8, the fewer the larger it is, both buckets of one are full
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
    keys: per level but the first, int64 [buckets, 8], -1 where empty, filled from the left. Slot s of bucket b belongs
        to row 1 + 8 b + s. A key is `prefix * chunks + code // (8 * width)`, the prefix in mixed radix, with chunks and
        width of `mask_shape`.

    A key stands in one of two buckets, of the first h = buckets / 2 or of the others:
        first = key % h,   second = h + (first + key // h) % h.
    Nothing here is larger than a key and the table, so 32 bits do where they hold those.

    One process may change what others read, in a shared mapping of the arrays. Readers need no lock: a row is whole
    before its key is there, and a prefix is there before its parent allows it. Keys are never removed; a row of zeros
    is that of a prefix that has nothing left.
    """

    space: SemanticIdSpace
    bits: tuple[np.ndarray, ...]
    keys: tuple[np.ndarray, ...]

    @classmethod
    def build(cls, space: SemanticIdSpace, codes: np.ndarray, spare: int = _SPARE) -> PrefixTable:
        """Table of semantic IDs by their codes: int64 [n], in any order, repeats allowed.

        spare: prefixes per level that there is room for besides, before some are left over. Raises ValueError for a
        code outside the space.
        """
        bits: list[np.ndarray] = []
        keys: list[np.ndarray] = []
        for level, found in _levels(space, codes):
            chunks, width = mask_shape(level, space.levels[level])
            if level == 0:
                rows, table = np.zeros(found.keys.size, np.int64), np.zeros((1, width), np.uint8)
            else:
                # No more than there can be, so that small levels stay small.
                most = min(found.keys.size + spare, int(space.radix[level]) * chunks)
                rows, buckets = _placed(found.keys, ceil(most / _LOAD / BUCKET))
                table = np.zeros((1 + BUCKET * buckets, width), np.uint8)
                slots = np.full(BUCKET * buckets, _EMPTY, np.int64)
                slots[rows - 1] = found.keys
                keys.insert(0, slots.reshape(buckets, BUCKET))
            table[rows[found.key_of], found.byte] = found.value
            bits.insert(0, table)
        return cls(space, tuple(bits), tuple(keys))

    @classmethod
    def of(cls, space: SemanticIdSpace, catalog: Catalog) -> PrefixTable:
        """Table of the available items of `catalog`."""
        return cls.build(space, space.encode(catalog.sids[catalog.popular_rows]))

    def unrestricted(self) -> PrefixTable:
        """A table of the same space that allows every tuple, for drafting without masks: without a key, row 0 all ones.

        It cannot be changed.
        """
        bits = tuple(np.full_like(rows[:1], 0xFF) for rows in self.bits)
        return PrefixTable(self.space, bits, tuple(np.full((2, BUCKET), _EMPTY, np.int64) for _ in self.keys))

    def add(self, codes: np.ndarray) -> None:
        """Allow semantic IDs: their codes, int64 [n], in any order; those that are allowed already change nothing.

        Raises ValueError for a code outside the space, TableFull where there is no room: `build` a larger table. The
        table is then as before.
        """
        plans = []
        for level, found in _levels(self.space, codes):
            rows = self._rows(level, found.keys)
            new = np.flatnonzero(rows == 0) if level else np.empty(0, np.int64)
            rows[new] = self._free_rows(level, found.keys[new])
            plans.append((level, found, rows, new))
        # The deepest level first, and a key last: whoever finds a bit or a key finds all that it leads to.
        for level, found, rows, new in plans:
            bits = self.bits[level]
            bits[rows[new]] = 0  # an earlier writer may have ended between a row and its key
            bits[rows[found.key_of], found.byte] |= found.value
            if new.size:
                self.keys[level - 1].reshape(-1)[rows[new] - 1] = found.keys[new]

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

    def slots(self, codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """The rows that `add` or `discard` of these codes, int64 [n], may have changed: per level, int64, rising.

        What a copy of the table on a device needs anew: these rows of `bits`, and the slots of `keys` that belong to
        them. Raises ValueError for a code outside the space.
        """
        rows = [self._rows(level, found.keys) for level, found in _levels(self.space, codes)]
        return (*(np.unique(found[found > 0]) if level else found[:1] for level, found in enumerate(reversed(rows))),)

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
        for level, bits in enumerate(self.bits):
            save_array(folder / f"bits_{level}.npy", bits)
        for level, keys in enumerate(self.keys, 1):
            save_array(folder / f"keys_{level}.npy", keys)

    @classmethod
    def load(cls, folder: Path, space: SemanticIdSpace, writable: bool = False) -> PrefixTable:
        """Map the table in `folder`. writable: for the one process that changes it; others see what it writes.

        Raises ValueError that names the file at fault.
        """
        keys = tuple(
            load_array(folder / f"keys_{level}.npy", np.int64, (None, BUCKET), writable)
            for level in range(1, space.depth)
        )
        for level, table in enumerate(keys, 1):
            if len(table) < 2 or len(table) % 2:
                raise ValueError(f"{folder / f'keys_{level}.npy'}: has {len(table)} buckets, expected an even number")
        bits = []
        for level, size in enumerate(space.levels):
            rows = 1 + BUCKET * len(keys[level - 1]) if level else 1
            shape = rows, mask_shape(level, size)[1]
            bits.append(load_array(folder / f"bits_{level}.npy", np.uint8, shape, writable))
        return cls(space, tuple(bits), keys)

    def _rows(self, level: int, keys: np.ndarray) -> np.ndarray:
        """Rows of a level's keys, int64 [n], 0 for those that are not there."""
        rows = np.zeros(keys.size, np.int64)
        if level:
            table = self.keys[level - 1]
            buckets = np.stack(_homes(keys, len(table)), 1)
            at, slot = np.divmod(np.flatnonzero(table[buckets] == keys[:, None, None]), 2 * BUCKET)
            rows[at] = 1 + BUCKET * buckets[at, slot // BUCKET] + slot % BUCKET
        return rows

    def _free_rows(self, level: int, keys: np.ndarray) -> np.ndarray:
        """Rows for distinct keys that are not there yet: int64 [n]. Raises TableFull."""
        if not keys.size:
            return np.empty(0, np.int64)
        table = self.keys[level - 1]
        # Only the buckets in question are looked at: a table may have millions.
        touched, homes = np.unique(np.stack(_homes(keys, len(table))), return_inverse=True)
        first, second = homes.reshape(2, -1)
        placed = _place(first, second, (table[touched] != _EMPTY).sum(1).astype(np.uint8))
        if placed is None:
            raise TableFull(
                f"level {level}: no room for {keys.size} new prefixes in {table.size} slots; build a larger table"
            )
        bucket, slot = placed
        return 1 + BUCKET * touched[bucket] + slot


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


def _homes(keys: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """The two buckets of each key."""
    half = buckets // 2
    quotient, first = np.divmod(keys, half)
    return first, half + (first + quotient) % half


def _placed(keys: np.ndarray, buckets: int) -> tuple[np.ndarray, int]:
    """Rows of distinct keys in an empty table, int64 [n], and its buckets: at least so many, and as few as will do."""
    while True:
        buckets = 2 * _prime(-(-buckets // 2))
        placed = _place(*_homes(keys, buckets), np.zeros(buckets, np.uint8))
        if placed is not None:
            bucket, slot = placed
            return 1 + BUCKET * bucket + slot, buckets
        buckets += buckets // 8


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
            if taken[wanted].max() >= BUCKET:
                return None
            claims[wanted] = pending  # of several that want a bucket, one stays and gets it
            won = claims[wanted] == pending
            winners, to = pending[won], wanted[won]
            bucket[winners], slot[winners] = to, taken[to]
            taken[to] += 1
            pending = pending[~won]
    return bucket, slot


def _prime(least: int) -> int:
    """The smallest odd prime of at least `least`."""
    number = max(3, least | 1)
    while any(number % divisor == 0 for divisor in range(3, isqrt(number) + 1, 2)):
        number += 2
    return number
