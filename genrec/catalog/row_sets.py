"""Whether rows are in a set of others, or occur for the first time: by sorted arrays."""

from __future__ import annotations

import numpy as np


def is_in(rows: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Which of `rows`, integers [n], are among some that rise: bool [n]; for a few rows faster than `numpy.isin`."""
    if not rising.size:
        return np.zeros(rows.size, bool)
    return rising.take(np.searchsorted(rising, rows), mode="clip") == rows


def first_of_each(rows: np.ndarray) -> np.ndarray:
    """Which of `rows`, integers [n], have not occurred before in the array: bool [n]."""
    order = rows.argsort(kind="stable")
    ranked = rows.take(order)
    first = np.ones(rows.size, bool)
    first[order[1:]] = ranked[1:] != ranked[:-1]
    return first
