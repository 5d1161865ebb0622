"""What both forms of data have to get right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.catalog import MAX_ID_BYTES
from genrec.errors import DataError
from genrec_builders.data.columns import no_value

INT32_MAX = 2**31 - 1


def checked_codes(path: Path, codes: np.ndarray, item_ids: list[str]) -> np.ndarray:
    """int32 [n, L] of codes int64 [n, L]. Raises DataError if one does not lie in 0 to 2^31 - 2."""
    bad = np.argwhere((codes < 0) | (codes >= INT32_MAX))
    if len(bad):
        row, level = bad[0].tolist()
        raise DataError(
            f"{path}: item {item_ids[row]!r} has the code {codes[row, level]} at level {level}; "
            f"codes lie in 0 to {INT32_MAX - 1}"
        )
    return np.ascontiguousarray(codes, dtype=np.int32)


def rounded_levels(sids: np.ndarray) -> tuple[int, ...]:
    """The largest code of each level + 1, rounded up to a power of two: sids int32 [n, L] -> L sizes."""
    return tuple(1 << int(top).bit_length() for top in sids.max(axis=0).tolist())


def common_length(path: Path, lengths: np.ndarray, item_ids: list[str], what: str) -> int:
    """The one value of `lengths` [n], of `what` in `item_ids`. Raises DataError if they differ or are 0."""
    ragged = np.flatnonzero(lengths != lengths[0])
    if ragged.size:
        at = int(ragged[0])
        raise DataError(
            f"{path}: item {item_ids[at]!r} has {lengths[at]} {what} and item {item_ids[0]!r} has {lengths[0]}; "
            "every item needs the same number"
        )
    if lengths[0] < 1:
        raise DataError(f"{path}: items have no {what}; give at least one per item")
    return int(lengths[0])


def look_up(values: pa.Array, item_ids: pa.Array) -> np.ndarray:
    """int32 [n]: the place of every value in `item_ids`, -1 if it is not there."""
    return pc.index_in(values, value_set=item_ids).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def check_id_sizes(path: Path, ids: pa.Array, what: str, row: Callable[[int], int] | None = None) -> None:
    """Raises DataError for an id in `ids`, large_string [n], that is empty, over `MAX_ID_BYTES` or ends in NUL.

    row: the data row, from 0 on, of the id at a place; None if the ids stand in no rows.
    """

    def named(at: int) -> str:
        return f"{path}: {f'data row {row(at) + 1}: ' if row else ''}{what} id {short(ids[at].as_py())}"

    sizes = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero((sizes < 1) | (sizes > MAX_ID_BYTES))
    if bad.size:
        at = int(bad[0])
        if row and not sizes[at]:
            raise no_value(path, row(at), what)
        raise DataError(f"{named(at)} has {sizes[at]} bytes; ids have 1 to {MAX_ID_BYTES}")
    nul = np.flatnonzero(pc.ends_with(ids, "\0").to_numpy(zero_copy_only=False))
    if nul.size:
        raise DataError(f"{named(int(nul[0]))} ends in a NUL byte; strip it")


def short(value: object) -> str:
    """A value for an error message: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
