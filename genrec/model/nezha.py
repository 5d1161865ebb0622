"""NEZHA: a Qwen3 or Llama backbone with its draft head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from genrec.checkpoint_shapes import DRAFT_HEAD
from genrec.model.backbone import BackboneModel
from genrec.model.draft_head import DraftHead


class NezhaModel(BackboneModel):
    """Backbone and draft head. Parameter names: `model.*` as in transformers, and `draft_head.*`.

    config: a transformers configuration of the Qwen3 or Llama family. levels: codes per SID level. state_size,
    transition_size: see `DraftHead`.
    """

    DECODER = DRAFT_HEAD

    def __init__(
        self,
        config: PretrainedConfig,
        levels: Sequence[int],
        state_size: int,
        transition_size: int,
        backbone: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, backbone)
        self.draft_head = DraftHead(levels, config.hidden_size, state_size, transition_size)

    @property
    def levels(self) -> tuple[int, ...]:
        return self.draft_head.levels

    def settings(self) -> dict[str, Any]:
        head = self.draft_head
        return {
            "levels": list(head.levels),
            "state_size": head.state_size,
            "transition_size": head.transition_size,
        }

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: dict[str, Any]) -> NezhaModel:
        return cls(config, settings["levels"], settings["state_size"], settings["transition_size"])

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """One pass over right-padded prompts: int [B, S], int [B] -> float32 h_0 .. h_L, [B, L + 1, d]."""
        return self.read_prompts(token_ids, lengths, len(self.levels) + 1, keep=False)[0].float()

    def draft(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        prefix_bits: Sequence[Tensor],
        first_child: Sequence[Tensor],
        beam_width: int,
    ) -> tuple[Tensor, Tensor]:
        """Prefill and beam in one: codes int64 [B, K] and scores float32 [B, K]; see `DraftHead.beam`."""
        return self.draft_head.beam(self.prefill(token_ids, lengths), prefix_bits, first_child, beam_width)
