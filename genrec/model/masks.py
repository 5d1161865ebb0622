"""A catalogue's masks as tensors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrec.catalog import PrefixTable


class Rules(NamedTuple):
    """`RuleMasks.bits` on one device, uint8 [rows, 32], and the masks of a batch's rules, int64 [B, 2 L]."""

    bits: Tensor
    rows: Tensor


class Masks(NamedTuple):
    """The arrays of a `PrefixTable` on one device. bits: uint8, per level. keys: int, per level but the first.

    rules: what narrows them down, request by request; None where no request can have a rule.
    """

    bits: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    rules: Rules | None = None

    @classmethod
    def of(cls, table: PrefixTable, device: torch.device | str = "cpu") -> Masks:
        """The table's own memory on the CPU, where its changes are seen at once; a copy on any other device."""
        bits, keys = (tuple(as_tensor(each).to(device) for each in arrays) for arrays in (table.bits, table.keys))
        return cls(bits, keys)

    def same_sizes(self, table: PrefixTable) -> bool:
        """Whether the arrays of `table` have the shapes and types of these tensors."""
        pairs = zip((*self.bits, *self.keys), map(as_tensor, (*table.bits, *table.keys)), strict=True)
        return all(own.shape == new.shape and own.dtype == new.dtype for own, new in pairs)

    def take(self, table: PrefixTable) -> None:
        """Copy the arrays of `table` into these tensors, which stay where they are and are of the same sizes."""
        for own, array in zip((*self.bits, *self.keys), (*table.bits, *table.keys), strict=True):
            own.copy_(as_tensor(array))

    def update(self, table: PrefixTable, changed: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Copy what has changed of the table into these tensors, which stay where they are.

        changed: rows and buckets per level, as of `PrefixTable.slots`. In the table's own order, the deepest level
        first: what runs meanwhile finds whole rows.
        """
        for level, (rows, buckets) in reversed([*enumerate(changed)]):
            pieces = [(self.bits[level], table.bits[level], rows)]
            if level:
                pieces.append((self.keys[level - 1], table.keys[level - 1], buckets))
            for copy, array, at in pieces:
                copy_rows(copy, array, at)


def copy_rows(copy: Tensor, array: np.ndarray, rows: np.ndarray) -> None:
    """Copy `rows` of an array, int64 [n], into its copy on a device, which stays where it is."""
    copy.index_copy_(0, torch.tensor(rows, device=copy.device), torch.tensor(array[rows], device=copy.device))


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor in the array's memory, read-only memory too: nothing writes through it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
