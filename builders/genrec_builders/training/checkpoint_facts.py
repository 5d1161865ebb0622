"""What a build would use of a Hugging Face folder, what it would drop, and why it would refuse it; without torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from genrec.bundle import CHECKPOINT, MANIFEST, TOKENIZER, Bundle
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DECODERS, FAMILIES, expected_shapes, safetensors_shapes
from genrec.errors import in_words

CONFIG, WEIGHTS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
USE, NEW, WARNING, DROP, REFUSE = "use", "new", "warning", "drop", "refuse"
# What transformers takes for fields that config.json leaves out; None for what the others decide.
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 28,
    },
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1},
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
    *DEFAULTS["qwen3"],
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
_HEAD = "lm_head.weight"
_POINTER = b"version https://git-lfs.github.com"
_QUANTISED = (".qweight", ".qzeros", ".scales", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB")
_MERGE = "merge it into its base first (peft: `merge_and_unload()`, then `save_pretrained`), and give that folder"
_LANGUAGE_MODEL = "give a causal language model's folder"
_UNQUANTISED = "give the checkpoint that it was made from"
_FAMILY = f"give a checkpoint of the {' or '.join(FAMILIES)} family"
# What a file of another kind can raise while it is taken apart.
_UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class Finding(NamedTuple):
    """One fact. kind: USE, NEW for what starts random because it was asked for, WARNING, DROP or REFUSE."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class CheckpointFacts:
    """What the files of `folder` say. config: config.json with the family's defaults.

    file: where the weights are, or the index of their files. shapes: of the backbone's tensors by this configuration,
    without the prefix "model.". has_head: whether there is an output head beside it; None if only torch can tell.
    """

    folder: Path
    config: dict[str, Any]
    file: str
    shapes: dict[str, list[int]]
    has_head: bool | None
    findings: tuple[Finding, ...]

    @property
    def rows(self) -> int:
        """Rows of the token embedding."""
        return int(self.config["vocab_size"])


def read_facts(folder: Path) -> CheckpointFacts:
    """Look at every file of `folder` that a build reads, but not at the weights themselves.

    Raises ValueError where nothing more can be said; the rest of what is wrong is among the findings.
    """
    _require_folder(folder)
    config = _read_config(folder)
    findings = [Finding(REFUSE, f"{CONFIG}: {problem}") for problem in _unsupported(config)]
    if base := _adapter(folder):
        findings.append(base)
    file, found = _tensors(folder)
    expected = backbone_shapes(config)
    layers, wide = config["num_hidden_layers"], config["hidden_size"]
    sizes = f"{layers} layers, {wide} wide, {config['vocab_size']} rows in the embedding"
    positions = config["max_position_embeddings"]
    findings.append(Finding(USE, f"{config['model_type']}: {sizes}, {positions} positions, weights in {file}"))
    bos = config["bos_token_id"]
    start = (
        "no bos_token_id: prompts start with the first item" if bos is None else f"bos_token_id {bos} starts prompts"
    )
    findings.append(Finding(USE, start))
    if found is None:
        findings.append(
            Finding(WARNING, f"{file}: what it lacks is known when a build loads it; safetensors says so here")
        )
    else:
        findings += _compared(config, file, found, expected)
    unread = sorted(name for name, value in config.items() if value is not None and name not in _READ | _BOOKKEEPING)
    if unread:
        findings.append(Finding(DROP, f"{CONFIG}: {', '.join(unread)}: nothing reads it"))
    has_head = None if found is None else _HEAD in found
    return CheckpointFacts(folder, config, file, expected, has_head, tuple(findings))


def require_usable(folder: Path, findings: Iterable[Finding]) -> None:
    """Raise ValueError with the first refusal among `findings`, if there is one."""
    refused = [finding.text for finding in findings if finding.kind == REFUSE]
    if refused:
        more = f" (and {len(refused) - 1} more: `genrec checkpoint check {folder}` lists them)" * (len(refused) > 1)
        raise ValueError(f"{folder}/{refused[0]}{more}")


def require_language_model(folder: Path) -> None:
    """Raise ValueError, in a line that says what to do, for a folder that is no causal language model with a tokenizer.

    As `read_facts`, it does not look at the weights themselves.
    """
    if (folder / MANIFEST).exists() or (folder.name == CHECKPOINT and (folder.parent / MANIFEST).exists()):
        raise ValueError(f"{folder}: is a bundle, whose model writes no texts; {_LANGUAGE_MODEL}")
    facts = read_facts(folder)
    findings = list(facts.findings)
    for decoder in DECODERS:
        if decoder in facts.config:
            text = f"{CONFIG}: has {decoder!r}, so it recommends and writes no texts; {_LANGUAGE_MODEL}"
            findings.insert(0, Finding(REFUSE, text))
    if facts.has_head is False and not facts.config.get("tie_word_embeddings"):
        text = f"{facts.file}: tensor {_HEAD} is missing, and {CONFIG} does not tie it to the embedding"
        findings.append(Finding(REFUSE, f"{text}; {_LANGUAGE_MODEL}"))
    vocabulary = read_vocabulary(folder, "texts are written with it")
    for finding in text_finding(vocabulary, facts.rows):
        findings.append(Finding(REFUSE, f"{TOKENIZER}: {finding.text}; save the model after resize_token_embeddings"))
    require_usable(folder, findings)


def require_no_patterns(bundle: Path, patterns: Sequence[str] | None) -> None:
    """Raise ValueError for patterns of SID tokens that are given with a bundle: its own would be used instead."""
    if patterns:
        raise ValueError(f"{bundle}: is a bundle, which knows the tokens of its codes; leave out --sid-tokens")


def bundle_findings(bundle: Bundle) -> list[Finding]:
    """What a build would do with a bundle that has been checked."""
    levels = ",".join(map(str, bundle.space.levels))
    findings = [Finding(USE, f"bundle {bundle.manifest.bundle_version}: backbone and tokens, levels {levels}")]
    if bundle.layout.placeholders:
        findings.append(Finding(DROP, "the bundle's draft head: the build trains its own"))
    return findings


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
    if _HEAD in beside:
        beside.remove(_HEAD)
        if config.get("tie_word_embeddings"):
            findings.append(Finding(USE, f"{_HEAD} is the embedding once more, {CONFIG} says"))
        else:
            does = "the draft head replaces it, and beam search scores with the input embeddings"
            findings.append(Finding(DROP, f"{_HEAD}, an output head of its own: {does}"))
    if beside:
        findings.append(Finding(DROP, f"{_examples(beside)}: no part of the backbone"))
    return within, findings


# The tokenizer


def require_pattern(pattern: str) -> None:
    """Raise ValueError for a SID token pattern that has not one place for the code, as str.format writes it."""
    try:
        fields = [part for part in Formatter().parse(pattern) if part[1] is not None]
        good = len(fields) == 1 and fields[0][1] in ("", "0") and fields[0][3] is None and bool(pattern.format(0))
    except (ValueError, LookupError):
        good = False
    if not good:
        raise ValueError(
            f"SID token pattern {pattern!r}: must have one {{}}, which stands for the code, e.g. '<a_{{}}>'; "
            "or be empty, for a level of new tokens"
        )


def require_patterns(patterns: Sequence[str], depth: int | None = None) -> None:
    """Raise ValueError for patterns of SID tokens that cannot be meant. depth: levels of the semantic IDs, if known."""
    if depth is not None and len(patterns) != depth:
        raise ValueError(f"sid_tokens has {len(patterns)} patterns, the semantic IDs have {depth} levels")
    seen: dict[str, int] = {}
    for level, pattern in enumerate(patterns):
        if not pattern:
            continue
        require_pattern(pattern)
        if pattern in seen:
            raise ValueError(f"levels {seen[pattern]} and {level} have the same SID token pattern {pattern!r}")
        seen[pattern] = level


def read_vocabulary(folder: Path, needed_for: str = "") -> dict[str, int]:
    """Token ids of the tokenizer, empty without one. needed_for: why it must be there. Raises ValueError."""
    path = folder / TOKENIZER
    if not path.exists():
        if needed_for:
            raise ValueError(
                f"{path}: is missing, but {needed_for}; `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` "
                "writes it from the files of an older tokenizer"
            )
        return {}
    _require_no_pointer(path)
    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the package raises no class of its own
        raise ValueError(f"{path}: is no tokenizer: {in_words(error)}; get it again") from error


def match_sid_tokens(
    vocabulary: Mapping[str, int], rows: int, patterns: Sequence[str], levels: Sequence[int] | None = None
) -> tuple[list[dict[int, int]], list[Finding]]:
    """Token id of each code that the tokenizer has, per level, and what is to say about them.

    rows: of the embedding; tokens beyond them are given too, but do not count as found. patterns: see
    `require_patterns`. levels: codes per level; without, as many as the tokenizer has tokens for.
    """
    matched, findings = [], []
    for level, pattern in enumerate(patterns):
        size = levels[level] if levels is not None else None
        names = (pattern.format(code) for code in range(len(vocabulary) if size is None else size)) if pattern else ()
        ids = {code: vocabulary[name] for code, name in enumerate(names) if name in vocabulary}
        matched.append(ids)
        findings.append(
            _level_finding(level, pattern, max(ids, default=-1) + 1 if size is None else size, ids, rows, vocabulary)
        )
    return matched, findings


def text_finding(vocabulary: Mapping[str, int], rows: int, sid_tokens: Iterable[int] = ()) -> list[Finding]:
    """What is to say about tokens of text, all but `sid_tokens`: those that have no row in the embedding."""
    sids = set(sid_tokens)
    rowless = [name for name, number in vocabulary.items() if number >= rows and number not in sids]
    if not rowless:
        return []
    verb = "has" if len(rowless) == 1 else "have"
    text = f"{len(rowless)} of the tokenizer's {len(vocabulary)} tokens {verb} no row in the embedding"
    return [Finding(WARNING, f"{text}; new and random: {_examples(sorted(rowless, key=vocabulary.__getitem__))}")]


def _level_finding(
    level: int, pattern: str, size: int, ids: Mapping[int, int], rows: int, vocabulary: Mapping[str, int]
) -> Finding:
    if not pattern:
        return Finding(NEW, f"level {level}, no pattern: {size or 'all its'} new tokens with random embeddings")
    rowless = [code for code, number in ids.items() if number >= rows]
    found = len(ids) - len(rowless)
    if not found and rowless:
        return Finding(
            REFUSE,
            f"{TOKENIZER}: level {level}: none of the tokens {pattern!r} is trained: the tokenizer has {len(rowless)} "
            f"of them, but the embedding, of {rows} rows, has no rows for them; save the model after "
            "resize_token_embeddings",
        )
    if not found:
        like = difflib.get_close_matches(pattern.format(0), _sid_like(vocabulary, len(pattern)), 3, 0.4)
        has = f"; it has {', '.join(like)}" if like else ""
        count = f"the {size} tokens" if size else "the tokens"
        return Finding(
            REFUSE,
            f"{TOKENIZER}: level {level}: holds none of {count} {pattern!r}, e.g. {pattern.format(0)}{has}; mend the "
            "pattern, or leave it empty for a level of new tokens",
        )
    if found == size:
        return Finding(USE, f"level {level}, {pattern!r}: all {size} SID tokens found")
    text = f"level {level}, {pattern!r}: {found} of {size} SID tokens found"
    if absent := [code for code in range(size) if code not in ids]:
        text += f"; new and random: {_examples([pattern.format(code) for code in absent])}"
    if rowless:
        names = _examples([pattern.format(code) for code in rowless])
        text += f"; new and random: {names}, which the tokenizer holds without a row in the embedding"
    return Finding(WARNING, text)


def _sid_like(vocabulary: Iterable[str], length: int) -> list[str]:
    """Tokens that may be meant for codes: with a digit and a sign, not much longer than what was looked for."""
    return [
        name
        for name in vocabulary
        if len(name) <= length + 8 and not name.isalnum() and any(letter.isdigit() for letter in name)
    ]


# Files


def _require_folder(folder: Path) -> None:
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; give the folder that holds it")
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: there is no such folder; give one on this machine (`hf download NAME --local-dir DIR` makes "
            "one of a model on the Hugging Face Hub)"
        )
    if (folder.parent / MANIFEST).exists() and folder.name == CHECKPOINT:
        raise ValueError(
            f"{folder}: is inside the bundle {folder.parent}; give the bundle, which also knows the tokens of the codes"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json with the family's defaults. Raises ValueError if it is of no use."""
    path = folder / CONFIG
    if not path.exists():
        if base := _adapter(folder):
            require_usable(folder, [base])
        inner = sorted(str(each.parent) for place in ("*", "snapshots/*") for each in folder.glob(f"{place}/{CONFIG}"))
        raise ValueError(f"{path}: is missing{f'; is one of these meant: {_examples(inner)}?' if inner else ''}")
    _require_no_pointer(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {in_words(error)}; get it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: is no JSON object")
    family = config.get("model_type")
    if family is None:
        raise ValueError(f"{path}: has no model_type; {_FAMILY}")
    if family not in FAMILIES:
        raise ValueError(f"{path}: model_type {family!r} is not supported; {_FAMILY}")
    config = DEFAULTS[family] | config
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")
    try:
        if config.get("head_dim") is None:
            config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    except _UNUSABLE:
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


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """What config.json asks for and a build would not do."""
    family = config["model_type"]
    if (quantised := config.get("quantization_config")) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        yield f"quantization_config {method!r} is not supported; {_UNQUANTISED}"
    code = config.get("auto_map") or {}
    if not isinstance(code, dict) or any(name.startswith(("AutoModel", "AutoConfig")) for name in code):
        yield (
            f"auto_map names code of its own, which is not run; if transformers' own {family} computes the same, take "
            "auto_map out of the file"
        )
    kinds = config.get("layer_types")
    window = config.get("sliding_window") if family == "llama" or config["use_sliding_window"] else None
    if kinds is None:
        in_use = window is not None and (family == "llama" or config["max_window_layers"] < config["num_hidden_layers"])
    else:
        others = [kind for kind in kinds if kind != "full_attention"] if isinstance(kinds, list) else [kinds]
        in_use = "sliding_attention" in others or (family == "llama" and window is not None)
        for kind in sorted({str(kind) for kind in others} - {"sliding_attention"}):
            yield f"layer_types {kind!r} is not supported"
    if in_use:
        yield (
            f"a sliding window of {window} tokens is in use, which is not supported; if no prompt is longer, set "
            "use_sliding_window to false, sliding_window to null and layer_types to null"
        )
    yield from _rotary_problems(config)
    usual = {"is_causal": True} | ({"mlp_bias": False} if family == "qwen3" else {})
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


def _adapter(folder: Path) -> Finding | None:
    """The refusal of a folder that holds a LoRA adapter, whatever else it holds."""
    names = [
        name
        for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
        if (folder / name).exists()
    ]
    if not names:
        return None
    base = ""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except _UNUSABLE:
        pass  # it is refused either way
    return Finding(
        REFUSE, f"{names[0]}: is of a LoRA adapter{f' of {base}' if base else ''}, which would not be used; {_MERGE}"
    )


def _tensors(folder: Path) -> tuple[str, dict[str, list[int]] | None]:
    """The file of the weights, as transformers would choose, and their shapes, None if only torch can tell."""
    for name in (WEIGHTS, PICKLE):
        index = f"{name}.index.json"
        if (folder / name).exists():
            _require_no_pointer(folder / name)
            return name, _shapes(folder / name) if name == WEIGHTS else None
        if (folder / index).exists():
            files = _indexed(folder / index)
            if name == PICKLE:
                return index, None
            found: dict[str, list[int]] = {}
            for file in files:
                found |= _shapes(folder / file)
            return index, found
    others = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".h5")
    )
    there = f"; {_examples(others)} is no such file" if others else ""
    raise ValueError(f"{folder}: has no weights: neither {WEIGHTS} nor {WEIGHTS}.index.json nor {PICKLE}{there}")


def _indexed(path: Path) -> list[str]:
    """Names of the files that an index names, all of which are there."""
    _require_no_pointer(path)
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (path.parent / name).is_file()]
    except _UNUSABLE as error:
        raise ValueError(f"{path}: cannot be read: {in_words(error)}; get it again") from error
    if missing:
        raise ValueError(f"{path.parent / missing[0]}: is missing, but {path.name} names it; get it")
    for name in names:
        _require_no_pointer(path.parent / name)
    return names


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        return safetensors_shapes(path)
    except _UNUSABLE as error:
        raise ValueError(f"{path}: cannot be read: {in_words(error)}; get it again") from error


def _compared(
    config: Mapping[str, Any], file: str, found: Mapping[str, list[int]], expected: Mapping[str, list[int]]
) -> Iterator[Finding]:
    """The tensors of a file against those of the configuration."""
    names = {name.removeprefix("model."): name for name in found}
    if any("lora_" in name for name in found):
        yield Finding(REFUSE, f"{file}: holds LoRA weights; {_MERGE}")
        return
    if missing := [name for name in expected if name not in names]:
        yield Finding(
            REFUSE, f"{file}: tensor model.{missing[0]} is missing{count(missing)}{_instead(missing[0], found)}"
        )
    for name in expected:
        if name in names and found[names[name]] != expected[name]:
            shape = found[names[name]]
            yield Finding(REFUSE, f"{file}: tensor {names[name]} has shape {shape}, {CONFIG} says {expected[name]}")
    within, others = unused(found, expected, config)
    if within and not missing:
        yield Finding(REFUSE, f"{file}: tensor {within[0]} would not be used by this {CONFIG}{count(within)}")
    yield from others


def _instead(missing: str, found: Iterable[str]) -> str:
    """What a file has in the place of the tensor `missing`, if that says what to do."""
    stem = missing.removesuffix(".weight")
    for name in found:
        if name.removeprefix("model.").startswith(stem) and name.endswith(_QUANTISED):
            return f"; {name} is there: the weights are quantised, {_UNQUANTISED}"
    for name in found:
        if name.endswith(f".{missing}"):
            return f"; {name} is there: save the language model itself, not what wraps it"
    return ""


def _require_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def count(names: Sequence[str]) -> str:
    """How many a message that names the first of `names` stands for."""
    return f" ({len(names)} in all)" * (len(names) > 1)
