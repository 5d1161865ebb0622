"""The interactions from a table of events, or from a list of items per user, whatever file they stood in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.errors import DataError
from genrec.reporting.progress import Task, Track, untracked
from genrec_builders.data.checks import look_up
from genrec_builders.data.columns import is_list, is_text, one_array, refuse_nulls
from genrec_builders.data.found import Found, some
from genrec_builders.data.ids import IdEncoder, encode_ids
from genrec_builders.data.lists import text_lists
from genrec_builders.data.table_files import Batches, TableFile, check_columns
from genrec_builders.data.tables import Interactions, ItemTable, taken
from genrec_builders.data.times import joined_times, read_times

# A column of lists by one of these names holds a user's items; by the first two, RecBole's, also beside `item_id`.
SEQUENCES = ("item_id_list", "item_seq", "item_ids", "items", "sequence", "history")
_RECBOLE = SEQUENCES[:2]
_ROWS = 1 << 20  # of a table of events, at a time; more of them where there are more ids
_TIMES, _QUERIES = ("timestamps", "timestamp_list", "timestamp"), ("queries", "query_list", "query")


def interactions_of_table(
    source: TableFile, items: ItemTable, catalogue: str, found: Found, track: Track = untracked
) -> Interactions:
    """The interactions of a table, one row per interaction or one row per user.

    catalogue: name of the file that lists the items. What is left out of the table goes into `found`. Only a table with
    a row per interaction is read bit by bit.
    """
    sequence = _sequence_column(source)
    with track(f"read {source.path.name}") as task:
        if sequence is not None:
            found.used[source.path.name] += ", one row per user"
            return _of_sequences(source, sequence, items, catalogue, found)
        return _of_events(source, items, catalogue, found, task)


def interactions_of_lists(
    path: Path,
    user_ids: list[str],
    lists: pa.Array,
    items: ItemTable,
    catalogue: str,
    found: Found,
    times: np.ndarray | None = None,
    queries: pa.Array | None = None,
) -> Interactions:
    """The interactions of `user_ids` [U], with the lists [U] of text or integers of their item ids.

    times: [N], for the items of all lists one after another; by default each list is in time order. queries:
    large_string [N], likewise.
    """
    offsets, values = lists.offsets.to_numpy().astype(np.int64), lists.flatten()
    owner = np.repeat(np.arange(len(user_ids), dtype=np.int32), np.diff(offsets))
    empty = values.is_null()
    if is_text(values.type):
        empty = pc.or_(empty, pc.equal(values, "").fill_null(True))
    if pc.any(empty).as_py():
        at = int(owner[np.argmax(empty.to_numpy(zero_copy_only=False))])
        raise DataError(f"{path}: user {user_ids[at]!r} has an empty value among the items; fill it in or drop it")
    if not len(values):
        raise DataError(f"{path}: no interactions; every user's list is empty")
    rows = look_up(values.cast(pa.large_string()), pa.array(items.item_ids, pa.large_string()))
    return _in_order(path, user_ids, owner, rows, times, queries, lambda at: values[at].as_py(), catalogue, found)


def _in_order(
    path: Path,
    user_ids: list[str],
    users: np.ndarray,
    rows: np.ndarray,
    times: np.ndarray | None,
    queries: pa.Array | None,
    item: Callable[[int], object],
    catalogue: str,
    found: Found,
) -> Interactions:
    """Interactions from users [N], rows [N] with -1 for items that the catalogue lacks, and times [N].

    Users by first appearance, each one's interactions by time and, where times are equal or unknown, by place.
    item: the id of an interaction's item, as it was written.
    """
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        at = int(unknown[0])
        user = user_ids[int(users[at])]
        if 2 * unknown.size >= rows.size:
            raise DataError(
                f"{path}: user {user!r} has item {item(at)!r}, which {catalogue} does not list ({unknown.size:,} of "
                f"{rows.size:,} interactions are such); add the items there, or write the ids of both files in one way"
            )
        found.left_out.append(
            f"{unknown.size:,} interactions of {path.name} with items that {catalogue} does not list, such as "
            f"{item(at)!r} of user {user!r}"
        )
        known = rows >= 0
        users, rows = users[known], rows[known]
        times = None if times is None else times[known]
        queries = None if queries is None else queries.filter(pa.array(known))
    lengths = np.bincount(users, minlength=len(user_ids))
    if times is not None:
        order = np.lexsort((times, users))  # stable: equal times keep the order of the file
        rows, times, queries = rows[order], times[order], taken(queries, order)
    if not lengths.all():
        named = [user_ids[user] for user in np.flatnonzero(lengths == 0).tolist()]
        found.left_out.append(f"{len(named)} users of {path.name} without interactions ({some(named)})")
        user_ids, lengths = [user_ids[user] for user in np.flatnonzero(lengths).tolist()], lengths[lengths > 0]
    offsets = np.zeros(len(user_ids) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Interactions(user_ids, offsets, rows, queries, times)


def _sequence_column(source: TableFile) -> str | None:
    """The column that holds a user's items as a list; None for a table with a row per interaction."""
    types = {field.name: field.type for field in source.schema}
    if "item_id" in types and is_list(types["item_id"]):
        return "item_id"
    named = [name for name in _RECBOLE if name in types]
    if not named and "item_id" not in types:
        lists = [name for name in types if is_list(types[name]) and name not in _TIMES + _QUERIES]
        named = [name for name in SEQUENCES if name in types] or lists
    if len(named) > 1:
        raise DataError(f"{source.path}: columns {named} may all hold a user's items; keep one, or rename the others")
    return named[0] if named else None


def _of_events(source: TableFile, items: ItemTable, catalogue: str, found: Found, task: Task) -> Interactions:
    path, needed = source.path, ("user_id", "item_id", "timestamp")
    names = source.schema.names
    check_columns(path, names, needed)
    used = [*needed, *(name for name in ("query",) if name in names)]
    _leave_out(source, used, found)
    users, seen = IdEncoder(path, "user_id"), IdEncoder(path, "item_id")
    parts: dict[str, list] = {name: [] for name in used}
    count = 0
    for table, done in _large(source.batches(used), lambda: max(_ROWS, len(users), len(seen))):
        parts["user_id"].append(users.encode(table.column("user_id"), count))
        parts["item_id"].append(seen.encode(table.column("item_id"), count))
        refuse_nulls(path, table.column("timestamp"), "timestamp", count)
        parts["timestamp"].append(
            read_times(path, one_array(table.column("timestamp")), "timestamp", partial(_data_row, count))
        )
        if "query" in used:
            parts["query"].append(_queries(path, one_array(table.column("query")), "query"))
        count += table.num_rows
        task(done, source.size, f"{count:,} interactions")
    if not count:
        raise DataError(f"{path}: no rows; there is nothing to learn from")
    task(source.size, source.size, f"{count:,} interactions, putting them in order")
    ids, user_ids = seen.ids, users.ids.to_pylist()
    codes = np.concatenate(parts.pop("item_id"))
    place = look_up(ids, pa.array(items.item_ids, type=pa.large_string()))
    return _in_order(
        path,
        user_ids,
        np.concatenate(parts.pop("user_id")),
        place[codes],
        joined_times(path, "timestamp", parts.pop("timestamp"), partial(_data_row, 0)),
        pa.concat_arrays(parts["query"]) if "query" in used else None,
        lambda at: ids[int(codes[at])].as_py(),
        catalogue,
        found,
    )


def _large(batches: Batches, least: Callable[[], int]) -> Batches:
    """The batches, joined to `least` rows or more but for the last, and the last of a schema."""
    waiting: list[pa.Table] = []
    rows = 0
    for table, done in batches:
        if waiting and table.schema != waiting[0].schema:
            yield pa.concat_tables(waiting), done
            waiting, rows = [], 0
        waiting.append(table)
        rows += table.num_rows
        if rows >= least():
            yield pa.concat_tables(waiting), done
            waiting, rows = [], 0
    if rows:
        yield pa.concat_tables(waiting), done


def _data_row(first: int, at: int) -> str:
    return f"data row {first + at + 1}"


def _of_sequences(source: TableFile, sequence: str, items: ItemTable, catalogue: str, found: Found) -> Interactions:
    path, types = source.path, {field.name: field.type for field in source.schema}
    check_columns(path, source.schema.names, ("user_id", sequence))

    def parallel(names: tuple[str, ...]) -> str | None:
        """A column with a value for each item. In text, only a name in the plural says that it is one."""
        return next(
            (name for name in names if name in types and (is_list(types[name]) or name != names[-1])),
            None,
        )

    last = "item_id" if sequence in _RECBOLE and "item_id" in types else None
    beside = [None if last else parallel(names) for names in (_TIMES, _QUERIES)]
    used = [name for name in ("user_id", sequence, last, *beside) if name is not None]
    _leave_out(source, used, found)
    table = source.read(used)
    if not table.num_rows:
        raise DataError(f"{path}: no rows; there is nothing to learn from")
    codes, distinct = encode_ids(path, table.column("user_id"), "user_id")
    user_ids = distinct.to_pylist()
    if len(user_ids) != table.num_rows:
        at = int(np.setdiff1d(np.arange(len(codes)), np.unique(codes, return_index=True)[1])[0])
        raise DataError(
            f"{path}: data row {at + 1} repeats user {user_ids[int(codes[at])]!r}; give every user one row with the "
            "whole list, e.g. the longest of the rows if each is the beginning of a history"
        )
    lists = _lists(path, table.column(sequence), sequence)
    kind = lists.type.value_type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise DataError(f"{path}: column {sequence!r} holds lists of {kind}; write ids as text or integers")
    if last is not None:
        refuse_nulls(path, table.column(last), last)
        lists = _appended(lists, one_array(table.column(last).cast(pa.large_string())))
    values = []
    for name in beside:
        column = None if name is None else _lists(path, table.column(name), name)
        if name is not None and column is not None:
            short_ones = np.flatnonzero(_lengths(column) != _lengths(lists))
            if short_ones.size:
                at = int(short_ones[0])
                raise DataError(
                    f"{path}: user {user_ids[at]!r} has {_lengths(column)[at]} values in {name!r} and "
                    f"{_lengths(lists)[at]} in {sequence!r}; give one for each item"
                )
        values.append(None if column is None else column.flatten())
    owner = np.repeat(np.arange(len(user_ids)), _lengths(lists))
    times, queries = values
    if times is not None:
        place, name = (lambda at: f"user {user_ids[int(owner[at])]!r}"), str(beside[0])
        times = joined_times(path, name, [read_times(path, times, name, place)], place)
    return interactions_of_lists(
        path,
        user_ids,
        lists,
        items,
        catalogue,
        found,
        times,
        None if queries is None else _queries(path, queries, str(beside[1])),
    )


def _leave_out(source: TableFile, used: list[str], found: Found) -> None:
    others = [repr(name) for name in source.schema.names if name not in used]
    if others:
        found.left_out.append(f"column{'s' * (len(others) > 1)} {some(others)} of {source.path.name}")


def _lists(path: Path, column: pa.ChunkedArray, name: str) -> pa.Array:
    """list array [n], of whatever values the column has; text is parsed into lists of text."""
    refuse_nulls(path, column, name)
    array = one_array(column)
    if is_list(array.type):
        return array.cast(pa.list_(array.type.value_type))
    if is_text(array.type):
        return text_lists(path, array, name)
    raise DataError(f"{path}: column {name!r} is {array.type}; expected a list per user, such as '[12, 7, 3]'")


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)


def _appended(lists: pa.Array, last: pa.Array) -> pa.Array:
    """Lists of text, each with one more value at its end."""
    values = lists.flatten().cast(pa.large_string())
    ends = np.cumsum(_lengths(lists))
    places = np.insert(np.arange(len(values)), ends, len(values) + np.arange(len(last)))
    offsets = np.concatenate([[0], ends + np.arange(1, len(last) + 1)])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.concat_arrays([values, last]).take(pa.array(places))
    )


def _queries(path: Path, column: pa.Array, name: str) -> pa.Array:
    """large_string [n], empty where there is no query."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind) and not pa.types.is_null(kind):
        raise DataError(f"{path}: column {name!r} is {kind}; write the queries as text, or rename the column")
    try:
        queries = column.cast(pa.large_string()).fill_null("")
        queries.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{path}: column {name!r} cannot be read as text ({error}); write it as UTF-8") from error
    return queries
