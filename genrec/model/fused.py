"""ONNX Runtime's fused operators: PyTorch computes what they do, an exported graph holds the operator itself.

What they are worth: docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

DOMAIN = "com.microsoft"  # where ONNX Runtime keeps operators that are not ONNX's


class RotaryEmbedding(torch.autograd.Function):
    """Rotary position embedding of `heads` heads side by side, whose halves are paired.

    values: [B, R, heads * e]. positions: int64 [B, R], or int64 [1], the first of consecutive ones. cos, sin: tables
    [positions, e / 2].
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        if positions.dim() == 1:
            positions = positions + torch.arange(values.shape[1], device=values.device)[None]
        cos, sin = (table[positions][:, :, None].to(values.dtype) for table in (cos, sin))
        left, right = values.unflatten(-1, (heads, -1)).chunk(2, -1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).flatten(2)

    @staticmethod
    def symbolic(g: Any, values: Any, positions: Any, cos: Any, sin: Any, heads: int) -> Any:
        out = g.op(f"{DOMAIN}::RotaryEmbedding", values, positions, cos, sin, num_heads_i=heads)
        return out.setType(values.type())


class CausalAttention(torch.autograd.Function):
    """Attention of every position to itself and those before: queries [B, S, H * e] -> the same.

    keys, values: [B, S, heads * e]. In a graph H = heads; else it may be a multiple, with consecutive query heads that
    share a key and a value head.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, heads: int, scaling: float) -> Tensor:
        size = int(keys.shape[-1]) // heads
        q, k, v = (each.unflatten(-1, (-1, size)).transpose(1, 2) for each in (queries, keys, values))
        members = int(q.shape[1]) // heads
        # On a GPU no fused kernel takes shared heads in float32: all scores of a prompt would be kept.
        shared = members > 1 and q.dtype != torch.float32
        if members > 1 and not shared:
            k, v = k.repeat_interleave(members, 1), v.repeat_interleave(members, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=shared)
        return mixed.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, queries: Any, keys: Any, values: Any, heads: int, scaling: float) -> Any:
        attributes = {"num_heads_i": heads, "scale_f": scaling, "unidirectional_i": 1}
        out = g.op(f"{DOMAIN}::MultiHeadAttention", queries, keys, values, **attributes)
        return out.setType(queries.type())
