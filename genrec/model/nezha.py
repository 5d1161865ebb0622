"""A Qwen3 or Llama backbone with its draft head, and its checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from genrec.checkpoint_shapes import FAMILIES
from genrec.model.draft_head import DraftHead

HEAD_KEY = "draft_head"  # in config.json: {"levels": [...]}


class NezhaModel(nn.Module):
    """Backbone and draft head. Parameter names: `model.*` as in transformers, and `draft_head.*`.

    config: a transformers configuration of the Qwen3 or Llama family. levels: codes per SID level.
    """

    def __init__(
        self, config: PretrainedConfig, levels: Sequence[int], backbone: PreTrainedModel | None = None
    ) -> None:
        super().__init__()
        if config.model_type not in FAMILIES:
            raise ValueError(f"backbone family {config.model_type!r} is not supported; use one of {FAMILIES}")
        self.config = config
        self.model = AutoModel.from_config(config) if backbone is None else backbone
        self.draft_head = DraftHead(levels, config.hidden_size)

    @property
    def levels(self) -> tuple[int, ...]:
        return self.draft_head.levels

    def input_embeddings(self) -> Tensor:
        """The backbone's token embeddings, [vocabulary, d]."""
        return self.model.get_input_embeddings().weight

    def hidden_states(self, token_ids: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """Hidden states after the final norm, [B, S, d].

        token_ids: int64 [B, S]. positions: int64 [1 or B, S]. allowed: bool [S, S] or [B, 1, S, S], True where the
        row's token may attend to the column's.
        """
        mask = allowed if allowed.dim() == 4 else allowed[None, None]
        out = self.model(input_ids=token_ids, position_ids=positions, attention_mask=mask, use_cache=False)
        return out.last_hidden_state

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """One pass over right-padded prompts: int [B, S], int [B] -> float32 h_0 .. h_L, [B, L + 1, d].

        Attention is causal, so what stands after a prompt's end cannot change it and padding needs no mask.
        """
        size = token_ids.shape[1]
        positions = torch.arange(size, device=token_ids.device)
        hidden = self.hidden_states(token_ids.long(), positions[None], positions[:, None] >= positions)
        taken = len(self.levels) + 1
        at = lengths.long()[:, None] - taken + torch.arange(taken, device=token_ids.device)
        return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[2])).float()

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

    def save_checkpoint(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` in the form that transformers reads."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.to_dict() | {HEAD_KEY: {"levels": list(self.levels)}, "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load_checkpoint(cls, folder: Path) -> NezhaModel:
        """The model that `save_checkpoint` wrote, in float32 and evaluation mode. Raises ValueError on a mismatch."""
        config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
        levels = getattr(config, HEAD_KEY, {}).get("levels")
        if not levels:
            raise ValueError(f"{folder / 'config.json'}: has no {HEAD_KEY!r}; this is not a NEZHA checkpoint")
        model = cls(config, levels)
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        except RuntimeError as error:
            raise ValueError(f"{folder / 'model.safetensors'}: does not match config.json: {error}") from error
        return model.eval()


def backbone_config(family: str = "qwen3", **fields: Any) -> PretrainedConfig:
    """A small transformers configuration of `family` ("qwen3" or "llama"), to train from scratch."""
    if family not in FAMILIES:
        raise ValueError(f"backbone family {family!r} is not supported; use one of {FAMILIES}")
    architecture = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[family]
    return AutoConfig.for_model(
        family, **fields, architectures=[architecture], attn_implementation="sdpa", tie_word_embeddings=True
    )
