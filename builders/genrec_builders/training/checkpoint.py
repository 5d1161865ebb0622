"""Starts from a trained backbone: a Hugging Face checkpoint of the Qwen3 or Llama family, or a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from genrec.bundle import CHECKPOINT, MANIFEST, TOKENIZER, Bundle
from genrec.catalog import SemanticIdSpace
from genrec.errors import in_words
from genrec.model.checkpoint import load_checkpoint
from genrec.prompt import PromptLayout, runs_of, text_vocabulary
from genrec.reporting.progress import console
from genrec_builders.training.checkpoint_facts import (
    CheckpointFacts,
    Finding,
    bundle_findings,
    count,
    match_sid_tokens,
    read_facts,
    read_vocabulary,
    require_no_patterns,
    require_patterns,
    require_usable,
    text_finding,
    unused,
)


def print_line(text: str) -> None:
    """To the terminal, once where several processes train."""
    if os.environ.get("RANK", "0") == "0":
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def open_backbone(
    checkpoint: Path,
    space: SemanticIdSpace,
    max_history: int,
    sid_tokens: tuple[str, ...] | None = None,
    max_query: int = 0,
    say: Callable[[str], None] = print_line,
) -> tuple[PreTrainedModel, PromptLayout]:
    """The backbone in the folder `checkpoint`, and the layout that maps SID codes to its tokens.

    sid_tokens: per level, how the tokenizer writes a code, "{}" standing for the number, e.g. "<a_{}>". Tokens that
    `tokenizer.json` holds keep their ids and embeddings; all others, and the placeholders, are added behind the
    vocabulary. At a level with a pattern one token must be held at least; an empty pattern adds a level of new ones.
    max_query: tokens kept of a text query; with any, the bundle needs a copy of that `tokenizer.json`. say: is told
    what is used, new and dropped, line by line.

    Raises ValueError before the weights are loaded for what is missing or not supported; see `read_facts`.
    """
    if (checkpoint / MANIFEST).exists():
        require_no_patterns(checkpoint, sid_tokens)
        return _of_bundle(Bundle(checkpoint), space, max_history, max_query, say)
    if sid_tokens is not None:
        require_patterns(sid_tokens, space.depth)
    facts = read_facts(checkpoint)
    layout, findings = _layout(facts, space, max_history, sid_tokens, max_query)
    _require_positions(checkpoint, facts.config["max_position_embeddings"], layout)
    for finding in [*facts.findings, *findings]:
        say(str(finding))
    backbone, dropped = _load(facts)
    for finding in dropped:
        say(str(finding))
    return _with_room(backbone, layout), layout


def _layout(
    facts: CheckpointFacts,
    space: SemanticIdSpace,
    max_history: int,
    sid_tokens: tuple[str, ...] | None,
    max_query: int,
) -> tuple[PromptLayout, list[Finding]]:
    """The layout of a checkpoint's tokens, and what there is to say about them. Raises ValueError for a refusal."""
    needed = "sid_tokens names tokens in it" if any(sid_tokens or ()) else "text queries need it" if max_query else ""
    vocabulary = read_vocabulary(facts.folder, needed)
    free = max(facts.rows, max(vocabulary.values(), default=-1) + 1)
    if free + sum(space.levels) > np.iinfo(np.int32).max:
        # Before anything is counted out: the layout says which level it is.
        PromptLayout.contiguous(space, max_history)
    matched, findings = match_sid_tokens(vocabulary, facts.rows, sid_tokens or [""] * space.depth, space.levels)
    require_usable(facts.folder, [*facts.findings, *findings])
    maps = []
    for known, size in zip(matched, space.levels, strict=True):
        ids = np.full(size, -1)
        ids[list(known)] = list(known.values())
        added = np.flatnonzero(ids < 0)
        ids[added] = free + np.arange(added.size)
        free += added.size
        maps.append(runs_of(ids))
    if max_query:
        findings += text_finding(vocabulary, facts.rows, [each for known in matched for each in known.values()])
    bos = facts.config["bos_token_id"]
    layout = PromptLayout(
        space=space,
        prefix=() if bos is None else (bos,),
        placeholders=tuple(range(free, free + space.depth)),
        sid_tokens=tuple(maps),
        max_history=max_history,
        max_query=max_query,
        text_tokens=text_vocabulary(facts.folder / TOKENIZER) if max_query else 0,
    )
    return layout, findings


def _load(facts: CheckpointFacts) -> tuple[PreTrainedModel, list[Finding]]:
    """The backbone, and findings on what only torch can tell. Raises ValueError if a part is missing or left out."""
    folder = facts.folder
    try:
        config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
        backbone, info = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # what a file can bring transformers to raise has no class in common
        raise ValueError(f"{folder / facts.file}: cannot be read: {in_words(error)}; get it again") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder / facts.file}: tensor {missing[0]} is missing{count(missing)}")
    within, findings = unused(info["unexpected_keys"], facts.shapes, facts.config)
    if within:
        raise ValueError(
            f"{folder / facts.file}: tensor {within[0]} would not be used by its config.json{count(within)}"
        )
    return backbone, [finding for finding in findings if finding not in facts.findings]


def _of_bundle(
    bundle: Bundle, space: SemanticIdSpace, max_history: int, max_query: int, say: Callable[[str], None]
) -> tuple[PreTrainedModel, PromptLayout]:
    """The backbone of a bundle of either decoder; placeholders are added where its prompts have none."""
    bundle.check()
    if bundle.space != space:
        raise ValueError(f"{bundle.path}: has levels {bundle.space.levels}, the semantic IDs have {space.levels}")
    old = bundle.layout
    if max_query > 0 and old.max_query == 0:
        raise ValueError(f"{bundle.path}: was not trained with text queries; leave them out or train anew")
    free = old.vocabulary_size
    layout = replace(
        old,
        max_history=max_history,
        max_query=max_query,
        text_offset=old.text_offset if max_query else 0,
        text_tokens=old.text_tokens if max_query else 0,
        placeholders=old.placeholders or tuple(range(free, free + space.depth)),
    )
    backbone = load_checkpoint(bundle.path / CHECKPOINT).model
    _require_positions(bundle.path / CHECKPOINT, backbone.config.max_position_embeddings, layout)
    for finding in bundle_findings(bundle):
        say(str(finding))
    return _with_room(backbone, layout), layout


def _require_positions(folder: Path, positions: int, layout: PromptLayout) -> None:
    """Raises ValueError for prompts that are longer than the backbone has positions."""
    if positions < (need := layout.max_tokens):
        raise ValueError(
            f"{folder / 'config.json'}: max_position_embeddings {positions} is below the longest prompt's {need} "
            f"tokens; build with a max_history below {layout.max_history}, or from a checkpoint with more positions"
        )


def _with_room(backbone: PreTrainedModel, layout: PromptLayout) -> PreTrainedModel:
    """`backbone` with an embedding for each of the layout's tokens."""
    if layout.vocabulary_size > backbone.config.vocab_size:
        backbone.resize_token_embeddings(layout.vocabulary_size, mean_resizing=False)
        backbone.config.vocab_size = layout.vocabulary_size
    return backbone
