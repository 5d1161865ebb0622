"""The beam search that every decoder shares: masked top-K, level by level, and the walk down the prefix trie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

# Per byte: the additive mask of its 8 codes (bit set -> 0, clear -> -inf) and its number of set bits.
_BYTE_BITS = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
_LOG_MASK = torch.where(_BYTE_BITS == 1, 0.0, -torch.inf)
_BYTE_COUNT = _BYTE_BITS.sum(1)


class Beams:
    """The best prefixes of B requests, one code longer after every `step`, masked by valid prefixes.

    codes: int64 [B, W], the drafted prefixes in mixed radix. scores: float32 [B, W], falling, ties to the earlier
    beam; the sum of log-softmax over all T_l codes of each level, -inf for a beam that no valid prefix was left for.
    One empty prefix per request at first; W = min(K, T_0 * .. * T_l) after level l.

    Traced, every size that is asked of a tensor is a handful of nodes, as dear as the arithmetic of a narrow beam: so
    widths are numbers, and only the batch is free.
    """

    def __init__(
        self,
        batch: int,
        levels: Sequence[int],
        prefix_bits: Sequence[Tensor],
        first_child: Sequence[Tensor],
        beam_width: int,
    ) -> None:
        """prefix_bits, first_child: the arrays of a `PrefixTrie` (uint8, int32), per level. beam_width: K."""
        device = prefix_bits[0].device
        self._levels, self._beam_width = tuple(levels), beam_width
        self._prefix_bits, self._first_child = prefix_bits, first_child
        self._log_mask, self._byte_count = _tables(device)
        self._requests = torch.arange(batch, device=device)[:, None]
        self._nodes = torch.zeros_like(self._requests)
        self.codes = torch.zeros_like(self._requests)
        self.scores = torch.zeros_like(self._requests, dtype=torch.float32)

    def width(self, level: int) -> int:
        """Beams after `level`; after level -1 there is one."""
        return min(self._beam_width, math.prod(self._levels[: level + 1]))

    def step(self, level: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Grow every beam by a code of `level`: logits [B, W, T_l] -> parent and code of each kept beam, int64 [B, W'].

        Levels come in order, each once.
        """
        size, width = self._levels[level], self.width(level - 1)
        octets = -(-size // 8)
        log_p = logits.float().log_softmax(-1)
        bits = self._prefix_bits[level][self._nodes]
        mask = nn.functional.embedding(bits.int(), self._log_mask).reshape(-1, width, 8 * octets)
        if size < 8 * octets:
            mask = mask[..., :size]
        total = (self.scores[..., None] + (log_p + mask)).reshape(-1, width * size)
        self.scores, chosen = total.topk(self.width(level), dim=1)
        parent = _divided(chosen, size)
        code = chosen - parent * size
        self.codes = self.codes.gather(1, parent) + code * math.prod(self._levels[:level])
        if level + 1 < len(self._levels):
            # Set bits below the code: bytes are cut off where the code's begins, and counted.
            kept = self.of_parents(level, bits, parent) & _bits_below(size, code.device)[code]
            before = self._byte_count.gather(0, kept.reshape(-1).long()).reshape(-1, self.width(level), octets).sum(2)
            base = self._first_child[level][self._nodes.gather(1, parent)].long()
            # Clipped, because a beam that no prefix allows (score -inf) and an unrestricted trie have no child.
            last = self._prefix_bits[level + 1].shape[0] - 1
            self._nodes = (base + before).clamp(max=last)
        return parent, code

    def of_parents(self, level: int, values: Tensor, parent: Tensor) -> Tensor:
        """What belongs to the parents of the beams of `level`: values [B, W, ...], int64 [B, W'] -> [B, W', ...]."""
        rest = tuple(map(int, values.shape[2:]))
        # Whole rows by one flat index: an element gather would need an index as large as the values.
        at = (parent + self._requests * self.width(level - 1)).reshape(-1)
        return values.reshape(-1, *rest).index_select(0, at).reshape(-1, self.width(level), *rest)


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """_LOG_MASK and _BYTE_COUNT, copied to a device once: every copy would wait for what runs there."""
    return _LOG_MASK.to(device), _BYTE_COUNT.to(device)


@cache
def _bits_below(size: int, device: torch.device) -> Tensor:
    """Of every code of a level, the bit set of the codes below it: uint8 [T, ceil(T / 8)]."""
    below = (torch.arange(size)[:, None] - 8 * torch.arange(-(-size // 8))).clamp(0, 8)
    return ((1 << below) - 1).to(torch.uint8).to(device)


def _divided(values: Tensor, by: int) -> Tensor:
    """Whole division of numbers that are not negative; a graph then needs no correction for those that are."""
    return torch.div(values, by, rounding_mode="trunc")
