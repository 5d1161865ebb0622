"""Columns of Arrow tables: kinds, and what every column has to get right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.errors import DataError


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def refuse_nulls(path: Path, column: pa.ChunkedArray, name: str, first: int = 0) -> None:
    """first: the data row of the column's first value."""
    if column.null_count:
        at = first + int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise no_value(path, at, name)


def no_value(path: Path, row: int, name: str) -> DataError:
    """row: the data row, from 0 on."""
    return DataError(f"{path}: data row {row + 1} has no {name}; fill it in or drop the row")
