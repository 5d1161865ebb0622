"""Small checkpoints as people have them, saved by transformers: the examples of docs/checkpoints.md, by folder name.

Each has 3 levels of 16 codes. Weights are random and far from their initial values, so that nothing small hides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LEVELS = (16, 16, 16)
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "attn_implementation": "sdpa",
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
TEXT = ["<unk>", "<s>", "tent", "lamp", "shoe"]


def names_of(*patterns: str) -> list[str]:
    return [pattern.format(code) for pattern in patterns for code in range(16)]


def save_tokenizer(folder: Path, added: Sequence[str]) -> None:
    """A tokenizer of a few words, to which `added` were added."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(TEXT)}, unk_token="<unk>"))
    tokenizer.add_tokens([AddedToken(name, special=True) for name in added])
    tokenizer.save(str(folder / "tokenizer.json"))


def save_model(folder: Path, family: str, rows: int, dtype: str = "float32", **fields: Any) -> PreTrainedModel:
    """A causal language model in shards of at most 20 kB."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=rows, **(SIZES | fields)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


def save_adapter(
    folder: Path, base: PreTrainedModel, rows: int | None = None, rank: int = 4, **fields: Any
) -> dict[str, torch.Tensor]:
    """A LoRA adapter as peft saves it, of queries and values; with `rows`, embedding and head of so many rows."""
    torch.manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "shop/base", "r": rank, "lora_alpha": 16, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "v_proj"]} | fields))
    tensors = {}
    for name, parameter in base.named_parameters():
        if ".q_proj.weight" in name or ".v_proj.weight" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = 0.2 * torch.randn(rank, parameter.shape[1])
            tensors[f"{module}.lora_B.weight"] = 0.2 * torch.randn(parameter.shape[0], rank)
        elif rows is not None and name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[f"base_model.model.{name}"] = 0.2 * torch.randn(rows, parameter.shape[1])
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def minionerec(folder: Path) -> None:
    """Qwen2.5: biases of attention, tied, bf16, rows padded to a multiple of 64."""
    save_model(folder, "qwen2", 64, "bfloat16", tie_word_embeddings=True)
    save_tokenizer(folder, names_of("<a_{}>", "<b_{}>", "<c_{}>"))


def openonerec(folder: Path) -> None:
    """Qwen3: begin and end markers, an output head of its own."""
    added = ["<|sid_begin|>", "<|sid_end|>", *names_of("<s_a_{}>", "<s_b_{}>", "<s_c_{}>")]
    save_model(folder, "qwen3", 56, head_dim=8)
    save_tokenizer(folder, added)


def lc_rec(folder: Path) -> None:
    """Llama without the codes, and a LoRA adapter that brings them along, apart from it."""
    base = save_model(folder, "llama", len(TEXT))
    adapter = folder.with_name(f"{folder.name}-adapter")
    save_adapter(adapter, base, rows=len(TEXT) + 48)
    save_tokenizer(folder, [])
    save_tokenizer(adapter, names_of("<a_{}>", "<b_{}>", "<c_{}>"))


def llama3(folder: Path) -> None:
    """Llama 3: scaled rotary positions, tied; tokens known from `added_tokens.json` alone."""
    save_model(folder, "llama", 56, rope_parameters=LLAMA3, tie_word_embeddings=True)
    added = names_of("<|sid_0_{}|>", "<|sid_1_{}|>", "<|sid_2_{}|>")
    numbers = {name: number for number, name in enumerate(added, len(TEXT))}
    (folder / "added_tokens.json").write_text(json.dumps(numbers))


def mistral(folder: Path) -> None:
    """Mistral: a sliding window that prompts of 20 items do not exceed."""
    save_model(folder, "mistral", 56, sliding_window=64)
    save_tokenizer(folder, names_of("<a_{}>", "<b_{}>", "<c_{}>"))


def tiger(folder: Path) -> None:
    """T5, as TIGER, LETTER-TIGER and GRID train it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "minionerec": minionerec,
    "openonerec": openonerec,
    "lc-rec": lc_rec,
    "llama3": llama3,
    "mistral": mistral,
    "tiger": tiger,
}
