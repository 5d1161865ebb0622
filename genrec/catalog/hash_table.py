"""A static hash table from int64 keys to int32 values, looked up for whole arrays at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_EMPTY = -1
_WIDTH = 8  # slots per bucket: one cache line of keys
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hashing


@dataclass(frozen=True)
class HashTable:
    """Buckets of eight slots, at most half full, that spill into the next bucket; two plain arrays, to be mapped.

    keys: int64 [buckets, 8], -1 where empty, filled from the left. values: int32 [buckets, 8], -1 where empty.
    The number of buckets is a power of two. A lookup reads one cache line of keys; a second one only for a key whose
    bucket is full.
    """

    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def build(cls, keys: np.ndarray, values: np.ndarray) -> HashTable:
        """Table of distinct non-negative `keys` (int64 [n]) and non-negative `values` (int32 [n])."""
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        values = np.ascontiguousarray(values, dtype=np.int32)
        if keys.size and keys.min() < 0:
            raise ValueError(f"hash table keys must not be negative, got {int(keys.min())}")
        if np.unique(keys).size != keys.size:
            raise ValueError("hash table keys must be distinct")
        buckets = 2 << max(0, int(2 * keys.size - 1) // _WIDTH).bit_length()
        table = cls(np.full((buckets, _WIDTH), _EMPTY, np.int64), np.full((buckets, _WIDTH), _EMPTY, np.int32))
        taken = np.zeros(buckets, np.int64)
        bucket, pending = table._home(keys), np.arange(keys.size)
        while pending.size:
            order = np.argsort(bucket, kind="stable")
            bucket, pending = bucket[order], pending[order]
            first = np.searchsorted(bucket, bucket)
            slot = taken[bucket] + np.arange(bucket.size) - first
            fits = slot < _WIDTH
            table.keys[bucket[fits], slot[fits]] = keys[pending[fits]]
            table.values[bucket[fits], slot[fits]] = values[pending[fits]]
            taken += np.bincount(bucket[fits], minlength=buckets)
            bucket, pending = (bucket[~fits] + 1) & (buckets - 1), pending[~fits]
        return table

    def get(self, keys: np.ndarray) -> np.ndarray:
        """Values of `keys` (int64, any shape), -1 where a key is absent; int32, same shape."""
        wanted = np.ravel(keys)
        bucket = self._home(wanted)
        found = np.full(wanted.size, _EMPTY, np.int32)
        values = self.values.reshape(-1)
        pending: np.ndarray | None = None  # places of `wanted` in `keys`, None for all
        for _ in range(len(self.keys)):  # ends with the first pass, nearly always
            seen = self.keys.take(bucket, 0)
            row, slot = np.divmod((seen == wanted[:, None]).ravel().nonzero()[0], _WIDTH)
            found[row if pending is None else pending[row]] = values.take(bucket.take(row) * _WIDTH + slot)
            if row.size == wanted.size:
                break
            more = seen[:, -1] != _EMPTY
            more[row] = False
            left = more.nonzero()[0]
            if not left.size:
                break
            pending = left if pending is None else pending[left]
            bucket, wanted = (bucket[left] + 1) & (len(self.keys) - 1), wanted[left]
        return found.reshape(np.shape(keys))

    def _home(self, keys: np.ndarray) -> np.ndarray:
        shift = np.uint64(65 - len(self.keys).bit_length())
        return ((keys.astype(np.uint64) * _GOLDEN) >> shift).astype(np.int64)
