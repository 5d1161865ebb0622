"""Which items of a version rules leave: all of them, a share by a sample, and the most popular ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from genrec.catalog import CatalogView
from genrec.catalog.row_sets import is_in
from genrec.rules.bound import Every, Filter
from genrec.rules.matching import Kept, matcher, matches

SAMPLE = 4096
_TOGETHER = 1 << 17  # rows whose attributes are looked at together: what is made of them stays in the cache
_SEARCHED = 50_000  # popular rows that are looked at before all rows are: by then few items are left


def rows_of(view: CatalogView, ids: frozenset[bytes]) -> np.ndarray:
    """Rows of those of some ids that are known: int32 [m], rising."""
    wanted = np.empty(len(ids), object)
    wanted[:] = list(ids)
    rows = view.rows_of(wanted)
    return np.sort(rows[rows >= 0])


def holds(view: CatalogView, filters: Sequence[Filter], rows: np.ndarray, kept: Kept | None = None) -> np.ndarray:
    """Whether all filters leave the items at existing `rows` (integers [m]): bool [m]."""
    found = np.ones(rows.size, bool)
    for one in filters:
        if one.allow is not None:
            found &= is_in(rows, rows_of(view, one.allow))
        if one.where is not None:
            found &= matches(one.where, view, rows, kept)
    return found


def allowed_rows(
    view: CatalogView, filters: Sequence[Filter], kept: Kept | None = None, *, exact: bool = True
) -> np.ndarray:
    """The live rows that all filters leave: int64 [n], rising.

    It reads every item's attributes, unless the filters name ids. exact: False where some rows more do not matter, of
    items that changed since the catalogue's base was made.
    """
    named = [rows_of(view, one.allow) for one in filters if one.allow is not None]
    if named:
        rows = np.asarray(min(named, key=len), np.int64)
        rows = rows[view.are_live(rows)]
        return rows[holds(view, filters, rows, kept)]
    found = []
    every = Every(tuple(one.where for one in filters if one.where is not None))
    for first, columns, live, count in view.parts():
        test = matcher(every, columns) if every.tests else None
        for begin in range(0, count, _TOGETHER):
            together = slice(begin, min(begin + _TOGETHER, count))
            hit = np.ones(together.stop - begin, bool) if test is None else test(together)
            if live is not None:
                hit &= live[together]
            found.append(first + begin + np.flatnonzero(hit))
    rows = np.concatenate([np.empty(0, np.int64), *found])
    return rows[view.are_live(rows)] if exact else rows


def share_of(view: CatalogView, filters: Sequence[Filter], kept: Kept | None = None) -> float:
    """The share of the live items that all filters leave, by a sample of them."""
    rows = view.sample_rows(SAMPLE)
    return float(holds(view, filters, rows, kept).mean()) if rows.size else 0.0


def popular_rows(view: CatalogView, filters: Sequence[Filter], kept: Kept | None = None) -> Iterator[np.ndarray]:
    """The live rows that all filters leave, by falling popularity, part by part: int64 [m] each."""
    searched, given = 0, np.empty(0, np.int64)
    named = any(one.allow is not None for one in filters)
    for rows in view.popular_slices():
        if named or searched >= _SEARCHED:
            rest = np.setdiff1d(allowed_rows(view, filters, kept), given)
            yield rest[np.argsort(-view.popularity_of(rest), kind="stable")]
            return
        searched += rows.size
        rows = rows[holds(view, filters, rows, kept)]
        given = np.concatenate([given, rows])
        yield rows
