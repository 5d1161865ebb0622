"""RecBole's atomic files `NAME.inter` and `NAME.item`: tab-separated, columns named such as `user_id:token`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from genrec.errors import DataError
from genrec_builders.data.table_files import READ_ERRORS, TableFile

_TYPES = {"token": pa.large_string(), "float": pa.float64()}
_FIELD = r"([^:,;]+):(token|token_seq|float|float_seq)"


def open_atomic(path: Path) -> TableFile:
    """An atomic file as a table whose columns are named without their types. Sequences stay text, `1 2 3`.

    Raises DataError if it cannot be read, or a column has no type.
    """
    parsing = pa_csv.ParseOptions(delimiter="\t")
    try:
        with pa_csv.open_csv(path, parse_options=parsing) as reader:
            written = reader.schema.names
    except READ_ERRORS as error:
        raise _failed(path, error) from error
    fields = {}
    for name in written:
        match = re.fullmatch(_FIELD, name)
        if match is None:
            raise DataError(
                f"{path}: column {name!r} has no type; RecBole's files are tab-separated and name their columns "
                "e.g. 'user_id:token', 'item_id:token', 'timestamp:float'"
            )
        if match[1] in fields:
            raise DataError(f"{path}: column {match[1]!r} occurs more than once; rename or drop one")
        fields[match[1]] = name
    types = {name: _TYPES.get(fields[name].rpartition(":")[2], pa.large_string()) for name in fields}

    def read(columns: Sequence[str] | None) -> pa.Table:
        names = list(fields) if columns is None else list(columns)
        convert = pa_csv.ConvertOptions(
            column_types={fields[name]: types[name] for name in names},
            include_columns=[fields[name] for name in names],
        )
        try:
            table = pa_csv.read_csv(path, parse_options=parsing, convert_options=convert)
        except READ_ERRORS as error:
            raise _failed(path, error) from error
        return table.rename_columns(names)

    return TableFile(path, pa.schema(types.items()), read)


def _failed(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a tab-separated file ({error}); write the file again")
