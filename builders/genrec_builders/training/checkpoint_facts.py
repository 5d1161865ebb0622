"""What a build would use of a Hugging Face folder, what it would drop, and why it would refuse it; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.bundle import CHECKPOINT, MANIFEST, TOKENIZER, Bundle
from genrec.bundle.checkpoint_shapes import DECODERS
from genrec_builders.training.checkpoint_adapter import MERGE, Adapter, base_name, has_adapter, read_adapter
from genrec_builders.training.checkpoint_config import CONFIG, config_problems, read_config, unread, window_in_use
from genrec_builders.training.checkpoint_findings import DROP, REFUSE, USE, WARNING, Finding, examples, require_usable
from genrec_builders.training.checkpoint_tensors import HEAD, WEIGHTS_FILES, backbone_shapes, compared, read_shapes
from genrec_builders.training.checkpoint_tokens import read_vocabulary, text_finding

_LANGUAGE_MODEL = "give a causal language model's folder"
_TOKENIZERS = (TOKENIZER, "added_tokens.json")  # a folder with one of them has a tokenizer of its own


@dataclass(frozen=True)
class CheckpointFacts:
    """What the files of `folder` say. config: config.json with the family's defaults.

    file: where the weights are, or the index of their files. shapes: of the backbone's tensors by this configuration,
    without the prefix "model.". has_head: whether there is an output head beside it; None if only torch can tell.
    window: tokens that prompts must not exceed, because a layer attends to no more; None without such a limit. adapter:
    what is merged into the weights.
    """

    folder: Path
    config: dict[str, Any]
    file: str
    shapes: dict[str, list[int]]
    has_head: bool | None
    window: int | None
    adapter: Adapter | None
    findings: tuple[Finding, ...]

    @property
    def rows(self) -> int:
        """Rows of the token embedding."""
        brought = None if self.adapter is None else self.adapter.rows
        return int(self.config["vocab_size"]) if brought is None else brought

    @property
    def tied(self) -> bool:
        """Whether the output head is the token embedding."""
        return bool(self.config.get("tie_word_embeddings"))

    @property
    def tokenizer_folder(self) -> Path:
        """Of the adapter, if it brings a tokenizer along: it may have added tokens."""
        own = self.adapter is not None and any((self.adapter.folder / name).exists() for name in _TOKENIZERS)
        return self.adapter.folder if own and self.adapter is not None else self.folder


def read_facts(folder: Path, adapter: Path | None = None) -> CheckpointFacts:
    """Look at every file of `folder` that a build reads, but not at the weights themselves.

    adapter: the folder of a LoRA adapter for this base; None for the one that lies in `folder`, if there is one. Raises
    ValueError where nothing more can be said; the rest of what is wrong is among the findings.
    """
    _require_folder(folder)
    if has_adapter(folder):
        if adapter is not None:
            raise ValueError(f"{folder}: holds an adapter of its own beside {adapter}; give a base without one")
        _require_base(folder)
        adapter = folder
    path = folder / CONFIG
    if not path.exists():
        inner = [str(each.parent) for place in ("*", "snapshots/*") for each in folder.glob(f"{place}/{CONFIG}")]
        raise ValueError(f"{path}: is missing" + f"; is one of these meant: {examples(sorted(inner))}?" * bool(inner))
    config = read_config(path)
    findings = [Finding(REFUSE, f"{CONFIG}: {problem}") for problem in config_problems(config)]
    file, found = read_shapes(folder)
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
    if (window := window_in_use(config)) is not None:
        no_effect = "has no effect on prompts that are not longer, and longer ones are refused"
        findings.append(Finding(DROP, f"{CONFIG}: the sliding window of {window} tokens {no_effect}"))
    if found is None:
        findings.append(
            Finding(WARNING, f"{file}: what it lacks is known when a build loads it; safetensors says so here")
        )
    else:
        findings += compared(config, file, found, expected)
    if fields := unread(config):
        findings.append(Finding(DROP, f"{CONFIG}: {', '.join(fields)}: nothing reads it"))
    merged = None
    if adapter is not None:
        merged = read_adapter(adapter)
        head = {} if config.get("tie_word_embeddings") else {HEAD: expected["embed_tokens.weight"]}
        findings += merged.findings(expected | head)
    has_head = None if found is None else HEAD in found
    return CheckpointFacts(folder, config, file, expected, has_head, window, merged, tuple(findings))


def require_language_model(folder: Path) -> None:
    """Raise ValueError, in a line that says what to do, for a folder that is no causal language model with a tokenizer.

    As `read_facts`, it does not look at the weights themselves.
    """
    if (folder / MANIFEST).exists() or (folder.name == CHECKPOINT and (folder.parent / MANIFEST).exists()):
        raise ValueError(f"{folder}: is a bundle, whose model writes no texts; {_LANGUAGE_MODEL}")
    if folder.is_dir() and has_adapter(folder):
        of = f" of {base}" if (base := base_name(folder)) else ""
        raise ValueError(f"{folder}: is of a LoRA adapter{of}, which would not be used; {MERGE}")
    facts = read_facts(folder)
    findings = list(facts.findings)
    for decoder in DECODERS:
        if decoder in facts.config:
            text = f"{CONFIG}: has {decoder!r}, so it recommends and writes no texts; {_LANGUAGE_MODEL}"
            findings.insert(0, Finding(REFUSE, text))
    if facts.window is not None:
        text = f"{CONFIG}: a sliding window of {facts.window} tokens is in use; if no text is longer, set"
        findings.append(Finding(REFUSE, f"{text} use_sliding_window to false, sliding_window and layer_types to null"))
    if facts.has_head is False and not facts.tied:
        text = f"{facts.file}: tensor {HEAD} is missing, and {CONFIG} does not tie it to the embedding"
        findings.append(Finding(REFUSE, f"{text}; {_LANGUAGE_MODEL}"))
    vocabulary = read_vocabulary(folder, "texts are written with it", text=True)
    for finding in text_finding(vocabulary, facts.rows):
        findings.append(Finding(REFUSE, f"{TOKENIZER}: {finding.text}; save the model after resize_token_embeddings"))
    require_usable(folder, findings)


def require_nothing_of_a_folder(bundle: Path, **given: Any) -> None:
    """Raise ValueError for options that a Hugging Face folder needs, given with a bundle that knows better."""
    for name, value in given.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{bundle}: is a bundle, which knows the tokens of its codes; leave out {option}")


def bundle_findings(bundle: Bundle) -> list[Finding]:
    """What a build would do with a bundle that has been checked."""
    levels = ",".join(map(str, bundle.space.levels))
    findings = [Finding(USE, f"bundle {bundle.manifest.bundle_version}: backbone and tokens, levels {levels}")]
    if bundle.layout.placeholders:
        findings.append(Finding(DROP, "the bundle's draft head: the build trains its own"))
    return findings


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


def _require_base(folder: Path) -> None:
    """Raise ValueError for an adapter without its base beside it."""
    if (folder / CONFIG).exists() and any((folder / name).exists() for name in WEIGHTS_FILES):
        return
    of = f" of {base}" if (base := base_name(folder)) else ""
    raise ValueError(
        f"{folder}: is of a LoRA adapter{of} without that base; give both, --checkpoint BASE --adapter {folder}"
    )
