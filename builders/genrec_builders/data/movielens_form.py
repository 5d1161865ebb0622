"""MovieLens' older files, `ratings.dat` and `movies.dat`: values without names, with `::` between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from genrec.errors import DataError
from genrec_builders.data.table_files import Batches, TableFile, guarded, open_delimited

_RATINGS = ("user_id", "item_id", "rating", "timestamp")
_MOVIES = ("item_id", "title", "genres")


def open_ratings(path: Path) -> TableFile:
    """`UserID::MovieID::Rating::Timestamp`: no value has a colon, so that every other column is empty."""
    names = [name for column in _RATINGS for name in (column, f"after {column}")][:-1]
    options = pa_csv.ReadOptions(column_names=names)
    table = guarded(path, lambda each: open_delimited(each, ":", options, quoted=False))
    return replace(table, schema=pa.schema([(name, pa.large_string()) for name in _RATINGS]))


def open_movies(path: Path) -> TableFile:
    """`MovieID::Title::Genres`, where a title may have colons. In UTF-8, or in Latin-1 as MovieLens 1M is."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); write the file again") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    rows = [line.split("::") for line in text.replace("\r\n", "\n").split("\n") if line]
    for number, row in enumerate(rows, 1):
        if len(row) != len(_MOVIES):
            raise DataError(f"{path}: line {number} has {len(row)} values between '::'; expected id, title, genres")
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    table = pa.table({name: pa.array(column, pa.large_string()) for name, column in zip(_MOVIES, columns, strict=True)})

    def read(columns: Sequence[str] | None) -> pa.Table:
        return table if columns is None else table.select(list(columns))

    def batches(columns: Sequence[str]) -> Batches:
        yield read(columns), table.num_rows

    return TableFile(path, table.schema, read, batches, table.num_rows)
