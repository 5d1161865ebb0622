"""The files of a checkpoint's weights: which tensors there are, against what config.json says."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DECODERS, expected_shapes, safetensors_shapes
from genrec.errors import in_words
from genrec_builders.training.checkpoint_config import CONFIG, UNQUANTISED, require_no_pointer
from genrec_builders.training.checkpoint_findings import DROP, REFUSE, UNUSABLE, USE, Finding, count, examples

WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
WEIGHTS_FILES = [each for name in (WEIGHTS, PICKLE) for each in (name, f"{name}.index.json")]
HEAD = "lm_head.weight"
_APART = "give base and adapter as peft saves them, --checkpoint BASE --adapter DIR"
_QUANTISED = (".qweight", ".qzeros", ".scales", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB")


def backbone_shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of the backbone's tensors, by names without the prefix "model."."""
    plain = {name: value for name, value in config.items() if name not in DECODERS}
    # Beam search has no tensors of its own.
    return {
        name.removeprefix("model."): shape for name, shape in expected_shapes(plain | {BEAM_SEARCH: {}}, ()).items()
    }


def unused(
    names: Iterable[str], expected: Collection[str], config: Mapping[str, Any]
) -> tuple[list[str], list[Finding]]:
    """Tensors that a backbone with the tensors `expected` would leave out: of layers, and findings on all others."""
    within: list[str] = []
    beside: list[str] = []
    for name in sorted(names):
        bare = name.removeprefix("model.")
        if bare in expected or bare.endswith("rotary_emb.inv_freq"):
            continue
        (within if bare.startswith(("layers.", "embed_tokens.", "norm.")) else beside).append(name)
    findings = []
    if HEAD in beside:
        beside.remove(HEAD)
        if config.get("tie_word_embeddings"):
            findings.append(Finding(USE, f"{HEAD} is the embedding once more, {CONFIG} says"))
        else:
            does = "beam search scores codes with its rows, and a draft head replaces it"
            findings.append(Finding(USE, f"{HEAD}, an output head of its own: {does}"))
    if beside:
        findings.append(Finding(DROP, f"{examples(beside)}: no part of the backbone"))
    return within, findings


def read_shapes(folder: Path) -> tuple[str, dict[str, list[int]] | None]:
    """The file of the weights, as transformers would choose, and their shapes, None if only torch can tell."""
    for name in WEIGHTS_FILES:
        if (path := folder / name).exists():
            require_no_pointer(path)
            files = _indexed(path) if name.endswith(".json") else [name]
            if name.startswith(PICKLE):
                return name, None
            return name, {tensor: shape for file in files for tensor, shape in file_shapes(folder / file).items()}
    others = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".h5")
    )
    there = f"; {examples(others)} is no such file" if others else ""
    raise ValueError(f"{folder}: has no weights: neither {WEIGHTS} nor {WEIGHTS}.index.json nor {PICKLE}{there}")


def _indexed(path: Path) -> list[str]:
    """Names of the files that an index names, all of which are there."""
    require_no_pointer(path)
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (path.parent / name).is_file()]
    except UNUSABLE as error:
        raise ValueError(f"{path}: cannot be read: {in_words(error)}; get it again") from error
    if missing:
        raise ValueError(f"{path.parent / missing[0]}: is missing, but {path.name} names it; get it")
    for name in names:
        require_no_pointer(path.parent / name)
    return names


def file_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes by name of a safetensors file. Raises ValueError for one that cannot be read."""
    try:
        return safetensors_shapes(path)
    except UNUSABLE as error:
        raise ValueError(f"{path}: cannot be read: {in_words(error)}; get it again") from error


def compared(
    config: Mapping[str, Any], file: str, found: Mapping[str, list[int]], expected: Mapping[str, list[int]]
) -> Iterator[Finding]:
    """The tensors of a file against those of the configuration."""
    names = {name.removeprefix("model."): name for name in found}
    if any("lora_" in name for name in found):
        yield Finding(REFUSE, f"{file}: holds LoRA weights among the others; {_APART}")
        return
    if missing := [name for name in expected if name not in names]:
        yield Finding(
            REFUSE, f"{file}: tensor model.{missing[0]} is missing{count(missing)}{_instead(missing[0], found)}"
        )
    for name, says in {**expected, HEAD: expected["embed_tokens.weight"]}.items():
        if name in names and found[names[name]] != says:
            shape = found[names[name]]
            yield Finding(REFUSE, f"{file}: tensor {names[name]} has shape {shape}, {CONFIG} says {says}")
    within, others = unused(found, expected, config)
    if within and not missing:
        yield Finding(REFUSE, f"{file}: tensor {within[0]} would not be used by this {CONFIG}{count(within)}")
    yield from others


def _instead(missing: str, found: Iterable[str]) -> str:
    """What a file has in the place of the tensor `missing`, if that says what to do."""
    stem = missing.removesuffix(".weight")
    for name in found:
        if name.removeprefix("model.").startswith(stem) and name.endswith(_QUANTISED):
            return f"; {name} is there: the weights are quantised, {UNQUANTISED}"
    for name in found:
        if name.endswith(f".{missing}"):
            return f"; {name} is there: save the language model itself, not what wraps it"
    return ""
