"""Adds to a bundle what TensorRT-LLM's LLM API serves it with: configuration, weights, and arguments."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from genrec.bundle import BUNDLE, CHECKPOINT, TENSORRT_LLM, Bundle, Manifest, new_bundle, seal_bundle
from genrec.bundle.checkpoint_shapes import DRAFT_HEAD, decoder_of, head_arguments
from genrec.engines.tensorrt_llm.contract import (
    ARCHITECTURES,
    BUNDLE_KEY,
    DTYPES,
    KERNELS,
    LLM_ARGUMENTS,
    RULE_TOKENS,
)
from genrec.reporting.outputs import require_replaceable, require_space

_HEADER = """\
# Arguments of tensorrt_llm.LLM for this model. max_batch_size, max_num_tokens and kv_cache_config are a deployment's to
# tune; docs/tensorrt-llm.md says why the others are as they are.
"""


@dataclass(frozen=True)
class TensorRtLlmConfig:
    """What decides how TensorRT-LLM serves a bundle.

    dtype: of the backbone, one of `DTYPES`. max_batch_size, max_num_tokens: requests and prompt tokens of one step.
    kv_cache_fraction: of the GPU memory that weights and activations leave free. reuse: keep the KV cache of prompts
    for later ones that start alike; cuda_graphs: capture batches without contexts, of which NEZHA has none.
    """

    dtype: str = DTYPES[0]
    max_batch_size: int = 64
    max_num_tokens: int = 8192
    kv_cache_fraction: float = 0.5
    reuse: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown; use one of {DTYPES}")
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size is {self.max_batch_size}; it must be at least 1")
        if not 0 < self.kv_cache_fraction < 1:
            raise ValueError(f"kv_cache_fraction is {self.kv_cache_fraction}; it must be above 0 and below 1")

    def arguments(self, max_tokens: int) -> dict[str, Any]:
        """Arguments of `tensorrt_llm.LLM` for prompts of at most `max_tokens`. Raises ValueError if one cannot fit."""
        if self.max_num_tokens < max_tokens + RULE_TOKENS:
            raise ValueError(
                f"max_num_tokens is {self.max_num_tokens}, but the longest prompt has {max_tokens} tokens, "
                f"{max_tokens + RULE_TOKENS} with a rule"
            )
        return {
            "max_batch_size": self.max_batch_size,
            "max_num_tokens": self.max_num_tokens,
            "max_seq_len": max_tokens + RULE_TOKENS + 1,
            "max_beam_width": 1,
            "skip_tokenizer_init": True,
            "enable_chunked_prefill": False,
            "disable_overlap_scheduler": True,
            "cuda_graph_config": {"max_batch_size": self.max_batch_size} if self.cuda_graphs else None,
            "kv_cache_config": {
                "free_gpu_memory_fraction": self.kv_cache_fraction,
                "enable_block_reuse": self.reuse,
                "enable_partial_reuse": False,
            },
        }


def export_tensorrt_llm(
    source: Path, out: Path, config: TensorRtLlmConfig | None = None, drop_block: int | None = None
) -> Manifest:
    """Copy the bundle `source` to `out` with a folder for TensorRT-LLM.

    drop_block: of the new bundle's prompt layout, to which no history of the golden request is long enough to matter;
    the source's if None. Raises, before any work, ValueError for a bundle of another decoder than the draft head, for a
    backbone that TensorRT-LLM's kernels do not take, and for reuse with a head that reads the history (what the cache
    keeps of a prompt is not what it reads); ValueError or OSError for an `out` that is or holds anything but another
    bundle.
    """
    config = config or TensorRtLlmConfig()
    require_replaceable(out, BUNDLE, [source])
    bundle = Bundle(source)
    bundle.check()
    checkpoint = json.loads((source / CHECKPOINT / "config.json").read_text())
    if (decoder := decoder_of(checkpoint)) != DRAFT_HEAD:
        raise ValueError(f"{source}: has decoder {decoder!r}; TensorRT-LLM serves {DRAFT_HEAD!r} only")
    require_kernels(checkpoint, config.dtype, source)
    if config.reuse and head_arguments(checkpoint[DRAFT_HEAD])["attention_heads"]:
        raise ValueError(
            f"{source}: its draft head reads the whole history, of which reuse would hide what is cached: every prompt "
            "would be computed again. Leave reuse off, or build the bundle with --attention-heads 0"
        )
    fields = bundle.manifest.model_dump(exclude={"files"})
    if drop_block is not None:
        fields["prompt"]["drop_block"] = replace(bundle.layout, drop_block=drop_block).drop_block  # checked
    arguments = config.arguments(bundle.layout.max_tokens)
    files = bundle.manifest.files
    require_space(
        out,
        sum(file.bytes for file in files.values()) + files[f"{CHECKPOINT}/model.safetensors"].bytes,
        "the copy",
    )
    with new_bundle(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        _write_folder(folder / TENSORRT_LLM, checkpoint, folder / CHECKPOINT, config.dtype, arguments)
        version = f"{bundle.manifest.bundle_version}-trtllm"
        return seal_bundle(folder, **(fields | {"bundle_version": version}))


def require_kernels(checkpoint: dict[str, Any], dtype: str, source: Path) -> None:
    """Raise ValueError for a backbone that TensorRT-LLM's kernels do not take: it would end its server in the warm-up.

    checkpoint: its config.json. source: the bundle, for the message.
    """
    family = checkpoint["model_type"]
    if family not in KERNELS:
        raise ValueError(
            f"{source}: its backbone is of the family {family}; the TensorRT-LLM model is written for "
            f"{' and '.join(KERNELS)}. Serve it with `genrec serve --engine torch`"
        )
    taken = KERNELS[family]
    size = checkpoint.get("head_dim") or checkpoint["hidden_size"] // checkpoint["num_attention_heads"]
    if size not in taken.head_dims:
        raise ValueError(
            f"{source}: its attention heads are {size} wide; TensorRT-LLM's kernels for {family} take "
            f"{', '.join(map(str, taken.head_dims))}. Build with fewer or wider heads, as --hidden-size 128 --heads 2, "
            "or serve it with `genrec serve --engine torch`"
        )
    if dtype not in taken.dtypes:
        raise ValueError(
            f"dtype is {dtype}; TensorRT-LLM's kernels for {family} compute in {' or '.join(taken.dtypes)}, choose that"
        )


def _write_folder(
    folder: Path, checkpoint: dict[str, Any], weights: Path, dtype_name: str, arguments: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    up = "/".join(".." for _ in Path(TENSORRT_LLM).parts)
    model = _configuration(checkpoint, dtype_name) | {BUNDLE_KEY: up}
    (folder / "config.json").write_text(json.dumps(model, indent=2, sort_keys=True) + "\n")
    dtype = getattr(torch, dtype_name)
    tensors = {
        name: tensor if name.startswith(f"{DRAFT_HEAD}.") else tensor.to(dtype)
        for name, tensor in load_file(weights / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / LLM_ARGUMENTS).write_text(_HEADER + yaml.safe_dump(arguments, sort_keys=False))


def _configuration(checkpoint: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The checkpoint's configuration for both generations of transformers that TensorRT-LLM releases use.

    Ours writes version 5's names. Version 4 knows `rope_theta` and `rope_scaling` instead of `rope_parameters`, and
    would take its defaults without a word.
    """
    model = {name: value for name, value in checkpoint.items() if name != "_name_or_path"}
    model |= {"architectures": [ARCHITECTURES[checkpoint["model_type"]]], "dtype": dtype, "torch_dtype": dtype}
    rope = dict(checkpoint.get("rope_parameters") or {})
    if rope:
        model["rope_theta"] = rope.pop("rope_theta")
        model["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    return model
