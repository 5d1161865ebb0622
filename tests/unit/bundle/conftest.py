"""Bundles that pass every check but compute nothing: written in a moment, without torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from genrec.bundle import CATALOG, CHECKPOINT, GOLDEN, INDEX, MANIFEST, MASKS, ONNX_GRAPH, QUANTIZER, TOKENIZER, Bundle
from genrec.bundle import seal_bundle as seal
from genrec.bundle.checkpoint_shapes import expected_shapes
from genrec.catalog import Catalog, ItemIndex, PrefixTable, ResidualQuantizer, SemanticIdSpace
from genrec.prompt import PromptLayout, text_vocabulary

ITEMS, LEVELS = 400, (16, 16, 16)
HEAD = {"levels": list(LEVELS), "state_size": 24, "transition_size": 48, "attention_heads": 4}
SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def write_hollow(path: Path, queries: int = 0) -> Bundle:
    """queries: tokens kept of a text query, 0 for a bundle without."""
    rng, space = np.random.default_rng(0), SemanticIdSpace(LEVELS)
    for folder in (CHECKPOINT, Path(ONNX_GRAPH).parent):
        (path / folder).mkdir(parents=True)
    sids = rng.integers(0, LEVELS, (ITEMS, 3)).astype(np.int32)
    catalog = Catalog.build([f"item-{row}" for row in range(ITEMS)], sids, rng.integers(0, 20, ITEMS))
    catalog.save(path / CATALOG)
    ItemIndex.build(space, catalog).save(path / INDEX)
    PrefixTable.of(space, catalog).save(path / MASKS)
    text_tokens = 0
    if queries:
        from genrec_builders.training.query import train_query_tokenizer

        train_query_tokenizer(["gas stove", "a tent for two"], path / TOKENIZER, 300)
        text_tokens = text_vocabulary(path / TOKENIZER)
    layout = PromptLayout.contiguous(space, 20, queries, text_tokens)
    config = SHAPE | {"vocab_size": layout.vocabulary_size, "draft_head": HEAD}
    (path / CHECKPOINT / "config.json").write_text(json.dumps(config))
    shapes = expected_shapes(config, LEVELS)
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path / CHECKPOINT / "model.safetensors"
    )
    (path / ONNX_GRAPH).write_bytes(bytes(5000))
    ResidualQuantizer([np.eye(16, dtype=np.float32)] * 3).save(path / QUANTIZER)
    (path / "attributes.parquet").write_bytes(b"PAR1" * 10)
    np.savez(path / GOLDEN, history=catalog.item_ids[:5])
    seal(
        path,
        bundle_version="hollow",
        created="2026-01-01T00:00:00+00:00",
        levels=LEVELS,
        prompt={name: value for name, value in asdict(layout).items() if name != "space"},
        beam_width=64,
        limits={"top_k": 30, "exclude": 50, "history": 200},
        catalog={"version": 1, "items": ITEMS, "available": ITEMS},
    )
    return Bundle(path)


@pytest.fixture(scope="session")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle without text queries. Read-only."""
    return write_hollow(tmp_path_factory.mktemp("hollow") / "plain")


@pytest.fixture(scope="session")
def hollow_text(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with text queries of 8 tokens. Read-only."""
    return write_hollow(tmp_path_factory.mktemp("hollow") / "text", queries=8)


@pytest.fixture
def hollow_copy(hollow: Bundle, tmp_path: Path) -> Path:
    """A copy of `hollow` to damage."""
    return Path(shutil.copytree(hollow.path, tmp_path / "copy"))


@pytest.fixture
def text_copy(hollow_text: Bundle, tmp_path: Path) -> Path:
    """A copy of `hollow_text` to damage."""
    return Path(shutil.copytree(hollow_text.path, tmp_path / "copy"))


def seal_again(folder: Path, prompt: dict[str, Any] | None = None, **changed: Any) -> None:
    """Make checksums hold again after a change. prompt: changes to the prompt's section; changed: to the others."""
    fields = json.loads((folder / MANIFEST).read_text())
    del fields["files"], fields["format_version"]
    fields["prompt"] |= prompt or {}
    (folder / MANIFEST).unlink()
    seal(folder, **(fields | changed))
