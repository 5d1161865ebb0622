"""Checks a checkpoint against its own configuration, without torch."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.errors import in_words, shown
from genrec.json_files import MOST_JSON_BYTES, parse_json, read_json
from genrec.prompt import PromptLayout

FAMILIES = ("qwen3", "llama", "qwen2", "mistral")  # transformers' model types
DRAFT_HEAD, BEAM_SEARCH = DECODERS = ("draft_head", "beam_search")  # keys of config.json, one in each checkpoint
MOST_LAYERS = 1000  # of a backbone
MOST_SIZE = 2**31 - 1
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
# What a file of another kind can raise while it is taken apart.
_UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class HeadShape:
    """Sizes of what every beam of the draft head computes; see `DraftHead`.

    attention_heads: with which the transitions read the history, 0 for transitions that do not.
    """

    state_size: int = 128
    transition_size: int = 256
    attention_heads: int = 4

    def __post_init__(self) -> None:
        require_attention_heads(self.attention_heads, self.state_size)


def checkpoint_problems(folder: Path, levels: Sequence[int], layout: PromptLayout) -> Iterator[str]:
    """What is wrong with the checkpoint in `folder`: `file: problem` texts, none if it can be served.

    levels: codes per level that the decoder must have. layout: its token ids must fit into the vocabulary, and the
    beam search must decode the same ones.
    """
    try:
        config = read_json(folder / "config.json")
        expected = expected_shapes(config, levels)
        yield from _decoder_problems(config, levels, layout)
        generated = len(levels) - 1 if BEAM_SEARCH in config else 0
    except _UNUSABLE as error:
        yield f"config.json: cannot be used: {in_words(error)}"
        return
    if config["vocab_size"] < layout.vocabulary_size:
        have, need = config["vocab_size"], layout.vocabulary_size
        yield f"config.json: vocab_size {have} is below the layout's {need} token ids"
    positions = config.get("max_position_embeddings", 0)
    if positions < (need := layout.max_tokens + generated):
        yield f"config.json: max_position_embeddings {positions} is below the longest prompt's {need}"
    try:
        found = safetensors_shapes(folder / "model.safetensors")
    except _UNUSABLE as error:
        yield f"model.safetensors: cannot be read: {in_words(error)}"
        return
    for name in sorted(expected.keys() - found.keys()):
        yield f"model.safetensors: tensor {name} is missing"
    for name in sorted(found.keys() - expected.keys()):
        yield f"model.safetensors: tensor {name} does not belong to this configuration"
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            yield f"model.safetensors: tensor {name} has shape {found[name]}, config.json says {expected[name]}"


def expected_shapes(config: dict, levels: Sequence[int]) -> dict[str, list[int]]:
    """Shape of every tensor of a backbone of `FAMILIES` with its decoder. Raises KeyError, ValueError.

    The decoder is a draft head for `levels`, or beam search if `config` names it, whose only tensors are those of
    output heads that are not the embeddings.
    """
    for name in _SIZES:
        if name in config and (type(config[name]) is not int or not 0 <= config[name] <= MOST_SIZE):
            raise ValueError(f"{name} is {shown(config[name])}; it must be a whole number of 0 to {MOST_SIZE}")
    family = config["model_type"]
    if family not in FAMILIES:
        raise ValueError(f"model_type {shown(family)} is none of {', '.join(FAMILIES)}")
    d, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or d // heads
    layer = {
        "input_layernorm.weight": [d],
        "post_attention_layernorm.weight": [d],
        "self_attn.q_proj.weight": [heads * head_dim, d],
        "self_attn.k_proj.weight": [kv_heads * head_dim, d],
        "self_attn.v_proj.weight": [kv_heads * head_dim, d],
        "self_attn.o_proj.weight": [d, heads * head_dim],
        "mlp.gate_proj.weight": [inner, d],
        "mlp.up_proj.weight": [inner, d],
        "mlp.down_proj.weight": [d, inner],
    }
    if family == "qwen3":
        layer |= {"self_attn.q_norm.weight": [head_dim], "self_attn.k_norm.weight": [head_dim]}
    biased = "qkv" if family == "qwen2" else "qkvo" if family != "mistral" and config.get("attention_bias") else ""
    for name in biased:
        layer[f"self_attn.{name}_proj.bias"] = layer[f"self_attn.{name}_proj.weight"][:1]
    if family == "llama" and config.get("mlp_bias"):
        layer |= {"mlp.gate_proj.bias": [inner], "mlp.up_proj.bias": [inner], "mlp.down_proj.bias": [d]}
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], d], "model.norm.weight": [d]}
    if not 0 <= (layers := config["num_hidden_layers"]) <= MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {shown(layers)}; at most {MOST_LAYERS} are read")
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    if decoder_of(config) == BEAM_SEARCH:
        if config[BEAM_SEARCH].get("heads"):
            shapes |= {f"heads.{level}": [size, d] for level, size in enumerate(levels)}
        return shapes
    settings = head_arguments(config[DRAFT_HEAD] | {"levels": levels})
    state, wide = settings["state_size"], settings["transition_size"]
    shapes["draft_head.initial_state.weight"] = [state, d]
    for level, size in enumerate(levels):
        shapes[f"draft_head.projections.{level}.weight"] = [size, d]
        shapes[f"draft_head.state_projections.{level}.weight"] = [size, state]
    for level, size in enumerate(levels[:-1]):
        shapes[f"draft_head.embeddings.{level}.weight"] = [size, state]
        shapes[f"draft_head.transition_inputs.{level}.weight"] = [2 * wide, state]
        shapes[f"draft_head.transition_inputs.{level}.bias"] = [2 * wide]
        shapes[f"draft_head.transition_states.{level}.weight"] = [2 * wide, state]
        shapes[f"draft_head.transition_outputs.{level}.weight"] = [state, wide]
    if settings["attention_heads"]:
        for name in ("keys", "values"):
            shapes[f"draft_head.transition_{name}.weight"] = [state, d]
        for level in range(len(levels) - 1):
            for name in ("queries", "mixes"):
                shapes[f"draft_head.transition_{name}.{level}.weight"] = [state, state]
    return shapes


def head_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`DraftHead`'s arguments but the hidden size, as `config.json` says. Raises LookupError, ValueError."""
    arguments = {name: settings[name] for name in ("levels", "state_size", "transition_size")}
    heads = settings.get("attention_heads", 0)  # older checkpoints do not say
    require_attention_heads(heads, arguments["state_size"])
    return arguments | {"attention_heads": heads}


def require_attention_heads(heads: int, state_size: int) -> None:
    """Raises ValueError for a number of heads that the draft head cannot read the history with."""
    if heads < 0 or (heads and state_size % heads):
        raise ValueError(f"attention heads {heads} must divide the state size {state_size}, or be 0 to read no history")


def decoder_of(config: dict) -> str:
    """Which of `DECODERS` a checkpoint's configuration is for. Raises ValueError."""
    named = [name for name in DECODERS if name in config]
    if len(named) != 1:
        raise ValueError(f"must have one of the keys {DECODERS}, has {named}")
    return named[0]


def _decoder_problems(config: dict, levels: Sequence[int], layout: PromptLayout) -> Iterator[str]:
    decoder = decoder_of(config)
    settings = config[decoder]
    if settings["levels"] != list(levels):
        yield f"config.json: {decoder} has levels {settings['levels']}, not {list(levels)}"
    placeholders = 0 if decoder == BEAM_SEARCH else len(levels)
    if len(layout.placeholders) != placeholders:
        yield f"config.json: {decoder} wants prompts with {placeholders} placeholders, not {len(layout.placeholders)}"
    if decoder == BEAM_SEARCH and settings["sid_tokens"] != [[list(run) for run in runs] for runs in layout.sid_tokens]:
        yield "config.json: beam_search has other sid_tokens than the prompt layout"


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Tensor shapes from the header of a safetensors file. Raises OSError or ValueError."""
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(8)
        if len(head) < 8 or (length := struct.unpack("<Q", head)[0]) > size - 8:
            raise ValueError("it is cut short")
        if length > MOST_JSON_BYTES:
            raise ValueError(f"has a header of {length} bytes; at most {MOST_JSON_BYTES} are read")
        header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    if max((entry["data_offsets"][1] for entry in header.values()), default=0) != size - 8 - length:
        raise ValueError("its data does not fill the space that its header names")
    return {name: list(entry["shape"]) for name, entry in header.items()}
