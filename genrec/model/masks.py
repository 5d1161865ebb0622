"""A catalogue's masks as tensors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrec.catalog import PrefixTable


class Masks(NamedTuple):
    """The arrays of a `PrefixTable` on one device. bits: uint8, per level. keys: int64, per level but the first."""

    bits: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]

    @classmethod
    def of(cls, table: PrefixTable, device: torch.device | str = "cpu") -> Masks:
        """The table's own memory on the CPU, where its changes are seen at once; a copy on any other device."""
        bits, keys = (tuple(_tensor(each).to(device) for each in arrays) for arrays in (table.bits, table.keys))
        return cls(bits, keys)

    def copy_rows(self, table: PrefixTable, rows: Sequence[np.ndarray]) -> None:
        """Copy some rows of the table into these tensors, which stay where they are. rows: as of `PrefixTable.slots`.

        In the table's own order, the deepest level first: what runs meanwhile finds whole rows.
        """
        for level in reversed(range(len(self.bits))):
            at = torch.tensor(rows[level], device=self.bits[level].device)
            self.bits[level].index_copy_(0, at, _tensor(table.bits[level][rows[level]]).to(at.device))
            if level:
                keys = table.keys[level - 1].reshape(-1)[rows[level] - 1]
                self.keys[level - 1].view(-1).index_copy_(0, at - 1, _tensor(keys).to(at.device))


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor in the array's memory, read-only memory too: nothing writes through it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
