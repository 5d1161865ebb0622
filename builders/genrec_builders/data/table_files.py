"""Files of tables: Parquet, CSV, tab-separated, JSON Lines. A `.gz` is unpacked on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from genrec.errors import DataError
from genrec_builders.data.folder import ending
from genrec_builders.data.json_lines import open_json_lines_at, read_records, texts_of_lines, types_of_lines
from genrec_builders.data.parquet_parts import open_parts

READ_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)
_VECTOR_PART = r"(sid|embedding)_\d+"
_BLOCK = 16 << 20  # bytes of text that become one batch
_RARE = ("query",)  # columns of JSON Lines that many lines may lack
_BATCH = 1 << 19  # rows of Parquet that become one batch
# Names of the well-known datasets for what is called so here, the first that is there: Amazon Reviews 2023, MovieLens,
# RecBole's datasets.
KNOWN_AS = {
    "user_id": ("userId", "session_id"),
    "item_id": ("parent_asin", "asin", "movieId", "artist_id", "business_id", "product_id", "venue_id", "book_id"),
    "timestamp": ("time", "date"),
}
_IDS = {known for name in ("user_id", "item_id") for known in (name, *KNOWN_AS[name])}
Batches = Iterator[tuple[pa.Table, int]]


@dataclass(frozen=True)
class TableFile:
    """A table whose columns are known and whose rows are not read yet.

    schema: the columns; in text, types are what the first rows look like. read: the rows of the named columns (None: of
    all). What CSV writes is read as text, except numbered vector columns. batches: the same rows of the named columns
    bit by bit, each with how much of `size` is read by then.
    """

    path: Path
    schema: pa.Schema
    read: Callable[[Sequence[str] | None], pa.Table]
    batches: Callable[[Sequence[str]], Batches]
    size: int

    def renamed(self, names: Mapping[str, str]) -> TableFile:
        """The same with other names: names: of columns here -> in the file; the others keep theirs."""
        here = {there: name for name, there in names.items()}
        schema = pa.schema([field.with_name(here.get(field.name, field.name)) for field in self.schema])

        def there(columns: Sequence[str]) -> list[str]:
            return [names.get(name, name) for name in columns]

        def named(table: pa.Table) -> pa.Table:
            return table.rename_columns([here.get(name, name) for name in table.column_names])

        return replace(
            self,
            schema=schema,
            read=lambda columns: named(self.read(None if columns is None else there(columns))),
            batches=lambda columns: ((named(table), done) for table, done in self.batches(there(columns))),
        )


def known_names(table: TableFile, wanted: Sequence[str]) -> dict[str, str]:
    """Which columns of well-known datasets stand for those of `wanted` that the table lacks: name -> name there."""
    there = table.schema.names
    found = {name: next((other for other in KNOWN_AS[name] if other in there), None) for name in wanted}
    return {name: other for name, other in found.items() if other is not None and name not in there}


def open_table(path: Path) -> TableFile:
    """Raises DataError if the file cannot be read as what its name says."""
    kind = ending(path)
    if kind == ".parquet":
        return guarded(path, _open_parquet)
    if kind == ".jsonl":
        return guarded(path, _open_json_lines)
    return guarded(path, lambda each: open_delimited(each, "," if kind == ".csv" else "\t"))


def open_delimited(
    path: Path,
    delimiter: str,
    options: pa_csv.ReadOptions | None = None,
    types: Callable[[str], pa.DataType] = lambda name: pa.large_string(),
    quoted: bool = True,
) -> TableFile:
    """options: with the names of the columns, if the file has no line of them. types: by a column's name.

    quoted: whether a value may stand in quotation marks, and have newlines within them; otherwise a line is a row,
    and quotation marks are as any other character.
    """
    options = options or pa_csv.ReadOptions()
    parsing = pa_csv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted)
    with pa_csv.open_csv(path, read_options=options, parse_options=parsing) as reader:
        schema = reader.schema

    def converting(columns: Sequence[str] | None) -> pa_csv.ConvertOptions:
        # Ids such as 007 and attributes such as 2024 are text, whatever they look like; vectors are parsed later.
        named = schema.names if columns is None else list(columns)
        text = {name: types(name) for name in named if not re.fullmatch(_VECTOR_PART, name)}
        return pa_csv.ConvertOptions(column_types=text, include_columns=None if columns is None else named)

    def read(columns: Sequence[str] | None) -> pa.Table:
        return pa_csv.read_csv(path, read_options=options, parse_options=parsing, convert_options=converting(columns))

    def batches(columns: Sequence[str]) -> Batches:
        streaming = pa_csv.ReadOptions(
            column_names=options.column_names or None, encoding=options.encoding, block_size=_BLOCK
        )
        with opened(path) as (stream, tell):
            with pa_csv.open_csv(
                stream, read_options=streaming, parse_options=parsing, convert_options=converting(columns)
            ) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch]), tell()

    return TableFile(path, schema, read, batches, path.stat().st_size)


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


@contextmanager
def opened(path: Path) -> Iterator[tuple[pa.NativeFile, Callable[[], int]]]:
    """A file's content, unpacked, and how many of its bytes are read by now."""
    with pa.OSFile(str(path)) as file:
        yield (pa.CompressedInputStream(file, "gzip") if path.suffix == ".gz" else file), file.tell


def guarded(path: Path, open_file: Callable[[Path], TableFile]) -> TableFile:
    """The same with what goes wrong as a DataError."""

    def failed(error: Exception) -> DataError:
        return DataError(f"{path}: cannot be read ({error}); write the file again")

    try:
        table = open_file(path)
    except DataError:
        raise
    except READ_ERRORS as error:
        raise failed(error) from error

    def read(columns: Sequence[str] | None) -> pa.Table:
        try:
            return table.read(columns)
        except DataError:
            raise
        except READ_ERRORS as error:
            raise failed(error) from error

    def batches(columns: Sequence[str]) -> Batches:
        source = table.batches(columns)
        while True:
            try:
                batch = next(source, None)
            except DataError:
                raise
            except READ_ERRORS as error:
                raise failed(error) from error
            if batch is None:
                return
            yield batch

    return replace(table, read=read, batches=batches)


def _open_parquet(path: Path) -> TableFile:
    source = open_parts(path)

    def read(columns: Sequence[str] | None) -> pa.Table:
        return source.to_table(columns=None if columns is None else list(columns))

    def batches(columns: Sequence[str]) -> Batches:
        done = 0
        few = {"batch_readahead": 1, "fragment_readahead": 1}
        for batch in source.to_batches(columns=list(columns), batch_size=_BATCH, **few):
            done += batch.num_rows
            yield pa.Table.from_batches([batch]), done

    return TableFile(path, source.schema, read, batches, source.count_rows())


def _open_json_lines(path: Path) -> TableFile:
    types = types_of_lines(path, _RARE)

    def agreeing(columns: Sequence[str]) -> Batches:
        with (
            opened(path) as (stream, tell),
            open_json_lines_at(stream, {name: types[name] for name in columns}) as reader,
        ):
            for batch in reader:
                yield pa.Table.from_batches([batch]).select(list(columns)), tell()

    def batches(columns: Sequence[str]) -> Batches:
        count = 0
        try:
            for table, done in agreeing(columns):
                count += table.num_rows
                yield table, done
        except pa.ArrowInvalid as error:
            _refuse_repeated(error)
            with opened(path) as (stream, tell):
                for table in texts_of_lines(path, stream, columns, _IDS, count):
                    yield table, tell()

    def read(columns: Sequence[str] | None) -> pa.Table:
        if columns is None:
            return read_records(path)
        schema = pa.schema([(name, types[name]) for name in columns])
        try:
            parts = [table.cast(schema) for table, _ in agreeing(columns)]
        except pa.ArrowInvalid as error:
            _refuse_repeated(error)
            return read_records(path, columns)
        return pa.concat_tables(parts) if parts else schema.empty_table()

    return TableFile(path, pa.schema(list(types.items())), read, batches, path.stat().st_size)


def _refuse_repeated(error: pa.ArrowInvalid) -> None:
    """What else Arrow refuses is read line by line: values of which some are numbers and some are text, long lines."""
    if "specified twice" in str(error):
        raise error
