"""Which codes may follow a prefix by a rule: hashed bit sets of many rules in one array of a fixed size."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from genrec.catalog.placement import prime
from genrec.catalog.semantic_id import SemanticIdSpace

CHUNK = 256  # codes of a row
OCTETS = CHUNK // 8  # bytes of a row
_SPREAD = 2  # rows of a level for each key of it, at most
_WRONG = 0.1  # codes that a row shared by keys lets through by mistake, for each right one
_FIRST_ROWS = 1 << 17  # rows of the deepest level that a mask of the first levels holds, at most
_BLOCK = 1 << 13  # codes that are worked on at once
MakeRoom = Callable[[], bool]


def _no_room() -> bool:
    return False


class RuleMasks:
    """An arena of rules' masks, which a graph gathers from. A rule's mask is a `RuleMask`: int64 [L, 2].

    space: of the semantic IDs. limit: bytes of all masks together. following: the share of codes that follow by the
    catalogue's masks, which hold besides: float64 [L], as of `PrefixTable.following`; None for all.
    bits: uint8 [rows, 32]; bit `c % 8` of byte `c % 256 // 8` of a row says that code c may follow. Row 0 is all ones.
    all: int64 [L, 2], what stands for no rule: row 0 at every level.

    mask[l] is the first row of the rule's level l and its number of rows n. What may follow a prefix stands in row
        mask[l, 0] + key % mask[l, 1],   key = prefix * chunks(T_l) + code // 256,
    the prefix in mixed radix, 0 at level 0. No keys are kept. Where n is the number of all keys of a level, the mask is
    exact; else prefixes may share a row, which allows what any of them allows. A level that stands at row 0 allows all.
    So a mask may allow too much, never too
    little: `PrefixTable` narrows it down further, and whoever serves the drafts checks each of them.

    One thread changes what others read, in the same memory and without a lock. The rows of a mask that was freed are
    written anew by the next `build`: free no mask that a batch under way may still read.
    """

    def __init__(self, space: SemanticIdSpace, limit: int, following: np.ndarray | None = None) -> None:
        """Raises ValueError for a limit below the one row of no rule, 32 bytes."""
        if limit < OCTETS:
            raise ValueError(f"masks of rules need at least {OCTETS} bytes, got a limit of {limit}")
        self.space, self.following = space, following
        self.bits = np.zeros((limit // OCTETS, OCTETS), np.uint8)  # memory that is taken when it is first written
        self.bits[0] = 0xFF
        self.all = np.tile(np.array([0, 1], np.int64), (space.depth, 1))
        # Free ranges of rows, by their first row: no two of them touch.
        self._starts, self._ends = [1], [len(self.bits)]
        if len(self.bits) == 1:
            self._starts, self._ends = [], []

    @property
    def free_bytes(self) -> int:
        """Bytes that no mask has. A mask needs a range of them in one piece."""
        return OCTETS * (sum(self._ends) - sum(self._starts))

    @property
    def used_bytes(self) -> int:
        """Bytes of all masks, and of row 0."""
        return self.bits.nbytes - self.free_bytes

    def build(self, codes: np.ndarray, make_room: MakeRoom = _no_room) -> np.ndarray | None:
        """The mask of a rule that allows `codes`: distinct, int64 [n], in any order. None if there is no room for it.

        make_room: frees a mask, and says whether there was one to free. Raises ValueError for a code outside the space.
        """
        codes = self._checked(codes)
        sizes = [self._size(level, codes) for level in range(self.space.depth)]
        first = self._take(sum(sizes), make_room)
        if first is None:
            return None
        self.bits[first : first + sum(sizes)] = 0
        mask = np.stack([first + np.cumsum([0, *sizes[:-1]]), sizes], 1).astype(np.int64)
        self._set(mask, codes)
        return mask

    def build_first_levels(self, codes: np.ndarray, make_room: MakeRoom = _no_room) -> np.ndarray | None:
        """The mask of a rule that allows very many codes: int64 [n], in any order, repeats allowed.

        It holds the first levels, as many as have at most 131,072 rows, exactly; the deeper ones allow everything. So
        making it takes some 15 ns an item, and 4 MiB at most for each level. Otherwise as `build`.
        Raises ValueError for a code outside the space.
        """
        prefixes = self._checked(codes)
        most = [int(radix) * chunks_of(size) for radix, size in zip(self.space.radix, self.space.levels, strict=True)]
        depth = sum(rows <= _FIRST_ROWS for rows in most)
        first = self._take(sum(most[:depth]), make_room)
        if first is None:
            return None
        mask = self.all.copy()
        mask[:depth] = np.stack([first + np.cumsum([0, *most[: depth - 1]]), most[:depth]], 1)
        for level in reversed(range(depth)):
            wide, flags = most[level] * CHUNK // int(self.space.radix[level]), np.zeros(most[level] * CHUNK, bool)
            for part in _blocks(prefixes):
                flags[_remainder(part, int(self.space.radix[level])) * wide + self._code(level, part)] = True
            start = int(mask[level, 0])
            self.bits[start : start + most[level]] = np.packbits(flags, bitorder="little").reshape(-1, OCTETS)
            prefixes = np.flatnonzero(flags.reshape(-1, wide).any(1))
        return mask

    def add(self, mask: np.ndarray, codes: np.ndarray) -> None:
        """Allow more codes by a rule, int64 [n]: those of new items. Bits are only set.

        A mask holds any number of them; above the number that it was built of, more and more prefixes share rows.
        Raises ValueError for a code outside the space.
        """
        self._set(mask, self._checked(codes))

    def allows(self, mask: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Whether codes, int64 [n], can be drafted under a rule, found as a graph finds it: bool [n]."""
        allowed = np.ones(codes.shape, bool)
        for level in range(len(mask)):
            row, bit = np.divmod(self._places(mask, level, codes), CHUNK)
            allowed &= (self.bits[row, bit >> 3] >> (bit & 7).astype(np.uint8) & 1) == 1
        return allowed

    def stacked(self, masks: Sequence[np.ndarray | None]) -> np.ndarray:
        """The masks of a batch as a graph takes them, `all` where there is none: int64 [B, 2 L], C order.

        Raises ValueError for one that is no mask of this arena.
        """
        rows = np.empty((len(masks), *self.all.shape), np.int64)
        rows[:] = self.all
        given = [at for at, mask in enumerate(masks) if mask is not None]
        if given:
            shapes = {mask.shape for mask in masks if mask is not None}
            if shapes != {self.all.shape}:
                raise ValueError(f"a rule's mask must have the shape {self.all.shape}, got {sorted(shapes)}")
            rows[given] = np.stack([mask for mask in masks if mask is not None])
            first, count = rows[given].transpose(2, 0, 1)
            if first.min() < 0 or count.min() < 1 or (first + count).max() > len(self.bits):
                raise ValueError(f"a rule's mask has rows outside of the {len(self.bits)} that there are")
        return rows.reshape(len(rows), self.all.size)

    def rows(self, mask: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
        """The rows that `build` has written, or `add` of these codes, int64 [n]: a copy on a device needs them anew."""
        if codes is None:
            return np.arange(mask[0, 0], mask.sum(1).max())
        levels = np.flatnonzero(mask[:, 0])
        return np.unique(np.concatenate([self._places(mask, level, codes) // CHUNK for level in levels.tolist()]))

    def free(self, mask: np.ndarray) -> None:
        """Give back the rows of a mask, which is of no use from then on. Raises ValueError for one that has none."""
        if mask[0, 0] == 0:  # that of no rule
            return
        start, end = int(mask[0, 0]), int(mask.sum(1).max())
        at = bisect(self._starts, start)
        if (at and self._ends[at - 1] > start) or (at < len(self._starts) and self._starts[at] < end):
            raise ValueError(f"rows {start} to {end - 1} are free already")
        joins_left = bool(at) and self._ends[at - 1] == start
        joins_right = at < len(self._starts) and self._starts[at] == end
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_left:
            self._ends[at - 1] = end
        elif joins_right:
            self._starts[at] = start
        else:
            self._starts.insert(at, start)
            self._ends.insert(at, end)

    def _take(self, rows: int, make_room: MakeRoom) -> int | None:
        """The first of so many rows in one piece, once there is room for them; None if there is none to be made."""
        if rows >= len(self.bits):
            return None
        while (first := self._free_rows(rows)) is None:
            if not make_room():
                return None
        return first

    def _free_rows(self, rows: int) -> int | None:
        """The first of so many free rows in one piece, the foremost there are; None if there are none."""
        for at, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start > rows:
                self._starts[at] += rows
                return start
            if end - start == rows:
                del self._starts[at], self._ends[at]
                return start
        return None

    def _size(self, level: int, codes: np.ndarray) -> int:
        """Rows for the prefixes of `codes` at a level: one for each key there can be, unless that is too many.

        A row that keys share lets through what any of them allows, of those codes that follow by the catalogue's masks.
        Where few do, as at the deepest level, many keys can share one.
        """
        chunks = chunks_of(self.space.levels[level])
        most = int(self.space.radix[level]) * chunks
        if most <= _SPREAD:
            return most
        # Distinct keys, by the flags that they leave in an array that they fill but in part: exact where all fit.
        flags = np.zeros(min(most, prime(_SPREAD * codes.size)), bool)
        for part in _blocks(codes):
            keys = self._keys(level, part)
            flags[keys if flags.size == most else _remainder(keys, flags.size)] = True
        filled = float(np.count_nonzero(flags)) / flags.size
        distinct = filled * most if flags.size == most else -np.log1p(-min(filled, 0.99)) * flags.size
        spread = float(_SPREAD)
        if self.following is not None:
            # Of n rows for k keys, a key's has the codes of k / n others. A share `following` of them is let through.
            spread = min(spread, self.following[level] / _WRONG)
        wanted = max(1, int(spread * distinct))
        return most if most <= wanted else prime(wanted)

    def _keys(self, level: int, codes: np.ndarray) -> np.ndarray:
        chunks = chunks_of(self.space.levels[level])
        radix = int(self.space.radix[level])
        keys = _remainder(codes, radix)
        if chunks > 1:
            keys = keys * chunks + self._code(level, codes) // CHUNK
        return keys

    def _code(self, level: int, codes: np.ndarray) -> np.ndarray:
        radix, size = int(self.space.radix[level]), self.space.levels[level]
        code = codes // radix
        return code if level + 1 == self.space.depth else _remainder(code, size)

    def _places(self, mask: np.ndarray, level: int, codes: np.ndarray) -> np.ndarray:
        """The bits of `codes` at a level, counted from the arena's first: int64 [n]."""
        first, rows = map(int, mask[level])
        code = self._code(level, codes)
        row = _remainder(self._keys(level, codes), rows) + first
        return row * CHUNK + (code & (CHUNK - 1))

    def _set(self, mask: np.ndarray, codes: np.ndarray) -> None:
        flat = self.bits.reshape(-1)
        for part, level in product(_blocks(codes), np.flatnonzero(mask[:, 0]).tolist()):
            places = self._places(mask, level, part)
            octets, bits = places >> 3, np.left_shift(1, places & 7).astype(np.uint8)
            while octets.size:
                # Of several bits of one octet the last one is written: what is not there then is for another round, and
                # there are never more than eight.
                flat[octets] |= bits
                lost = np.flatnonzero((flat[octets] & bits) == 0)
                octets, bits = octets[lost], bits[lost]

    def _checked(self, codes: np.ndarray) -> np.ndarray:
        codes = np.asarray(codes, np.int64)
        if codes.size and not 0 <= (least := int(codes.min())) <= (most := int(codes.max())) < self.space.size:
            wrong = least if least < 0 else most
            raise ValueError(f"code {wrong} is outside the space of levels {self.space.levels}")
        return codes


def chunks_of(size: int) -> int:
    """Rows of a prefix that one of `size` codes may follow."""
    return -(-size // CHUNK)


def _blocks(codes: np.ndarray) -> list[np.ndarray]:
    """The codes in parts, whose intermediate results stay in the processor's cache and need no memory of the system."""
    return [codes[start : start + _BLOCK] for start in range(0, codes.size, _BLOCK)]


def _remainder(values: np.ndarray, by: int) -> np.ndarray:
    """values % by of numbers that are not negative: NumPy divides several at a time, but has no such remainder."""
    return values - values // by * by
