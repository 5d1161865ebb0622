"""Paired bootstrap over users: how sure a relative difference between two models is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 1 << 21  # counts held at a time, 16 MiB


@dataclass(frozen=True)
class Interval:
    """relative: mean(ours) / mean(theirs) - 1; low, high: its percentile interval."""

    relative: float
    low: float
    high: float


def relative_difference(
    ours: np.ndarray, theirs: np.ndarray, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval | None:
    """The relative difference of two means over the same users, float64 [E] each, and its percentile interval.

    None where it is not defined: `theirs` averages 0, in the data or in a resample of so few users.
    Raises ValueError for shapes that differ or no users.
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or not ours.size:
        raise ValueError(f"paired values must be two equally long lists, got shapes {ours.shape} and {theirs.shape}")
    # Only sums are needed, and few pairs of values are distinct: how often each is drawn is multinomial, which is the
    # same as drawing users and takes a hundredth of the time. Frequent pairs first: fewer draws are left behind them.
    pairs, counts = np.unique(np.stack([ours - theirs, theirs]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    (gained, base), share = pairs[:, order], counts[order] / ours.size
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // share.size)
    parts = []
    for at in range(0, resamples, rows):
        drawn = rng.multinomial(ours.size, share, size=min(rows, resamples - at)).astype(np.float64)
        parts.append(np.stack([drawn @ gained, drawn @ base]))
    gain, total = np.concatenate(parts, axis=1)
    if not theirs.any() or not total.all():
        return None
    low, high = np.quantile(gain / total, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float((ours - theirs).sum() / theirs.sum()), float(low), float(high))
