"""The baseline: the backbone as a plain autoregressive recommender, decoded by beam search over a shared KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from genrec.checkpoint_shapes import BEAM_SEARCH
from genrec.model.backbone import BackboneModel, last_positions
from genrec.model.beam import Beams, of_parents

Runs = Sequence[Sequence[tuple[int, int]]]  # per level, (first token id, count), as in `PromptLayout.sid_tokens`


class AutoregressiveModel(BackboneModel):
    """A backbone that writes a semantic ID code by code. Its logits are products with the input embeddings.

    config: a transformers configuration of the Qwen3 or Llama family. sid_tokens: per level, the runs of token ids of
    its codes. Prompts end with the history: they have no placeholders.
    """

    DECODER = BEAM_SEARCH

    def __init__(self, config: PretrainedConfig, sid_tokens: Runs, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.sid_tokens = tuple(tuple((int(first), int(count)) for first, count in level) for level in sid_tokens)
        for level, runs in enumerate(self.sid_tokens):
            tokens = torch.cat([torch.arange(first, first + count) for first, count in runs])
            self.register_buffer(f"level_tokens_{level}", tokens, persistent=False)

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(sum(count for _, count in runs) for runs in self.sid_tokens)

    def settings(self) -> dict[str, Any]:
        return {"levels": list(self.levels), "sid_tokens": self.sid_tokens}

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: dict[str, Any]) -> AutoregressiveModel:
        return cls(config, settings["sid_tokens"])

    def level_tokens(self, level: int) -> Tensor:
        """Token id of each code of `level`, int64 [T_l]."""
        return self.get_buffer(f"level_tokens_{level}")

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Logits of the codes of `level` that follow: hidden states after the final norm [..., d] -> [..., T_l]."""
        return hidden @ self.input_embeddings()[self.level_tokens(level)].T

    def draft(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        prefix_bits: Sequence[Tensor],
        first_child: Sequence[Tensor],
        beam_width: int,
    ) -> tuple[Tensor, Tensor]:
        """Prefill, L - 1 decode steps and the beam search: codes int64 [B, K] and scores float32 [B, K].

        Prompts are right-padded, int [B, S] and int [B]; see `BackboneModel.draft`.
        """
        lengths = lengths.long()
        beams = Beams(token_ids.shape[0], self.levels, prefix_bits, first_child, beam_width)
        hidden, cache = self.prefill(token_ids.long(), lengths)
        parent, code = beams.step(0, self.level_logits(hidden, 0))
        for level in range(1, len(self.levels)):
            hidden = self.decode(self.level_tokens(level - 1)[code], parent, lengths + (level - 1), cache)
            parent, code = beams.step(level, self.level_logits(hidden, level))
        return beams.codes, beams.scores

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, list[LayerCache]]:
        """One pass over right-padded prompts: int64 [B, S], int64 [B] -> the last token's hidden state and the cache.

        The hidden state is [B, 1, d], after the final norm; the cache holds the prompt of every layer.
        """
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        # Attention is causal: padding, which stands behind a prompt, is seen by padding and, if let, by the beams.
        causal = _additive(positions[:, None] >= positions)
        mask = causal.repeat_interleave(self.config.num_attention_heads // self.config.num_key_value_heads, 0)
        inside = _additive(positions < lengths[:, None])[:, None, None]
        hidden = self.model.embed_tokens(token_ids)
        rotation = self._rotation(hidden, positions[None])
        cache: list[LayerCache] = []
        for number, layer in enumerate(self.model.layers, 1):
            normed = _norm(layer.input_layernorm, hidden)
            cache.append(LayerCache(*_keys_values(layer.self_attn, normed, rotation), inside, layer.self_attn.scaling))
            if number == len(self.model.layers):  # only the last token's way goes on
                hidden, normed = last_positions(hidden, lengths, 1), last_positions(normed, lengths, 1)
                rotation, mask = self._rotation(hidden, lengths[:, None] - 1), inside
            mixed = cache[-1].attend_prompt(_queries(layer.self_attn, normed, rotation), mask)
            hidden = _finish(layer, hidden, mixed)
        return _norm(self.model.norm, hidden), cache

    def decode(self, token_ids: Tensor, parent: Tensor, positions: Tensor, cache: list[LayerCache]) -> Tensor:
        """One more token for every beam: int64 [B, W] at positions int64 [B] -> hidden states [B, W, d].

        parent: int64 [B, W], which of the cache's beams each beam continues; the cache then holds the new ones.
        """
        hidden = self.model.embed_tokens(token_ids)
        rotation = self._rotation(hidden, positions[:, None])
        for layer, layer_cache in zip(self.model.layers, cache, strict=True):
            normed = _norm(layer.input_layernorm, hidden)
            layer_cache.grow(parent, *_keys_values(layer.self_attn, normed, rotation))
            mixed = layer_cache.attend(_queries(layer.self_attn, normed, rotation))
            hidden = _finish(layer, hidden, mixed)
        return _norm(self.model.norm, hidden)

    def _rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a head's pairs at int64 [1 or B, R]: [.., R, 1, e / 2] each, for any number of heads."""
        cos, sin = self.model.rotary_emb(hidden, positions)
        half = cos.shape[-1] // 2  # the tables hold every pair's angle twice
        return cos[:, :, None, :half], sin[:, :, None, :half]


class LayerCache:
    """Keys and values of one layer: the prompt's, which all beams of a request share, and the beams' own codes'.

    keys, values: [B, S, G, e] of G key-value heads of size e. inside: additive mask [B, 1, 1, S] that hides padding.
    scaling: factor of the attention scores. Query heads come in G consecutive groups.
    """

    def __init__(self, keys: Tensor, values: Tensor, inside: Tensor, scaling: float) -> None:
        # Scaled once here, instead of the scores of every step.
        self._keys, self._values = (keys * scaling).permute(0, 2, 3, 1), values.transpose(1, 2)
        self._inside, self._scaling = inside, scaling
        self._own: tuple[Tensor, Tensor] | None = None  # keys and values of t codes, [B, W, t, G, 1, e] each

    def grow(self, parent: Tensor, keys: Tensor, values: Tensor) -> None:
        """Carry the beams' codes over to their children, parent int64 [B, W], and add the newest: [B, W, G, e]."""
        keys, values = (keys * self._scaling)[:, :, None, :, None], values[:, :, None, :, None]
        if self._own is not None:
            keys = torch.cat([of_parents(self._own[0], parent), keys], 2)
            values = torch.cat([of_parents(self._own[1], parent), values], 2)
        self._own = keys, values

    def attend_prompt(self, queries: Tensor, mask: Tensor) -> Tensor:
        """Attention to the prompt alone: queries [B, R, H, e] -> [B, R, H * e].

        mask: additive, broadcast to [B, G, R * H / G, S]; the heads of a position are consecutive rows.
        """
        weights = (self._rows(queries) @ self._keys + mask).softmax(-1)
        return _joined(self._positions(weights @ self._values, queries))

    def attend(self, queries: Tensor) -> Tensor:
        """Attention to the prompt and the beams' own codes, under one softmax: [B, W, H, e] -> [B, W, H * e]."""
        assert self._own is not None
        keys, values = self._own
        prompt = self._rows(queries) @ self._keys + self._inside
        own = (self._grouped(queries)[:, :, None] * keys).sum(-1)  # [B, W, t, G, H / G]
        groups, count = keys.shape[3], keys.shape[2]
        own = own.permute(0, 3, 1, 4, 2).reshape(-1, groups, queries.shape[1] * queries.shape[2] // groups, count)
        weights = torch.cat([own, prompt], -1).softmax(-1)
        # Zeros in the values' place of the own codes are cheaper than a copy of the prompt's weights.
        mixed = self._positions(weights @ functional.pad(self._values, (0, 0, count, 0)), queries)
        own = self._positions(weights[..., :count], queries).permute(0, 1, 4, 2, 3)
        return _joined(mixed + (own[..., None] * values).sum(2))

    def _grouped(self, queries: Tensor) -> Tensor:
        """[B, R, H, e] -> [B, R, G, H / G, e]."""
        _, rows, heads, size = queries.shape
        groups = self._keys.shape[1]
        return queries.reshape(-1, rows, groups, heads // groups, size)

    def _rows(self, queries: Tensor) -> Tensor:
        """[B, R, H, e] -> [B, G, R * H / G, e]: heads of one group meet the same keys, as rows of one product."""
        _, rows, heads, size = queries.shape
        groups = self._keys.shape[1]
        return self._grouped(queries).transpose(1, 2).reshape(-1, groups, rows * (heads // groups), size)

    def _positions(self, rows: Tensor, queries: Tensor) -> Tensor:
        """What `_rows` made of `queries`, back: [B, G, R * H / G, n] -> [B, R, G, H / G, n]."""
        groups = rows.shape[1]
        shape = (-1, groups, queries.shape[1], queries.shape[2] // groups, rows.shape[3])
        return rows.reshape(shape).transpose(1, 2)


def _joined(heads: Tensor) -> Tensor:
    """[B, R, G, H / G, e] -> [B, R, H * e]."""
    _, rows, groups, members, size = heads.shape
    return heads.reshape(-1, rows, groups * members * size)


def _split(projected: Tensor, size: int) -> Tensor:
    """[B, R, H * e] -> [B, R, H, e]."""
    return projected.reshape(-1, projected.shape[1], projected.shape[2] // size, size)


def _queries(attention: Any, normed: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries with their positions: [B, R, d] -> [B, R, H, e]."""
    queries = _split(attention.q_proj(normed), attention.head_dim)
    return _rotate(_norm(attention.q_norm, queries) if hasattr(attention, "q_norm") else queries, *rotation)


def _keys_values(attention: Any, normed: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys with their positions, and values: [B, R, d] -> [B, R, G, e] each."""
    keys = _split(attention.k_proj(normed), attention.head_dim)
    values = _split(attention.v_proj(normed), attention.head_dim)
    return _rotate(_norm(attention.k_norm, keys) if hasattr(attention, "k_norm") else keys, *rotation), values


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: heads [B, R, H, e], whose halves are paired; see `_rotation`."""
    left, right = heads.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def _finish(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The layer behind its attention: residual and mixed values [B, R, ..] -> [B, R, d]."""
    hidden = hidden + layer.self_attn.o_proj(mixed)
    return hidden + layer.mlp(_norm(layer.post_attention_layernorm, hidden))


def _norm(module: Any, hidden: Tensor) -> Tensor:
    """RMS norm: [..., d] -> [..., d]. As a division, because ONNX Runtime fuses that, and no reciprocal root."""
    mean = hidden.float().pow(2).mean(-1, keepdim=True)
    return (hidden / (mean + module.variance_epsilon).sqrt()).to(hidden.dtype) * module.weight


def _additive(allowed: Tensor) -> Tensor:
    return torch.where(allowed, 0.0, -torch.inf)
