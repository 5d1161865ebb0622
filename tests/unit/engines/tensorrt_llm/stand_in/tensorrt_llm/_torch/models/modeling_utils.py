"""TEST DOUBLE: model registry, meta initialisation, the stock models on transformers' backbones, the weight loader."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter
from transformers import AutoModel

MODEL_CLASS_MAPPING: dict[str, type] = {}


def register_auto_model(name):
    def decorator(cls):
        MODEL_CLASS_MAPPING[name] = cls
        return cls

    return decorator


@dataclass
class Mapping:
    pp_size: int = 1

    def has_pp(self):
        return self.pp_size > 1


@dataclass
class ModelConfig:
    pretrained_config: object
    mapping: Mapping = field(default_factory=Mapping)
    spec_config: object = None


@dataclass
class AttentionMetadata:
    """Of a packed batch: contexts, then generations. cached: each sequence's tokens that are not computed again."""

    seq_lens: torch.Tensor
    num_contexts: int
    cached: list[list[int]]
    padded_num_tokens: int | None = None

    @property
    def seq_lens_cuda(self):
        return self.seq_lens

    @property
    def num_seqs(self):
        return self.seq_lens.shape[0]

    @property
    def num_tokens(self):
        return int(self.seq_lens.sum())


class MetaInitMode(TorchDispatchMode):
    """New parameters go to `meta`, where nothing but random initialisation may touch them."""

    _EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default)
    _RANDOM = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self._EMPTY:
            kwargs = {**kwargs, "device": torch.device("meta")}
        elif func not in self._RANDOM and any(
            isinstance(one, torch.Tensor) and one.device.type == "meta" for one in tree_iter((args, kwargs))
        ):
            raise RuntimeError(f"a meta tensor met {func}")
        return func(*args, **kwargs)


class StockAttention(nn.Module):
    """Where a layer's attention is called, with its normed input by name; computes nothing."""

    def forward(self, position_ids, hidden_states, attn_metadata):
        return hidden_states


class StockLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = StockAttention()


class StockModel(nn.Module):
    """embed, layers and final norm over a packed batch: one tensor [tokens, d], padding included."""

    def __init__(self, config):
        super().__init__()
        with _disable_current_modes():
            self.backbone = AutoModel.from_config(config, attn_implementation="sdpa").to(config.dtype)
        self.layers = nn.ModuleList(StockLayer() for _ in range(config.num_hidden_layers))

    def forward(
        self, attn_metadata, input_ids=None, position_ids=None, inputs_embeds=None, spec_metadata=None, **kwargs
    ):
        packed = input_ids[: attn_metadata.num_tokens].split(attn_metadata.seq_lens.tolist())
        states, inputs = [], []
        for tokens, cached in zip(packed, attn_metadata.cached, strict=True):
            whole = torch.cat([torch.tensor(cached, dtype=torch.long), tokens.long()])
            out = self.backbone(input_ids=whole[None], output_hidden_states=True)
            states.append(out.last_hidden_state[0, len(cached) :])
            inputs.append(self.backbone.layers[-1].input_layernorm(out.hidden_states[-2][0, len(cached) :]))
        padding = states[0].new_full((len(input_ids) - attn_metadata.num_tokens, states[0].shape[1]), torch.nan)
        self.layers[-1].self_attn(
            position_ids=position_ids, hidden_states=torch.cat([*inputs, padding]), attn_metadata=attn_metadata
        )
        return torch.cat([*states, padding])


class LogitsProcessor:
    def forward(self, hidden, lm_head, attn_metadata, return_context_logits):
        last = attn_metadata.seq_lens.cumsum(0) - 1
        return lm_head(hidden if return_context_logits else hidden[last]).float()


class SpecDecOneEngineForCausalLM(nn.Module):
    def __init__(self, model_config):
        super().__init__()
        self.model_config = model_config
        config = model_config.pretrained_config
        self.model = StockModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.logits_processor = LogitsProcessor()

    @property
    def config(self):
        return self.model_config.pretrained_config

    def load_weights(self, weights, weight_mapper=None):
        """Every module with parameters takes the tensors under its own name; one without any stays as it is."""
        backbone = self.model.backbone
        backbone.load_state_dict({name[6:]: weights[name] for name in weights if name.startswith("model.")})
        self.lm_head.weight = nn.Parameter(backbone.get_input_embeddings().weight.detach())
        for name, module in self.named_modules():
            if module._parameters and not name.startswith(("model.", "lm_head")):
                own = {key[len(name) + 1 :]: tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}
                if own:
                    for key, parameter in module._parameters.items():
                        if parameter is not None:
                            parameter.data.copy_(own[key])
