"""Drift: how far what was added to a catalogue is from what its bundle was trained on. Numpy only.

Two signs. Items fall on other codes than the trained ones did: the population stability index of their codes. And the
codebooks describe them worse: their quantisation error against that of the trained catalogue.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from genrec.bundle import Bundle
from genrec.catalog import Catalog, CatalogVersion, SemanticIdSpace
from genrec.catalog.published import CURRENT, Record, load_version
from genrec.catalog.semantic_id import code_dtype

PSI_LIMIT = 0.25  # by convention a major shift (Siddiqi, Credit Risk Scorecards, 2006); from 0.1 on a minor one
ERROR_LIMIT = 1.5  # of this project's own: docs/catalogue.md says what was measured
LEAST_ITEMS = 100  # fewer say little of where a catalogue goes
_DIVISIONS, _WEIGHT = 10, 10.0
_SLICE = 1 << 18


def is_added(trained: Catalog, space: SemanticIdSpace, item_ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Which items the trained catalogue does not have, or has by another semantic ID: bool [n].

    item_ids: bytes S[w] [n]. codes: int64 [n].
    """
    rows = trained.rows_of(item_ids.astype(object))
    known = np.flatnonzero(rows >= 0)
    added = rows < 0
    added[known] = space.encode(trained.sids_of(rows[known])) != codes[known]
    return added


def added_codes(catalog: CatalogVersion, trained: Catalog) -> np.ndarray:
    """Codes of the live items of a version that are added: int64 [m]."""
    found = [np.empty(0, np.int64)]
    for part, rows, live in catalog.current():
        rows = rows[live]
        codes = part.codes[rows].astype(np.int64)
        found.append(codes[is_added(trained, catalog.space, part.item_ids[rows], codes)])
    return np.concatenate(found)


def first_levels(space: SemanticIdSpace, codes: np.ndarray) -> np.ndarray:
    """The first two levels of codes, int64 [n], as codes of these levels alone: uint32 or int64 [n]."""
    two = SemanticIdSpace(space.levels[:2])
    return (codes % two.size).astype(code_dtype(two))


def trained_levels(trained: Catalog, space: SemanticIdSpace) -> np.ndarray:
    """`first_levels` of all items that the bundle was trained on."""
    parts = (trained.sids[start : start + _SLICE] for start in range(0, len(trained), _SLICE))
    return np.concatenate([first_levels(space, space.encode(sids)) for sids in parts])


def stability(space: SemanticIdSpace, trained: np.ndarray, added: np.ndarray) -> tuple[float, ...]:
    """Population stability index of the codes of level 0, and of level 1 given level 0, between two sets of items.

    The second is the sum over the codes of level 0; the two together are the index of both levels' codes at once. What
    chance makes is taken off: the largest index of ten random divisions of the same items. So 0 means no more than
    chance, whatever the number of items and codes.

    trained, added: their `first_levels`, [n] and [m]; both are at least 1.
    Returns an index per level, two at most.
    """
    values, counts = zip(*(np.unique(codes, return_counts=True) for codes in (trained, added)), strict=True)
    distinct = np.union1d(*values)
    old, new = np.zeros((2, distinct.size), np.int64)
    for side, value, count in zip((old, new), values, counts, strict=True):
        side[np.searchsorted(distinct, value)] = count
    both, first = old + new, distinct % space.levels[0]

    def indices(part: np.ndarray) -> np.ndarray:
        of_first = [np.bincount(first, counts, minlength=space.levels[0]) for counts in (both, part)]
        one, all_levels = _index(*of_first), _index(both, part)
        return np.array([one, all_levels - one][: space.depth])

    generator = np.random.default_rng(0)
    chance = np.zeros(min(2, space.depth))
    for _ in range(_DIVISIONS):
        part = generator.multivariate_hypergeometric(both, len(added), method="marginals")
        chance = np.maximum(chance, indices(part))
    return (*np.maximum(0.0, indices(new) - chance).tolist(),)


def of_version(catalog: CatalogVersion, trained: Catalog) -> float | None:
    """The larger index of `stability` of a version's live items that are added; None for fewer than `LEAST_ITEMS`."""
    space, added = catalog.space, added_codes(catalog, trained)
    if added.size < LEAST_ITEMS:
        return None
    return max(stability(space, trained_levels(trained, space), first_levels(space, added)))


def _index(both: np.ndarray, part: np.ndarray) -> float:
    """Population stability index between `part` of some items and the rest, by their numbers of each kind [k].

    Each side counts `_WEIGHT` items more, spread as both together are: no kind is empty, and the sums over kinds are
    those of the merged kinds.
    """
    both, part = both[both > 0], part[both > 0]
    total, size = both.sum(), part.sum()
    prior = _WEIGHT * both / total
    here, there = (part + prior) / (size + _WEIGHT), (both - part + prior) / (total - size + _WEIGHT)
    return float(((here - there) * np.log(here / there)).sum())


def main() -> None:
    """Print the drift of what is published, as JSON, in a process of its own: ROOT BUNDLE."""
    root, bundle_path = map(Path, sys.argv[1:])
    os.nice(10)
    bundle = Bundle(bundle_path)
    catalog = load_version(root, Record.load(root / CURRENT).version, bundle.space)
    print(json.dumps(of_version(catalog, bundle.catalog)))


if __name__ == "__main__":
    main()
