"""How much memory of a GPU the PyTorch engine will need, before it takes any. Arithmetic only.

Activations are an upper estimate, held against what PyTorch takes on the CPU by a test. What is marked as assumed was
never measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DRAFT_HEAD, decoder_of, expected_shapes, head_arguments
from genrec.catalog import PrefixTable
from genrec.engines.buckets import Buckets

_GRAPH = 8 << 20  # assumed of a recording: its nodes and their arguments
_LIBRARIES = 512 << 20  # assumed: workspaces, and kernels that are loaded at first use
_FLOAT = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device, by what they are for.

    masks: the catalogue's, twice, for a larger table that takes the place of one. activations: of the largest bucket,
    twice, once outside of the recordings and once in their pool.
    """

    weights: int
    masks: int
    rules: int
    activations: int
    recordings: int
    libraries: int = _LIBRARIES

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def plan_memory(
    config: Mapping[str, Any],
    masks: PrefixTable,
    beam_width: int,
    rule_bytes: int,
    half: bool,
    buckets: Buckets | None,
) -> MemoryPlan:
    """What an engine over a checkpoint needs.

    config: its config.json. half: whether the backbone is in bf16. buckets: without them activations are left out,
    whose size is then not known before a batch comes.
    """
    activations = 0
    if buckets is not None:
        activations = 2 * activation_bytes(config, beam_width, half, buckets.batches[-1], buckets.lengths[-1])
    return MemoryPlan(
        weights=weight_bytes(config, half),
        masks=2 * sum(array.nbytes for array in (*masks.bits, *masks.keys)),
        rules=rule_bytes,
        activations=activations,
        recordings=_GRAPH * (0 if buckets is None else len(buckets)),
    )


def weight_bytes(config: Mapping[str, Any], half: bool) -> int:
    """Of a checkpoint's tensors and its rotary tables: the backbone in bf16 or float32, the rest in float32."""
    shapes = expected_shapes(dict(config), config[decoder_of(dict(config))]["levels"])
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    backbone = sum(size for name, size in sizes.items() if name.startswith("model."))
    tables = config["max_position_embeddings"] * _head_width(config)  # sine and cosine of half the width each
    return backbone * (2 if half else 4) + _FLOAT * (sum(sizes.values()) - backbone + tables)


def activation_bytes(config: Mapping[str, Any], beam_width: int, half: bool, batch: int, tokens: int) -> int:
    """The most that is alive at once while `batch` prompts of `tokens` tokens are drafted for."""
    decoder, value = decoder_of(dict(config)), 2 if half else _FLOAT
    d, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    width = _head_width(config)
    queries, keys = (width * config[name] for name in ("num_attention_heads", "num_key_value_heads"))
    rows, levels = batch * tokens, config[decoder]["levels"]
    # A layer's attention: queries and keys as they are, normed, turned and in halves; shared keys and values repeated.
    # Its feed-forward part: gate, its activation, up, and their product.
    layer = max(5 * queries + 6 * keys + 2 * queries, 4 * inner)
    each = value * (3 * d + layer)
    prefill, beams = rows * each, batch * beam_width
    # Logits, log-probabilities, masks as numbers and added up, and their sums.
    scores = beams * max(levels) * 8 * _FLOAT
    if decoder == BEAM_SEARCH:
        # Of every layer, the prompts' and the beams' own, which are carried over to their children as copies.
        cache = 2 * layers * value * keys * (rows + 2 * beams * len(levels))
        weights = beams * config["num_attention_heads"] * (tokens + len(levels)) * 3 * _FLOAT
        step = beams * (each + value * len(levels) * queries) + weights
        return cache + max(prefill, scores, step)
    head = head_arguments(config[DRAFT_HEAD])
    # What the last layer read, in float32, keys and values of it, and every beam's weights of it.
    history = rows * _FLOAT * (d + 3 * head["state_size"]) + rows * value * d
    read = beams * head["attention_heads"] * tokens * 3 * _FLOAT
    states = (beams + max(levels)) * _FLOAT * (8 * head["transition_size"] + 6 * head["state_size"])
    return max(prefill + history, history + states + max(scores, read))


def _head_width(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def require_room(plan: MemoryPlan, free: int, device: str) -> None:
    """Raise ValueError if the plan needs more than the `free` bytes of a device."""
    if plan.total <= free:
        return
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in asdict(plan).items())
    raise ValueError(
        f"this needs about {plan.total / 2**30:.2f} GiB of {device}, which has {free / 2**30:.2f} free ({parts}): "
        "use bf16, a smaller max-batch-size, fewer rules (rules-memory-mb), or a GPU with more memory"
    )
