"""A checkpoint's config.json: what a build reads of it, and what it asks for that a build would not do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genrec.bundle.checkpoint_shapes import DECODERS, FAMILIES
from genrec.errors import in_words
from genrec_builders.training.checkpoint_findings import UNUSABLE

CONFIG = "config.json"
UNQUANTISED = "give the checkpoint that it was made from"
_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
# What transformers takes for fields that config.json leaves out; None for what the others decide.
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128, "sliding_window": None},
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1},
    "mistral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "sliding_window": 4096,
    },
}
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
# Kinds of rotary embedding whose frequencies do not depend on the prompt's length, and what each must have.
_ROTARY: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),  # on prompts up to max_position_embeddings it is the default
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_READ = {
    *_SIZES,
    *_QWEN,
    *("model_type", "attention_bias", "mlp_bias", "hidden_act", "rms_norm_eps", "attention_dropout", "layer_types"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "is_causal", "quantization_config"),
    *("auto_map", "tie_word_embeddings"),
}
# Fields that say nothing of what the backbone computes on prompts.
_BOOKKEEPING = {
    *("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "unsloth_version"),
    *("initializer_range", "pretraining_tp", "pad_token_id", "eos_token_id", "id2label", "label2id", "problem_type"),
    *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder"),
    *("_attn_implementation", "attn_implementation", "torchscript", "unsloth_fixed"),
    *DECODERS,
}
_FAMILY = f"give a checkpoint of the family {', '.join(FAMILIES[:-1])} or {FAMILIES[-1]}"
_POINTER = b"version https://git-lfs.github.com"
_SLIDING = "sliding_attention"  # a kind of layer


def require_no_pointer(path: Path) -> None:
    """Raise ValueError for what Git LFS keeps in the place of a file that it has not fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that is there. Raises ValueError if it is of no use."""
    require_no_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {in_words(error)}; get it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is no JSON object")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """config.json, which is there, with the family's defaults. Raises ValueError if it is of no use."""
    config = read_json_object(path)
    family = config.get("model_type")
    if family is None:
        raise ValueError(f"{path}: has no model_type; {_FAMILY}")
    if family not in FAMILIES:
        raise ValueError(f"{path}: model_type {family!r} is not supported{_instead_of(config)}; {_FAMILY}")
    config = DEFAULTS[family] | config
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")
    try:
        if config.get("head_dim") is None:
            config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    except UNUSABLE:
        config["head_dim"] = 1  # the sizes that it comes from are refused now
    for name in _SIZES:
        if config.get(name) is None:
            raise ValueError(f"{path}: has no {name}")
        if type(config[name]) is not int or config[name] < 1:
            raise ValueError(f"{path}: {name} {config[name]!r} is no positive whole number")
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        shared, heads = config["num_key_value_heads"], config["num_attention_heads"]
        raise ValueError(f"{path}: num_key_value_heads {shared} does not divide num_attention_heads {heads}")
    return config


def _instead_of(config: Mapping[str, Any]) -> str:
    """What of a recommender of another kind is of use here."""
    if not config.get("is_encoder_decoder"):
        return ""
    return (
        ": an encoder with a decoder, as TIGER, LETTER-TIGER and GRID train. Its semantic IDs can be kept: "
        "`genrec build` trains a backbone on them"
    )


def unread(config: Mapping[str, Any]) -> list[str]:
    """Fields that nothing reads and that may mean something."""
    return sorted(name for name, value in config.items() if value is not None and name not in _READ | _BOOKKEEPING)


def window_in_use(config: Mapping[str, Any]) -> Any:
    """Tokens that a layer attends to at most, as config.json says it; None if all layers attend to all."""
    qwen = "use_sliding_window" in DEFAULTS[config["model_type"]]
    window = config.get("sliding_window") if not qwen or config["use_sliding_window"] else None
    if not qwen or window is None:
        return window
    kinds = config.get("layer_types")
    windowed = config["max_window_layers"] < config["num_hidden_layers"] if kinds is None else _SLIDING in kinds
    return window if windowed else None


def without_window(config: Any) -> None:
    """Take the window out of a transformers configuration, for prompts that it holds whole."""
    config.sliding_window = None
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = False
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["full_attention"] * config.num_hidden_layers


def config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What config.json asks for and a build would not do."""
    family = config["model_type"]
    if (quantised := config.get("quantization_config")) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        yield f"quantization_config {method!r} is not supported; {UNQUANTISED}"
    code = config.get("auto_map") or {}
    if not isinstance(code, dict) or any(name.startswith(("AutoModel", "AutoConfig")) for name in code):
        yield (
            f"auto_map names code of its own, which is not run; if transformers' own {family} computes the same, take "
            "auto_map out of the file"
        )
    kinds = config.get("layer_types") or []
    window = window_in_use(config)
    known = {"full_attention"} | ({_SLIDING} if window is not None else set())
    for kind in sorted({str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds])} - known):
        yield f"layer_types {kind!r} is not supported{' without a window' if kind == _SLIDING else ''}"
    if window is not None and (type(window) is not int or window < 1):
        yield f"sliding_window {window!r} is no positive whole number; set it to null for none"
    yield from _rotary_problems(config)
    usual = {"is_causal": True} | ({"mlp_bias": False} if family != "llama" else {})
    for name, value in usual.items():
        if config.get(name, value) not in (None, value):
            yield f"{name} {config[name]!r} is not supported"
    bos, rows = config["bos_token_id"], config["vocab_size"]
    if bos is not None and type(bos) is not int:
        yield f"bos_token_id {bos!r} is not supported; give one token id, or null for none"
    elif bos is not None and not 0 <= bos < rows:
        yield f"bos_token_id {bos} is not among the {rows} rows of the embedding; give another, or null for none"


def _rotary_problems(config: Mapping[str, Any]) -> Iterator[str]:
    rotary = config.get("rope_scaling") or config.get("rope_parameters") or {}  # as transformers prefers them
    if not isinstance(rotary, dict):
        yield f"rope_scaling {rotary!r} is no object"
        return
    if any(isinstance(value, dict) for value in rotary.values()):
        yield "rope_parameters are not one for all layers but one for each kind of layer, which is not supported"
        return
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind not in _ROTARY:
        yield f"rope_type {kind!r} is not supported; supported are {', '.join(_ROTARY)}"
        return
    if kind == "default":
        for name in sorted(rotary.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}):
            if rotary[name] not in (None, 1):
                yield f"rope_type 'default' would not use {name} {rotary[name]!r}"
    for name in _ROTARY[kind]:
        if rotary.get(name) is None:
            yield f"rope_type {kind!r} has no {name}"
    part = rotary.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part not in (None, 1):
        yield f"partial_rotary_factor {part!r} is not supported"
