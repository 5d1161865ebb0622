"""The semantic IDs of a bundle for newer data: what it knows stays as it is, what is new goes where it lies nearest."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from genrec.bundle import Bundle
from genrec.catalog import ResidualQuantizer
from genrec.errors import DataError
from genrec_builders.behaviour import behaviour_embeddings
from genrec_builders.config import BuildConfig
from genrec_builders.data import ItemTable, Sequences
from genrec_builders.distinct import distinct_sids

_FAR = 10.0  # times the longest vector: where nobody looks for a code that no item has


class KeptSids(NamedTuple):
    """sids: int32 [n, L]. quantizer: the bundle's, if it has one. new: items that the bundle does not have; moved: of
    these, who did not get the nearest semantic ID, because it is taken; alike: of these, who have no behaviour, where
    it decides.
    """

    sids: np.ndarray
    quantizer: ResidualQuantizer | None
    new: int
    moved: int
    alike: int


def keep_sids(folder: Path, items: ItemTable, train: Sequences, config: BuildConfig) -> KeptSids:
    """Semantic IDs for `items`: the bundle's in `folder`, and for a new item the nearest.

    With a quantiser and embeddings the nearest is what the quantiser says, as in a live catalogue. Otherwise behaviour
    decides: codebooks are the means of what behaviour, in `train`, leaves for each code of the known items. With
    `distinct_sids` a new item whose semantic ID is taken gets the nearest free one.
    Raises DataError for other levels than `config` has, if no item is known, if behaviour has to decide and there is
    none, and for `distinct_sids` if known items share semantic IDs already; QuantizerError if there are more items than
    semantic IDs.
    """
    bundle = Bundle(folder)
    if bundle.space.levels != config.levels:
        raise DataError(f"{folder}: its levels are {bundle.space.levels}; build with these, not with {config.levels}")
    rows = bundle.catalog.rows_of(np.array([item_id.encode() for item_id in items.item_ids], object))
    known = rows >= 0
    if not known.any():
        raise DataError(f"{folder}: has none of the {len(items):,} items of the data, such as {items.item_ids[0]!r}")
    sids = np.zeros((len(items), len(bundle.space.levels)), np.int32)
    sids[known] = bundle.catalog.sids[rows[known]]
    if config.distinct_sids and len(np.unique(sids[known], axis=0)) < known.sum():
        raise DataError(f"{folder}: items of it share semantic IDs, and they keep them; leave out distinct_sids")
    quantizer = bundle.quantizer
    new, alike = ~known, 0
    if quantizer is not None and items.embeddings is not None:
        space, vectors = quantizer, items.embeddings
    else:
        vectors = behaviour_embeddings(train, len(items), config.training.seed)
        if not vectors[known].any():
            raise DataError(f"{folder}: nothing says what is like its items: no user took two of them in training")
        space = _means(vectors[known], sids[known], bundle.space.levels)
        alike = int((~vectors[new].any(axis=1)).sum())
    nearest = sids.copy()
    nearest[new] = space.encode(vectors[new])
    sids = distinct_sids(space, vectors, nearest, known) if config.distinct_sids else nearest
    return KeptSids(sids, quantizer, int(new.sum()), int((sids != nearest).any(axis=1).sum()), alike)


def _means(vectors: np.ndarray, sids: np.ndarray, levels: tuple[int, ...]) -> ResidualQuantizer:
    """Codebooks that fit semantic IDs which are given: a code is the mean of what its items leave at its level."""
    residual = vectors.astype(np.float64)
    far = _FAR * np.linalg.norm(residual, axis=1).max()
    books = []
    for level, size in enumerate(levels):
        codes = sids[:, level]
        counts, sums = np.bincount(codes, minlength=size), np.zeros((size, residual.shape[1]))
        np.add.at(sums, codes, residual)
        book = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], far)
        residual -= book[codes]
        books.append(book.astype(np.float32))
    return ResidualQuantizer(books)
