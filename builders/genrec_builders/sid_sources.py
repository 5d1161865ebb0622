"""The semantic IDs of a build: those that the data has, or made from embeddings, from behaviour or from both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from genrec.catalog import ResidualQuantizer
from genrec.errors import DataError
from genrec.reporting.progress import Track, untracked
from genrec_builders.behaviour import behaviour_embeddings
from genrec_builders.config import BEHAVIOUR, BOTH, DATA, EMBEDDINGS, KEPT, BuildConfig
from genrec_builders.data import Dataset, ItemTable, Sequences
from genrec_builders.data.report import NO_BEHAVIOUR
from genrec_builders.distinct import distinct_sids
from genrec_builders.kept_sids import keep_sids
from genrec_builders.semantic_ids import SemanticIdReport, fit_residual_kmeans, measure_fit, semantic_id_report

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """The catalogue's semantic IDs, and what the bundle keeps to give new items theirs.

    sids: int32 [n, L]. quantizer: of the data's embeddings; None if the semantic IDs came with the data, or are made of
    behaviour alone, which a new item lacks. source: one of SID_SOURCES, or KEPT. moved: items that do not have the
    semantic ID that the quantiser gave them. unknown: items without behaviour, where it is used. new: items that the
    bundle does not have whose semantic IDs are kept.
    """

    sids: np.ndarray
    levels: tuple[int, ...]
    quantizer: ResidualQuantizer | None
    source: str
    moved: int = 0
    unknown: int = 0
    new: int | None = None

    @property
    def report(self) -> SemanticIdReport:
        return semantic_id_report(self.sids, self.levels)

    @property
    def record(self) -> dict[str, Any]:
        """For a manifest."""
        new = {} if self.new is None else {"new": self.new}
        return {
            "source": self.source,
            "moved": self.moved,
            "without_behaviour": self.unknown,
            **new,
            **asdict(self.report),
        }

    def __str__(self) -> str:
        notes = [f"semantic IDs from {self.source}: {self.report}"]
        if self.new is not None:
            notes.append(f"{self.new:,} items are new, the others keep theirs")
        if self.moved:
            notes.append(f"{self.moved:,} items moved to a free one")
        if self.unknown:
            go = "go by their embeddings alone" if self.source == BOTH else "are all taken as alike"
            notes.append(f"{self.unknown:,} items that nobody took beside another in training {go}")
        return "; ".join(notes)


def sid_source(items: ItemTable, config: BuildConfig) -> str:
    """What the semantic IDs of a build are made of: what is asked for, else the first of SID_SOURCES that there is."""
    if config.sids_of is not None:
        return KEPT
    have = {DATA: items.sids is not None, EMBEDDINGS: items.embeddings is not None, BEHAVIOUR: True}
    return config.sid_source or next(source for source, there in have.items() if there)


def used_dataset(dataset: Dataset, config: BuildConfig) -> Dataset:
    """The dataset without the semantic IDs and embeddings that a build leaves aside.

    Raises DataError if it lacks what is asked for.
    """
    items, source = dataset.items, sid_source(dataset.items, config)
    if source == DATA and items.sids is None:
        raise DataError(
            f"sid_source is {DATA}, but the items have no semantic IDs; add a column 'sid', or leave it out"
        )
    if source in (EMBEDDINGS, BOTH) and items.embeddings is None:
        raise DataError(f"sid_source is {source}, but the items have no embeddings; add them, or use {BEHAVIOUR}")
    if source == DATA and config.distinct_sids:
        raise DataError(
            "distinct_sids moves items whose semantic ID is taken, and these came with the data, which does not say "
            "what lies near; leave it out, or name another sid_source"
        )
    if source == DATA:
        return dataset
    if source == KEPT and items.sids is None:
        return dataset
    embeddings = None if source == BEHAVIOUR else items.embeddings
    return replace(dataset, items=replace(items, sids=None, levels=None, embeddings=embeddings))


def make_semantic_ids(items: ItemTable, train: Sequences, config: BuildConfig, track: Track = untracked) -> SemanticIds:
    """items: of a `used_dataset`. train: the training part's histories, of which behaviour is known.

    The same input gives the same semantic IDs. Raises DataError if there is no behaviour, and QuantizerError for more
    items than there are semantic IDs, if no two may have the same.
    """
    if items.sids is not None and items.levels is not None:
        return SemanticIds(items.sids, items.levels, None, DATA)
    if config.sids_of is not None:
        kept = keep_sids(config.sids_of, items, train, config)
        return SemanticIds(kept.sids, config.levels, kept.quantizer, KEPT, kept.moved, kept.alike, kept.new)
    with track("semantic IDs") as task:
        return _made(items, train, config, lambda done, total: task(done, total, ""))


def _made(items: ItemTable, train: Sequences, config: BuildConfig, progress: Progress) -> SemanticIds:
    source = sid_source(items, config)
    known = np.ones(len(items), bool)
    if source == EMBEDDINGS:
        assert items.embeddings is not None
        made = _of_embeddings(items.embeddings, config, progress)
    else:
        behaviour = behaviour_embeddings(train, len(items), config.training.seed)
        known = behaviour.any(axis=1)
        if not known.any():
            raise DataError(NO_BEHAVIOUR)
        if source == BEHAVIOUR:
            space = fit_residual_kmeans(behaviour, config.levels, config.training.seed, progress)
            made = _Made(space, behaviour, space.encode(behaviour), None)
        else:
            assert items.embeddings is not None
            made = _of_both(items.embeddings, behaviour, known, config, progress)
    sids = distinct_sids(made.space, made.vectors, made.sids) if config.distinct_sids else made.sids
    moved = int((sids != made.sids).any(axis=1).sum())
    return SemanticIds(sids, config.levels, made.served, source, moved, int((~known).sum()))


class _Made(NamedTuple):
    """space: the quantiser of `vectors`, float32 [n, D], that gave `sids`. served: of a new item's embedding."""

    space: ResidualQuantizer
    vectors: np.ndarray
    sids: np.ndarray
    served: ResidualQuantizer | None


def _of_embeddings(embeddings: np.ndarray, config: BuildConfig, progress: Progress) -> _Made:
    seed = config.training.seed
    space = fit_residual_kmeans(embeddings, config.levels, seed, progress)
    served = ResidualQuantizer(space.codebooks, measure_fit(space, embeddings, seed))
    return _Made(served, embeddings, served.encode(embeddings), served)


def _of_both(
    embeddings: np.ndarray, behaviour: np.ndarray, known: np.ndarray, config: BuildConfig, progress: Progress
) -> _Made:
    """Codebooks of embeddings and behaviour side by side, each scaled to half of the variance.

    What is served is the embeddings' columns of these codebooks, scaled back: an item without behaviour, here or in a
    live catalogue, gets the code that is nearest in the dimensions that it has. known: bool [n], who has behaviour.
    """
    width, seed = embeddings.shape[1], config.training.seed
    scale, other = _scale(embeddings[known]), _scale(behaviour[known])
    vectors = np.concatenate([embeddings * scale, behaviour * other], axis=1).astype(np.float32)

    def fit(rows: np.ndarray, progress: Progress | None = None) -> ResidualQuantizer:
        chosen = rows & known
        return fit_residual_kmeans(vectors[chosen if chosen.any() else known], config.levels, seed, progress)

    def of_embeddings(space: ResidualQuantizer) -> ResidualQuantizer:
        return ResidualQuantizer([(book[:, :width] / scale).astype(np.float32) for book in space.codebooks])

    space = fit(known, progress)
    served = of_embeddings(space)
    served = ResidualQuantizer(
        served.codebooks, measure_fit(served, embeddings, seed, lambda rows: of_embeddings(fit(rows)))
    )
    sids = np.empty((len(known), len(config.levels)), np.int32)
    sids[known], sids[~known] = space.encode(vectors[known]), served.encode(embeddings[~known])
    vectors[~known, width:] = space.decode(sids[~known])[:, width:]  # as if they were where their codes are
    return _Made(space, vectors, sids, served)


def _scale(vectors: np.ndarray) -> float:
    """Makes the variance of `vectors`, summed over their dimensions, a half; 1 for vectors that are all the same."""
    variance = float(np.var(vectors, axis=0, dtype=np.float64).sum())
    return (0.5 / variance) ** 0.5 if variance > 0 else 1.0
