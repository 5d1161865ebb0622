"""One forward pass over the tokens of many texts, packed without padding: the cache and the attention it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_ATTENTION = "genrec_packed"
_ROUND = 64  # the cache grows in steps of so many tokens


@dataclass(frozen=True)
class Packing:
    """Which text each of the S packed tokens belongs to, and what it sees.

    Texts are `texts` neighbouring rows of the cache, from `first` on, with at most `width` packed tokens each.
    query_rows: int64 [S], text * width + number of the token within its text's packed ones; None if that is 0 .. S - 1.
    cache_rows: int64 [S], where its key and value go: row * capacity + position. keys: cached positions that are read.
    mask: float [texts, 1, width, keys], 0 where a token attends and -inf elsewhere; None for plain causal attention,
    where keys = width.
    """

    first: int
    texts: int
    width: int
    keys: int
    query_rows: Tensor | None
    cache_rows: Tensor
    mask: Tensor | None


class PackedCache(Cache):
    """Keys and values of all layers and texts in one preallocated tensor, written in place.

    layers: of the model. rows: texts at once. `reserve` sets how many tokens a text may have.
    """

    def __init__(self, layers: int, rows: int) -> None:
        super().__init__(layers=[])
        self.capacity = 0
        self.packing: Packing  # of the forward pass that runs
        self._shape = (layers, 2, rows)
        self._states: Tensor | None = None  # [layers, keys and values, rows, capacity, heads, size]

    def reserve(self, length: int) -> None:
        """Make room for texts of `length` tokens."""
        if length <= self.capacity:
            return
        # In proportion, so that a cache is copied a few times only, however long its texts get.
        capacity = -(-max(length, self.capacity * 5 // 4) // _ROUND) * _ROUND
        if self._states is not None:
            old, self._states = self._states, self._allocate(self._states, capacity)
            self._states[:, :, :, : self.capacity] = old
        self.capacity = capacity

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Store packed keys and values, [1, heads, S, size]; gives the texts' own, [texts, heads, keys, size]."""
        packing, (_, heads, _, size) = self.packing, key_states.shape
        if self._states is None:
            self._states = self._allocate(key_states.transpose(1, 2), self.capacity)
        seen = []
        for states, new in zip(self._states[layer_idx], (key_states, value_states), strict=True):
            states.view(-1, heads, size).index_copy_(0, packing.cache_rows, new[0].transpose(0, 1))
            seen.append(states[packing.first : packing.first + packing.texts, : packing.keys].transpose(1, 2))
        return tuple(seen)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy cached tokens, int64 [n] as in `Packing.cache_rows`, in all layers; reads all before it writes any."""
        assert self._states is not None
        tokens = self._states.view(*self._shape[:2], -1, *self._states.shape[4:])
        tokens.index_copy_(2, target, tokens.index_select(2, source))

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the text of `length` tokens in row `source` to row `target`."""
        assert self._states is not None
        self._states[:, :, target, :length] = self._states[:, :, source, :length]

    def _allocate(self, like: Tensor, capacity: int) -> Tensor:
        # Zeros, because what is masked is still multiplied, and might be NaN.
        return like.new_zeros((*self._shape, capacity, *like.shape[-2:]))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of packed queries to their own texts only; without `packing`, what transformers does.

    query: [1, heads, S, size]. key, value: [texts, key-value heads, keys, size] of a `PackedCache`. Gives [1, S, heads,
    size]. Only here are tokens padded, to the widest text: everything else in a layer works token by token.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    heads, size = query.shape[1], query.shape[3]
    rows = query[0].transpose(0, 1)
    if packing.query_rows is not None:
        rows = rows.new_zeros((packing.texts * packing.width, heads, size)).index_copy_(0, packing.query_rows, rows)
    attended = scaled_dot_product_attention(
        rows.view(packing.texts, packing.width, heads, size).transpose(1, 2),
        key,
        value,
        attn_mask=packing.mask,
        is_causal=packing.mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    rows = attended.transpose(1, 2).reshape(-1, heads, size)
    if packing.query_rows is not None:
        rows = rows.index_select(0, packing.query_rows)
    return rows[None], None


class PackedModel:
    """A causal language model of transformers that runs packed tokens.

    The model gets its attention replaced by `packed_attention`, which is transformers' own wherever else it is used,
    and is put in evaluation mode. Raises ValueError for a model whose logits come out differently when packed, which is
    tried out: one that attends to a window, scales its logits, or has no use for transformers' attention interface.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"model {config.model_type!r} has layers of {sorted(kinds)}; only full attention is supported"
            )
        AttentionInterface.register(_ATTENTION, packed_attention)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
        model.eval().set_attn_implementation(_ATTENTION)
        self._body, self._head = model.base_model, model.get_output_embeddings()
        self.device, self.dtype = model.device, model.dtype
        self.vocabulary_size: int = model.get_input_embeddings().num_embeddings
        self.max_length: int = config.max_position_embeddings
        self.layers: int = config.num_hidden_layers
        # transformers would build a mask of its own; one of four dimensions it passes on as it is.
        self._no_mask = torch.zeros((1, 1, 1, 1), device=self.device)
        self._check(model)

    def logits(
        self, tokens: Tensor, positions: Tensor, cache: PackedCache, packing: Packing, wanted: Tensor | None = None
    ) -> Tensor:
        """Logits [S, vocabulary] of packed `tokens` at `positions`, both int64 [S]; or only of `wanted`, int64 [w]."""
        cache.packing = packing
        states = self._body(
            input_ids=tokens[None],
            position_ids=positions[None],
            attention_mask=self._no_mask,
            past_key_values=cache,
            use_cache=True,
            packing=packing,
        ).last_hidden_state[0]
        return self._head(states if wanted is None else states.index_select(0, wanted))

    @torch.inference_mode()
    def _check(self, model: PreTrainedModel) -> None:
        tokens = torch.arange(5, device=self.device) % self.vocabulary_size
        cache = PackedCache(self.layers, 2)
        cache.reserve(3)
        rows = torch.tensor([0, 1, 2, 3, 4], device=self.device)
        cache_rows = torch.tensor([0, 1, 2, cache.capacity, cache.capacity + 1], device=self.device)
        packing = Packing(first=0, texts=2, width=3, keys=3, query_rows=rows, cache_rows=cache_rows, mask=None)
        try:
            packed = self.logits(tokens, torch.tensor([0, 1, 2, 0, 1], device=self.device), cache, packing)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise ValueError(f"model {model.config.model_type!r} cannot be run packed: {error}") from error
        apart = torch.cat([model(part[None]).logits[0] for part in tokens.split([3, 2])])
        difference = float((packed - apart).abs().max() / apart.abs().max().clamp_min(1e-6))
        if not difference < 0.02:  # rounding of bfloat16 stays below
            raise ValueError(
                f"model {model.config.model_type!r} gives logits that differ by {difference:.2g} of the largest when "
                "its tokens are packed; use a model of the Qwen3 or Llama family"
            )
