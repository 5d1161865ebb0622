"""Runs of different lengths, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def runs(begin: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers begin[i] .. begin[i] + sizes[i] - 1 of every i, in order: int64 [n], and the i of each: int64 [n]."""
    source = np.arange(sizes.size).repeat(sizes)
    # A number goes up by one within a run, and jumps to the next run's beginning.
    jump = begin - (sizes.cumsum() - sizes)
    return np.arange(source.size) + jump.take(source), source


def joined(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays one behind the other: of which each element is, int64 [n], rising, and the elements [n]."""
    return np.arange(len(lists)).repeat(np.fromiter(map(len, lists), np.int64, len(lists))), np.concatenate(lists)


def rank_in_group(owner: np.ndarray, groups: int) -> np.ndarray:
    """Position of each element within its group: owner int64 [n], rising, of 0 .. groups - 1 -> int64 [n]."""
    sizes = np.bincount(owner, minlength=groups)
    return np.arange(owner.size) - (sizes.cumsum() - sizes).take(owner)
