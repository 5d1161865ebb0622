"""The cells of the speed comparison: backbone, history, semantic IDs and beam; bundles with random weights for them.

Speed does not depend on the weights, so nothing is trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.bundle import Bundle
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DRAFT_HEAD
from genrec.planning.work import token_bound
from genrec.prompt import Limits
from genrec.reporting.progress import Task
from genrec_builders.build import build_bundle, is_built
from genrec_builders.config import BackboneShape, BuildConfig, TrainingConfig
from genrec_builders.data import Dataset, Interactions, ItemTable

DECODERS = {"NEZHA": DRAFT_HEAD, "beam search": BEAM_SEARCH}
SHAPES = {
    "3M": BackboneShape(hidden_size=256, intermediate_size=768, layers=4),
    "25M": BackboneShape(hidden_size=512, intermediate_size=1408, layers=8, heads=8, kv_heads=8),
    "110M": BackboneShape(hidden_size=768, intermediate_size=3072, layers=12, heads=12, kv_heads=12),
    # Qwen3-0.6B's
    "0.6B": BackboneShape(hidden_size=1024, intermediate_size=3072, layers=28, heads=16, kv_heads=8, head_dim=128),
}
LEVELS = {3: (512,) * 3, 4: (256,) * 4}
ITEMS, USERS = 20_000, 32


@dataclass(frozen=True)
class Cell:
    """One comparison. size: of `SHAPES`. history: items. depth: of `LEVELS`. beam: width K."""

    size: str
    history: int
    depth: int
    beam: int

    @property
    def name(self) -> str:
        return f"{self.size}-h{self.history}-L{self.depth}-K{self.beam}"

    @property
    def tokens(self) -> int:
        """P: prompt tokens without placeholders."""
        return self.history * self.depth

    @property
    def bound(self) -> float:
        """The arithmetic bound on the speed-up over beam search, in tokens."""
        return token_bound(self.depth, self.tokens, self.beam)


# `make bench`: every value of every factor, in the combinations that differ most.
NAMED = (
    Cell("3M", 20, 4, 50),
    Cell("3M", 20, 4, 512),
    Cell("3M", 100, 3, 512),
    Cell("25M", 20, 3, 50),
    Cell("25M", 20, 4, 512),
    Cell("25M", 100, 4, 50),
    Cell("110M", 20, 4, 512),
    Cell("110M", 100, 3, 50),
)
# `make bench-full`: hours.
GRID = tuple(Cell(*values) for values in itertools.product(SHAPES, (20, 100), (3, 4), (10, 50, 128, 256, 512)))


def synthetic(depth: int, history: int, items: int = ITEMS, seed: int = 0) -> Dataset:
    """Items with distinct random semantic IDs, and users whose test histories hold `history` of them."""
    rng = np.random.default_rng(seed)
    levels = LEVELS[depth]
    codes = rng.choice(int(np.prod(levels)), items, replace=False)
    sids = np.stack(np.unravel_index(codes, levels), 1).astype(np.int32)
    rows = rng.integers(0, items, USERS * (history + 1)).astype(np.int32)
    offsets = np.arange(USERS + 1, dtype=np.int64) * (history + 1)
    names = [f"item-{number:07d}" for number in range(items)]
    return Dataset(
        ItemTable(names, sids, levels), Interactions([f"user-{number}" for number in range(USERS)], offsets, rows)
    )


def cell_bundle(cell: Cell, system: str, folder: Path, items: int = ITEMS) -> Bundle:
    """The bundle of a cell and one of `DECODERS`, built in `folder` if it is not there.

    Raises ValueError if what is there was built of other data or settings.
    """
    more = "" if items == ITEMS else f"-{items}-items"
    path = folder / f"{cell.name}-{DECODERS[system]}{more}"
    dataset, config = synthetic(cell.depth, cell.history, items), cell_config(cell, system)
    if not is_built(dataset, path, config):
        build_bundle(dataset, path, config, _silent)
    return Bundle(path)


def cell_config(cell: Cell, system: str) -> BuildConfig:
    return BuildConfig(
        max_history=cell.history,
        beam_width=cell.beam,
        decoder=DECODERS[system],
        limits=Limits(top_k=min(50, cell.beam // 2), default_top_k=min(10, cell.beam // 2)),
        shape=SHAPES[cell.size],
        training=TrainingConfig(epochs=0),
        evaluate_users=1,
    )


def histories(cell: Cell, items: int = ITEMS) -> list[np.ndarray]:
    """int32 [history] rows of every user of the cell."""
    return list(np.random.default_rng(1).integers(0, items, (USERS, cell.history)).astype(np.int32))


@contextmanager
def _silent(title: str) -> Iterator[Task]:
    yield lambda done, total, note: None
