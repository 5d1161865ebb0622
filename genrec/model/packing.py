"""Packed training rows: every position of a user's sequence is trained in one pass.

A row holds the opening, the history tokens of N - 1 items, and N - 1 groups of L placeholders. Group g attends to
the opening, to the first g items and to itself, at the positions that a prompt of g items has at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from genrec.prompt import PromptLayout


@dataclass(frozen=True)
class PackedStructure:
    """What all rows of N items share; S = len(opening) + (N - 1) (item_tokens + L) tokens.

    positions: int64 [S]. allowed: bool [S, S], True where the row's token may attend to the column's.
    hidden_at: int64 [N - 1, L + 1], where h_0 .. h_L of each group are. history_end: tokens before the placeholders.
    """

    positions: Tensor
    allowed: Tensor
    hidden_at: Tensor
    history_end: int


def structure_of(layout: PromptLayout, items: int) -> PackedStructure:
    """Structure of the layout's rows of `items` N >= 2 items."""
    return _structure(len(layout.opening), layout.item_tokens, layout.space.depth, items)


@lru_cache(maxsize=64)
def _structure(opening: int, item: int, depth: int, items: int) -> PackedStructure:
    """Of items of `item` tokens, `depth` L of them codes, behind `opening` tokens."""
    groups = items - 1
    end = opening + groups * item
    history = torch.arange(end)
    group = torch.arange(1, items).repeat_interleave(depth)  # of each placeholder
    slot = torch.arange(depth).repeat(groups)
    total = end + groups * depth
    allowed = torch.zeros(total, total, dtype=torch.bool)
    allowed[:end, :end] = history[:, None] >= history
    allowed[end:, :end] = history < (opening + group * item)[:, None]
    allowed[end:, end:] = (group[:, None] == group) & (slot[:, None] >= slot)
    last = opening + torch.arange(1, items) * item - 1
    placeholders = (end + torch.arange(groups * depth)).view(groups, depth)
    return PackedStructure(
        positions=torch.cat([history, opening + group * item + slot]),
        allowed=allowed,
        hidden_at=torch.cat([last[:, None], placeholders], 1),
        history_end=end,
    )


def pack_rows(layout: PromptLayout, sids: np.ndarray) -> Tensor:
    """Token ids of packed rows: sids integers [R, N, L] -> int64 [R, S]."""
    rows, items, _ = sids.shape
    history = layout.history_tokens(sids[:, :-1])
    opening = np.tile(np.asarray(layout.opening, np.int32), (rows, 1))
    placeholders = np.tile(np.asarray(layout.placeholders, np.int32), (rows, items - 1))
    return torch.from_numpy(np.concatenate([opening, history, placeholders], 1).astype(np.int64))
