"""Starts from a trained backbone: a Hugging Face checkpoint of the Qwen3 or Llama family, or a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, PreTrainedModel

from genrec.bundle import CHECKPOINT, MANIFEST, Bundle
from genrec.catalog import SemanticIdSpace
from genrec.model.checkpoint import load_checkpoint
from genrec.prompt import PromptLayout, runs_of, text_vocabulary


def open_backbone(
    checkpoint: Path,
    space: SemanticIdSpace,
    max_history: int,
    sid_tokens: tuple[str, ...] | None = None,
    max_query: int = 0,
) -> tuple[PreTrainedModel, PromptLayout]:
    """The backbone in the folder `checkpoint`, and the layout that maps SID codes to its tokens.

    sid_tokens: per level, how the tokenizer writes a code, "{}" standing for the number, e.g. "<a_{}>". Tokens that
    `tokenizer.json` holds keep their ids and embeddings; all others, and the placeholders, are added behind the
    vocabulary. max_query: tokens kept of a text query; with any, the bundle needs a copy of that `tokenizer.json`.
    Raises ValueError for an unsupported checkpoint, a wrong number of levels, or a missing tokenizer.
    """
    if (checkpoint / MANIFEST).exists():
        return _of_bundle(Bundle(checkpoint), space, max_history, max_query)
    config = AutoConfig.from_pretrained(checkpoint, attn_implementation="sdpa")
    backbone = AutoModel.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    if sid_tokens is not None and len(sid_tokens) != space.depth:
        raise ValueError(f"sid_tokens has {len(sid_tokens)} patterns, the semantic IDs have {space.depth} levels")
    known: dict[str, int] = {}
    if (checkpoint / "tokenizer.json").exists():
        known = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab(with_added_tokens=True)
    elif sid_tokens is not None:
        raise ValueError(f"{checkpoint / 'tokenizer.json'}: is missing, but sid_tokens names tokens in it")
    elif max_query:
        raise ValueError(f"{checkpoint / 'tokenizer.json'}: is missing, but text queries need it")
    free = max(config.vocab_size, max(known.values(), default=-1) + 1)
    maps = []
    for level, size in enumerate(space.levels):
        names = [sid_tokens[level].format(code) for code in range(size)] if sid_tokens else [""] * size
        ids = np.array([known.get(name, -1) for name in names])
        added = np.flatnonzero(ids < 0)
        ids[added] = free + np.arange(added.size)
        free += added.size
        maps.append(runs_of(ids))
    placeholders = tuple(range(free, free + space.depth))
    bos = config.bos_token_id
    layout = PromptLayout(
        space=space,
        prefix=(int(bos),) if bos is not None else (),
        placeholders=placeholders,
        sid_tokens=tuple(maps),
        max_history=max_history,
        max_query=max_query,
        text_tokens=text_vocabulary(checkpoint / "tokenizer.json") if max_query else 0,
    )
    return _with_room(backbone, layout), layout


def _of_bundle(
    bundle: Bundle, space: SemanticIdSpace, max_history: int, max_query: int
) -> tuple[PreTrainedModel, PromptLayout]:
    """The backbone of a bundle of either decoder; placeholders are added where its prompts have none."""
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
    return _with_room(load_checkpoint(bundle.path / CHECKPOINT).model, layout), layout


def _with_room(backbone: PreTrainedModel, layout: PromptLayout) -> PreTrainedModel:
    """`backbone` with an embedding for each of the layout's tokens."""
    if layout.vocabulary_size > backbone.config.vocab_size:
        backbone.resize_token_embeddings(layout.vocabulary_size, mean_resizing=False)
        backbone.config.vocab_size = layout.vocabulary_size
    return backbone
