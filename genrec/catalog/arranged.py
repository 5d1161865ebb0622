"""The arrays of a catalogue's base, made of items in any order. With a scratch folder they are never in memory at once.

The items are sorted by code and written column by column. The rest follows from what is written: the order by
popularity, and the rows by id and by code. All of it goes through sorted runs, of which a part is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genrec.arrays import NewArray
from genrec.catalog.hash_table import HashTable, RepeatedKey
from genrec.catalog.items import id_keys
from genrec.catalog.semantic_id import SemanticIdSpace, checked_codes, code_dtype
from genrec.catalog.sorting import Columns, Sorter

PART = 1 << 20  # items
COLUMNS = ("item_ids", "codes", "popularity", "available")  # of the items that come


class Arranged(NamedTuple):
    """Columns by name, arrays [n] in order of the rows, and what is found by them; as `CatalogBase` describes them."""

    columns: dict[str, np.ndarray]
    popular_rows: np.ndarray
    row_of_code: HashTable
    row_of_id: HashTable


def arranged(
    space: SemanticIdSpace, batches: Iterable[Columns], new: NewArray, scratch: Path | None = None, part: int = PART
) -> Arranged:
    """Arrange items; see `CatalogBase.write`. new: makes the arrays. scratch: None to have it all in memory."""

    def sorter(*by: str) -> Sorter:
        return Sorter(by, part, None if scratch is None else scratch / "-".join(by or ("rest",)))

    if scratch is not None:
        scratch.mkdir(parents=True)
    live, rest, dtypes = sorter("codes", "unpopularity"), sorter(), _dtypes(space)
    for batch in batches:
        available = np.asarray(batch["available"], bool)
        popularity = np.asarray(batch["popularity"], np.int64)
        columns = {
            "codes": checked_codes(space, batch["codes"]).astype(code_dtype(space)),
            "unpopularity": ~popularity,  # rises as popularity falls
            "item_ids": batch["item_ids"],
        }
        dtypes["item_ids"] = np.promote_types(dtypes["item_ids"], batch["item_ids"].dtype)
        given = len(live) + len(rest) + np.arange(len(available), dtype=np.int32)
        at = np.flatnonzero(available)
        live.add({name: column[at] for name, column in columns.items()} | {"given": given[at]})
        at = np.flatnonzero(~available)
        rest.add({name: column[at] for name, column in columns.items()})

    found = {name: new(name, (len(live) + len(rest),), dtype) for name, dtype in dtypes.items()}
    popular, row = sorter("unpopularity", "given"), 0
    for rows in chain(live.merged(), rest.merged()):
        rows["popularity"] = ~rows["unpopularity"]
        end = row + len(rows["popularity"])
        for name, column in found.items():
            column[row:end] = rows[name]
        if "given" in rows:
            of_rows = np.arange(row, end, dtype=np.int32)
            popular.add({"unpopularity": rows["unpopularity"], "given": rows["given"], "rows": of_rows})
        row = end
    popular_rows, row = new("popular_rows", (len(live),), np.int32), 0
    for rows in popular.merged():
        popular_rows[row : row + len(rows["rows"])] = rows["rows"]
        row += len(rows["rows"])

    def table(name: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]], count: int) -> HashTable:
        table, by_home = HashTable.blank(name, count, new), sorter("home")
        for keys, values in pairs:
            by_home.add({"home": table.homes(keys).astype(np.uint32), "keys": keys, "rows": values})
        table.fill((rows["keys"], rows["rows"]) for rows in by_home.merged())
        return table

    codes, ids = found["codes"][: len(live)], found["item_ids"]
    of_code = table("code", _firsts(codes, part), sum(len(keys) for keys, _ in _firsts(codes, part)))
    try:
        of_id = table("id", _id_rows(ids, part), ids.size)
    except RepeatedKey as error:
        one, other = (ids[row].decode(errors="replace") for row in error.values)
        if one == other:
            raise ValueError(f"item id {one!r} occurs more than once; give each item once") from error
        raise ValueError(f"item ids {one!r} and {other!r} have the same hash; rename one of them") from error
    return Arranged(found, popular_rows, of_code, of_id)


def _dtypes(space: SemanticIdSpace) -> dict[str, np.dtype]:
    """Of the columns, by the names of their files; that of the ids is the widest that comes."""
    return {"codes": np.dtype(code_dtype(space)), "popularity": np.dtype(np.int64), "item_ids": np.dtype("S1")}


def _firsts(codes: np.ndarray, part: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Distinct codes (int64) of a rising array and the first row of each (int32), part by part."""
    for start in range(0, codes.size, part):
        piece = codes[start : start + part]
        first = np.ones(piece.size, bool)
        np.not_equal(piece[1:], piece[:-1], out=first[1:])
        first[0] = start == 0 or piece[0] != codes[start - 1]
        at = np.flatnonzero(first)
        yield piece[at].astype(np.int64), (start + at).astype(np.int32)


def _id_rows(ids: np.ndarray, part: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys of ids, int64, and their rows, int32, part by part."""
    for start in range(0, ids.size, part):
        keys = id_keys(ids[start : start + part])
        yield keys, np.arange(start, start + keys.size, dtype=np.int32)
