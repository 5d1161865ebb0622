"""Columns of Arrow tables: ids, and what every column has to get right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.errors import DataError
from genrec_builders.data.checks import check_id_sizes


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def refuse_nulls(path: Path, column: pa.ChunkedArray, name: str) -> None:
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}: data row {at + 1} has no {name}; fill it in or drop the row")


def encode_ids(path: Path, column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, pa.Array]:
    """(int64 [n] positions, large_string array of the distinct ids in order of appearance)."""
    refuse_nulls(path, column, name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        if not pa.types.is_integer(kind):
            if pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
                raise pa.ArrowTypeError(f"type {kind}")
            column = column.cast(pa.large_string())
        elif kind is not column.type:
            column = column.cast(kind)
        encoded = one_array(column).dictionary_encode()
        ids = encoded.dictionary.cast(pa.large_string())
        ids.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path}: column {name!r} cannot serve as ids ({error}); write text or integers") from error
    check_id_sizes(path, ids, name)
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), ids
