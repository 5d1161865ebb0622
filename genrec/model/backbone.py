"""A backbone that recommends, whatever decodes its semantic IDs, and its checkpoint on disk."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DynamicCache, PretrainedConfig, PreTrainedModel

from genrec.bundle.checkpoint_shapes import DECODERS, FAMILIES
from genrec.errors import in_words
from genrec.model.beam import Drafted
from genrec.model.fused import CausalAttention
from genrec.model.layers import Heads, LayerCache, Rotation, additive, finish, keys_values, norm, queries
from genrec.model.masks import Masks

Model = TypeVar("Model", bound="BackboneModel")


class BackboneModel(nn.Module, ABC):
    """A backbone and its way of drafting semantic IDs. Parameter names: `model.*` as in transformers.

    config: a transformers configuration of `FAMILIES`. backbone: its weights, or None for random ones.
    Subclasses name their decoder in `DECODER`, under which `config.json` keeps their `settings`.
    """

    DECODER: ClassVar[str]

    def __init__(self, config: PretrainedConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__()
        if config.model_type not in FAMILIES:
            raise ValueError(f"backbone family {config.model_type!r} is not supported; use one of {FAMILIES}")
        self.config = config
        self.model = AutoModel.from_config(config) if backbone is None else backbone
        # Of every position, once: a constant in a graph, and no trigonometry on the request path.
        with torch.no_grad():
            at = torch.arange(config.max_position_embeddings)[None]
            tables = self.model.rotary_emb(torch.zeros(1), at)
        for name, table in zip(("rotary_cos", "rotary_sin"), tables, strict=True):
            # They hold every pair's angle twice.
            self.register_buffer(name, table[0, :, : table.shape[-1] // 2].clone(), persistent=False)

    @property
    @abstractmethod
    def levels(self) -> tuple[int, ...]:
        """Codes per SID level, T_0 .. T_{L-1}."""

    @abstractmethod
    def draft(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        masks: Masks,
        beam_width: int,
    ) -> Drafted:
        """Draft for right-padded prompts, int [B, S] and int [B].

        beam_width: K.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `config.json` says of the decoder."""

    @classmethod
    @abstractmethod
    def from_settings(cls: type[Model], config: PretrainedConfig, settings: dict[str, Any]) -> Model:
        """A model with random weights, of what `config.json` says. Raises LookupError, TypeError or ValueError."""

    def input_embeddings(self) -> Tensor:
        """The backbone's token embeddings, [vocabulary, d]."""
        return self.model.get_input_embeddings().weight

    def hidden_states(
        self, token_ids: Tensor, positions: Tensor, allowed: Tensor, cache: DynamicCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states after the final norm, and those before the last layer and its norm, [B, S, d] each.

        token_ids: int64 [B, S]. positions: int64 [1 or B, S]. allowed: bool [S, S] or [B, 1, S, S], True where the
        row's token may attend to the column's. cache: keys and values of C tokens that stand before these, which are
        added to it; the columns are then those C and these S.
        """
        mask = allowed if allowed.dim() == 4 else allowed[None, None]
        options = {"use_cache": cache is not None, "past_key_values": cache, "output_hidden_states": True}
        out = self.model(input_ids=token_ids, position_ids=positions, attention_mask=mask, **options)
        return out.last_hidden_state, out.hidden_states[-2]

    def causal_states(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`hidden_states` of plain sequences, int64 [B, S], where every token sees itself and those before it."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        return self.hidden_states(token_ids, positions[None], positions[:, None] >= positions)

    def read_prompts(
        self, token_ids: Tensor, lengths: Tensor, count: int, keep: bool = True
    ) -> tuple[Tensor, list[LayerCache], Tensor]:
        """The prefill of inference: one pass over right-padded prompts, int [B, S] and int [B].

        Returns the last `count` positions' hidden states after the final norm, [B, count, d], in the weights' type, the
        keys and values of the prompts in every layer, and what the last layer reads of all positions, after its norm,
        [B, S, d]. keep: whether the keys and values are wanted; else the list is of no use.
        """
        token_ids, lengths = token_ids.long(), lengths.long()
        rows = token_ids.shape[1]
        positions = torch.arange(rows, device=token_ids.device)
        dtype = self.input_embeddings().dtype
        inside = additive(positions < lengths[:, None], dtype)[:, None, None]
        hidden = self.model.embed_tokens(token_ids)
        rotation = self.rotation(torch.zeros_like(positions[:1]))
        heads = Heads.of(self.model.layers[0].self_attn)
        # ONNX Runtime's fused attention knows no shared heads: a graph has it written out, with all scores of a prompt.
        fused = heads.members == 1 or not torch.onnx.is_in_onnx_export()
        if not fused:
            causal = additive(positions[:, None] >= positions, dtype).repeat_interleave(heads.members, 0)
        caches: list[LayerCache] = []
        for number, layer in enumerate(self.model.layers, 1):
            normed, attention = norm(layer.input_layernorm, hidden), layer.self_attn
            last = number == len(self.model.layers)
            keys, values = keys_values(attention, normed, rows, rotation)
            if keep or last or not fused:
                caches.append(LayerCache(heads, keys, values, rows, inside, attention.scaling))
            # Attention is causal: padding, which stands behind a prompt, is seen by nothing but padding.
            if not last:
                asked = queries(attention, normed, rows, rotation)
                if fused:
                    mixed = CausalAttention.apply(asked, keys, values, heads.groups, attention.scaling)
                else:
                    mixed = caches[-1].attend_prompt(asked, rows, causal)
            else:  # only the way of the last positions goes on
                inputs = normed
                hidden, normed = last_positions(hidden, lengths, count), last_positions(normed, lengths, count)
                at = lengths[:, None] - count + torch.arange(count, device=lengths.device)
                asked = queries(attention, normed, count, self.rotation(at))
                seen = additive(positions <= at[..., None], dtype).repeat_interleave(heads.members, 1)[:, None]
                mixed = caches[-1].attend_prompt(asked, count, seen)
            hidden = finish(layer, hidden, mixed)
        return norm(self.model.norm, hidden), caches, inputs

    @contextmanager
    def only_positions(self, count: int) -> Iterator[None]:
        """Within, the rotary tables hold the first `count` positions: all that a graph of shorter prompts needs."""
        whole = {name: self.get_buffer(name) for name in ("rotary_cos", "rotary_sin")}
        try:
            for name, table in whole.items():
                setattr(self, name, table[:count].clone())
            yield
        finally:
            for name, table in whole.items():
                setattr(self, name, table)

    def rotation(self, positions: Tensor) -> Rotation:
        """Rotary embedding at int64 [B, R], or [1], the first of consecutive positions."""
        return Rotation(positions, self.get_buffer("rotary_cos"), self.get_buffer("rotary_sin"))

    def save_checkpoint(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` in the form that transformers reads."""
        folder.mkdir(parents=True, exist_ok=True)
        # A backbone may come from a checkpoint with another decoder.
        config = {name: value for name, value in self.config.to_dict().items() if name not in DECODERS}
        config |= {self.DECODER: self.settings(), "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(
            0o644
        )  # save_file leaves it to its owner, who is not the one who serves it

    @classmethod
    def load_checkpoint(cls: type[Model], folder: Path) -> Model:
        """The model that `save_checkpoint` wrote, in float32 and evaluation mode. Raises ValueError on a mismatch."""
        config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
        settings = getattr(config, cls.DECODER, None)
        if settings is None:
            raise ValueError(f"{folder / 'config.json'}: has no {cls.DECODER!r}; it is no checkpoint of {cls.__name__}")
        try:
            model = cls.from_settings(config, settings)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / 'config.json'}: {cls.DECODER!r} cannot be used: {in_words(error)}") from error
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        except RuntimeError as error:
            raise ValueError(f"{folder / 'model.safetensors'}: does not match config.json: {error}") from error
        return model.eval()


def last_positions(hidden: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The last `count` positions of right-padded prompts: [B, S, d], int [B] -> [B, count, d]."""
    at = lengths.long()[:, None] - count + torch.arange(count, device=hidden.device)
    return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[2]))


def backbone_config(family: str = "qwen3", **fields: Any) -> PretrainedConfig:
    """A small transformers configuration of `family`, of `FAMILIES`, to train from scratch."""
    if family not in FAMILIES:
        raise ValueError(f"backbone family {family!r} is not supported; use one of {FAMILIES}")
    if family == "mistral":
        fields = {"sliding_window": None} | fields
    architecture = f"{family.capitalize()}ForCausalLM"
    return AutoConfig.for_model(
        family, **fields, architectures=[architecture], attn_implementation="sdpa", tie_word_embeddings=True
    )
