"""`inter.json`, `index.json` and `item.json`, the form that the literature publishes."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from genrec.errors import DataError
from genrec_builders.data.checks import check_id_sizes, checked_codes, rounded_levels, short
from genrec_builders.data.found import Found
from genrec_builders.data.interactions import interactions_of_lists
from genrec_builders.data.notation import EXAMPLES, parse_sids
from genrec_builders.data.tables import Interactions, ItemTable


def read_index(path: Path) -> ItemTable:
    """The catalogue of `{item: semantic ID}`, a list of tokens or of numbers, or text."""
    index = _load_object(path)
    item_ids = _text_array(path, index, "item").to_pylist()
    texts = []
    for item, value in index.items():
        plain = isinstance(value, list) and all(type(code) in (str, int) for code in value)
        if not plain and not isinstance(value, str):
            raise DataError(
                f"{path}: item {item!r} has {short(value)}; expected a list of codes or text like {EXAMPLES}"
            )
        texts.append(value if isinstance(value, str) else " ".join(map(str, value)))
    sids = checked_codes(path, parse_sids(path, _text_values(path, texts, item_ids), item_ids, "codes"), item_ids)
    return ItemTable(item_ids=item_ids, sids=sids, levels=rounded_levels(sids))


def read_texts(path: Path, found: Found) -> pa.Table:
    """The table of `{item: {"title": ..., ...}}` or `{item: title}`: `item_id`, and a column of each key."""
    texts = _load_object(path)
    item_ids = _text_array(path, texts, "item")
    records = [{"title": value} if isinstance(value, str) else value for value in texts.values()]
    for item, record in zip(texts, records, strict=True):
        if not isinstance(record, dict):
            raise DataError(
                f"{path}: item {item!r} has {short(record)}; expected an object such as {{'title': 'Tent'}}"
            )
    columns = {"item_id": item_ids}
    for name in dict.fromkeys(name for record in records for name in record):
        _require_unicode(path, name, texts)
        values = [record.get(name) for record in records]
        if name == "item_id":
            found.left_out.append(f"'item_id' in {path.name}, where the keys are the ids")
        elif (column := _column(path, values, list(texts))) is not None:
            columns[name] = column
        else:
            found.left_out.append(f"{name!r} of {path.name}, which mixes lists and single values")
    return pa.table(columns)


def read_user_lists(path: Path, items: ItemTable, catalogue: str, found: Found) -> Interactions:
    """The interactions of `{user: [item, ...]}`, in time order. catalogue: name of the file that lists the items."""
    inter = _load_object(path)
    users = _text_array(path, inter, "user").to_pylist()
    return interactions_of_lists(path, users, _list_array(path, inter), items, catalogue, found)


def _load_object(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise DataError(f"{path}: key {twice!r} occurs more than once; merge or drop one of its entries")
        return found

    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); write the file again") from error
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        lines = "; JSON Lines belong into a file that ends in .jsonl" if str(error).startswith("Extra data") else ""
        raise DataError(f"{path}: not valid JSON ({error}); write the file again{lines}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a JSON {type(value).__name__}; expected an object")
    if not value:
        raise DataError(f"{path}: empty; there is nothing to learn from or to serve")
    return value


def _text_array(path: Path, keys: Iterable[str], what: str) -> pa.Array:
    try:
        ids = pa.array(list(keys), type=pa.large_string())
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: {what} id {error.object!r} is not valid Unicode; rename it") from error
    check_id_sizes(path, ids, what)
    return ids


def _require_unicode(path: Path, key: str, items: dict[str, Any]) -> None:
    """Raises DataError for a `key`, of the object of one of `items`, that no column can be called."""
    try:
        key.encode()
    except UnicodeEncodeError as error:
        item = next(item for item, record in items.items() if key in record)
        raise DataError(f"{path}: item {item!r} has the key {key!r}, which is not valid Unicode; rename it") from error


def _text_values(path: Path, texts: list[str], item_ids: list[str]) -> pa.Array:
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError as error:
        item = item_ids[texts.index(error.object)]
        raise DataError(f"{path}: item {item!r} has {short(error.object)}, which is not valid Unicode") from error


def _column(path: Path, values: list[Any], item_ids: list[str]) -> pa.Array | None:
    """The values of one key, as text if their types do not agree; None if some are lists or objects and some not."""
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    nested = any(isinstance(value, (list, dict)) for value in values)
    types = {type(value) for value in values} - {type(None)}
    if nested or types in ({int}, {float}, {int, float}, {bool}):
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            if nested:
                return None
    texts = ["" if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
    return _text_values(path, texts, item_ids)


def _list_array(path: Path, values: dict[str, Any]) -> pa.Array:
    """The values of a JSON object as one Arrow array of lists of text or of int64; of text if some are text."""

    def convert(lists: list[Any]) -> pa.Array | None:
        try:
            # Inferred, not asked for: asked for whole numbers, Arrow would cut 1.5 to 1.
            array = pa.array(lists)
            kind = array.type.value_type if pa.types.is_list(array.type) else pa.null()
            if pa.types.is_null(kind) and pa.types.is_list(array.type) and not len(array.flatten()):
                array, kind = array.cast(pa.list_(pa.string())), pa.string()
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return None
        right = pa.types.is_string(kind) or pa.types.is_int64(kind)
        return array if right and not array.null_count and not array.flatten().null_count else None

    array = convert(list(values.values()))
    if array is not None:
        return array
    texts = []
    for key, value in values.items():
        if not isinstance(value, list) or not all(type(each) in (str, int) for each in value):
            raise DataError(f"{path}: user {key!r} has {short(value)}; expected a list of item ids")
        texts.append([str(each) for each in value])
    try:
        return pa.array(texts, pa.list_(pa.large_string()))
    except UnicodeEncodeError as error:
        user = next(user for user, ids in zip(values, texts, strict=True) if error.object in ids)
        raise DataError(f"{path}: user {user!r} has {short(error.object)}, which is not valid Unicode") from error
