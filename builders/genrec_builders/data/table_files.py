"""Files of tables: Parquet, CSV, tab-separated, JSON Lines. A `.gz` is unpacked on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from genrec.errors import DataError
from genrec_builders.data.columns import is_list
from genrec_builders.data.folder import ending

READ_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)
_VECTOR_PART = r"(sid|embedding)_\d+"
_JSON_BLOCK = 64 << 20  # a line, such as a user with a long history, has to fit


@dataclass(frozen=True)
class TableFile:
    """A table whose columns are known and whose rows are not read yet.

    schema: the columns; in CSV and the like, types are what Arrow would guess from the first rows. read: the rows of
    the named columns (None: of all). What CSV writes is read as text, except timestamps and numbered vector columns.
    """

    path: Path
    schema: pa.Schema
    read: Callable[[Sequence[str] | None], pa.Table]


def open_table(path: Path) -> TableFile:
    """Raises DataError if the file cannot be read as what its name says."""
    kind = ending(path)
    if kind == ".parquet":
        return _guarded(path, _open_parquet)
    if kind == ".jsonl":
        return _guarded(path, _open_json_lines)
    return _guarded(path, lambda each: open_delimited(each, "," if kind == ".csv" else "\t"))


def open_delimited(path: Path, delimiter: str) -> TableFile:
    parsing = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pa_csv.open_csv(path, parse_options=parsing) as reader:
        schema = reader.schema

    def read(columns: Sequence[str] | None) -> pa.Table:
        # Ids such as 007 and attributes such as 2024 are text, whatever they look like; vectors are parsed later.
        guessed = [name for name in schema.names if _is_time(name, schema) or re.fullmatch(_VECTOR_PART, name)]
        convert = pa_csv.ConvertOptions(
            column_types={name: pa.large_string() for name in schema.names if name not in guessed},
            include_columns=None if columns is None else list(columns),
        )
        return pa_csv.read_csv(path, parse_options=parsing, convert_options=convert)

    return TableFile(path, schema, read)


def check_columns(path: Path, names: list[str], needed: Sequence[str]) -> None:
    """Raises DataError unless every one of `needed` is among the columns' `names`, and no name is there twice."""
    for name in needed:
        if name not in names:
            raise DataError(f"{path}: no column {name!r} (columns: {', '.join(names)}); {_remedy(path, names, name)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} occurs more than once; rename or drop one")


def _remedy(path: Path, names: list[str], name: str) -> str:
    if any(each.endswith((":token", ":token_seq", ":float")) for each in names):
        return "this is RecBole's form: name the files NAME.inter and NAME.item"
    if len(names) == 1 and re.search(r"[\t;|]", names[0]):
        return "the columns are separated by something else: write commas, or tabs in a file that ends in .tsv"
    return "add or rename it"


def _guarded(path: Path, opened: Callable[[Path], TableFile]) -> TableFile:
    """The same with what goes wrong as a DataError."""

    def failed(error: Exception) -> DataError:
        return DataError(f"{path}: cannot be read ({error}); write the file again")

    try:
        table = opened(path)
    except DataError:
        raise
    except READ_ERRORS as error:
        raise failed(error) from error

    def read(columns: Sequence[str] | None) -> pa.Table:
        try:
            return table.read(columns)
        except READ_ERRORS as error:
            raise failed(error) from error

    return TableFile(path, table.schema, read)


def _open_parquet(path: Path) -> TableFile:
    source = pq.ParquetDataset(path)
    return TableFile(
        path, source.schema, lambda columns: source.read(columns=None if columns is None else list(columns))
    )


def _open_json_lines(path: Path) -> TableFile:
    options = pa_json.ReadOptions(block_size=_JSON_BLOCK)
    table = pa_json.read_json(path, read_options=options)
    # Arrow takes text that looks like a date for one; an id or a title that does is still text.
    dated = {
        field.name: pa.list_(pa.string()) if is_list(field.type) else pa.string()
        for field in table.schema
        if _is_dated(field.type) and not _is_time(field.name, table.schema)
    }
    if dated:
        parsing = pa_json.ParseOptions(explicit_schema=pa.schema(dated.items()))
        table = pa_json.read_json(path, read_options=options, parse_options=parsing)
    return TableFile(path, table.schema, lambda columns: table if columns is None else table.select(list(columns)))


def _is_dated(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind.value_type if is_list(kind) else kind)


def _is_time(name: str, schema: pa.Schema) -> bool:
    """Whether a column orders interactions; an item's attribute of this name is text."""
    return name == "timestamp" and "user_id" in schema.names
