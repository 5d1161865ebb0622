"""Files of the users or items that texts are to be written about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from genrec.catalog.kinds import texts_among
from genrec.errors import DataError
from genrec.knowledge.model import KnowledgeModel
from genrec.knowledge.texts import TextRequest

_INTERACTION = ("user_id", "item_id", "timestamp")
_FORMS = (
    "users: user_id and history (item ids, oldest first; in CSV with commas between them); users, a row per "
    f"interaction: {', '.join(_INTERACTION)}; or items: item_id and attributes, without user_id and history"
)
_NO_ATTRIBUTE = r"item_id|(sid|embedding)(_\d+)?"
# Text stays bytes until it is used, or one value that is not UTF-8 would spoil the whole file.
_TEXT, _TEXTS = pa.large_binary(), pa.large_list(pa.large_binary())
_PARSING = pa_csv.ParseOptions(newlines_in_values=True)


@dataclass(frozen=True, eq=False)
class Entities:
    """Users or items, in the order of their file.

    ids: large_string [n], distinct. histories: large_list<large_binary> [n], a user's item ids, oldest first; None for
    items. attributes: large_binary [n] each, of items; without any, the catalogue's are used.
    """

    ids: pa.Array
    histories: pa.Array | None
    attributes: dict[str, pa.Array]

    def __len__(self) -> int:
        return len(self.ids)

    def shard(self, index: int, count: int) -> Entities:
        """Those whose positions are `index` modulo `count`."""
        taken = pa.array(np.arange(index, len(self), count))
        histories = None if self.histories is None else self.histories.take(taken)
        attributes = {name: values.take(taken) for name, values in self.attributes.items()}
        return Entities(self.ids.take(taken), histories, attributes)

    def request(self, model: KnowledgeModel, position: int, max_new_tokens: int | None) -> TextRequest:
        """For the text of the entity at `position`. Raises InvalidRequest."""
        if self.histories is not None:
            items = (_decoded(item).strip() for item in self.histories[position].as_py() or [])
            return model.user_request([item for item in items if item], max_new_tokens)
        attributes = {name: _decoded(values[position].as_py()) for name, values in self.attributes.items()}
        return model.item_request(self.ids[position].as_py(), attributes or None, max_new_tokens)


def read_entities(path: Path) -> Entities:
    """The entities in a .parquet or .csv file, whose columns tell what they are:

    * `user_id` and `history`: a user per row, with a list of item ids, oldest first; in CSV with commas between them;
    * `user_id`, `item_id` and `timestamp`: an interaction per row; users come in the order of their first rows;
    * `item_id` and attributes: an item per row. Columns of semantic IDs and embeddings are no attributes.

    Raises DataError that names the file, and the columns or the row at fault.
    """
    try:
        names = _column_names(path)
        if {"user_id", "history"} <= set(names):
            return _users(path, _read(path, ["user_id", "history"]))
        if set(_INTERACTION) <= set(names):
            return _users_of_interactions(path, _read(path, _INTERACTION))
        if "item_id" in names and not {"user_id", "history"} & set(names):
            attributes = [name for name in names if not re.fullmatch(_NO_ATTRIBUTE, name)]
            if path.suffix != ".csv":
                attributes = texts_among(attributes, pq.read_schema(path).metadata)
            return _items(path, _read(path, ["item_id", *attributes]))
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; give a .parquet or .csv file") from error
    raise DataError(f"{path}: has the columns {', '.join(names)}; it needs those of one form. {_FORMS}")


def _column_names(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with pa_csv.open_csv(path, parse_options=_PARSING) as reader:
            names = reader.schema.names
    else:
        names = pq.read_schema(path).names
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: column {twice[0]!r} occurs more than once; rename or drop one")
    return names


def _read(path: Path, names: Sequence[str]) -> pa.Table:
    if path.suffix != ".csv":
        return pq.read_table(path, columns=list(names))
    # Ids such as 007 and attributes such as 2024 are text, whatever they look like.
    types = {name: _TEXT for name in names if name != "timestamp"}
    converting = pa_csv.ConvertOptions(column_types=types, include_columns=names)
    return pa_csv.read_csv(path, parse_options=_PARSING, convert_options=converting)


def _users(path: Path, table: pa.Table) -> Entities:
    column = table["history"].combine_chunks()
    kind = column.type
    if _is_text(kind):
        histories = pc.split_pattern(column.cast(_TEXT), ",").cast(_TEXTS)
    elif _is_list(kind) and _may_be_ids(kind.value_type):
        wanted = _TEXTS if _is_bytes(kind.value_type) else pa.large_list(pa.large_string())
        histories = column.cast(wanted).cast(_TEXTS)
    else:
        raise DataError(f"{path}: column 'history' is {kind}; write lists of item ids, which are text or integers")
    ids = _ids(path, table, "user_id")
    return Entities(_distinct(path, "user_id", ids), histories, {})


def _users_of_interactions(path: Path, table: pa.Table) -> Entities:
    kind = table["timestamp"].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)):
        raise DataError(f"{path}: column 'timestamp' is {kind}; write Unix time as a number, or ISO 8601 dates")
    _refuse(path, "has no timestamp", pc.is_null(table["timestamp"], nan_is_null=True))
    users = _ids(path, table, "user_id").dictionary_encode()
    items = _ids(path, table, "item_id").cast(_TEXT)
    rows = pa.table({"user": users.indices, "timestamp": table["timestamp"], "item": items})
    rows = rows.sort_by([("user", "ascending"), ("timestamp", "ascending")])  # stable
    counts = np.bincount(users.indices.to_numpy(), minlength=len(users.dictionary))
    offsets = pa.array(np.append(0, np.cumsum(counts)))
    histories = pa.LargeListArray.from_arrays(offsets, rows["item"].combine_chunks())
    return Entities(users.dictionary, histories, {})


def _items(path: Path, table: pa.Table) -> Entities:
    ids = _ids(path, table, "item_id")
    # As in datasets, what has no plain text form is no attribute.
    plain = [name for name in table.column_names[1:] if not pa.types.is_nested(table[name].type)]
    attributes = {name: _as_text(table[name].combine_chunks()) for name in plain}
    return Entities(_distinct(path, "item_id", ids), None, attributes)


def _ids(path: Path, table: pa.Table, name: str) -> pa.Array:
    """large_string [n], none of them empty."""
    column = table[name].combine_chunks()
    if not _may_be_ids(column.type):
        raise DataError(f"{path}: column {name!r} is {column.type}; write ids as text or integers")
    text = _as_text(column)
    _refuse(path, f"has no {name}", pc.equal(pc.binary_length(text).fill_null(0), 0))
    try:
        return text.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {name!r}: {error}; write ids in UTF-8") from error


def _distinct(path: Path, name: str, ids: pa.Array) -> pa.Array:
    repeated = np.full(len(ids), True)
    repeated[np.unique(ids.dictionary_encode().indices.to_numpy(), return_index=True)[1]] = False
    _refuse(path, f"repeats a {name}", repeated)
    return ids


def _refuse(path: Path, what: str, wrong: Any) -> None:
    """Raise DataError for the first row where `wrong`, bool [n], holds."""
    rows = np.flatnonzero(np.asarray(wrong))
    if rows.size:
        raise DataError(f"{path}: data row {rows[0] + 1} {what} ({rows.size} such rows); correct or drop it")


def _as_text(array: pa.Array) -> pa.Array:
    return (array if _is_bytes(array.type) else array.cast(pa.large_string())).cast(_TEXT)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _may_be_ids(kind: pa.DataType) -> bool:
    """Text or integers; floating-point numbers would lose what they name."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_text(kind) or pa.types.is_integer(kind)


def _decoded(text: bytes | None) -> str:
    """As a string, whose surrogates make the prompt refuse it if it is not UTF-8."""
    return (text or b"").decode(errors="surrogateescape")
