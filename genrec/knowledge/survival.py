"""How probable it is that a drafted token survives verification: its share, corrected by what became of others."""

from __future__ import annotations

import numpy as np

# Shares and depths between which chances are interpolated, and at which outcomes are counted.
_SHARES = np.array([0.0, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])
_DEPTHS = np.array([2, 3, 5, 9, 13, 17])  # where the next class begins
_DOUBT = 8.0  # outcomes that the share itself stands for
_MEMORY = 0.99  # what a step leaves of the weight of the steps before it: half after 70
_OFTEN = 8  # steps from one table of chances to the next, once there are as many
_FINE = 511  # shares are told apart to a 511th
# The middle of each, as a number, with parts, among `_SHARES`; the one below and the parts, and the nearest one.
_AMONG = np.interp((np.arange(_FINE + 1) + 0.5) / _FINE, _SHARES, np.arange(_SHARES.size))
_BELOW = np.minimum(_AMONG.astype(np.int64), _SHARES.size - 2)
_PART = (_AMONG - _BELOW)[:, None]
_NEAREST = np.rint(_AMONG).astype(np.int64)
_CLASSES = _DEPTHS.size + 1


class SurvivalChances:
    """Learns, step by step, which part of the drafted tokens of a share and depth was on the accepted branch.

    A chance is (accepted + 8 share) / (drafted + 8) of the like tokens, old outcomes fading: with few outcomes, at the
    start or where nothing has been drafted for long, it is the share. So what was given up for useless is tried again.
    """

    def __init__(self) -> None:
        self._drafted = np.zeros((_SHARES.size, _CLASSES))
        self._accepted = np.zeros_like(self._drafted)
        self._learnt = 0
        self._read()

    def of(self, shares: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Chances of tokens of `shares`, float [n], 0 to 1, at `depths`, int [n]: float64 [n]."""
        return self._chances.take((shares * _FINE).astype(np.int64) * _CLASSES + _DEPTHS.searchsorted(depths, "right"))

    def learn(self, shares: np.ndarray, depths: np.ndarray, accepted: np.ndarray) -> None:
        """Take note of a step's drafted tokens, [n] each; accepted: bool, those that the texts went on with."""
        at = _NEAREST.take((shares * _FINE).astype(np.int64))
        cell = at * _CLASSES + _DEPTHS.searchsorted(depths, "right")
        for table, weights in ((self._drafted, None), (self._accepted, accepted)):
            table *= _MEMORY
            table += np.bincount(cell, weights, table.size).reshape(table.shape)
        self._learnt += 1
        if self._learnt < _OFTEN or self._learnt % _OFTEN == 0:
            self._read()

    def _read(self) -> None:
        """Make `_chances`, float64 [512 * classes], of what was counted."""
        chances = (self._accepted + _DOUBT * _SHARES[:, None]) / (self._drafted + _DOUBT)
        low = chances.take(_BELOW, axis=0)
        self._chances = (low + (chances.take(_BELOW + 1, axis=0) - low) * _PART).ravel()
