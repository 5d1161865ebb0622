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
# The bits below bit i.
_BELOW = (1 << torch.arange(8)) - 1


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """_LOG_MASK, _BYTE_COUNT and _BELOW, copied to a device once: every copy would wait for what runs there."""
    return _LOG_MASK.to(device), _BYTE_COUNT.to(device), _BELOW.to(device)


class Beams:
    """The best prefixes of B requests, one code longer after every `step`, masked by valid prefixes.

    codes: int64 [B, W], the drafted prefixes in mixed radix. scores: float32 [B, W], falling, ties to the earlier
    beam; the sum of log-softmax over all T_l codes of each level, -inf for a beam that no valid prefix was left for.
    One empty prefix per request at first; W = min(K, T_0 * .. * T_l) after level l.
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
        self._nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._log_mask = _tables(device)[0]
        self.codes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.scores = torch.zeros(batch, 1, dtype=torch.float32, device=device)

    def step(self, level: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Grow every beam by a code of `level`: logits [B, W, T_l] -> parent and code of each kept beam, int64 [B, W'].

        Levels come in order, each once.
        """
        size = self._levels[level]
        log_p = logits.float().log_softmax(-1)
        bits = self._prefix_bits[level][self._nodes]
        masked = log_p + nn.functional.embedding(bits.int(), self._log_mask).flatten(2)[..., :size]
        total = (self.scores[..., None] + masked).flatten(1)
        self.scores, chosen = total.topk(min(self._beam_width, math.prod(self._levels[: level + 1])), dim=1)
        parent = chosen // size
        code = chosen - parent * size
        self.codes = self.codes.gather(1, parent) + code * math.prod(self._levels[:level])
        if level + 1 < len(self._levels):
            base = self._first_child[level][self._nodes.gather(1, parent)].long()
            # Clipped, because a beam that no prefix allows (score -inf) and an unrestricted trie have no child.
            last = self._prefix_bits[level + 1].shape[0] - 1
            self._nodes = (base + _rank(of_parents(bits, parent), code)).clamp(max=last)
        return parent, code


def of_parents(values: Tensor, parent: Tensor) -> Tensor:
    """What belongs to each beam's parent: values [B, W, ...], parent int64 [B, W'] -> [B, W', ...]."""
    # Whole rows by one flat index: an element gather would need an index as large as the values.
    first = torch.arange(values.shape[0], device=values.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, (parent + first).flatten()).view(-1, parent.shape[1], *values.shape[2:])


def _rank(bits: Tensor, code: Tensor) -> Tensor:
    """Set bits below bit `code`: bits uint8 [B, K, bytes], code int64 [B, K] -> int64 [B, K]."""
    _, byte_count, below_bit = _tables(bits.device)
    at_byte = code // 8
    below = below_bit[code - at_byte * 8]
    before = torch.arange(bits.shape[2], device=bits.device)[None, None] - at_byte[..., None]
    kept = torch.where(before < 0, 255, torch.where(before == 0, below[..., None], 0))
    # An element gather: ONNX Runtime's Gather copies row by row.
    counted = (bits & kept.to(torch.uint8)).flatten().long()
    return byte_count.gather(0, counted).view_as(bits).sum(2)
