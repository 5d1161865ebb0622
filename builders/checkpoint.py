"""Starts a model from a Hugging Face checkpoint of the Qwen3 or Llama family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout, runs_of
from genrec.semantic_id import SemanticIdSpace


def with_sid_tokens(
    checkpoint: Path, space: SemanticIdSpace, max_history: int, sid_tokens: tuple[str, ...] | None = None
) -> tuple[NezhaModel, PromptLayout]:
    """Backbone of `checkpoint` with a fresh draft head, and the layout that maps SID codes to its tokens.

    sid_tokens: per level, how the tokenizer writes a code, "{}" standing for the number, e.g. "<a_{}>". Tokens that
    `tokenizer.json` holds keep their ids and embeddings; all others, and the placeholders, are added behind the
    vocabulary. Raises ValueError for an unsupported checkpoint or a wrong number of levels.
    """
    config = AutoConfig.from_pretrained(checkpoint, attn_implementation="sdpa")
    backbone = AutoModel.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    if sid_tokens is not None and len(sid_tokens) != space.depth:
        raise ValueError(f"sid_tokens has {len(sid_tokens)} patterns, the semantic IDs have {space.depth} levels")
    known: dict[str, int] = {}
    if (checkpoint / "tokenizer.json").exists():
        known = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab(with_added_tokens=True)
    elif sid_tokens is not None:
        raise ValueError(f"{checkpoint / 'tokenizer.json'}: is missing, but sid_tokens names tokens in it")
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
    )
    if layout.vocabulary_size > config.vocab_size:
        backbone.resize_token_embeddings(layout.vocabulary_size, mean_resizing=False)
        config.vocab_size = layout.vocabulary_size
    return NezhaModel(config, space.levels, backbone), layout
