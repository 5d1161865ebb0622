"""JSON Lines, one object a line: what the columns are, their rows as a stream, and the rows of a catalogue."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from genrec.errors import DataError
from genrec_builders.data.checks import short

_BLOCK = 64 << 20  # a line, such as a user with a long history, has to fit
_HEAD = 10_000  # lines that say what the columns hold
_SEARCHED = 16 << 20  # bytes at a time
_PART = 5000  # lines that are objects of Python at a time
_NESTED: pa.DataType = pa.struct([])  # of values that are objects, or lists of objects: no column can be made of them


def types_of_lines(path: Path, rare: Sequence[str] = ()) -> dict[str, pa.DataType]:
    """The columns that the first lines have, and what they hold; text where they do not agree, or nothing is known.

    rare: columns that count wherever they begin, though no other column of a later line does.

    Raises ValueError for a file without lines, or with a line that is no JSON object.
    """
    with _lines(path) as lines:
        table = _table(list(islice(_records(lines), _HEAD)))
    found = list(table.schema)
    for name in rare:
        if name not in table.column_names and (kind := _rare(path, name)) is not None:
            found.append(pa.field(name, kind))
    return {
        field.name: pa.string() if pa.types.is_null(field.type) or field.type == pa.list_(pa.null()) else field.type
        for field in found
    }


def open_json_lines_at(stream: pa.NativeFile, types: Mapping[str, pa.DataType]) -> pa_json.JSONStreamingReader:
    """Batches of the columns `types`; the others are not read."""
    return pa_json.open_json(
        stream,
        read_options=pa_json.ReadOptions(block_size=_BLOCK),
        parse_options=pa_json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
        ),
    )


def texts_of_lines(
    path: Path, stream: pa.NativeFile, columns: Sequence[str], ids: Collection[str], first: int
) -> Iterator[pa.Table]:
    """The same as text, of lines that need not agree: numbers as JSON writes them, NaN as no value.

    ids: columns that hold text and whole numbers alone. first: so many objects are left out.

    Raises ValueError for a line that is no JSON object, DataError for a value that is no text and no number.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")  # closes the stream when nothing holds it any more
    lines = islice(_numbered(text), first, None)
    while part := list(islice(lines, _PART)):
        yield pa.table({name: _texts(path, part, name, name in ids) for name in columns})


def _texts(path: Path, lines: Sequence[tuple[int, dict[str, Any]]], name: str, ids: bool) -> pa.Array:
    """large_string [n] of the values of one column of lines with their numbers."""
    kinds = (str, int) if ids else (str, int, float)
    values: list[str | None] = []
    for number, record in lines:
        value = record.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            values.append(None)
        elif type(value) in kinds:
            values.append(_text(value))
        else:
            expected = "text or a whole number" if ids else "text or a number"
            raise DataError(f"{path}: line {number} has {short(value)} in {name!r}; write {expected}")
    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError as error:
        number = lines[values.index(error.object)][0]
        given = short(error.object)
        raise DataError(f"{path}: line {number} has {given} in {name!r}, not valid Unicode; change it") from error


def read_records(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns, by default all, of a file whose lines need not agree; nested ones have the type struct<>.

    Values of which some are text and some are not become text, as JSON writes them. NaN is no value.
    """
    parts = []
    with _lines(path) as lines:
        records = _records(lines)
        while part := list(islice(records, _PART)):
            parts.append(_table(part, columns))
    names = dict.fromkeys(name for part in parts for name in part.column_names)
    return pa.table({name: _joined([_of(part, name) for part in parts]) for name in names})


def _rare(path: Path, name: str) -> pa.DataType | None:
    """What the column `name` holds, which the first lines lack; None if there is none."""
    later = _table(_records_from(path, name))
    if name in later.column_names:
        return later.schema.field(name).type
    if not later.num_columns:
        return None
    # Something else has a key of that name. Arrow tells soon whether a line has it as well.
    with pa.CompressedInputStream(str(path), "gzip") if path.suffix == ".gz" else pa.OSFile(str(path)) as stream:
        try:
            there = any(
                batch.column(0).null_count < len(batch) for batch in open_json_lines_at(stream, {name: pa.string()})
            )
        except pa.ArrowException:  # it is no text, or a line no JSON: whoever reads them says so
            there = True
    return pa.string() if there else None


def _records_from(path: Path, name: str) -> list[dict[str, Any]]:
    """As many lines as the head has, from the first one on in which `name` is a key, whatever holds it."""
    key = re.compile(re.escape(json.dumps(name).encode()) + rb"\s*:")
    opened = gzip.open if path.suffix == ".gz" else open
    before = 0
    with opened(path, "rb") as file:
        while block := file.read(_SEARCHED) + file.readline():
            if there := key.search(block):
                start = block.rfind(b"\n", 0, there.start()) + 1
                lines = chain(block[start:].splitlines(keepends=True), file)
                first = 1 + before + block.count(b"\n", 0, start)
                return list(islice(_records((line.decode("utf-8-sig") for line in lines), first), _HEAD))
            before += block.count(b"\n")
    return []


def _lines(path: Path) -> io.TextIOBase:
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig")  # type: ignore[return-value]


def _records(lines: Iterable[str], first: int = 1) -> Iterator[dict[str, Any]]:
    return (record for _, record in _numbered(lines, first))


def _numbered(lines: Iterable[str], first: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with the number of its line. first: the number of the first line."""
    number = 0
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"line {number} holds a JSON {type(record).__name__}; expected an object on each line")
        yield number, record
    if not number:
        raise ValueError("empty JSON file")


def _table(records: list[dict[str, Any]], columns: Sequence[str] | None = None) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record) if columns is None else columns
    return pa.table({name: _column([record.get(name) for record in records]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    if any(isinstance(value, dict) or (isinstance(value, list) and _holds_objects(value)) for value in values):
        return pa.array([None] * len(values), _NESTED)
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and kinds != {int, float}:
        return _as_text(values)
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return _as_text(values)


def _as_text(values: list[Any]) -> pa.Array:
    """Values, or those of lists if all are lists, as text."""
    if all(value is None or isinstance(value, list) for value in values):
        lists = [None if value is None else [_text(each) for each in value] for value in values]
        return pa.array(lists, pa.list_(pa.string()))
    return pa.array([_text(value) for value in values], pa.string())


def _holds_objects(values: list[Any]) -> bool:
    return any(isinstance(value, (dict, list)) for value in values)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _of(part: pa.Table, name: str) -> pa.Array:
    return part.column(name).combine_chunks() if name in part.column_names else pa.nulls(part.num_rows)


def _joined(parts: list[pa.Array]) -> pa.ChunkedArray:
    """One column of parts whose types need not agree."""
    if any(part.type == _NESTED for part in parts):
        return pa.chunked_array([pa.nulls(len(part), _NESTED) for part in parts])
    schemas = [pa.schema([("column", part.type)]) for part in parts]
    try:
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        return pa.chunked_array([part.cast(kind) for part in parts], kind)
    except (pa.ArrowException, TypeError):
        return pa.chunked_array([_as_text([value for part in parts for value in part.to_pylist()])])
