"""The beam search that every decoder shares: masked top-K, level by level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genrec.catalog.placement import GROUP, LEFT, RIGHT, SLOTS
from genrec.catalog.prefixes import mask_shape
from genrec.catalog.rule_masks import OCTETS, chunks_of
from genrec.model.masks import Masks

# The additive mask of each byte's 8 codes: bit set -> 0, clear -> -inf.
_LOG_MASK = torch.where((torch.arange(256)[:, None] >> torch.arange(8)) & 1 == 1, 0.0, -torch.inf)
# Buckets of either choice, and those before. The choices come first in every shape: what follows is one piece then.
_CHOICES = torch.tensor([[LEFT, RIGHT], [0, LEFT]], dtype=torch.int32)[:, :, None, None]


class Drafted(NamedTuple):
    """What a beam search ends with, best first: of `Beams`, after the last level.

    codes: int64 [B, K], in mixed radix. scores: float32 [B, K]. prefixes, last: the codes in two parts, int64 [B, K]
    each, all codes but the last one in mixed radix, and that: what computes in 32 bits can give these where it cannot
    give the whole.
    """

    codes: Tensor
    scores: Tensor
    prefixes: Tensor
    last: Tensor


class Beams:
    """The best prefixes of B requests, one code longer after every `step`, masked by valid prefixes and by rules.

    codes: int64 [B, W], the drafted prefixes in mixed radix. scores: float32 [B, W], falling, ties to the earlier
    beam; the sum of log-softmax over all T_l codes of each level, -inf for a beam that no valid prefix was left for.
    drafted: the same after the last level.
    One empty prefix per request at first; W = min(K, T_0 * .. * T_l) after level l.

    Traced, every size that is asked of a tensor is a handful of nodes, as dear as the arithmetic of a narrow beam: so
    widths are numbers, and only the batch is free.
    """

    def __init__(self, batch: int, levels: Sequence[int], masks: Masks, beam_width: int) -> None:
        """beam_width: K."""
        device = masks.bits[0].device
        self._levels, self._masks, self._beam_width = tuple(levels), masks, beam_width
        self._log_mask, self._choices = _tables(device)
        if masks.rules is not None:
            # First rows and numbers of rows of all levels, in turn: [B, 1] each.
            self._segments = masks.rules.rows.split(1, 1)
        self._requests = torch.arange(batch, device=device)[:, None]
        self.codes = self._prefixes = self._last = torch.zeros_like(self._requests)
        self.scores = torch.zeros_like(self._requests, dtype=torch.float32)

    def width(self, level: int) -> int:
        """Beams after `level`; after level -1 there is one."""
        return min(self._beam_width, math.prod(self._levels[: level + 1]))

    def step(self, level: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Grow every beam by a code of `level`: logits [B, W, T_l] -> parent and code of each kept beam, int64 [B, W'].

        Levels come in order, each once.
        """
        size, width = self._levels[level], self.width(level - 1)
        log_p = logits.float().log_softmax(-1)
        total = (self.scores[..., None] + (log_p + self._mask(level, width))).reshape(-1, width * size)
        self.scores, chosen = total.topk(self.width(level), dim=1)
        if width == 1:  # all have one parent
            parent, code = torch.zeros_like(chosen), chosen
            self._prefixes = self.codes.expand(-1, self.width(level))
        else:
            parent = _divided(chosen, size)
            code = chosen - parent * size
            self._prefixes = self.codes.gather(1, parent)
        self.codes, self._last = self._prefixes + code * math.prod(self._levels[:level]), code
        return parent, code

    @property
    def drafted(self) -> Drafted:
        return Drafted(self.codes, self.scores, self._prefixes, self._last)

    def _mask(self, level: int, width: int) -> Tensor:
        """What the prefixes allow of the codes of `level`, to add to log-probabilities: [B or 1, W, T_l]."""
        size, (chunks, octets) = self._levels[level], mask_shape(level, self._levels[level])
        bits = self._masks.bits[level]
        if level:
            bits = bits[self._rows(level, width, chunks)]
        if self._masks.rules is not None:
            bits = bits & self._rule_bits(level, width, chunks, octets)
        mask = nn.functional.embedding(bits.int(), self._log_mask).reshape(-1, width, 8 * octets * chunks)
        return mask if size == 8 * octets * chunks else mask[..., :size]

    def _rows(self, level: int, width: int, chunks: int) -> Tensor:
        """The rows of the prefixes in the table: int [B, W * chunks], 0 for those that are not there."""
        table = self._masks.keys[level - 1]
        keys = self.codes.to(table.dtype)
        if chunks > 1:
            chunk = torch.arange(chunks, dtype=keys.dtype, device=keys.device)
            keys = (keys[..., None] * chunks + chunk).reshape(-1, width * chunks)
        # `PrefixTable` says where a key stands.
        groups = _divided_size(table.shape[0], GROUP)
        count, before = self._choices
        buckets = _divided(keys, groups) % count + before + GROUP * (keys % groups)  # [2, B, W * chunks]
        stored, rows = table[buckets].split(SLOTS, -1)
        return ((stored == keys[..., None]).to(rows.dtype) * rows).amax((0, -1))

    def _rule_bits(self, level: int, width: int, chunks: int, octets: int) -> Tensor:
        """What the rules allow, in the shape of the prefixes' own rows: uint8 [B, W * chunks, octets]."""
        assert self._masks.rules is not None
        first, count = self._segments[2 * level : 2 * level + 2]
        own = chunks_of(self._levels[level])
        rows = first
        if own > 1:
            keys = torch.arange(own, device=first.device)
            if level:
                keys = (self.codes[..., None] * own + keys).reshape(-1, width * own)
            rows = first + keys % count
        elif level:
            rows = first + self.codes % count
        bits = self._masks.rules.bits[rows]
        if own != chunks:
            bits = bits.reshape(-1, width, own * OCTETS)
        return bits if bits.shape[-1] == octets else bits[..., :octets]

    def of_parents(self, level: int, values: Tensor, parent: Tensor) -> Tensor:
        """What belongs to the parents of the beams of `level`: values [B, W, ...], int64 [B, W'] -> [B, W', ...]."""
        rest = tuple(map(int, values.shape[2:]))
        # Whole rows by one flat index: an element gather would need an index as large as the values.
        at = (parent + self._requests * self.width(level - 1)).reshape(-1)
        return values.reshape(-1, *rest).index_select(0, at).reshape(-1, self.width(level), *rest)


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """_LOG_MASK and _CHOICES, copied to a device once: every copy would wait for what runs there."""
    return _LOG_MASK.to(device), _CHOICES.to(device)


def _divided(values: Tensor, by: int | Tensor) -> Tensor:
    """Whole division of numbers that are not negative; a graph then needs no correction for those that are."""
    return torch.div(values, by, rounding_mode="trunc")


def _divided_size(size: int | Tensor, by: int) -> int | Tensor:
    """The same of a tensor's size, which is a tensor itself where it is traced."""
    return _divided(size, by) if isinstance(size, Tensor) else size // by
