"""Caps for diversity: at most so many items of an answer that have one value of an attribute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first_within_caps(values: Sequence[np.ndarray], limits: Sequence[int], most: int) -> np.ndarray:
    """The places of the first items that all caps allow, as if they were taken one by one: int64, at most `most`.

    values: for each cap, int64 [n], equal for items that count together, -1 for those that do not count. limits: for
    each cap, of one value. Without caps n is not known: use `range`.
    """
    if not values:
        raise ValueError("no caps; take the first items")
    if len(values) == 1:
        return np.flatnonzero(_places_in_group(values[0]) < limits[0])[:most]
    alive = np.arange(values[0].size)
    sure = 0  # of the alive ones, how many are taken for certain
    while sure < most:
        # How many alive ones with the same value stand before each.
        over = np.zeros(alive.size, bool)
        for own, limit in zip(values, limits, strict=True):
            over |= _places_in_group(own[alive]) >= limit
        late = np.flatnonzero(over)
        if not late.size:
            break
        # What stands before the first one too many is taken. Whatever has a value that these used up is not.
        sure = int(late[0])
        out = np.zeros(alive.size, bool)
        for own, limit in zip(values, limits, strict=True):
            here = own[alive]
            used, counts = np.unique(here[:sure], return_counts=True)
            out[sure:] |= np.isin(here[sure:], used[(counts >= limit) & (used >= 0)])
        alive = alive[~out]
    return alive[:most]


def _places_in_group(values: np.ndarray) -> np.ndarray:
    """How many equal ones stand before each of `values` (int64 [n]): int64 [n]; 0 for -1."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])[: values.size])
    place = np.empty(values.size, np.int64)
    place[order] = np.arange(values.size) - np.repeat(starts, np.diff(np.append(starts, values.size)))
    place[values < 0] = 0
    return place
