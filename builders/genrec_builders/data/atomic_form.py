"""RecBole's atomic files `NAME.inter` and `NAME.item`: tab-separated, columns named such as `user_id:token`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from genrec.errors import DataError
from genrec_builders.data.table_files import TableFile, guarded, open_delimited

_TYPES = {"token": pa.large_string(), "float": pa.float64()}
_FIELD = r"([^:,;]+):(token|token_seq|float|float_seq)"


def open_atomic(path: Path) -> TableFile:
    """An atomic file as a table whose columns are named without their types. Sequences stay text, `1 2 3`.

    Read as a whole, a column of floats of which one is none is text.

    Raises DataError if it cannot be read, or a column has no type.
    """
    table = guarded(path, lambda each: open_delimited(each, "\t", types=_type, quoted=False))
    fields = {}
    for name in table.schema.names:
        match = re.fullmatch(_FIELD, name)
        if match is None:
            raise DataError(
                f"{path}: column {name!r} has no type; RecBole's files are tab-separated and name their columns "
                "e.g. 'user_id:token', 'item_id:token', 'timestamp:float'"
            )
        if match[1] in fields:
            raise DataError(f"{path}: column {match[1]!r} occurs more than once; rename or drop one")
        fields[match[1]] = name
    texts = guarded(path, lambda each: open_delimited(each, "\t", quoted=False))

    def read(columns: Sequence[str] | None) -> pa.Table:
        try:
            return table.read(columns)
        except DataError:
            read = texts.read(columns)
            for at, name in enumerate(read.column_names):
                if _type(name) == pa.float64():
                    with suppress(DataError):
                        read = read.set_column(at, name, table.read([name]).column(0))
            return read

    return replace(table, read=read, schema=pa.schema([(name, _type(name)) for name in table.schema.names])).renamed(
        fields
    )


def _type(name: str) -> pa.DataType:
    return _TYPES.get(name.rpartition(":")[2], pa.large_string())
