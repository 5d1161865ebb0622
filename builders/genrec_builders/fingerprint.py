"""What a build, a knowledge folder and the demo shop are made of: data, settings, checkpoint, and the code's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from genrec.bundle import MANIFEST, sha256_of
from genrec.catalog import Columns
from genrec.reporting.kept import Fingerprint, digest, flat
from genrec_builders.config import DATA, EMBEDDINGS, BuildConfig
from genrec_builders.data import Dataset
from genrec_builders.sid_sources import sid_source

# Another one when the same input and settings come to make something else: what was kept before is then refused.
BUILD_FORMAT, KNOWLEDGE_FORMAT, SHOP_FORMAT = "1", "1", "2"
_CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*")  # not a trainer's own state


def build_fingerprint(dataset: Dataset, config: BuildConfig) -> Fingerprint:
    """All that decides what a build of `dataset`, a `used_dataset`, makes; how many users it evaluates does not."""
    without = ["evaluate_users", "checkpoint", "adapter", "split_at", "sid_source", "sids_of"]
    without += [] if config.distinct_sids else ["distinct_sids"]  # as when every semantic ID could be shared
    without += ["levels"] if dataset.items.sids is not None else []
    without += ["sid_tokens"] if config.checkpoint is None else ["shape"]
    without += ["item_markers"] if config.item_markers is None else []  # as when there were none
    settings = {name: value for name, value in asdict(config).items() if name not in without}
    source = sid_source(dataset.items, config)
    adapter = {} if config.adapter is None else {"adapter": checkpoint_fingerprint(config.adapter)}
    settings["limits"] = {f"limit {name}": value for name, value in config.limits.model_dump().items()}
    return {
        "code format": BUILD_FORMAT,
        **data_fingerprint(dataset),
        **_kinds(dataset.items.typed),
        "checkpoint": "none" if config.checkpoint is None else checkpoint_fingerprint(config.checkpoint),
        **adapter,
        **({} if source in (DATA, EMBEDDINGS) else {"semantic IDs from": source}),  # as when there were none of others
        **({} if config.sids_of is None else {"semantic IDs of": checkpoint_fingerprint(config.sids_of)}),
        **({"training of the head alone": "2"} if config.training.freeze_backbone else {}),
        **flat(settings),
        **_split(dataset, config.split_at),
    }


def _split(dataset: Dataset, split_at: str | None) -> Fingerprint:
    """By the moment; nothing for leave-one-out, which needs no times, as when it was not noted."""
    times = dataset.interactions.times
    if split_at is None or times is None:
        return {}
    return {"split at": f"{split_at} ({digest([_bytes(times)])})"}


def data_fingerprint(dataset: Dataset) -> Fingerprint:
    items, interactions = dataset.items, dataset.interactions
    queries = interactions.queries
    offsets = np.asarray(interactions.offsets, np.int64)
    return {
        "items": f"{len(items):,} ({digest([_text(items.item_ids)])})",
        "attributes of the items": digest([_text(items.attributes)]),
        "semantic IDs": "none" if items.sids is None else f"levels {items.levels} ({digest([_bytes(items.sids)])})",
        "embeddings": "none" if items.embeddings is None else digest([_bytes(items.embeddings)]),
        "interactions": f"{len(interactions.rows):,} of {len(interactions):,} users "
        f"({digest([_text(interactions.user_ids), _bytes(offsets), _bytes(interactions.rows)])})",
        "queries": "none" if queries is None else digest([_text(queries.to_pylist())]),
    }


def _kinds(columns: Columns) -> Fingerprint:
    """What rules filter by; nothing without it, as when it was not noted."""
    if not columns:
        return {}
    kinds = ", ".join(f"{name} {kind}" for name, kind in columns.kinds.items())
    parts = ((one.values, one.offsets, one.words.astype(object)) for one in columns.values())
    content = (
        _bytes(part) if part.dtype != object else b"\0".join(part.tolist())
        for each in parts
        for part in each
        if part is not None
    )
    return {"kinds of the attributes": f"{kinds} ({digest(content)})"}


def checkpoint_fingerprint(folder: Path) -> str:
    """By the content of its files; of a bundle, the manifest has their checksums."""
    if (folder / MANIFEST).is_file():
        return f"bundle ({sha256_of(folder / MANIFEST)[:16]})"
    paths = {path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern) if path.is_file()}
    return f"files ({digest(f'{path.name} {sha256_of(path)}'.encode() for path in sorted(paths))})"


def shop_fingerprint(items: int, users: int, seed: int) -> Fingerprint:
    """What `make_demo_shop` makes."""
    return {"demo shop": f"{items:,} items, {users:,} users, seed {seed}", "code format": SHOP_FORMAT}


def _text(values: Sequence[str] | Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode()


def _bytes(array: np.ndarray) -> bytes:
    return f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
