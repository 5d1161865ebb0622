"""The catalogue from a table of items, whatever file it stood in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.catalog.kinds import texts_among
from genrec.errors import DataError
from genrec_builders.data.attributes import attribute_columns
from genrec_builders.data.checks import INT32_MAX, checked_codes, common_length, rounded_levels, short
from genrec_builders.data.columns import is_list, is_text, one_array, refuse_nulls
from genrec_builders.data.found import Found
from genrec_builders.data.ids import encode_ids
from genrec_builders.data.notation import EXAMPLES, parse_sids
from genrec_builders.data.tables import ItemTable

LEVELS_KEY = b"genrec.levels"
# Columns that pandas adds when it writes its index.
_PANDAS_INDEX = r"__index_level_\d+__|Unnamed: \d+|"
_FLOAT = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?([nN][aA][nN]|[iI][nN][fF])$"


def item_table(
    path: Path,
    table: pa.Table,
    found: Found,
    kinds: Mapping[str, str] = MappingProxyType({}),
    stated: Mapping[str, str] = MappingProxyType({}),
) -> ItemTable:
    """The catalogue of a table with a column `item_id`; what is left out of it goes into `found`.

    kinds: of attributes, by their names, where the column's own type is not meant. stated: that the file says its text
    is of; what is not is left out.
    """
    if not table.num_rows:
        raise DataError(f"{path}: no rows; a catalogue needs at least one item")
    codes, distinct = encode_ids(path, table.column("item_id"), "item_id")
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
    names = [name for name in table.column_names if name not in used]
    own = [name for name in names if not re.fullmatch(_PANDAS_INDEX, name)]
    typed = attribute_columns(path, table, own, item_ids, kinds, found, stated)
    try:
        texts = texts_among(names, table.schema.metadata)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    attributes = {}
    for name in texts:
        if name in typed and is_list(table.column(name).type):
            continue  # rules have it; it has no text
        text = _attribute(path, table.column(name), name, found)
        if text is not None:
            attributes[name] = text
    return ItemTable(item_ids, sids, levels, embeddings, attributes, typed)


def _vectors(path: Path, table: pa.Table, name: str, item_ids: list[str]) -> tuple[np.ndarray | None, set[str]]:
    """The vector per item from a column `name` of lists or of text, or from `name_0`, `name_1`, ...; and its columns.

    int64 [n, L] for "sid", float32 [n, D] for "embedding"; None if the table has neither.
    """
    kind = pa.int64() if name == "sid" else pa.float32()
    found = (re.fullmatch(rf"{name}_(\d+)", column) for column in table.column_names)
    numbered = sorted((int(match[1]), match[0]) for match in found if match)
    if name in table.column_names:
        if numbered:
            raise DataError(f"{path}: has both column {name!r} and column {numbered[0][1]!r}; keep one form")
        expected = f"a semantic ID per item such as {EXAMPLES}" if name == "sid" else "a list of numbers per item"
        if pa.types.is_struct(table.column(name).type):
            raise DataError(f"{path}: column {name!r} holds objects, or lists in lists; expected {expected}")
        refuse_nulls(path, table.column(name), name)
        lists, what = one_array(table.column(name)), f"values in {name!r}"
        lists = lists.dictionary_decode() if pa.types.is_dictionary(lists.type) else lists
        lists = lists.cast(pa.large_string()) if is_text(lists.type) else lists
        if name == "sid" and (texts := _sid_texts(lists)) is not None:
            return parse_sids(path, texts, item_ids, what), {name}
        try:
            if is_text(lists.type):
                lists = pc.split_pattern_regex(pc.utf8_trim(lists, "[]() \t\r\n"), r"[,;\s]+")
            lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(f"{path}: column {name!r} is {lists.type}; expected {expected}") from error
        width = common_length(path, lengths, item_ids, what)
        return _numbers(path, lists.flatten(), kind, name, item_ids, width).reshape(-1, width), {name}
    if not numbered:
        return None, set()
    columns = [column for _, column in numbered]
    if [place for place, _ in numbered] != list(range(len(numbered))):
        raise DataError(f"{path}: columns {columns} must be numbered 0, 1, 2, ... without gaps")
    arrays = [one_array(table.column(column)) for column in columns]
    if name == "sid" and all(is_text(array.type) for array in arrays):
        for column in columns:
            refuse_nulls(path, table.column(column), column)
        words = [array.cast(pa.large_string()) for array in arrays]
        texts = pc.binary_join_element_wise(*words, pa.scalar(" ", pa.large_string()))
        return parse_sids(path, texts, item_ids, f"values in 'sid_0' to {columns[-1]!r}"), set(columns)
    values = [_numbers(path, array, kind, c, item_ids, 1) for array, c in zip(arrays, columns, strict=True)]
    return np.stack(values, axis=1), set(columns)


def _sid_texts(column: pa.Array) -> pa.Array | None:
    """Text per item of a column of semantic IDs, which holds text or lists of text; None if it holds neither."""
    if is_text(column.type):
        return column.cast(pa.large_string())
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return None
    if not is_text(column.type.value_type) or column.flatten().null_count:
        return None
    return pc.binary_join(column.cast(pa.list_(pa.large_string())), pa.scalar(" ", pa.large_string()))


def _numbers(path: Path, values: pa.Array, kind: pa.DataType, name: str, item_ids: list[str], width: int) -> np.ndarray:
    def place(at: int) -> str:
        return f"item {item_ids[at // width]!r}"

    if values.null_count:
        at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}: {place(at)} has an empty value in {name!r}; fill it in")
    try:
        if pa.types.is_boolean(values.type):
            raise pa.ArrowTypeError("booleans")
        if pa.types.is_integer(kind):
            return values.cast(kind).to_numpy(zero_copy_only=False)
        # Overflow becomes inf, which the caller reports with its place.
        return values.cast(kind, safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        wrong = _not_numbers(values, pa.types.is_integer(kind))
        if wrong.size:
            at = int(wrong[0])
            expected = "a whole number" if pa.types.is_integer(kind) else "a number"
            raise DataError(
                f"{path}: {place(at)} has {short(values[at].as_py())} in {name!r}; expected {expected}"
            ) from error
        raise DataError(f"{path}: column {name!r} does not hold numbers of type {kind} ({error})") from error


def _not_numbers(values: pa.Array, whole: bool) -> np.ndarray:
    """Places in `values` of text or floats that are no numbers, or no whole ones."""
    if is_text(values.type):
        pattern = r"^-?[0-9]{1,18}$" if whole else _FLOAT
        texts = values.cast(pa.large_string())  # no pattern is looked for in views
        return np.flatnonzero(~pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(values.type) and whole:
        floats = values.to_numpy(zero_copy_only=False)
        return np.flatnonzero(~((floats == np.floor(floats)) & (np.abs(floats) < 2**53)))
    return np.zeros(0, dtype=np.int64)


def _stated_levels(path: Path, table: pa.Table, sids: np.ndarray) -> tuple[int, ...] | None:
    """The number of codes per level that `write_dataset` left in the file's metadata."""
    stated = (table.schema.metadata or {}).get(LEVELS_KEY)
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
            f"{path}: metadata {LEVELS_KEY.decode()} says {stated!r}, but the codes reach {tops}; write the file again"
        )
    return tuple(levels)


def _attribute(path: Path, column: pa.ChunkedArray, name: str, found: Found) -> list[str] | None:
    """A column as text, empty where it has no value; None, and a note in `found`, for what has no plain text form."""
    if re.fullmatch(_PANDAS_INDEX, name):
        found.left_out.append(f"column {name!r} of {path.name}, an index that pandas wrote")
        return None
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        found.left_out.append(f"column {name!r} of {path.name}, which is {column.type} and no text")
        return None
    try:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return column.cast(pa.large_string()).fill_null("").to_pylist()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path}: column {name!r} cannot be read as text ({error}); convert or drop it") from error
