"""The baseline: the backbone as a plain autoregressive recommender, decoded by beam search over a shared KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from genrec.bundle.checkpoint_shapes import BEAM_SEARCH
from genrec.model.backbone import BackboneModel
from genrec.model.beam import Beams, Drafted
from genrec.model.layers import LayerCache, finish, keys_values, norm, queries
from genrec.model.masks import Masks

Runs = Sequence[Sequence[tuple[int, int]]]  # per level, (first token id, count), as in `PromptLayout.sid_tokens`


class AutoregressiveModel(BackboneModel):
    """A backbone that writes a semantic ID code by code. Its logits are products with the input embeddings.

    config: a transformers configuration of `FAMILIES`. sid_tokens: per level, the runs of token ids of its codes.
    heads: the rows that logits are products with instead, [T_l, d] for each level, of a checkpoint that does not tie
    its output head to the embeddings. Prompts end with the history: they have no placeholders.
    """

    DECODER = BEAM_SEARCH

    def __init__(
        self,
        config: PretrainedConfig,
        sid_tokens: Runs,
        backbone: PreTrainedModel | None = None,
        heads: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(config, backbone)
        self.sid_tokens = tuple(tuple((int(first), int(count)) for first, count in level) for level in sid_tokens)
        for level, runs in enumerate(self.sid_tokens):
            tokens = torch.cat([torch.arange(first, first + count) for first, count in runs])
            self.register_buffer(f"level_tokens_{level}", tokens, persistent=False)
        self.heads = None if heads is None else nn.ParameterList(heads)

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(sum(count for _, count in runs) for runs in self.sid_tokens)

    def settings(self) -> dict[str, Any]:
        own = {} if self.heads is None else {"heads": True}
        return {"levels": list(self.levels), "sid_tokens": self.sid_tokens} | own

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: dict[str, Any]) -> AutoregressiveModel:
        sizes = [sum(count for _, count in runs) for runs in settings["sid_tokens"]]
        heads = [torch.empty(size, config.hidden_size) for size in sizes] if settings.get("heads") else None
        return cls(config, settings["sid_tokens"], heads=heads)

    def level_tokens(self, level: int) -> Tensor:
        """Token id of each code of `level`, int64 [T_l]."""
        return self.get_buffer(f"level_tokens_{level}")

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Logits of the codes of `level` that follow: hidden states after the final norm [..., d] -> [..., T_l]."""
        if self.heads is None:
            embeddings = self.input_embeddings()[self.level_tokens(level)]
        else:
            embeddings = self.heads[level]
        if hidden.dtype != torch.float32:  # from here on float32, whatever the backbone's type
            hidden, embeddings = hidden.float(), embeddings.float()
        return hidden @ embeddings.T

    def draft(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        masks: Masks,
        beam_width: int,
    ) -> Drafted:
        """Prefill, L - 1 decode steps and the beam search.

        Prompts are right-padded, int [B, S] and int [B]; see `BackboneModel.draft`.
        """
        lengths = lengths.long()
        beams = Beams(token_ids.shape[0], self.levels, masks, beam_width)
        hidden, cache = self.prefill(token_ids, lengths)
        parent, code = beams.step(0, self.level_logits(hidden, 0))
        for level in range(1, len(self.levels)):
            carried = partial(beams.of_parents, level - 1, parent=parent)
            hidden = self.decode(self.level_tokens(level - 1)[code], carried, lengths + (level - 1), cache)
            parent, code = beams.step(level, self.level_logits(hidden, level))
        return beams.drafted

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, list[LayerCache]]:
        """The last token's hidden state [B, 1, d] and the cache of the prompts; see `BackboneModel.read_prompts`."""
        return self.read_prompts(token_ids, lengths, 1)[:2]

    def decode(
        self,
        token_ids: Tensor,
        carried: Callable[[Tensor], Tensor],
        positions: Tensor,
        cache: list[LayerCache],
    ) -> Tensor:
        """One more token for every beam: int64 [B, W] at positions int64 [B] -> hidden states [B, W, d].

        carried: what belonged to the parents of the beams, for the cache, which then holds the new ones.
        """
        hidden = self.model.embed_tokens(token_ids)
        width = int(token_ids.shape[1])
        rotation = self.rotation(positions[:, None].expand(-1, width))
        for layer, layer_cache in zip(self.model.layers, cache, strict=True):
            normed, attention = norm(layer.input_layernorm, hidden), layer.self_attn
            layer_cache.grow(carried, *keys_values(attention, normed, width, rotation), width)
            mixed = layer_cache.attend(queries(attention, normed, width, rotation), width)
            hidden = finish(layer, hidden, mixed)
        return norm(self.model.norm, hidden)
