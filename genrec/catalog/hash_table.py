"""A static hash table from int64 keys to int32 values, looked up for whole arrays at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import NewArray, in_memory, load_array, save_array
from genrec.catalog.sorting import stable_order

_EMPTY = -1
_WIDTH_BITS = 3
_WIDTH = 1 << _WIDTH_BITS  # slots per bucket: one cache line of keys
_LOAD = 0.65  # of the slots: above it the second and third bucket that a lookup reads cost more than the memory saved
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hashing
_HALF = np.uint64(32)
_SCANNED = 1 << 16  # slots that are looked through for empty ones at a time


class RepeatedKey(ValueError):
    """A key that comes twice. values: of both."""

    def __init__(self, key: int, values: tuple[int, int]) -> None:
        super().__init__(f"hash table keys must be distinct, got {key} for the values {values[0]} and {values[1]}")
        self.values = values


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

        load: the part of the slots that is taken, at most. Raises ValueError for negative keys, and RepeatedKey.
        """
        keys = np.ascontiguousarray(keys, dtype=np.int64)
        values = np.ascontiguousarray(values, dtype=np.int32)
        table = cls.blank("table", keys.size, in_memory, load)
        order = stable_order(table.homes(keys))
        table.fill([(keys.take(order), values.take(order))])
        return table

    @classmethod
    def blank(cls, name: str, count: int, new: NewArray, load: float = _LOAD) -> HashTable:
        """A table for `count` keys, whose arrays `new` makes as NAME_keys and NAME_rows; `fill` it once."""
        shape = (1 + int(count / (load * _WIDTH)), _WIDTH)
        return cls(new(f"{name}_keys", shape, np.int64), new(f"{name}_rows", shape, np.int32))

    def fill(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Put all that a blank table is for into it, part by part: distinct keys int64 [m], and values int32 [m].

        They come in order of their `homes`. Raises ValueError for negative keys, and RepeatedKey.
        """
        slots, slot_values = self.keys.reshape(-1), self.values.reshape(-1)
        taken = 0  # slots so far: those behind are still to be written
        none = np.empty(0, np.int64), np.empty(0, np.int32)
        tail, over = none, [none]  # what the last bucket holds, which the next part may go on with; what spills
        for fresh in parts:
            if not fresh[0].size:
                continue
            old = tail[0].size
            keys, values = _joined([tail, fresh])
            if keys.min() < 0:
                raise ValueError(f"hash table keys must not be negative, got {int(keys.min())}")
            _check_distinct(keys, values)
            home = self.homes(keys)
            last = int(np.searchsorted(home, home[-1]))
            tail = keys[last:], values[last:]
            keys, values, home = keys[old:], values[old:], home[old:]
            # In order of their buckets, a key takes the first slot of its own or the one behind the key before it.
            places = np.arange(keys.size)
            slot = _WIDTH * home - places
            slot[0] = max(slot[0], taken)
            slot = np.maximum.accumulate(slot) + places
            inside, end = np.searchsorted(slot, slots.size), int(slot[-1]) + 1
            slots[taken:end] = slot_values[taken:end] = _EMPTY
            slots[slot[:inside]], slot_values[slot[:inside]] = keys[:inside], values[:inside]
            over.append((keys[inside:].copy(), values[inside:].copy()))  # a view would keep all of the part
            taken = end
        slots[taken:] = slot_values[taken:] = _EMPTY
        self._spill(*_joined(over))

    def _spill(self, keys: np.ndarray, values: np.ndarray) -> None:
        """What goes over the last bucket goes on in the first ones."""
        slots, slot_values = self.keys.reshape(-1), self.values.reshape(-1)
        start = 0
        while keys.size:
            at = start + np.flatnonzero(slots[start : start + _SCANNED] == _EMPTY)[: keys.size]
            slots[at], slot_values[at] = keys[: at.size], values[: at.size]
            keys, values, start = keys[at.size :], values[at.size :], start + _SCANNED

    def save(self, keys: Path, values: Path) -> None:
        """Write the two arrays to these files."""
        save_array(keys, self.keys)
        save_array(values, self.values)

    @classmethod
    def load(cls, keys: Path, values: Path) -> HashTable:
        """Map the two arrays in these files. Raises ValueError that names the file at fault."""
        mapped = load_array(keys, np.int64, (None, _WIDTH))
        if not len(mapped):
            raise ValueError(f"{keys}: has no bucket")
        return cls(mapped, load_array(values, np.int32, mapped.shape))

    def leads_to(self, count: int) -> bool:
        """Whether all of its values are of [0, count)."""
        found = self.values[self.keys != _EMPTY]
        return bool(0 <= found.min(initial=0) <= found.max(initial=0) < max(1, count))

    def get(self, keys: np.ndarray) -> np.ndarray:
        """Values of `keys` (int64, any shape), -1 where a key is absent; int32, same shape."""
        wanted = np.ravel(keys)
        bucket = self.homes(wanted)
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

    def homes(self, keys: np.ndarray) -> np.ndarray:
        """The buckets that keys, int64 [n], stand in if there is room, or behind: int64 [n], below 2^32."""
        # The upper half of the product with the number of buckets: its top bits, where that is a power of two.
        top = (keys.astype(np.uint64) * _GOLDEN) >> _HALF
        return ((top * np.uint64(len(self.keys))) >> _HALF).astype(np.int64)


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    keys, values = zip(*parts, strict=True)
    return np.concatenate(keys), np.concatenate(values)


def _check_distinct(keys: np.ndarray, values: np.ndarray) -> None:
    ordered = np.sort(keys)
    repeated = ordered[1:] == ordered[:-1]
    if repeated.any():
        key = ordered[int(repeated.argmax())]
        one, other = values[np.flatnonzero(keys == key)[:2]].tolist()
        raise RepeatedKey(int(key), (one, other))
