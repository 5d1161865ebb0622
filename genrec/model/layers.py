"""A backbone's layers, taken apart for inference: leaner than transformers' forward pass, in a graph above all.

Training uses transformers' own pass; a test holds the two together. Where these functions are traced, every size that
is asked of a tensor is a handful of nodes: so numbers of heads come from the configuration, and numbers of positions
from the caller, who asks once for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genrec.model.beam import of_parents


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
        """[B, R, G * M, e] -> [B, G, R * M, e]: heads of one group meet the same keys, as rows of one product."""
        if self.members == 1:
            return queries.transpose(1, 2)
        split = queries.reshape(-1, rows, self.groups, self.members, self.size).transpose(1, 2)
        return split.reshape(-1, self.groups, rows * self.members, self.size)

    def joined(self, mixed: Tensor, rows: int) -> Tensor:
        """What `grouped` made of queries, as one vector per position: [B, G, R * M, e] -> [B, R, G * M * e]."""
        if self.members > 1:
            mixed = mixed.reshape(-1, self.groups, rows, self.members, self.size)
        return mixed.transpose(1, 2).reshape(-1, rows, self.groups * self.members * self.size)


class LayerCache:
    """Keys and values of one layer: the prompt's, which all beams of a request share, and the beams' own codes'.

    keys, values: [B, S, G, e] of the key-value heads. inside: additive mask [B, 1, 1, S] that hides padding.
    scaling: factor of the attention scores.
    """

    def __init__(self, heads: Heads, keys: Tensor, values: Tensor, inside: Tensor, scaling: float) -> None:
        # Scaled once here, instead of the scores of every step.
        self._keys, self._values = (keys * scaling).permute(0, 2, 3, 1), values.transpose(1, 2)
        self._heads, self._inside, self._scaling = heads, inside, scaling
        self._own: tuple[Tensor, Tensor] | None = None  # keys and values of t codes, [B, W, t, G, 1, e] each

    def grow(self, parent: Tensor, keys: Tensor, values: Tensor) -> None:
        """Carry the beams' codes over to their children, parent int64 [B, W], and add the newest: [B, W, G, e]."""
        keys, values = (keys * self._scaling)[:, :, None, :, None], values[:, :, None, :, None]
        if self._own is not None:
            keys = torch.cat([of_parents(self._own[0], parent), keys], 2)
            values = torch.cat([of_parents(self._own[1], parent), values], 2)
        self._own = keys, values

    def attend_prompt(self, queries: Tensor, rows: int, mask: Tensor) -> Tensor:
        """Attention to the prompt alone: queries [B, R, H, e] -> [B, R, H * e].

        mask: additive, broadcast to [B, G, R * M, S]; the heads of a position are consecutive rows.
        """
        weights = (self._heads.grouped(queries, rows) @ self._keys + mask).softmax(-1)
        return self._heads.joined(weights @ self._values, rows)

    def attend(self, queries: Tensor, width: int) -> Tensor:
        """Attention to the prompt and the beams' own codes, under one softmax: [B, W, H, e] -> [B, W, H * e]."""
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


def queries(attention: Any, normed: Tensor, rows: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries with their positions: [B, R, d] -> [B, R, H, e]."""
    split = attention.q_proj(normed).reshape(-1, rows, attention.config.num_attention_heads, attention.head_dim)
    return _rotate(norm(attention.q_norm, split) if hasattr(attention, "q_norm") else split, *rotation)


def keys_values(attention: Any, normed: Tensor, rows: int, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys with their positions, and values: [B, R, d] -> [B, R, G, e] each."""
    shape = (-1, rows, attention.config.num_key_value_heads, attention.head_dim)
    keys, values = attention.k_proj(normed).reshape(shape), attention.v_proj(normed).reshape(shape)
    return _rotate(norm(attention.k_norm, keys) if hasattr(attention, "k_norm") else keys, *rotation), values


def finish(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The layer behind its attention: residual and mixed values [B, R, ..] -> [B, R, d]."""
    hidden = hidden + layer.self_attn.o_proj(mixed)
    return hidden + layer.mlp(norm(layer.post_attention_layernorm, hidden))


def norm(module: Any, hidden: Tensor) -> Tensor:
    """RMS norm: [..., d] -> [..., d]. As a division, because ONNX Runtime fuses that, and no reciprocal root."""
    mean = hidden.float().pow(2).mean(-1, keepdim=True)
    return (hidden / (mean + module.variance_epsilon).sqrt()).to(hidden.dtype) * module.weight


def additive(allowed: Tensor) -> Tensor:
    """Mask to add to attention scores: 0 where bool `allowed`, else -inf."""
    return torch.where(allowed, 0.0, -torch.inf)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of heads [B, R, H, e], whose halves are paired; see `BackboneModel.rotation`."""
    left, right = heads.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
