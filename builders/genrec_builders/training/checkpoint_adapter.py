"""A LoRA adapter as peft saves it: which tensors of its base it changes, and by what."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec_builders.training.checkpoint_config import read_json_object, require_no_pointer
from genrec_builders.training.checkpoint_findings import REFUSE, USE, Finding, count
from genrec_builders.training.checkpoint_tensors import HEAD, file_shapes

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_EMBEDDING = "embed_tokens.weight"
MERGE = "merge it with peft (`merge_and_unload()`, then `save_pretrained`), and give that folder"
# Fields of adapter_config.json that change what is computed, and are off in a plain adapter.
_OTHERS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
)
_HARMLESS = ("eva_config", "megatron_config")  # and of all others that end like that, none is
# Ways to begin that leave the base as it is. All others move a part of its weights into the adapter.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?((?:model\.)?(.+?))\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?"
)
_WHOLE = re.compile(
    r"(?:base_model\.model\.)?(?:model\.)?(.+?)(?:\.modules_to_save(?:\.default)?|\.base_layer)?\.(weight|bias)"
)


@dataclass(frozen=True)
class Update:
    """W + scale B A, of the adapter's tensors `down` A [r, in] and `up` B [out, r]. An embedding's W is transposed."""

    down: str
    up: str
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter in `folder`. Tensors of the base have no prefix "model.".

    updates: by the tensor that they are added to. whole: tensors that replace the base's, by these: the name of each in
    the adapter. shapes: of the adapter's own tensors. problems: what keeps it from being merged.
    """

    folder: Path
    updates: Mapping[str, Update]
    whole: Mapping[str, str]
    shapes: Mapping[str, list[int]]
    problems: tuple[str, ...]

    @property
    def rows(self) -> int | None:
        """Rows of the token embedding that it brings along; None if it leaves the base's."""
        name = self.whole.get(_EMBEDDING)
        return None if name is None else self.shapes[name][0]

    def findings(self, shapes: Mapping[str, list[int]]) -> Iterator[Finding]:
        """What is to say about it on a base with tensors of these shapes, the output head's too if it is not tied."""
        for problem in self.problems:
            yield Finding(REFUSE, problem, self.folder)
        # Where the base ties its head to the embedding, peft saves that once more.
        tied = {HEAD} - shapes.keys() if _EMBEDDING in self.whole else set()
        if lacking := [name for name in (*self.updates, *(self.whole.keys() - tied)) if name not in shapes]:
            text = f"{ADAPTER_WEIGHTS}: changes {lacking[0]}, which the base does not have{count(lacking)}"
            yield Finding(REFUSE, f"{text}; give its own base", self.folder)
            return
        for name, shape in shapes.items():
            if name in self.whole:
                own = self.shapes[self.whole[name]]
                rows_differ = len(own) == 2 and name in (_EMBEDDING, HEAD)  # of which there may be more
                if own != shape and not (rows_differ and own[1] == shape[1]):
                    yield self._other_base(self.whole[name], own, name, shape)
            if (update := self.updates.get(name)) is not None:
                out, into = shape[::-1] if update.embedding else shape
                (rank, down), (up, inner) = self.shapes[update.down], self.shapes[update.up]
                if (up, down) != (out, (self.rows if update.embedding else None) or into) or rank != inner:
                    yield self._other_base(update.down, [up, down], name, shape)
        scales = sorted({round(update.scale, 6) for update in self.updates.values()})
        rows = "" if self.rows is None else f", one an embedding of {self.rows} rows"
        whole = f", {len(self.whole)} tensors of its own{rows}" if self.whole else ""
        by = ", ".join(f"{scale:g}" for scale in scales)
        yield Finding(USE, f"{self.folder}: LoRA adapter, {len(self.updates)} tensors merged by {by}{whole}")

    def _other_base(self, own: str, shape: list[int], name: str, base: list[int]) -> Finding:
        text = f"{ADAPTER_WEIGHTS}: {own} is for a tensor of {shape}, {name} of the base has {base}"
        return Finding(REFUSE, f"{text}; give its own base", self.folder)


def has_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter, alone or beside its base."""
    return any((folder / name).exists() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, _PICKLE))


def base_name(folder: Path) -> str:
    """What the adapter in `folder` was trained on, as it says; empty if it does not."""
    path = folder / ADAPTER_CONFIG
    return str(read_json_object(path).get("base_model_name_or_path") or "") if path.exists() else ""


def read_adapter(folder: Path) -> Adapter:
    """Look at the adapter in `folder`, but not at its weights. Raises ValueError where nothing more can be said."""
    path = folder / ADAPTER_WEIGHTS
    if not (folder / ADAPTER_CONFIG).exists():
        raise ValueError(f"{folder / ADAPTER_CONFIG}: is missing; give the folder that peft saved the adapter to")
    config = read_json_object(folder / ADAPTER_CONFIG)
    if not path.exists():
        pickled = f"; of {_PICKLE} safetensors makes it: `save_file(torch.load(...), ...)`"
        raise ValueError(f"{path}: is missing{pickled if (folder / _PICKLE).exists() else '; get it'}")
    require_no_pointer(path)
    shapes = file_shapes(path)
    problems = list(_problems(config))
    updates: dict[str, Update] = {}
    whole: dict[str, str] = {}
    factors: dict[tuple[str, str], dict[str, str]] = {}  # by a module's name with and without "model."
    strange: list[str] = []
    for name in shapes:
        if match := _FACTOR.fullmatch(name):
            factors.setdefault((match[1], match[2]), {})[match[3]] = name
        elif ".original_module." in name:
            pass  # the base's own
        elif "lora_" not in name and (match := _WHOLE.fullmatch(name)):
            whole[f"{match[1]}.{match[2]}"] = name
        else:
            strange.append(name)
    for (full, module), pair in factors.items():
        if pair.keys() != {"A", "B"} or any(len(shapes[name]) != 2 for name in pair.values()):
            strange.append(next(iter(pair.values())))
            continue
        try:
            scale = _scale(config, full, rank=shapes[pair["B"]][1])
        except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
            raise ValueError(f"{folder / ADAPTER_CONFIG}: cannot be used: {error}") from error
        updates[f"{module}.weight"] = Update(pair["A"], pair["B"], scale, "lora_embedding_" in pair["A"])
    if strange:
        problems.append(f"{ADAPTER_WEIGHTS}: tensor {strange[0]} would not be used{count(strange)}; {MERGE}")
    if not updates and not strange:
        problems.append(f"{ADAPTER_WEIGHTS}: holds no LoRA weights; give the folder that peft saved the adapter to")
    return Adapter(folder, updates, whole, shapes, tuple(problems))


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with `use_rslora` (arXiv 2312.03732)."""
    alpha = config.get("lora_alpha")
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        # peft matches the end of a module's name.
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = other
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ValueError(f"lora_alpha {alpha!r} is no number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("peft_type")
    if kind != "LORA":
        yield f"{ADAPTER_CONFIG}: peft_type {kind!r} is not supported, only 'LORA' is; {MERGE}"
    for name in config:
        if config[name] and (name in _OTHERS or (name.endswith("_config") and name not in _HARMLESS)):
            yield f"{ADAPTER_CONFIG}: {name} {config[name]!r} is not supported; {MERGE}"
    begun = config.get("init_lora_weights", True)
    if begun not in _PLAIN_BEGINNINGS:
        yield f"{ADAPTER_CONFIG}: init_lora_weights {begun!r} changes the base, too, and is not supported; {MERGE}"
