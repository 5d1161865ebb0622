"""`interactions` and `items` as Parquet or CSV: reading, and writing as Parquet."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from genrec.errors import DataError
from genrec_builders.data.checks import (
    INT32_MAX,
    check_id_sizes,
    checked_codes,
    common_length,
    look_up,
    rounded_levels,
    short,
)
from genrec_builders.data.tables import Dataset, Interactions, ItemTable, taken

log = logging.getLogger(__name__)
_LEVELS_KEY = b"genrec.levels"
_READ_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)


def read_table_form(path: Path) -> Dataset:
    """As `read_dataset`, of a directory in this form."""
    item_path, inter_path = _the_table(path, "items"), _the_table(path, "interactions")
    items = _read_items(item_path)
    needed, text = ("user_id", "item_id", "timestamp"), ("user_id", "item_id", "query")
    table = _read_table(inter_path, only=needed, text=text, optional=("query",))
    if not table.num_rows:
        raise DataError(f"{inter_path}: no rows; there is nothing to learn from")

    users, user_ids = _encode_ids(inter_path, table.column("user_id"), "user_id")
    codes, seen = _encode_ids(inter_path, table.column("item_id"), "item_id")
    rows = look_up(seen, pa.array(items.item_ids, type=pa.large_string()))[codes]
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        at = int(unknown[0])
        raise DataError(
            f"{inter_path}: data row {at + 1} has item_id {seen[int(codes[at])].as_py()!r}, which {item_path.name} "
            f"does not list ({unknown.size} such interactions); add the item there or drop the interaction"
        )
    times = _timestamps(inter_path, table.column("timestamp"))
    order = np.lexsort((times, users))  # stable: equal timestamps keep the order of the file
    offsets = np.zeros(len(user_ids) + 1, dtype=np.int64)
    np.cumsum(np.bincount(users, minlength=len(user_ids)), out=offsets[1:])
    queries = taken(_queries(inter_path, table), order)
    rows = rows[order].astype(np.int32)
    return Dataset(items, Interactions(user_ids=user_ids.to_pylist(), offsets=offsets, rows=rows, queries=queries))


def table_files(path: Path, stem: str) -> list[Path]:
    """The Parquet and CSV files of a table that are there."""
    return [p for p in (path / f"{stem}.parquet", path / f"{stem}.csv") if p.exists()]


def _the_table(path: Path, stem: str) -> Path:
    found = table_files(path, stem)
    if not found:
        raise DataError(f"{path / stem}.parquet: missing, and so is {stem}.csv; write one of them")
    if len(found) > 1:
        raise DataError(f"{path}: holds both {found[0].name} and {found[1].name}; keep one of them")
    return found[0]


def _read_table(
    path: Path, only: tuple[str, ...] | None, text: tuple[str, ...], optional: tuple[str, ...] = ()
) -> pa.Table:
    """Reads a Parquet or CSV file; `only`: the needed columns (None: all); `text`: what CSV must not guess.

    optional: columns that are read, beside the needed ones, if they are there.
    """
    try:
        if path.suffix == ".parquet":
            source = pq.ParquetDataset(path)
            _check_columns(path, source.schema.names, only or text)
            return source.read(columns=_wanted(source.schema.names, only, optional))
        parsing = pa_csv.ParseOptions(newlines_in_values=True)
        with pa_csv.open_csv(path, parse_options=parsing) as reader:
            names = reader.schema.names
        _check_columns(path, names, only or text)
        # Ids such as 007 and attributes such as 2024 are text, whatever they look like; vectors are parsed later.
        as_text = set(text) if only else {name for name in names if not re.fullmatch(r"(sid|embedding)_\d+", name)}
        convert = pa_csv.ConvertOptions(
            column_types={name: pa.large_string() for name in as_text}, include_columns=_wanted(names, only, optional)
        )
        return pa_csv.read_csv(path, parse_options=parsing, convert_options=convert)
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read ({error}); write the file again") from error


def _wanted(names: list[str], only: tuple[str, ...] | None, optional: tuple[str, ...]) -> list[str] | None:
    return None if only is None else [*only, *(name for name in optional if name in names)]


def _check_columns(path: Path, names: list[str], needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in names:
            raise DataError(f"{path}: no column {name!r} (columns: {', '.join(names)}); add or rename it")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} occurs more than once; rename or drop one")


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _refuse_nulls(path: Path, column: pa.ChunkedArray, name: str) -> None:
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}: data row {at + 1} has no {name}; fill it in or drop the row")


def _encode_ids(path: Path, column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, pa.Array]:
    """(int64 [n] positions, large_string array of the distinct ids in order of appearance)."""
    _refuse_nulls(path, column, name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        if not pa.types.is_integer(kind):
            if pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
                raise pa.ArrowTypeError(f"type {kind}")
            column = column.cast(pa.large_string())
        elif kind is not column.type:
            column = column.cast(kind)
        encoded = _one_array(column).dictionary_encode()
        ids = encoded.dictionary.cast(pa.large_string())
        ids.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path}: column {name!r} cannot serve as ids ({error}); write text or integers") from error
    check_id_sizes(path, ids, name)
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), ids


def _queries(path: Path, table: pa.Table) -> pa.Array | None:
    """large_string [n], empty where there is no query; None if the table has no column of them."""
    if "query" not in table.column_names:
        return None
    column = table.column("query")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
        raise DataError(f"{path}: column 'query' is {kind}; write the queries as text, or rename the column")
    try:
        queries = _one_array(column.cast(pa.large_string()).fill_null(""))
        queries.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path}: column 'query' cannot be read as text ({error}); write it as UTF-8") from error
    return queries


def _timestamps(path: Path, column: pa.ChunkedArray) -> np.ndarray:
    """int64 or float64 [n], in the unit of the file: only the order matters."""
    _refuse_nulls(path, column, "timestamp")
    kind, array = column.type, _one_array(column)
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        array = array.cast(pa.int64())
    elif pa.types.is_date32(kind):
        array = array.cast(pa.int32())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(
            f"{path}: column 'timestamp' is {kind} (first value {short(array[0].as_py())}); "
            "write Unix time as a number, or ISO 8601 dates that Arrow recognises"
        )
    times = array.to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(times))
    if bad.size:
        raise DataError(f"{path}: data row {bad[0] + 1} has timestamp {times[bad[0]]}; give a finite number")
    return times


def _read_items(path: Path) -> ItemTable:
    table = _read_table(path, only=None, text=("item_id",))
    if not table.num_rows:
        raise DataError(f"{path}: no rows; a catalogue needs at least one item")
    codes, distinct = _encode_ids(path, table.column("item_id"), "item_id")
    if len(distinct) != table.num_rows:
        first = np.unique(codes, return_index=True)[1]
        at = int(np.setdiff1d(np.arange(len(codes)), first)[0])
        raise DataError(
            f"{path}: data row {at + 1} repeats item_id {distinct[int(codes[at])].as_py()!r}; "
            "every item has one row: merge or drop the others"
        )
    item_ids = distinct.to_pylist()

    vectors: dict[str, np.ndarray | None] = {}
    used = {"item_id"}
    for name in ("sid", "embedding"):
        vectors[name], columns = _vectors(path, table, name, item_ids)
        used |= columns
    sids = levels = None
    if vectors["sid"] is not None:
        sids = checked_codes(path, vectors["sid"], item_ids)
        levels = _stated_levels(path, table, sids) or rounded_levels(sids)
    embeddings = vectors["embedding"]
    if embeddings is not None and not np.isfinite(embeddings).all():
        row, dim = np.argwhere(~np.isfinite(embeddings))[0].tolist()
        raise DataError(
            f"{path}: item {item_ids[row]!r} has the embedding value {embeddings[row, dim]} at dimension {dim}; "
            "embeddings must be finite (and within float32)"
        )
    attributes = {}
    for name in table.column_names:
        if name not in used:
            text = _attribute(path, table.column(name), name)
            if text is not None:
                attributes[name] = text
    return ItemTable(item_ids=item_ids, sids=sids, levels=levels, embeddings=embeddings, attributes=attributes)


def _vectors(path: Path, table: pa.Table, name: str, item_ids: list[str]) -> tuple[np.ndarray | None, set[str]]:
    """The vector per item from a list column `name` or from `name_0`, `name_1`, ...; and the columns that it takes.

    int64 [n, L] for "sid", float32 [n, D] for "embedding"; None if the table has neither.
    """
    kind = pa.int64() if name == "sid" else pa.float32()
    found = (re.fullmatch(rf"{name}_(\d+)", column) for column in table.column_names)
    numbered = sorted((int(match[1]), match[0]) for match in found if match)
    if name in table.column_names:
        if numbered:
            raise DataError(f"{path}: has both column {name!r} and column {numbered[0][1]!r}; keep one form")
        _refuse_nulls(path, table.column(name), name)
        lists = _one_array(table.column(name))
        try:
            if pa.types.is_string(lists.type) or pa.types.is_large_string(lists.type):
                lists = pc.split_pattern_regex(pc.utf8_trim(lists, "[]() \t"), r"[,;\s]+")
            lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(f"{path}: column {name!r} is {lists.type}; expected a list of numbers per item") from error
        width = common_length(path, lengths, item_ids, f"values in {name!r}")
        return _numbers(path, lists.flatten(), kind, name, item_ids, width).reshape(-1, width), {name}
    if not numbered:
        return None, set()
    if [place for place, _ in numbered] != list(range(len(numbered))):
        raise DataError(
            f"{path}: columns {[column for _, column in numbered]} must be numbered 0, 1, 2, ... without gaps"
        )
    columns = [_numbers(path, _one_array(table.column(c)), kind, c, item_ids, 1) for _, c in numbered]
    return np.stack(columns, axis=1), {column for _, column in numbered}


def _numbers(path: Path, values: pa.Array, kind: pa.DataType, name: str, item_ids: list[str], width: int) -> np.ndarray:
    if values.null_count:
        at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}: item {item_ids[at // width]!r} has an empty value in {name!r}; fill it in")
    try:
        if pa.types.is_boolean(values.type):
            raise pa.ArrowTypeError("booleans")
        if pa.types.is_integer(kind):
            return values.cast(kind).to_numpy(zero_copy_only=False)
        # Overflow becomes inf, which the caller reports with its place.
        return values.cast(kind, safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path}: column {name!r} does not hold numbers of type {kind} ({error})") from error


def _stated_levels(path: Path, table: pa.Table, sids: np.ndarray) -> tuple[int, ...] | None:
    """The number of codes per level that `write_dataset` left in the file's metadata."""
    stated = (table.schema.metadata or {}).get(_LEVELS_KEY)
    if stated is None:
        return None
    try:
        levels = json.loads(stated)
    except ValueError:
        levels = None
    tops = sids.max(axis=0).tolist()
    if (
        not isinstance(levels, list)
        or len(levels) != len(tops)
        or not all(type(size) is int and top < size <= INT32_MAX for size, top in zip(levels, tops, strict=True))
    ):
        raise DataError(
            f"{path}: metadata {_LEVELS_KEY.decode()} says {stated!r}, but the codes reach {tops}; write the file again"
        )
    return tuple(levels)


def _attribute(path: Path, column: pa.ChunkedArray, name: str) -> list[str] | None:
    """A column as text, empty where it has no value; None (with a warning) for what has no plain text form."""
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        log.warning("%s: column %r is %s, not text: left out of the attributes", path, name, column.type)
        return None
    try:
        return column.cast(pa.large_string()).fill_null("").to_pylist()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path}: column {name!r} cannot be read as text ({error}); convert or drop it") from error


def write_dataset(dataset: Dataset, path: Path | str) -> None:
    """Writes `items.parquet` and `interactions.parquet` into `path`, so that `read_dataset` gives the same back.

    `timestamp` is the place of the interaction in its user's sequence (0, 1, ...), since a `Dataset` keeps only the
    order. Existing Parquet files of these names are replaced.

    Raises DataError if `path` holds data in another form, which would make it ambiguous, or an attribute has the name
    of a reserved column.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for name in ("inter.json", "index.json", "interactions.csv", "items.csv"):
        if (path / name).exists():
            raise DataError(f"{path}: already holds {name}; write to another directory")
    items, interactions = dataset.items, dataset.interactions

    columns: dict[str, pa.Array] = {"item_id": pa.array(items.item_ids, type=pa.string())}
    for name, values in items.attributes.items():
        if re.fullmatch(r"item_id|(sid|embedding)(_\d+)?", name):
            raise DataError(f"attribute {name!r} has the name of a reserved column; rename it")
        columns[name] = pa.array(values, type=pa.string())
    metadata = {}
    if items.sids is not None and items.levels is not None:
        columns["sid"] = _fixed_lists(items.sids)
        metadata[_LEVELS_KEY] = json.dumps(list(items.levels)).encode()
    if items.embeddings is not None:
        columns["embedding"] = _fixed_lists(items.embeddings)
    pq.write_table(pa.table(columns, metadata=metadata), path / "items.parquet")

    lengths = np.diff(interactions.offsets)
    users = np.repeat(np.arange(len(interactions), dtype=np.int32), lengths)
    places = np.arange(len(interactions.rows), dtype=np.int64) - np.repeat(interactions.offsets[:-1], lengths)
    events = {
        "user_id": pa.array(interactions.user_ids, type=pa.string()).take(pa.array(users)),
        "item_id": columns["item_id"].take(pa.array(interactions.rows)),
        "timestamp": pa.array(places),
    }
    if interactions.queries is not None:
        events["query"] = interactions.queries
    pq.write_table(pa.table(events), path / "interactions.parquet")


def _fixed_lists(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).ravel()), matrix.shape[1])
