"""What the masks hold of a catalogue's prefixes: keys of rows, and the bits of the codes that may follow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from genrec.catalog.semantic_id import SemanticIdSpace, checked_codes

_WHOLE, _CHUNK = 512, 256  # codes of a level whose prefixes have one row each, and codes of a row on larger levels
_SLICE = 1 << 20  # keys that are looked at at a time, where there may be many


def mask_shape(level: int, size: int) -> tuple[int, int]:
    """Rows of a prefix of `level` codes that one of `size` codes may follow, and bytes of a row.

    A prefix of a large level has a row for each chunk of codes that holds any. The first level has one prefix, so it
    needs no chunks.
    """
    if level == 0 or size <= _WHOLE:
        return 1, -(-size // 8)
    return -(-size // _CHUNK), _CHUNK // 8


class Bits(NamedTuple):
    """What the rows of a level hold of some prefixes: distinct keys, rising, and every byte that is not 0.

    keys: int64 [k]. key_of, byte: int64 [m], which key's row, and which byte of it. value: uint8 [m].
    """

    keys: np.ndarray
    key_of: np.ndarray
    byte: np.ndarray
    value: np.ndarray


class Parts:
    """What a level holds of prefixes of level + 1 codes, integers [n], so many of them at a time. Raises ValueError."""

    def __init__(self, space: SemanticIdSpace, level: int, prefixes: np.ndarray, size: int) -> None:
        self._space, self._level, self._prefixes, self._size = space, level, prefixes, size
        self._whole = self._found(prefixes) if prefixes.size <= size else None

    def __iter__(self) -> Iterator[Bits]:
        if self._whole is not None:
            yield self._whole
            return
        for start in range(0, self._prefixes.size, self._size):
            yield self._found(self._prefixes[start : start + self._size])

    def keys(self) -> np.ndarray:
        """Distinct keys of all parts, rising: int64 [k]."""
        if self._whole is not None:
            return self._whole.keys
        parts, fresh = [np.empty(0, np.int64)], 0
        for found in self:
            parts.append(found.keys)
            fresh += found.keys.size
            if fresh > parts[0].size:  # so each of them is sorted a few times only
                parts, fresh = [_union(parts)], 0
        return _union(parts)

    def _found(self, prefixes: np.ndarray) -> Bits:
        return bits_of(self._space, self._level, checked_codes(self._space, prefixes))


def _union(parts: list[np.ndarray]) -> np.ndarray:
    """The values of parts, rising, each once. The parts are forgotten: there may be half as many as memory holds."""
    every = np.concatenate(parts)
    parts.clear()
    every.sort()
    return distinct(every)


def levels_of(space: SemanticIdSpace, codes: np.ndarray) -> Iterator[tuple[int, Bits]]:
    """The levels, the last one first, with what they hold of semantic IDs. Raises ValueError."""
    prefixes = checked_codes(space, codes)
    for level in reversed(range(space.depth)):
        found = bits_of(space, level, prefixes)
        yield level, found
        prefixes = distinct(found.keys // mask_shape(level, space.levels[level])[0])


def bits_of(space: SemanticIdSpace, level: int, prefixes: np.ndarray) -> Bits:
    """What a level holds of prefixes of level + 1 codes, int64 [n]."""
    size, (chunks, width) = space.levels[level], mask_shape(level, space.levels[level])
    code, parent = np.divmod(prefixes, space.radix[level])
    parent, code = np.divmod(np.unique(parent * size + code), size)
    keys, byte = parent * chunks + code // (8 * width), code // 8 % width
    starts = np.flatnonzero(_differs(keys) | _differs(byte))
    if not starts.size:
        return Bits(keys, keys, keys, np.empty(0, np.uint8))
    value = np.bitwise_or.reduceat(np.uint8(1) << (code % 8).astype(np.uint8), starts)
    keys = keys[starts]
    first = _differs(keys)
    return Bits(keys[first], first.cumsum() - 1, byte[starts], value)


def _differs(values: np.ndarray) -> np.ndarray:
    """Which of `values` differ from the one before; the first one does."""
    different = np.ones(values.size, bool)
    np.not_equal(values[1:], values[:-1], out=different[1:])
    return different


def distinct(rising: np.ndarray) -> np.ndarray:
    """Each value of a rising array once."""
    return rising[_differs(rising)]


def in_order(space: SemanticIdSpace, level: int, keys: np.ndarray) -> np.ndarray:
    """Which of a level's keys comes first, second and so on in the order of the semantic IDs: int64 [n]."""
    chunks = mask_shape(level, space.levels[level])[0]
    places = np.empty(keys.size, np.int64)
    for start in range(0, keys.size, _SLICE):
        rest, chunk = np.divmod(keys[start : start + _SLICE], chunks)
        place = np.zeros_like(rest)
        for size in space.levels[:level]:
            rest, code = np.divmod(rest, size)
            place = place * size + code
        places[start : start + _SLICE] = place * chunks + chunk
    return np.argsort(places)
