"""Ids as numbers, batch by batch: text is kept once for each id, never once for each interaction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.errors import DataError
from genrec_builders.data.checks import check_id_sizes
from genrec_builders.data.columns import one_array, refuse_nulls


class IdEncoder:
    """Numbers the ids of a column `name`, of the file `path`, by their first appearance."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._ids: pa.Array | None = None

    def __len__(self) -> int:
        return 0 if self._ids is None else len(self._ids)

    @property
    def ids(self) -> pa.Array:
        """large_string: the distinct ids."""
        return pa.array([], pa.large_string()) if self._ids is None else self._ids.cast(pa.large_string())

    def encode(self, column: pa.ChunkedArray, first: int = 0) -> np.ndarray:
        """int32 [n]: the numbers of the next n values. Takes time for all ids so far: give it as many at a time.

        first: the data row of the first value, for messages. Raises DataError for a null, a value that cannot serve as
        an id, or a type that is none.
        """
        refuse_nulls(self.path, column, self.name, first)
        values = self._plain(column)
        known = values.slice(0, 0) if self._ids is None else self._ids
        if known.type != values.type:  # some are numbers and some are text: 7 is the same in both
            known, values = known.cast(pa.large_string()), values.cast(pa.large_string())
        encoded = pa.chunked_array([known, values], values.type).dictionary_encode()
        self._ids = encoded.chunk(encoded.num_chunks - 1).dictionary
        codes = encoded.combine_chunks().indices.to_numpy(zero_copy_only=False)[len(known) :].astype(np.int32)
        self._check(self._ids.slice(len(known)), lambda at: first + int(np.argmax(codes == len(known) + at)))
        return codes

    def _plain(self, column: pa.ChunkedArray) -> pa.Array:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        try:
            if pa.types.is_integer(kind):
                return one_array(column.cast(pa.uint64() if kind == pa.uint64() else pa.int64()))
            if pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
                raise pa.ArrowTypeError(f"type {kind}")
            return one_array(column.cast(pa.large_string()))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise self._unfit(error) from error

    def _check(self, ids: pa.Array, row: Callable[[int], int]) -> None:
        try:
            ids = ids.cast(pa.large_string())
            ids.validate(full=True)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise self._unfit(error) from error
        check_id_sizes(self.path, ids, self.name, row)

    def _unfit(self, error: Exception) -> DataError:
        return DataError(f"{self.path}: column {self.name!r} cannot serve as ids ({error}); write text or integers")


def encode_ids(path: Path, column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, pa.Array]:
    """(int32 [n] numbers, large_string array of the distinct ids in order of appearance) of a whole column."""
    encoder = IdEncoder(path, name)
    return encoder.encode(column), encoder.ids
