"""A byte for each item that says roughly what its value is: a scan of a long column reads it in place of the value.

Numbers and times fall into classes of about as many items each, lists of texts by which of the most common ones they
are. Most classes fulfil a test as a whole, or not at all. Only items of the rest have to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import NewArray, in_memory, load_array
from genrec.catalog.kinds import NO_TIME, NUMBER, STRINGS, TIMESTAMP, is_absent
from genrec.catalog.ragged import runs

ABSENT, OTHERS = 0, 255  # classes: of items without a value; of lists that are no common ones
FEWEST = 1 << 16  # items: fewer are scanned fast enough without
_CLASSES = 254
_SAMPLE, _BLOCK = 1 << 16, 1 << 18  # items
_COMMON = 0.75  # the share of the lists that have to be common ones for this to pay


@dataclass(frozen=True)
class ValueClasses:
    """of: uint8 [n], the class of each item's value.

    bounds: of numbers and times, rising [m], m <= 254: a value's class is 1 + the number of bounds that are not above
    it. Of lists, the codes of the common ones [v]; offsets: int64 [c + 1], class i + 1 is the list
    bounds[offsets[i]:offsets[i + 1]].
    """

    of: np.ndarray
    bounds: np.ndarray
    offsets: np.ndarray | None = None

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest value of the classes 1 .. m + 1 of numbers or times, [m + 1] each."""
        if self.bounds.dtype.kind == "f":
            ends, below = np.array([-np.inf, np.inf]), np.nextafter(self.bounds, -np.inf)
        else:
            ends, below = np.array([NO_TIME + 1, np.iinfo(np.int64).max]), self.bounds - 1
        return np.append(ends[:1], self.bounds), np.append(below, ends[1:])

    def save(self, new: NewArray, place: int) -> None:
        """Write what the classes mean; see `classes_of`."""
        for name, array in (("bounds", self.bounds), ("bound_offsets", self.offsets)):
            if array is not None:
                new(f"{place}.{name}", array.shape, array.dtype)[:] = array

    @classmethod
    def load(cls, folder: Path, place: int, kind: str, values: np.dtype, count: int) -> ValueClasses | None:
        """Map the classes of a column of `count` items in `folder`, None if it has none.

        Raises ValueError that names the file at fault.
        """
        path = folder / f"{place}.classes.npy"
        if not path.exists():
            return None
        of = load_array(path, np.uint8, (count,))
        if kind != STRINGS:
            return cls(of, load_array(folder / f"{place}.bounds.npy", values.type, (None,)))
        offsets = load_array(folder / f"{place}.bound_offsets.npy", np.int64, (None,))
        return cls(of, load_array(folder / f"{place}.bounds.npy", values.type, (int(offsets[-1]),)), offsets)


def classes_of(
    kind: str,
    values: np.ndarray,
    offsets: np.ndarray | None,
    new: NewArray = in_memory,
    place: int = 0,
    fewest: int = FEWEST,
) -> ValueClasses | None:
    """The classes of a column's values, as `Column` has them; None where a scan would gain nothing by them.

    new: makes the array of classes, of a column at `place`. It takes a block of items at a time into memory.
    """
    count = len(values) if offsets is None else len(offsets) - 1
    if count < fewest:
        return None
    if kind in (NUMBER, TIMESTAMP):
        return _of_numbers(kind, values, new, place)
    return _of_lists(values, offsets, new, place) if offsets is not None else None


def _of_numbers(kind: str, values: np.ndarray, new: NewArray, place: int) -> ValueClasses:
    sample = values[_evenly(len(values))]
    sample = np.sort(sample[~is_absent(kind, sample)])
    bounds = sample[np.arange(_CLASSES) * sample.size // _CLASSES] if sample.size else sample
    bounds, times = np.unique(bounds, return_counts=True)
    # A value that very many items have is a class of its own: else a test that ends there would have to look at all.
    common = bounds[times > 1]
    behind = np.nextafter(common, np.inf) if values.dtype.kind == "f" else common + 1
    bounds = np.union1d(bounds, behind[behind > common]).astype(values.dtype)
    of = new(f"{place}.classes", values.shape, np.uint8)
    for block in _blocks(len(values)):
        some = values[block]
        of[block] = np.where(is_absent(kind, some), ABSENT, np.searchsorted(bounds, some, side="right") + 1)
    found = ValueClasses(of, bounds)
    found.save(new, place)
    return found


def _of_lists(values: np.ndarray, offsets: np.ndarray, new: NewArray, place: int) -> ValueClasses | None:
    count = len(offsets) - 1
    at = _evenly(count)
    begin = offsets[at]
    sizes = offsets[at + 1] - begin
    hashes, first, times = np.unique(_hashes(values, begin, sizes), return_index=True, return_counts=True)
    full = sizes[first] > 0
    hashes, first, times = hashes[full], first[full], times[full]
    most = np.sort(np.argsort(-times, kind="stable")[:_CLASSES])
    if times[most].sum() < _COMMON * times.sum():
        return None
    hashes, begin, sizes = hashes[most], begin[first[most]], sizes[first[most]]
    bounds = values[runs(begin, sizes)[0]]
    ends = np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
    of = new(f"{place}.classes", (count,), np.uint8)
    for block in _blocks(count):
        starts = offsets[block.start : block.stop]
        own = offsets[block.start + 1 : block.stop + 1] - starts
        found = np.where(own > 0, OTHERS, ABSENT).astype(np.uint8)
        if hashes.size:
            near = np.searchsorted(hashes, hashed := _hashes(values, starts, own)).clip(max=hashes.size - 1)
            same = np.flatnonzero((hashes[near] == hashed) & (own > 0) & (sizes[near] == own))
            theirs, which = runs(ends[near[same]], own[same])
            differs = np.zeros(same.size, bool)
            differs[which[bounds[theirs] != values[runs(starts[same], own[same])[0]]]] = True
            same = same[~differs]  # two lists may have one hash
            found[same] = near[same] + 1
        of[block] = found
    classes = ValueClasses(of, bounds, ends)
    classes.save(new, place)
    return classes


def _hashes(values: np.ndarray, begin: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of the lists of `sizes` values from `begin` on, [k] each, values in their order: uint64 [k]."""
    at, which = runs(begin, sizes)
    ends = sizes.cumsum()
    place = np.arange(at.size) - (ends - sizes)[which]
    mixed = (values[at].astype(np.uint64) + place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) + np.uint64(1)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0x94D049BB133111EB)
    sums = np.concatenate([np.zeros(1, np.uint64), mixed.cumsum(dtype=np.uint64)])
    return sums[ends] - sums[ends - sizes]


def _evenly(count: int) -> np.ndarray:
    """Places of a sample: int64 [at most _SAMPLE]."""
    return np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(begin, min(begin + _BLOCK, count)) for begin in range(0, count, _BLOCK))
