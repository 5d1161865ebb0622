"""Drift: how far what was added to a catalogue is from what its bundle was trained on. Numpy only.

Two signs. Items fall on other codes than the trained ones did: the population stability index of their codes. And the
codebooks describe them worse: their quantisation error against that of the trained catalogue.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from genrec.bundle import Bundle
from genrec.catalog import Catalog, CatalogVersion, SemanticIdSpace
from genrec.catalog.published import CURRENT, Record, load_version
from genrec.catalog.version import LIVE

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
    base, delta = catalog.base, catalog.delta
    stays = np.ones(len(base), bool)
    touched = base.rows_of(delta.item_ids.astype(object))
    stays[touched[touched >= 0]] = False
    live = delta.state == LIVE
    found = [delta.codes[live][is_added(trained, catalog.space, delta.item_ids[live], delta.codes[live])]]
    for start in range(0, base.live, _SLICE):
        rows = start + np.flatnonzero(stays[start : min(start + _SLICE, base.live)])
        codes = base.codes[rows].astype(np.int64)
        found.append(codes[is_added(trained, catalog.space, base.item_ids[rows], codes)])
    return np.concatenate(found)


def stability(space: SemanticIdSpace, trained: np.ndarray, added: np.ndarray) -> tuple[float, ...]:
    """Population stability index of the codes of level 0, and of level 1 given level 0, between two sets of items.

    The second is the sum over the codes of level 0; the two together are the index of both levels' codes at once. What
    chance makes is taken off: the largest index of ten random divisions of the same items. So 0 means no more than
    chance, whatever the number of items and codes.

    trained, added: codes, int64 [n] and [m], both at least 1. Returns as many as there are levels, two at most.
    """
    size = math.prod(space.levels[:2])
    distinct, place = _counted(np.concatenate([trained, added]) % size)
    both = np.bincount(place, minlength=distinct.size)
    new = np.bincount(place[len(trained) :], minlength=distinct.size)
    first = distinct % space.levels[0]

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
    added = added_codes(catalog, trained)
    return (
        max(stability(catalog.space, catalog.space.encode(trained.sids), added)) if added.size >= LEAST_ITEMS else None
    )


def _counted(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, rising, and the place of each one among them: int64."""
    return np.unique(codes, return_inverse=True)


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
