"""A backbone's layers, taken apart for inference: leaner than transformers' forward pass, in a graph above all.

Training uses transformers' own pass; a test holds the two together. Where these functions are traced, every size that
is asked of a tensor is a handful of nodes: so numbers of heads come from the configuration, and numbers of positions
from the caller, who asks once for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genrec.model.fused import RotaryEmbedding


@dataclass(frozen=True)
class Heads:
    """Query heads come in `groups` G of `members` M that share a key and a value head; all are of `size` e."""

    groups: int
    members: int
    size: int

    @classmethod
    def of(cls, attention: Any) -> Heads:
        """Of a layer's attention."""
        groups = attention.config.num_key_value_heads
        return cls(groups, attention.config.num_attention_heads // groups, attention.head_dim)

    def grouped(self, queries: Tensor, rows: int) -> Tensor:
        """[B, R, G * M * e] -> [B, G, R * M, e]: heads of one group meet the same keys, as rows of one product."""
        if self.members == 1:
            return queries.reshape(-1, rows, self.groups, self.size).transpose(1, 2)
        split = queries.reshape(-1, rows, self.groups, self.members, self.size).transpose(1, 2)
        return split.reshape(-1, self.groups, rows * self.members, self.size)

    def joined(self, mixed: Tensor, rows: int) -> Tensor:
        """What `grouped` made of queries, as one vector per position: [B, G, R * M, e] -> [B, R, G * M * e]."""
        if self.members > 1:
            mixed = mixed.reshape(-1, self.groups, rows, self.members, self.size)
        return mixed.transpose(1, 2).reshape(-1, rows, self.groups * self.members * self.size)


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding. positions: int64 [B, R], or [1], the first of consecutive ones. cos, sin: tables."""

    positions: Tensor
    cos: Tensor
    sin: Tensor

    def turn(self, values: Tensor, heads: int) -> Tensor:
        """Heads side by side at their positions: [B, R, heads * e] -> the same."""
        return RotaryEmbedding.apply(values, self.positions, self.cos, self.sin, heads)


class LayerCache:
    """Keys and values of one layer: the prompt's, which all beams of a request share, and the beams' own codes'.

    keys, values: [B, S, G * e] of the key-value heads. inside: additive mask [B, 1, 1, S] that hides padding.
    scaling: factor of the attention scores.
    """

    def __init__(self, heads: Heads, keys: Tensor, values: Tensor, rows: int, inside: Tensor, scaling: float) -> None:
        shape = (-1, rows, heads.groups, heads.size)
        # Scaled once here, instead of the scores of every step.
        self._keys = (keys * scaling).reshape(shape).permute(0, 2, 3, 1)
        self._values = values.reshape(shape).transpose(1, 2)
        self._heads, self._inside, self._scaling = heads, inside, scaling
        self._own: tuple[Tensor, Tensor] | None = None  # keys and values of t codes, [B, W, t, G, 1, e] each

    def grow(self, carried: Callable[[Tensor], Tensor], keys: Tensor, values: Tensor, width: int) -> None:
        """Carry the beams' codes over to their children, by `Beams.of_parents`, and add the newest: [B, W, G * e]."""
        shape = (-1, width, 1, self._heads.groups, 1, self._heads.size)
        keys, values = (keys * self._scaling).reshape(shape), values.reshape(shape)
        if self._own is not None:
            keys = torch.cat([carried(self._own[0]), keys], 2)
            values = torch.cat([carried(self._own[1]), values], 2)
        self._own = keys, values

    def attend_prompt(self, queries: Tensor, rows: int, mask: Tensor | None = None) -> Tensor:
        """Attention to the prompt alone: queries [B, R, H * e] -> the same.

        mask: additive, broadcast to [B, G, R * M, S], `inside` by default; the heads of a position are consecutive
        rows.
        """
        mask = self._inside if mask is None else mask
        weights = (self._heads.grouped(queries, rows) @ self._keys + mask).softmax(-1)
        return self._heads.joined(weights @ self._values, rows)

    def attend(self, queries: Tensor, width: int) -> Tensor:
        """Attention to the prompt and the beams' own codes, under one softmax: [B, W, H * e] -> the same."""
        assert self._own is not None
        heads, (keys, values) = self._heads, self._own
        groups, members, count = heads.groups, heads.members, int(keys.shape[2])
        prompt = heads.grouped(queries, width) @ self._keys + self._inside
        own = (queries.reshape(-1, width, 1, groups, members, heads.size) * keys).sum(-1)  # [B, W, t, G, M]
        own = own.permute(0, 3, 1, 4, 2).reshape(-1, groups, width * members, count)
        weights = torch.cat([own, prompt], -1).softmax(-1)
        # Zeros in the values' place of the own codes are cheaper than a copy of the prompt's weights.
        mixed = heads.joined(weights @ functional.pad(self._values, (0, 0, count, 0)), width)
        own = weights[..., :count].reshape(-1, groups, width, members, count).permute(0, 2, 4, 1, 3)
        return mixed + (own[..., None] * values).sum(2).reshape(-1, width, groups * members * heads.size)


def queries(attention: Any, normed: Tensor, rows: int, rotation: Rotation) -> Tensor:
    """Queries at their positions: [B, R, d] -> [B, R, H * e]."""
    heads = attention.config.num_attention_heads
    return rotation.turn(_normed_heads(attention, "q_norm", attention.q_proj(normed), rows, heads), heads)


def keys_values(attention: Any, normed: Tensor, rows: int, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Keys at their positions, and values: [B, R, d] -> [B, R, G * e] each."""
    groups = attention.config.num_key_value_heads
    keys = _normed_heads(attention, "k_norm", attention.k_proj(normed), rows, groups)
    return rotation.turn(keys, groups), attention.v_proj(normed)


def _normed_heads(attention: Any, name: str, projected: Tensor, rows: int, heads: int) -> Tensor:
    """Qwen3's norm of every head; Llama has none: [B, R, heads * e] -> the same."""
    if not hasattr(attention, name):
        return projected
    split = projected.reshape(-1, rows, heads, attention.head_dim)
    return norm(getattr(attention, name), split).reshape(-1, rows, heads * attention.head_dim)


def finish(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The layer behind its attention: residual and mixed values [B, R, ..] -> [B, R, d]."""
    hidden = hidden + layer.self_attn.o_proj(mixed)
    return hidden + layer.mlp(norm(layer.post_attention_layernorm, hidden))


def norm(module: Any, hidden: Tensor) -> Tensor:
    """RMS norm: [..., d] -> [..., d]. As a division, because ONNX Runtime fuses that, and no reciprocal root."""
    if hidden.dtype != torch.float32:  # for GPUs, where this is one kernel; in float32 on a CPU it is slower
        return functional.rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)
    return unit_rms(hidden, module.variance_epsilon) * module.weight


def unit_rms(hidden: Tensor, epsilon: float) -> Tensor:
    """Vectors scaled to a root mean square of 1, but for `epsilon`: [..., d] -> [..., d]."""
    mean = hidden.float().pow(2).mean(-1, keepdim=True)
    return (hidden / (mean + epsilon).sqrt()).to(hidden.dtype)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask to add to attention scores of `dtype`: 0 where bool `allowed`, else -inf."""
    mask = torch.where(allowed, 0.0, -torch.inf)
    return mask if mask.dtype == dtype else mask.to(dtype)  # a cast to the same type would be a node of a graph
