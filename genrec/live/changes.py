"""Changes of a catalogue's items, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Changes:
    """n changes, in order.

    item_ids: bytes S[w] [n]. removed: bool [n]. codes: int64 [n], mixed radix, -1 keeps what the item has. popularity:
    int64 [n], -1 keeps. available: int8 [n], 1, 0, or -1 to keep.
    """

    item_ids: np.ndarray
    removed: np.ndarray
    codes: np.ndarray
    popularity: np.ndarray
    available: np.ndarray

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class Commit:
    """A version's changes, of distinct ids. refusal: why it counts as empty, "" if it does not."""

    version: int
    changes: Changes
    refusal: str = ""
