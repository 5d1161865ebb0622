"""Rows of a live catalogue's table: what is wrong with them, their codes, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.catalog import MAX_ID_BYTES, Columns, ResidualQuantizer, SemanticIdSpace
from genrec.catalog.kinds import Kinds
from genrec.live.arrow_columns import fixed_bytes, whole
from genrec.live.attributes import parse, texts_of
from genrec.live.changes import KEEPS, Changes, last_where

# Offsets of 64 bits, so that rows can be joined without a limit. In a file they are the same as others.
SCHEMA = pa.schema(
    [
        ("item_id", pa.large_string()),
        ("operation", pa.large_string()),
        ("sid", pa.large_list(pa.field("element", pa.int32()))),
        ("embedding", pa.large_list(pa.field("element", pa.float32()))),
        ("available", pa.bool_()),
        ("popularity", pa.int64()),
        ("attributes", pa.large_string()),
    ]
)
UPSERT, REMOVE = "upsert", "remove"
_OPERATIONS = pa.array([UPSERT, REMOVE], pa.large_string())
Problem = tuple[np.ndarray, Callable[[int], str]]  # which rows have it, and what to say of the one at a place


class Refused(Exception):
    """Rows that break the table's rules, whoever reads them; the message says which rule."""


def conform(rows: pa.Table) -> pa.Table:
    """`rows` with exactly the columns of `SCHEMA`: a missing one is null. Raises Refused.

    A column of another name may be there if it is null throughout: a table keeps what one writer once added.
    """
    for name in rows.column_names:
        if name not in SCHEMA.names and rows[name].null_count < rows.num_rows:
            raise Refused(f"column {name[:80]!r} is unknown; the columns are {', '.join(SCHEMA.names)}")
    columns = []
    for field in SCHEMA:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            column = rows[field.name].cast(field.type)
            if pa.types.is_large_string(field.type):
                column.validate(full=True)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise Refused(
                f"column {field.name!r} is {str(rows[field.name].type)[:80]}, which is no {field.type}: "
                f"{str(error)[:200]}"
            ) from None
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=SCHEMA).combine_chunks()


def problems(
    rows: pa.Table, commits: np.ndarray, space: SemanticIdSpace, width: int | None, kinds: Kinds
) -> Iterator[Problem]:
    """What is wrong with rows in themselves.

    rows: n, as `conform` gives them. commits: int [n], rising, which commit each is of. width: of embeddings, None
    where the catalogue takes none. kinds: of its attributes; without any, they may be anything.
    """
    ids = rows["item_id"].fill_null("")

    def item(at: int) -> str:
        return f"item {ids[at].as_py()[:64]!r}"

    length = pc.binary_length(ids).to_numpy()
    ends = pc.ends_with(ids, "\0").to_numpy()
    yield (
        (length < 1) | (length > MAX_ID_BYTES) | ends,
        lambda at: f"{item(at)} has {length[at]} bytes; an id has 1 to {MAX_ID_BYTES} and does not end in NUL",
    )
    unknown = ~pc.is_in(rows["operation"], value_set=_OPERATIONS).to_numpy()
    yield unknown, lambda at: f"{item(at)}: operation {rows['operation'][at].as_py()!r} is not {UPSERT} or {REMOVE}"
    key, distinct = keys_of(rows)
    _, inverse, counts = np.unique(commits * max(1, len(distinct)) + key, return_inverse=True, return_counts=True)
    times = counts[inverse]
    yield times > 1, lambda at: f"{item(at)} is named {times[at]} times; name an item once"

    upserts = ~removals(rows)
    codes, owner, place, lengths = _lists(rows["sid"], -1)
    bad = (lengths >= 0) & (lengths != space.depth)
    limit = np.asarray(space.levels)[np.minimum(place, space.depth - 1)]
    bad[owner[(codes < 0) | (codes >= limit)]] = True
    yield (
        bad & upserts,
        lambda at: (
            f"{item(at)}: sid {rows['sid'][at].as_py()[:16]} must have {space.depth} codes, of 0 up to below "
            f"{', '.join(map(str, space.levels))}"
        ),
    )
    values, owner, _, lengths = _lists(rows["embedding"], np.nan)
    wrong = (lengths >= 0) & (lengths != width)
    takes = "none: it was made of a bundle without a quantiser, so give a sid" if width is None else width
    yield (
        wrong & upserts,
        lambda at: f"{item(at)}: its embedding has {lengths[at]} values; the catalogue takes {takes}",
    )
    infinite = np.zeros(rows.num_rows, bool)
    infinite[owner[~np.isfinite(values)]] = True
    yield infinite & upserts, lambda at: f"{item(at)}: its embedding has values that are not finite numbers"
    popularity = rows["popularity"].fill_null(0).to_numpy()
    yield (popularity < 0) & upserts, lambda at: f"{item(at)}: popularity {popularity[at]} is below 0"
    if kinds and rows["attributes"].null_count < rows.num_rows:
        wrong_texts = parse(rows["attributes"], kinds).wrong
        bad = np.zeros(rows.num_rows, bool)
        bad[list(wrong_texts)] = True
        yield bad & upserts, lambda at: f"{item(at)}: {wrong_texts[at]}"


def is_new_without_code(item_id: str) -> str:
    """What is wrong with an upsert of an item that is not known and has neither a sid nor an embedding."""
    return f"item {item_id[:64]!r} is new and has neither a sid nor an embedding; give one"


def keys_of(rows: pa.Table) -> tuple[np.ndarray, pa.Array]:
    """The item of each row as a number, int64 [n], and the items' ids by that number."""
    encoded = whole(rows["item_id"].fill_null("")).dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary


def removals(rows: pa.Table) -> np.ndarray:
    """bool [n]: which rows remove their item."""
    return pc.equal(rows["operation"], REMOVE).fill_null(False).to_numpy()


def says_code(rows: pa.Table) -> np.ndarray:
    """bool [n]: which rows are upserts that give their item a semantic ID, by a sid or by an embedding."""
    given = pc.or_(rows["sid"].is_valid(), rows["embedding"].is_valid()).to_numpy()
    return given & ~removals(rows)


def lacks_sid(rows: pa.Table) -> np.ndarray:
    """bool [n]: which rows give their item a semantic ID by an embedding alone."""
    return says_code(rows) & rows["sid"].is_null().to_numpy()


def quantized(rows: pa.Table, quantizer: ResidualQuantizer) -> pa.Table:
    """`rows` with a sid wherever there is only an embedding."""
    alone = lacks_sid(rows)
    if not alone.any():
        return rows
    at = np.flatnonzero(alone)
    found = quantizer.encode(_values(rows["embedding"].take(pa.array(at))).reshape(len(at), -1))
    sids = whole(rows["sid"])
    both = pa.chunked_array([sids, _sid_column(found, np.ones(len(at), bool))])
    source = np.arange(rows.num_rows)
    source[at] = rows.num_rows + np.arange(len(at))
    return rows.set_column(SCHEMA.get_field_index("sid"), SCHEMA.field("sid"), both.take(pa.array(source)))


def squared_errors(rows: pa.Table, quantizer: ResidualQuantizer) -> np.ndarray:
    """Squared distances of embeddings from the centroids of their rows' sids: float64 [n], NaN where one is missing."""
    errors = np.full(rows.num_rows, np.nan)
    at = np.flatnonzero(pc.and_(rows["sid"].is_valid(), rows["embedding"].is_valid()).to_numpy() & ~removals(rows))
    if at.size:
        sids, embeddings = (
            _values(rows[name].take(pa.array(at))).reshape(at.size, -1) for name in ("sid", "embedding")
        )
        errors[at] = quantizer.squared_errors(embeddings, sids)
    return errors


def changes_of(rows: pa.Table, space: SemanticIdSpace, kinds: Kinds) -> Changes:
    """Rows without problems, and with a sid where they say a code, as `Changes`. kinds: of the attributes in these."""
    given = says_code(rows) & rows["sid"].is_valid().to_numpy()
    codes = np.full(rows.num_rows, KEEPS, np.int64)
    sids = _values(rows["sid"].filter(pa.array(given))).reshape(-1, space.depth)
    codes[given] = sids.astype(np.int64) @ space.radix
    removed = removals(rows)
    popularity = rows["popularity"].fill_null(KEEPS).to_numpy()
    available = rows["available"].cast(pa.int8()).fill_null(KEEPS).to_numpy()
    return Changes(
        fixed_bytes(rows["item_id"]),
        removed,
        codes,
        np.where(removed, KEEPS, popularity),
        np.where(removed, np.int8(KEEPS), available),
        *_described(rows["attributes"], removed, kinds),
    )


def _described(texts: pa.ChunkedArray, removed: np.ndarray, kinds: Kinds) -> tuple[Columns, np.ndarray]:
    """What `Changes` has of attributes."""
    if texts.null_count == len(texts) or not kinds:
        return Columns.empty(kinds, len(texts)), np.zeros(len(texts), bool)
    found = parse(texts, kinds)
    return found.columns, found.given & ~removed


def rows_of(changes: Changes, space: SemanticIdSpace) -> pa.Table:
    """`Changes` as rows. Raises Refused for codes outside the space and ids that are not UTF-8."""
    given = changes.codes >= 0
    if given.any() and changes.codes.max() >= space.size:
        at = int(changes.codes.argmax())
        raise Refused(f"item {changes.item_ids[at]!r}: code {changes.codes[at]} is not below {space.size}")
    columns = {
        "item_id": id_texts(changes.item_ids),
        "operation": _OPERATIONS.take(pa.array(changes.removed.astype(np.int8))),
        "sid": _sid_column(space.decode(changes.codes[given]), given),
        "available": pa.array(changes.available > 0, mask=changes.available < 0),
        "popularity": pa.array(changes.popularity, mask=changes.popularity == KEEPS),
    }
    if changes.columns:
        texts = texts_of(changes.columns)
        columns["attributes"] = pc.if_else(pa.array(changes.described), texts, pa.scalar(None, texts.type))
    return conform(pa.table(columns))


def merged(rows: pa.Table) -> pa.Table:
    """The items that rows come to, one row each, with everything that is known of them.

    rows: without problems, in order; an item's first row says its code, unless it removes it. A sid of an item is that
    of the last row that says a code, so it is null if that one has only an embedding.
    """
    key, distinct = keys_of(rows)
    count = len(distinct)
    removed = removals(rows)
    since = last_where(key, count, removed)
    last = last_where(key, count, np.ones(len(key), bool))
    stays = last > since

    def latest(given: np.ndarray) -> pa.Array:
        at = last_where(key, count, given & ~removed, since[key])[stays]
        return pa.array(at, mask=at < 0)

    columns = {
        "item_id": distinct.filter(pa.array(stays)),
        "operation": pa.array(np.repeat(UPSERT, int(stays.sum()))),
        "sid": rows["sid"].take(latest(says_code(rows))),
    }
    for name in ("embedding", "available", "popularity", "attributes"):
        columns[name] = rows[name].take(latest(rows[name].is_valid().to_numpy()))
    columns["available"] = columns["available"].fill_null(True)
    columns["popularity"] = columns["popularity"].fill_null(0)
    return conform(pa.table(columns))


def id_texts(ids: np.ndarray) -> pa.Array:
    """Ids, bytes S[w] [n], as large_string. Raises Refused if one is not UTF-8."""
    ids = np.ascontiguousarray(ids)
    lengths = np.char.str_len(ids)
    padded = ids.view(np.uint8).reshape(len(ids), ids.dtype.itemsize)
    data = padded[np.arange(ids.dtype.itemsize) < lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    texts = pa.LargeStringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Refused(f"an item id is not UTF-8: {error}") from None
    return texts


def _sid_column(sids: np.ndarray, given: np.ndarray) -> pa.Array:
    """int32 [m, L] as lists at the m places that `given` (bool [n]) says; null elsewhere."""
    offsets = np.concatenate([[0], np.cumsum(given * sids.shape[1])])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()),
        pa.array(sids.ravel(), pa.int32()),
        type=SCHEMA.field("sid").type,
        mask=pa.array(~given),
    )


def _lists(column: pa.ChunkedArray, null: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All values of a column of lists, `null` for those that are null; each one's row, and its place in the list.

    Also the lists' lengths, int64 [n], -1 for null.
    """
    lists = whole(column)
    lengths = pc.list_value_length(lists).fill_null(-1).to_numpy().astype(np.int64)
    sizes = np.maximum(lengths, 0)
    owner = np.repeat(np.arange(len(lists)), sizes)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return lists.flatten().fill_null(null).to_numpy(), owner, place, lengths


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """All values of a column of lists without nulls in them."""
    return whole(column).flatten().to_numpy()
