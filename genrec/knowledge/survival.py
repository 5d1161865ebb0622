"""How probable it is that a drafted token survives verification: its share, corrected by what became of others."""

from __future__ import annotations

import numpy as np

# Shares and depths between which chances are interpolated, and at which outcomes are counted.
_SHARES = np.array([0.0, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])
_DEPTHS = np.array([2, 3, 5, 9, 13, 17])  # where the next class begins
_DOUBT = 8.0  # outcomes that the share itself stands for
_MEMORY = 0.99  # what a step leaves of the weight of the steps before it: half after 70


class SurvivalChances:
    """Learns, step by step, which part of the drafted tokens of a share and depth was on the accepted branch.

    A chance is (accepted + 8 share) / (drafted + 8) of the like tokens, old outcomes fading: with few outcomes, at the
    start or where nothing has been drafted for long, it is the share. So what was given up for useless is tried again.
    """

    def __init__(self) -> None:
        self._drafted = np.zeros((_SHARES.size, _DEPTHS.size + 1))
        self._accepted = np.zeros_like(self._drafted)
        self._table = self._chances()

    def of(self, shares: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Chances of tokens of `shares`, float [n], at `depths`, int [n]: float64 [n]."""
        place = np.interp(shares, _SHARES, np.arange(_SHARES.size))
        below = np.minimum(place.astype(np.int64), _SHARES.size - 2)
        depth, above = _DEPTHS.searchsorted(depths, "right"), place - below
        low, high = self._table[below, depth], self._table[below + 1, depth]
        return low + (high - low) * above

    def learn(self, shares: np.ndarray, depths: np.ndarray, accepted: np.ndarray) -> None:
        """Take note of a step's drafted tokens, [n] each; accepted: bool, those that the texts went on with."""
        at = np.rint(np.interp(shares, _SHARES, np.arange(_SHARES.size))).astype(np.int64)
        cell = at * self._drafted.shape[1] + _DEPTHS.searchsorted(depths, "right")
        for table, weights in ((self._drafted, None), (self._accepted, accepted)):
            table *= _MEMORY
            table += np.bincount(cell, weights, table.size).reshape(table.shape)
        self._table = self._chances()

    def _chances(self) -> np.ndarray:
        return np.asarray((self._accepted + _DOUBT * _SHARES[:, None]) / (self._drafted + _DOUBT))
