"""One catalogue of several files: of the items, of their embeddings, of their semantic IDs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec.catalog import Columns
from genrec.errors import DataError
from genrec_builders.data.checks import look_up
from genrec_builders.data.found import Found, some
from genrec_builders.data.tables import ItemTable


def joined(tables: Sequence[tuple[Path, ItemTable]], found: Found) -> ItemTable:
    """The items of the last of `tables`, with what the other files have of them; what these have more is noted.

    Texts and attributes come from the first. Raises DataError if two files have semantic IDs or embeddings, one has
    none of the items, or semantic IDs of some of them are missing.
    """
    for what, name in (("semantic IDs", "sids"), ("embeddings", "embeddings")):
        having = [path for path, table in tables if getattr(table, name) is not None]
        if len(having) > 1:
            raise DataError(f"{found.folder}: both {having[0].name} and {having[1].name} have {what}; drop one of them")
    for path, table in tables[1:]:
        if table.attributes:
            found.left_out.append(f"columns {some([repr(name) for name in table.attributes])} of {path.name}")
    *others, (path, items) = tables
    for other_path, other in others:
        rows = _rows(other, other_path, items, path, found)
        items = _with_vectors(items, path, other, other_path, rows, found)
        if other is tables[0][1]:
            items = _with_attributes(items, other, other_path, rows, found)
    return items


def _rows(other: ItemTable, other_path: Path, items: ItemTable, path: Path, found: Found) -> np.ndarray:
    """int32 [n]: the row in `other` of each of the `items`, -1 if it has none."""
    rows = look_up(pa.array(items.item_ids, pa.large_string()), pa.array(other.item_ids, pa.large_string()))
    known = int((rows >= 0).sum())
    if not known:
        raise DataError(
            f"{other_path}: has none of the items of {path.name} (item {other.item_ids[0]!r} here, "
            f"{items.item_ids[0]!r} there); write the ids in one way"
        )
    if unlisted := len(other) - known:
        such = other.item_ids[np.setdiff1d(np.arange(len(other)), rows)[0]]
        found.left_out.append(
            f"{unlisted} items of {other_path.name}, such as {such!r}, that {path.name} does not list"
        )
    return rows


def _with_vectors(
    items: ItemTable, path: Path, other: ItemTable, other_path: Path, rows: np.ndarray, found: Found
) -> ItemTable:
    """The items with the semantic IDs and embeddings of `other`, if it has any."""
    missing = int((rows < 0).sum())
    such = items.item_ids[int(np.argmin(rows))]
    if other.sids is not None:
        if missing:
            raise DataError(
                f"{other_path}: has no semantic ID for {missing} items of {path.name}, such as {such!r}; add them, or "
                "drop all semantic IDs"
            )
        items = replace(items, sids=other.sids[rows], levels=other.levels)
    if other.embeddings is not None:
        if missing:
            found.left_out.append(
                f"embeddings of {other_path.name}, which has none for {missing} items, such as {such!r}"
            )
        else:
            items = replace(items, embeddings=other.embeddings[rows])
    return items


def _with_attributes(items: ItemTable, other: ItemTable, path: Path, rows: np.ndarray, found: Found) -> ItemTable:
    missing = int((rows < 0).sum())
    if other.attributes and missing:
        such = items.item_ids[int(np.argmin(rows))]
        found.left_out.append(f"texts of {missing} items, such as {such!r}, that {path.name} does not list")
    places = rows.tolist()
    attributes = {
        name: [values[row] if row >= 0 else "" for row in places] for name, values in other.attributes.items()
    }
    # Behind the items stands one that has nothing, for those that are not there.
    there = Columns.concatenate([other.typed, Columns.empty(other.typed.kinds, 1)])
    columns = there.take(np.where(rows >= 0, rows, len(other)))
    return replace(items, attributes=attributes, columns=columns)
