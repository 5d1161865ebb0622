"""A static hash table from int64 keys to int32 values, looked up for whole arrays at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_EMPTY = -1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hashing


@dataclass(frozen=True)
class HashTable:
    """Open addressing with linear probing, at most half full; two plain arrays, so it can be memory-mapped.

    keys: int64 [capacity], -1 where empty; values: int32 [capacity], -1 where empty. Capacity is a power of two.
    """

    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def build(cls, keys: np.ndarray, values: np.ndarray) -> HashTable:
        """Table of distinct non-negative `keys` (int64 [n]) and non-negative `values` (int32 [n])."""
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        if keys.size and keys.min() < 0:
            raise ValueError(f"hash table keys must not be negative, got {int(keys.min())}")
        capacity = 1 << max(3, int(2 * keys.size - 1).bit_length())
        table = cls(np.full(capacity, _EMPTY, np.int64), np.full(capacity, _EMPTY, np.int32))
        slot = table._home(keys)
        pending = np.arange(keys.size)
        while pending.size:
            # All pending keys try their slot at once; of those that meet in a free one, the last written stays.
            free = pending[table.values[slot[pending]] == _EMPTY]
            table.values[slot[free]] = free
            pending = pending[table.values[slot[pending]] != pending]
            slot[pending] = (slot[pending] + 1) & (capacity - 1)
        table.keys[slot] = keys
        table.values[slot] = values
        if np.any(table.get(keys) != values):
            raise ValueError("hash table keys must be distinct")
        return table

    def get(self, keys: np.ndarray) -> np.ndarray:
        """Values of `keys` (int64, any shape), -1 where a key is absent; int32, same shape."""
        wanted = np.ravel(keys)
        slot = self._home(wanted)
        seen = self.keys[slot]
        found = np.where(seen == wanted, self.values[slot], np.int32(_EMPTY))
        pending = np.flatnonzero((seen != wanted) & (seen != _EMPTY))
        for _ in range(self.keys.size):  # ends at the first empty slot; the bound is for a damaged table
            if not pending.size:
                break
            slot[pending] = (slot[pending] + 1) & (self.keys.size - 1)
            seen = self.keys[slot[pending]]
            hit = seen == wanted[pending]
            found[pending[hit]] = self.values[slot[pending[hit]]]
            pending = pending[~hit & (seen != _EMPTY)]
        return found.reshape(np.shape(keys))

    def _home(self, keys: np.ndarray) -> np.ndarray:
        shift = np.uint64(65 - self.keys.size.bit_length())
        return ((keys.astype(np.uint64) * _GOLDEN) >> shift).astype(np.int64)
