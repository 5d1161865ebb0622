"""NEZHA: a backbone with its draft head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from genrec.bundle.checkpoint_shapes import DRAFT_HEAD, head_arguments
from genrec.model.backbone import BackboneModel
from genrec.model.beam import Drafted
from genrec.model.draft_head import DraftHead, History
from genrec.model.masks import Masks


class NezhaModel(BackboneModel):
    """Backbone and draft head. Parameter names: `model.*` as in transformers, and `draft_head.*`.

    config: a transformers configuration of `FAMILIES`. levels: codes per SID level. state_size,
    transition_size, attention_heads: see `DraftHead`.
    """

    DECODER = DRAFT_HEAD

    def __init__(
        self,
        config: PretrainedConfig,
        levels: Sequence[int],
        state_size: int,
        transition_size: int,
        attention_heads: int = 0,
        backbone: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, backbone)
        self.draft_head = DraftHead(levels, config.hidden_size, state_size, transition_size, attention_heads)

    @property
    def levels(self) -> tuple[int, ...]:
        return self.draft_head.levels

    def settings(self) -> dict[str, Any]:
        head = self.draft_head
        return {
            "levels": list(head.levels),
            "state_size": head.state_size,
            "transition_size": head.transition_size,
            "attention_heads": head.attention_heads,
        }

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: dict[str, Any]) -> NezhaModel:
        return cls(config, **head_arguments(settings))

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, History | None]:
        """One pass over right-padded prompts, int [B, S] and int [B].

        Returns h_0 .. h_L, float32 [B, L + 1, d], and the history for the transitions, if they read it.
        """
        count = len(self.levels)
        hidden, _, inputs = self.read_prompts(token_ids, lengths, count + 1, keep=False)
        return hidden.float(), self.history(inputs, lengths, count)

    def history(self, inputs: Tensor, lengths: Tensor, placeholders: int) -> History | None:
        """What the transitions read of right-padded prompts that end with `placeholders` placeholders, if anything.

        inputs: what the last layer reads, after its norm, [B, S, d]. lengths: int [B].
        """
        if not self.draft_head.attention_heads:
            return None
        if placeholders:  # behind the history of every prompt there are as many positions at least
            inputs = inputs[:, :-placeholders]
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        return History(inputs.float(), (positions < lengths.long()[:, None] - placeholders)[:, None])

    def draft(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        masks: Masks,
        beam_width: int,
    ) -> Drafted:
        """Prefill and beam in one; see `DraftHead.beam`."""
        return self.draft_head.beam(*self.prefill(token_ids, lengths), masks, beam_width)
