"""A static hash table from int64 keys to int32 values, looked up for whole arrays at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array

_EMPTY = -1
_WIDTH_BITS = 3
_WIDTH = 1 << _WIDTH_BITS  # slots per bucket: one cache line of keys
_LOAD = 0.65  # of the slots: above it the second and third bucket that a lookup reads cost more than the memory saved
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hashing
_HALF = np.uint64(32)


@dataclass(frozen=True)
class HashTable:
    """Buckets of eight slots that spill into the next bucket; two plain arrays, to be mapped.

    keys: int64 [buckets, 8], -1 where empty, filled from the left. values: int32 [buckets, 8], -1 where empty.
    Any number of buckets below 2^32. A lookup reads one cache line of keys; another one only for a key whose bucket is
    full.
    """

    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def build(cls, keys: np.ndarray, values: np.ndarray, load: float = _LOAD) -> HashTable:
        """Table of distinct non-negative `keys` (int64 [n]) and non-negative `values` (int32 [n]).

        load: the part of the slots that is taken, at most. Raises ValueError for negative or repeated keys.
        """
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        values = np.ascontiguousarray(values, dtype=np.int32)
        if keys.size and keys.min() < 0:
            raise ValueError(f"hash table keys must not be negative, got {int(keys.min())}")
        ordered = np.sort(keys)
        if (ordered[1:] == ordered[:-1]).any():
            raise ValueError("hash table keys must be distinct")
        del ordered
        buckets = 1 + int(keys.size / (load * _WIDTH))
        table = cls(np.full((buckets, _WIDTH), _EMPTY, np.int64), np.full((buckets, _WIDTH), _EMPTY, np.int32))
        home = table._home(keys)
        order = np.argsort(home, kind="stable")
        home = home.take(order)
        # In order of their buckets, a key takes the first slot of its own or the one behind the key before it.
        places = np.arange(keys.size)
        slot = np.maximum.accumulate(_WIDTH * home - places) + places
        behind = int(np.searchsorted(slot, buckets * _WIDTH))
        table.keys.reshape(-1)[slot[:behind]] = keys.take(order[:behind])
        table.values.reshape(-1)[slot[:behind]] = values.take(order[:behind])
        if behind < keys.size:  # what spills over the last bucket goes on in the first ones
            at = np.flatnonzero(table.keys.reshape(-1) == _EMPTY)[: keys.size - behind]
            table.keys.reshape(-1)[at] = keys.take(order[behind:])
            table.values.reshape(-1)[at] = values.take(order[behind:])
        return table

    def save(self, keys: Path, values: Path) -> None:
        """Write the two arrays to these files."""
        save_array(keys, self.keys)
        save_array(values, self.values)

    @classmethod
    def load(cls, keys: Path, values: Path) -> HashTable:
        """Map the two arrays in these files. Raises ValueError that names the file at fault."""
        mapped = load_array(keys, np.int64, (None, None))
        return cls(mapped, load_array(values, np.int32, mapped.shape))

    def get(self, keys: np.ndarray) -> np.ndarray:
        """Values of `keys` (int64, any shape), -1 where a key is absent; int32, same shape."""
        wanted = np.ravel(keys)
        bucket = self._home(wanted)
        found = np.full(wanted.size, _EMPTY, np.int32)
        values = self.values.reshape(-1)
        pending: np.ndarray | None = None  # places of `wanted` in `keys`, None for all
        for _ in range(len(self.keys)):  # ends with the first pass or the second, nearly always
            seen = self.keys.take(bucket, 0)
            place = (seen == wanted[:, None]).ravel().nonzero()[0]
            row = place >> _WIDTH_BITS
            slot = (bucket.take(row) << _WIDTH_BITS) + (place & (_WIDTH - 1))
            found[row if pending is None else pending[row]] = values.take(slot)
            if row.size == wanted.size:
                break
            more = seen[:, -1] != _EMPTY
            more[row] = False
            left = more.nonzero()[0]
            if not left.size:
                break
            pending = left if pending is None else pending[left]
            bucket, wanted = bucket[left] + 1, wanted[left]
            bucket[bucket == len(self.keys)] = 0
        return found.reshape(np.shape(keys))

    def _home(self, keys: np.ndarray) -> np.ndarray:
        # The upper half of the product with the number of buckets: its top bits, where that is a power of two.
        top = (keys.astype(np.uint64) * _GOLDEN) >> _HALF
        return ((top * np.uint64(len(self.keys))) >> _HALF).astype(np.int64)
