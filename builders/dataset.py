"""Catalogue and interactions: reading, writing, and the leave-one-out split.

`read_dataset` takes a directory in one of two forms:

* `inter.json` (`{user: [item, ...]}`, items in time order) and `index.json` (`{item: ["<a_128>", "<b_241>", ...]}`),
  the form that the generative-recommendation literature publishes;
* `interactions.parquet|csv` (columns `user_id`, `item_id`, `timestamp`, and optional `query`: the text that the user
  searched with before taking the item, empty if none) and `items.parquet|csv` (column `item_id`;
  optional `sid` list column or `sid_0`, `sid_1`, ...; optional `embedding` list column or `embedding_0`, ...; every
  other column of text, numbers, booleans or dates becomes an attribute).

Everything that the files get wrong is reported as a `DataError` that names the file, the place and the fix.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from genrec.catalog import MAX_ID_BYTES

log = logging.getLogger(__name__)

_INT32_MAX = 2**31 - 1
_LEVELS_KEY = b"genrec.levels"
_TOKEN = r"^<(?P<level>[a-z]+)_(?P<code>-?[0-9]{1,18})>$"
_READ_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)


class DataError(ValueError):
    """Input data that cannot be used; the message names the file, the place, the value and what to do."""


@dataclass(frozen=True, eq=False)
class ItemTable:
    """The catalogue, one row per item.

    Attributes:
        item_ids: n distinct ids, each 1 to 128 bytes of UTF-8.
        sids: int32 [n, L] semantic-ID codes, or None if the catalogue has none yet.
        levels: number of codes per level (T_1 .. T_L), or None without `sids`. Files that do not say how many codes a
            level has give the largest code + 1, rounded up to a power of two.
        embeddings: float32 [n, D], finite, or None.
        attributes: columns of text, n values each, such as title, category, brand.
    """

    item_ids: list[str]
    sids: np.ndarray | None = None
    levels: tuple[int, ...] | None = None
    embeddings: np.ndarray | None = None
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.item_ids)
        if (self.sids is None) != (self.levels is None):
            raise DataError("ItemTable: give sids and levels together, or neither")
        if self.sids is not None and self.levels is not None:
            if self.sids.shape != (n, len(self.levels)) or self.sids.dtype != np.int32:
                raise DataError(
                    f"ItemTable: sids are {self.sids.dtype} {list(self.sids.shape)}; "
                    f"{n} items and {len(self.levels)} levels need int32 [{n}, {len(self.levels)}]"
                )
            if n and (self.sids.min() < 0 or (self.sids >= np.asarray(self.levels)).any()):
                raise DataError(f"ItemTable: a code lies outside its level; levels are {self.levels}")
        if self.embeddings is not None and (
            self.embeddings.ndim != 2 or len(self.embeddings) != n or self.embeddings.dtype != np.float32
        ):
            raise DataError(
                f"ItemTable: embeddings are {self.embeddings.dtype} {list(self.embeddings.shape)}; "
                f"{n} items need float32 [{n}, D]"
            )
        for name, column in self.attributes.items():
            if len(column) != n:
                raise DataError(f"ItemTable: attribute {name!r} has {len(column)} values for {n} items")

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, eq=False)
class Interactions:
    """Every user's items in time order, as compressed sparse rows.

    Attributes:
        user_ids: U distinct ids.
        offsets: int64 [U + 1]; user u owns `rows[offsets[u]:offsets[u + 1]]`.
        rows: int32 [N], rows of the item table, oldest first within a user.
        queries: large_string [N], the text query that led to each item, "" for none; or None if there are no queries.
    """

    user_ids: list[str]
    offsets: np.ndarray
    rows: np.ndarray
    queries: pa.LargeStringArray | None = None

    def __post_init__(self) -> None:
        if (
            self.offsets.shape != (len(self.user_ids) + 1,)
            or self.offsets[0] != 0
            or self.offsets[-1] != len(self.rows)
        ):
            raise DataError(
                f"Interactions: offsets must run from 0 to {len(self.rows)} with {len(self.user_ids) + 1} entries, "
                f"got shape {list(self.offsets.shape)}"
            )
        if (np.diff(self.offsets) < 0).any():
            raise DataError("Interactions: offsets must not decrease")
        queries = self.queries
        if queries is not None and (
            len(queries) != len(self.rows) or not pa.types.is_large_string(queries.type) or queries.null_count
        ):
            raise DataError(
                f"Interactions: queries are {queries.type} [{len(queries)}] with {queries.null_count} nulls; "
                f"{len(self.rows)} interactions need large_string [{len(self.rows)}] without nulls"
            )

    def __len__(self) -> int:
        return len(self.user_ids)

    def without_last(self) -> Interactions:
        """The same without each user's last item: what tuning works on, so that the test items have no say in it.

        Split again, the validation items are what is ranked, and a prompt ends with an item that training has not seen
        in that place, as a test prompt does.
        """
        lengths = np.maximum(np.diff(self.offsets).astype(np.int64) - 1, 0)
        kept = _slices(np.arange(len(self)), self.rows, self.queries, self.offsets[:-1].astype(np.int64), lengths)
        return Interactions(self.user_ids, kept.offsets, kept.rows, kept.queries)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue and the interactions with it."""

    items: ItemTable
    interactions: Interactions

    def __post_init__(self) -> None:
        rows = self.interactions.rows
        if rows.size and (rows.min() < 0 or rows.max() >= len(self.items)):
            raise DataError(
                f"Dataset: interactions name rows {rows.min()} to {rows.max()} of an item table of {len(self.items)}"
            )


@dataclass(frozen=True, eq=False)
class Sequences:
    """Item sequences of some of the users, as compressed sparse rows.

    Attributes:
        users: int64 [E], positions in `Interactions.user_ids`.
        offsets: int64 [E + 1].
        rows: int32 [N], rows of the item table, oldest first.
        queries: large_string [N], the query that led to each item, "" for none; or None if there are no queries.
    """

    users: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    queries: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> np.ndarray:
        """int32 [n]: the sequence at `index` (a view)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        index %= len(self)
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    def recent(self, limit: int) -> Sequences:
        """The same sequences, each cut to its `limit` most recent items. Raises ValueError if limit < 1."""
        if limit < 1:
            raise ValueError(f"limit is {limit}; keep at least 1 item")
        lengths = np.minimum(np.diff(self.offsets), limit)
        return _slices(self.users, self.rows, self.queries, self.offsets[1:] - lengths, lengths)


@dataclass(frozen=True, eq=False)
class Holdout:
    """One held-out item per user.

    Attributes:
        histories: E sequences.
        targets: int32 [E], rows of the item table.
        queries: large_string [E], the query that led to each target, "" for none; or None if there are no queries.
    """

    histories: Sequences
    targets: np.ndarray
    queries: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Split:
    """Leave-one-out: `train` holds every user, `validation` and `test` the users with at least 3 interactions."""

    train: Sequences
    validation: Holdout
    test: Holdout


def _slices(
    users: np.ndarray, rows: np.ndarray, queries: pa.Array | None, starts: np.ndarray, lengths: np.ndarray
) -> Sequences:
    """Copies `rows[starts[i]:starts[i] + lengths[i]]` of every i into one compressed array, and so the queries."""
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    gather = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64)
    return Sequences(users=users, offsets=offsets, rows=rows[gather], queries=_taken(queries, gather))


def _taken(queries: pa.Array | None, places: np.ndarray) -> pa.Array | None:
    return None if queries is None else queries.take(pa.array(places))


def split_leave_one_out(interactions: Interactions) -> Split:
    """Splits by the protocol of the literature: last item = test, the one before = validation, the rest = training.

    The test history contains the validation item. Users with fewer than 3 interactions only train, with all of them.
    """
    starts = interactions.offsets[:-1].astype(np.int64)
    lengths = np.diff(interactions.offsets).astype(np.int64)
    held = np.flatnonzero(lengths >= 3)
    rows, queries = interactions.rows, interactions.queries
    kept = np.where(lengths >= 3, lengths - 2, lengths)
    train = _slices(np.arange(len(lengths), dtype=np.int64), rows, queries, starts, kept)

    def holdout(back: int) -> Holdout:
        sizes = lengths[held] - back
        histories = _slices(held, rows, queries, starts[held], sizes)
        at = starts[held] + sizes
        return Holdout(histories=histories, targets=rows[at].astype(np.int32), queries=_taken(queries, at))

    return Split(train=train, validation=holdout(2), test=holdout(1))


def popularity(interactions: Interactions | Sequences | Split, n_items: int) -> np.ndarray:
    """int64 [n_items]: how often each item occurs in the training part.

    `Interactions` are split first, so that held-out items never count; `Sequences` are taken as they are.
    Raises DataError if a row is not below `n_items`.
    """
    if isinstance(interactions, Interactions):
        interactions = split_leave_one_out(interactions)
    rows = interactions.train.rows if isinstance(interactions, Split) else interactions.rows
    if rows.size and rows.max() >= n_items:
        raise DataError(f"popularity: item row {rows.max()} is outside a catalogue of {n_items} items")
    return np.bincount(rows, minlength=n_items).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_dataset(path: Path | str) -> Dataset:
    """Reads a dataset directory (see the module's docstring for the two forms).

    Users come in the order of their first appearance; interactions are ordered by timestamp within the user, and by
    their place in the file where timestamps are equal. Users without interactions are left out.

    Raises:
        DataError: missing, ambiguous, unreadable or empty files; missing columns; ids that are empty, duplicated, not
            UTF-8 or over 128 bytes; interactions with unknown items; negative or ragged semantic IDs; embeddings that
            are ragged or not finite; queries that are not text.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: not a directory; give the directory that holds the interactions and the items")
    as_json = [name for name in ("inter.json", "index.json") if (path / name).exists()]
    as_table = [p.name for stem in ("interactions", "items") for p in _table_files(path, stem)]
    if as_json and as_table:
        raise DataError(f"{path}: holds two forms of data, {as_json} and {as_table}; keep one of them")
    if as_json:
        return _read_json_form(path)
    if as_table:
        return _read_table_form(path)
    raise DataError(
        f"{path}: no data found; expected inter.json and index.json, or interactions.parquet|csv and items.parquet|csv"
    )


def _table_files(path: Path, stem: str) -> list[Path]:
    return [p for p in (path / f"{stem}.parquet", path / f"{stem}.csv") if p.exists()]


def _load_object(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise DataError(f"{path}: key {twice!r} occurs more than once; merge or drop one of its entries")
        return found

    if not path.is_file():
        raise DataError(f"{path}: missing; this form of data needs both inter.json and index.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{path}: not valid JSON ({error}); write the file again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a JSON {type(value).__name__}; expected an object")
    if not value:
        raise DataError(f"{path}: empty; there is nothing to learn from or to serve")
    return value


def _read_json_form(path: Path) -> Dataset:
    inter_path, index_path = path / "inter.json", path / "index.json"
    inter, index = _load_object(inter_path), _load_object(index_path)

    item_ids = _text_array(index_path, index, "item")
    tokens = _list_array(index_path, index, "item", False, "a list of codes such as ['<a_12>', '<b_7>']")
    sids = _parse_tokens(index_path, list(index), tokens)
    items = ItemTable(item_ids=list(index), sids=sids, levels=_rounded_levels(sids))

    users = _text_array(inter_path, inter, "user").to_pylist()
    lists = _list_array(inter_path, inter, "user", True, "a list of item ids")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    values = lists.flatten()
    rows = _look_up(values.cast(pa.large_string()), item_ids)
    if not len(rows):
        raise DataError(f"{inter_path}: no interactions; every user's list is empty")
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        user = users[int(np.searchsorted(offsets, unknown[0], side="right")) - 1]
        raise DataError(
            f"{inter_path}: user {user!r} has item {values[int(unknown[0])].as_py()!r}, which index.json does not list "
            f"({unknown.size} such interactions); add the item there or drop the interaction"
        )
    keep = np.diff(offsets) > 0
    offsets = np.concatenate([offsets[:1], offsets[1:][keep]])
    user_ids = [user for user, kept in zip(users, keep.tolist(), strict=True) if kept]
    return Dataset(items, Interactions(user_ids=user_ids, offsets=offsets, rows=rows.astype(np.int32)))


def _text_array(path: Path, keys: Iterable[str], what: str) -> pa.Array:
    try:
        ids = pa.array(list(keys), type=pa.large_string())
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: {what} id {error.object!r} is not valid Unicode; rename it") from error
    _check_id_sizes(path, ids, what)
    return ids


def _list_array(path: Path, values: dict[str, Any], what: str, numbers: bool, expected: str) -> pa.Array:
    """The values of a JSON object as one Arrow array: lists of text or, where `numbers` allows it, of int64."""

    def convert(lists: list[Any]) -> pa.Array | None:
        try:
            # Inferred, not asked for: asked for whole numbers, Arrow would cut 1.5 to 1.
            array = pa.array(lists)
            kind = array.type.value_type if pa.types.is_list(array.type) else pa.null()
            if pa.types.is_null(kind) and pa.types.is_list(array.type) and not len(array.flatten()):
                array, kind = array.cast(pa.list_(pa.string())), pa.string()
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return None
        right = pa.types.is_string(kind) or (numbers and pa.types.is_int64(kind))
        return array if right and not array.null_count and not array.flatten().null_count else None

    array = convert(list(values.values()))
    if array is not None:
        return array
    for key, value in values.items():
        if convert([value]) is None:
            raise DataError(f"{path}: {what} {key!r} has {_short(value)}; expected {expected}")
    raise DataError(f"{path}: some ids are numbers and some are text; write all of them in one way")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parse_tokens(path: Path, item_ids: list[str], tokens: pa.Array) -> np.ndarray:
    """int32 [n, L] from a list array of `<level_code>` tokens; level l must carry the l-th letter."""
    levels = _common_length(path, pc.list_value_length(tokens).to_numpy(), item_ids, "codes")
    flat = tokens.flatten()
    parsed = pc.extract_regex(flat, _TOKEN)
    if parsed.null_count:
        at = int(np.flatnonzero(parsed.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"{path}: item {item_ids[at // levels]!r} has the code {flat[at].as_py()!r}; expected the form <a_128>"
        )
    letters = pc.struct_field(parsed, "level").to_numpy(zero_copy_only=False).reshape(-1, levels)
    for level in range(levels):
        wrong = np.flatnonzero(letters[:, level] != letters[0, level])
        if wrong.size or letters[0, level] in letters[0, :level]:
            at = int(wrong[0]) if wrong.size else 0
            raise DataError(
                f"{path}: item {item_ids[at]!r} has the level letter {letters[at, level]!r} in place {level}; every "
                f"item must give its levels once each and in one order ({item_ids[0]!r} gives {letters[0].tolist()})"
            )
    codes = pc.struct_field(parsed, "code").cast(pa.int64()).to_numpy().reshape(-1, levels)
    return _checked_codes(path, codes, item_ids)


def _checked_codes(path: Path, codes: np.ndarray, item_ids: list[str]) -> np.ndarray:
    bad = np.argwhere((codes < 0) | (codes >= _INT32_MAX))
    if len(bad):
        row, level = bad[0].tolist()
        raise DataError(
            f"{path}: item {item_ids[row]!r} has the code {codes[row, level]} at level {level}; "
            f"codes lie in 0 to {_INT32_MAX - 1}"
        )
    return np.ascontiguousarray(codes, dtype=np.int32)


def _rounded_levels(sids: np.ndarray) -> tuple[int, ...]:
    return tuple(1 << int(top).bit_length() for top in sids.max(axis=0).tolist())


def _common_length(path: Path, lengths: np.ndarray, item_ids: list[str], what: str) -> int:
    ragged = np.flatnonzero(lengths != lengths[0])
    if ragged.size:
        at = int(ragged[0])
        raise DataError(
            f"{path}: item {item_ids[at]!r} has {lengths[at]} {what} and item {item_ids[0]!r} has {lengths[0]}; "
            "every item needs the same number"
        )
    if lengths[0] < 1:
        raise DataError(f"{path}: items have no {what}; give at least one per item")
    return int(lengths[0])


def _look_up(values: pa.Array, item_ids: pa.Array) -> np.ndarray:
    """int64 [n]: the place of every value in `item_ids`, -1 if it is not there."""
    return pc.index_in(values, value_set=item_ids).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _check_id_sizes(path: Path, ids: pa.Array, what: str) -> None:
    sizes = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero((sizes < 1) | (sizes > MAX_ID_BYTES))
    if bad.size:
        at = int(bad[0])
        raise DataError(
            f"{path}: {what} id {_short(ids[at].as_py())} has {sizes[at]} bytes; ids have 1 to {MAX_ID_BYTES}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# The tabular form


def _read_table_form(path: Path) -> Dataset:
    item_path, inter_path = _the_table(path, "items"), _the_table(path, "interactions")
    items = _read_items(item_path)
    needed, text = ("user_id", "item_id", "timestamp"), ("user_id", "item_id", "query")
    table = _read_table(inter_path, only=needed, text=text, optional=("query",))
    if not table.num_rows:
        raise DataError(f"{inter_path}: no rows; there is nothing to learn from")

    users, user_ids = _encode_ids(inter_path, table.column("user_id"), "user_id")
    codes, seen = _encode_ids(inter_path, table.column("item_id"), "item_id")
    rows = _look_up(seen, pa.array(items.item_ids, type=pa.large_string()))[codes]
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
    queries = _taken(_queries(inter_path, table), order)
    rows = rows[order].astype(np.int32)
    return Dataset(items, Interactions(user_ids=user_ids.to_pylist(), offsets=offsets, rows=rows, queries=queries))


def _the_table(path: Path, stem: str) -> Path:
    found = _table_files(path, stem)
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
    _check_id_sizes(path, ids, name)
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
            f"{path}: column 'timestamp' is {kind} (first value {_short(array[0].as_py())}); "
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
        sids = _checked_codes(path, vectors["sid"], item_ids)
        levels = _stated_levels(path, table, sids) or _rounded_levels(sids)
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
        width = _common_length(path, lengths, item_ids, f"values in {name!r}")
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
        or not all(type(size) is int and top < size <= _INT32_MAX for size, top in zip(levels, tops, strict=True))
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


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_dataset(dataset: Dataset, path: Path | str) -> None:
    """Writes `items.parquet` and `interactions.parquet` into `path`, so that `read_dataset` gives the same back.

    `timestamp` is the place of the interaction in its user's sequence (0, 1, ...), since a `Dataset` keeps only the
    order. Existing Parquet files of these names are replaced.

    Raises:
        DataError: `path` holds data in another form, which would make it ambiguous; or an attribute has the name of a
            reserved column.
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
