"""Files that `genrec catalog apply` takes: items as Parquet, CSV or JSON Lines, and lists of ids as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from genrec.catalog import Columns
from genrec.catalog.kinds import STRING, STRINGS, Kinds
from genrec.errors import DataError
from genrec.live.arrow_columns import as_column
from genrec.live.attributes import is_no, names_in, texts_of
from genrec.live.rows import SCHEMA, UPSERT, Refused, conform

COLUMNS = [name for name in SCHEMA.names if name != "operation"]
_NUMBER = r"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|nan|inf)"
# What text says, as in CSV: the form of a value, and a word for it.
_FORMS = {
    "sid": (r"^\[?\s*\d{1,9}(\s*[-,\s]\s*\d{1,9})*\s*\]?$", "codes such as 3,7,4"),
    "embedding": (rf"^\[?\s*{_NUMBER}(\s*[,\s]\s*{_NUMBER})*\s*\]?$", "numbers such as 0.5,-1,2e-3"),
    "popularity": (r"^[-+]?\d{1,18}$", "a whole number"),
    "available": (r"^(true|false|1|0)$", "true or false"),
}


def read_items(path: Path, kinds: Kinds) -> pa.Table:
    """The items of a file as upserts, n rows of `SCHEMA`.

    Text, as in CSV, says a list as "3,7,4" or "[3, 7, 4]", a sid also as "3-7-4". Attributes are a JSON object, or a
    record of the file, or a column each, with values of `kinds` or text that says them. Raises DataError that names the
    file, the item and what to do.
    """
    readers: dict[str, Callable[[Path], pa.Table]] = {
        ".parquet": pq.read_table,
        ".csv": _read_csv,
        ".jsonl": partial(_read_json_lines, kinds=kinds),
    }
    if path.suffix not in readers:
        raise DataError(f"{path}: ends in {path.suffix!r}; write the items as {', '.join(readers)}")
    try:
        table = readers[path.suffix](path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write the file again") from error
    # A column of the table comes before an attribute of the same name, which the JSON object can still say.
    apart = [name for name in kinds if name not in COLUMNS]
    for name in table.column_names:
        if name not in COLUMNS and name not in apart:
            known = ", ".join([*COLUMNS, *apart])
            raise DataError(f"{path}: column {name!r} is unknown; the columns are {known}: rename or drop it")
        if table.column_names.count(name) > 1:
            raise DataError(f"{path}: column {name!r} is there twice; drop one")
    if "item_id" not in table.column_names:
        raise DataError(f"{path}: has no column 'item_id'; its columns are {', '.join(table.column_names)}")
    if pa.types.is_floating(table["item_id"].type):
        raise DataError(f"{path}: column 'item_id' has numbers with fractions; write ids as text")
    given = [name for name in table.column_names if name in apart]
    if given and "attributes" in table.column_names:
        raise DataError(f"{path}: has both a column 'attributes' and {given[0]!r}, which is one of them; keep one form")
    for name, change in (*((name, _parsed) for name in _FORMS), ("attributes", _as_json)):
        if name in table.column_names:
            changed = change(path, table, name)
            table = table.set_column(table.column_names.index(name), name, changed)
    if given:
        texts = _of_columns(path, table, {name: kinds[name] for name in given})
        table = table.drop_columns(given).append_column("attributes", texts)
    elif kinds and "attributes" in table.column_names:
        _refuse_unknown(path, table, kinds)
    try:
        return conform(table.append_column("operation", pa.array([UPSERT] * len(table), pa.string())))
    except Refused as error:
        raise DataError(f"{path}: {error}") from error


def read_ids(path: Path) -> pa.Array:
    """The item ids of a text file, one a line, as large_string. Raises DataError, OSError."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text at byte {error.start}; write one item id a line") from None
    ids = (line.removesuffix("\r") for line in lines)
    return pa.array([item_id for item_id in ids if item_id], pa.large_string())


def _read_csv(path: Path) -> pa.Table:
    parsing = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(path, parse_options=parsing) as reader:
        names = reader.schema.names
    # Ids such as 007 are text; the other columns are parsed here, so that what is wrong can be said by its item.
    texts = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    return pa_csv.read_csv(path, parse_options=parsing, convert_options=texts)


def _read_json_lines(path: Path, kinds: Kinds) -> pa.Table:
    # An id or a name that looks like a date is still text.
    types = {STRING: pa.string(), STRINGS: pa.list_(pa.string())}
    named = [(name, types[kind]) for name, kind in kinds.items() if kind in types and name not in COLUMNS]
    texts = pa.schema([("item_id", pa.string()), *named])
    try:
        table = pa_json.read_json(path, parse_options=pa_json.ParseOptions(explicit_schema=texts))
        # What is asked for is there, if only as nulls.
        return table.drop_columns([name for name, _ in named if table[name].null_count == len(table)])
    except pa.ArrowInvalid:
        return pa_json.read_json(path)


def _parsed(path: Path, table: pa.Table, name: str) -> Any:
    """A column of text as what its name says; others as they are."""
    column = table[name]
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return column
    form, words = _FORMS[name]
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    wrong = pc.invert(pc.match_substring_regex(texts, form)).fill_null(False)
    if pc.any(wrong).as_py():
        at = pc.index(wrong, True).as_py()
        raise DataError(
            f"{path}: item {table['item_id'][at].as_py()!r}: {name} {column[at].as_py()[:80]!r} is not {words} "
            f"({pc.sum(wrong).as_py()} such items)"
        )
    kind = SCHEMA.field(name).type
    if not pa.types.is_large_list(kind):
        return texts.cast(kind)
    bare = pc.utf8_trim(texts, "[] ")
    between = r"\s*[-,\s]\s*" if name == "sid" else r"\s*[,\s]\s*"
    return pc.split_pattern_regex(bare, between).cast(pa.list_(kind.value_type))


def _as_json(path: Path, table: pa.Table, name: str) -> Any:
    """Attributes as JSON texts; records of the file are written as such, without what is null."""
    values = table[name].to_pylist()
    if pa.types.is_struct(table[name].type):
        told = ({key: one for key, one in value.items() if one is not None} if value else value for value in values)
        try:
            return pa.array([None if value is None else json.dumps(value) for value in told], pa.string())
        except TypeError as error:
            raise DataError(f"{path}: attributes cannot be written as JSON ({error}); give them as text") from error
    for at, value in enumerate(values):
        try:
            if value is None or isinstance(json.loads(value), dict):
                continue
        except (ValueError, TypeError, RecursionError):
            pass
        raise DataError(
            f"{path}: item {table['item_id'][at].as_py()!r}: attributes {str(value)[:80]!r} are no JSON object; "
            'write them as {"name": value}'
        )
    return table[name]


def _of_columns(path: Path, table: pa.Table, kinds: Kinds) -> pa.Array:
    """JSON texts of columns that are attributes; null for items of which these say nothing."""
    columns, said = {}, np.zeros(len(table), bool)
    for name, kind in kinds.items():
        values = table[name]
        try:
            columns[name], bad = as_column(values, kind)
        except (TypeError, pa.ArrowException) as error:
            raise DataError(f"{path}: column {name!r}: the attribute is {kind}, and {error}; convert it") from error
        if bad.any():
            at = int(bad.argmax())
            many = f" ({int(bad.sum())} such items)" if bad.sum() > 1 else ""
            raise DataError(
                f"{path}: item {table['item_id'][at].as_py()!r}: {is_no(name, values[at].as_py(), kind)}{many}"
            )
        said |= values.is_valid().to_numpy()
    texts = texts_of(Columns(columns, len(table)))
    return pc.if_else(pa.array(said), texts, pa.scalar(None, texts.type))


def _refuse_unknown(path: Path, table: pa.Table, kinds: Kinds) -> None:
    """Raises DataError for a name that the catalogue does not serve: who writes by hand is there to see it."""
    for name, at in names_in(table["attributes"]).items():
        if name not in kinds:
            raise DataError(
                f"{path}: item {table['item_id'][at].as_py()!r}: attribute {name!r} is unknown; the catalogue has "
                f"{', '.join(kinds)}: rename it or leave it out"
            )
