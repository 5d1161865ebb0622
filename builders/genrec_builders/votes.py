"""Adds votes to a bundle: item-kNN and item vectors of the training part; validation users choose the settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from genrec.bundle import BUNDLE, GOLDEN, VOTES, Bundle, Manifest, new_bundle, seal_bundle
from genrec.catalog.ragged import joined, rank_in_group
from genrec.engines.base import Drafts
from genrec.errors import DataError
from genrec.evaluation.metrics import CUTOFFS, metrics
from genrec.evaluation.ranker import alike_in_length, place, require_catalog
from genrec.evaluation.scored import rank_scored
from genrec.golden import write_golden
from genrec.item_vectors import ItemVectors
from genrec.pipeline import Pipeline
from genrec.reporting.outputs import require_replaceable, require_space
from genrec.reporting.progress import Task, Track
from genrec.verifier import Verifier
from genrec.votes import ItemVotes, VotesConfig, Voting
from genrec_builders.build import GOLDEN_QUERY, evaluate_split, split_record
from genrec_builders.data import Dataset, Sequences, Split, sample_users, split_interactions
from genrec_builders.item_vectors import VectorTraining, learn_vectors

DECAYS, SHRINKAGES = (1.0, 0.9, 0.8, 0.7), (0.0, 10.0, 50.0, 100.0)
WEIGHTS, DOUBTS, AFFINITY_WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0), (1e-3, 1e-2), (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
NEIGHBOURS = 100
LONGEST = 1000
"""Items of a user that are counted, the most recent ones: who has bought everything tells nothing, and takes long."""
_PAIRS = 20_000_000  # of items that one user bought, or of users and items, at a time
_BATCH, _USERS = 16, 256
_TOP_K = max(CUTOFFS)


@dataclass(frozen=True)
class Neighbourhood:
    """decay: as in `VotesConfig`. shrinkage: see `nearest_items`. neighbours: items that an item votes for at most."""

    decay: float = 1.0
    shrinkage: float = 0.0
    neighbours: int = NEIGHBOURS


def add_votes(
    source: Path,
    out: Path,
    dataset: Dataset,
    track: Track,
    validation_users: int = 4000,
    evaluate_users: int | None = None,
    vectors: bool = True,
) -> Manifest:
    """Copy the bundle `source` to `out` with votes, and its test metrics with them.

    Votes are counted in the training part of `dataset`, by the split that the bundle was built with, and item vectors
    learned there, unless `vectors` says that they are not. Its validation users, `validation_users` of them, choose the
    settings by NDCG@10, history not excluded: first decay and shrinkage by the votes alone and the epoch of the vectors
    by these alone, then the three weights and doubt by all together.
    Raises, before any work, ValueError or OSError for an `out` that is or holds anything but another bundle, for data
    of other items or with less to train with than the bundle had, and DataError for data without validation users; then
    ValueError if votes do not help.
    """
    require_replaceable(out, BUNDLE, [source])
    bundle = Bundle(source)
    bundle.check()
    require_catalog(bundle, dataset.items.item_ids)
    added = len(bundle.catalog) * 8 * (NEIGHBOURS + VectorTraining().size * vectors)
    require_space(out, 2 * sum(file.bytes for file in bundle.manifest.files.values()) + added, "the copy")
    split = split_interactions(dataset.interactions, bundle.manifest.split_at)
    _require_training_part(bundle, split)
    histories, targets = sample_users(split.validation, validation_users)
    if not histories:
        raise DataError("no user has the interactions that choosing the votes' settings needs; add longer histories")
    recent = [bundle.layout.recent(history) for history in histories]

    def ndcg(rows: np.ndarray) -> float:
        return metrics(rows, targets)["ndcg@10"]

    with track("count votes"):
        votes, neighbourhood = tuned_neighbours(
            split.train, len(bundle.catalog), lambda votes: ndcg(_most_voted(votes, recent))
        )
    if vectors:
        items = len(bundle.catalog)
        users = max(1, min(_USERS, _PAIRS // items))

        def validated(found: ItemVectors) -> float:
            ((rows, _),) = rank_scored(found.affinities, recent, top_k=_TOP_K, batch=users)
            return ndcg(rows)

        with track("learn item vectors") as task:
            learned = learn_vectors(split.train, items, bundle.layout.max_history, validated, task)
        votes = replace(votes, vectors=learned)
    pipeline = Pipeline.open(bundle)
    with track("draft for validation users") as task:
        drafts = _drafts(pipeline, histories, task)
    with track("weigh votes") as task:
        config, found, alone = _weighed(bundle, votes, drafts, recent, ndcg, task)
    if found <= alone:
        raise ValueError(
            f"{source}: votes do not help: NDCG@10 of {len(histories)} validation users is {alone:.4f} without them "
            f"and {found:.4f} with the best of all settings; serve the bundle as it is"
        )
    votes = replace(votes, config=config, vectors=votes.vectors if config.affinity_weight else None)
    pipeline.verifier = Verifier(bundle.catalog, bundle.index, Voting(votes, bundle.catalog, bundle.catalog))
    with new_bundle(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        Bundle(folder).check()  # minutes after the source was
        shutil.rmtree(folder / VOTES, ignore_errors=True)
        votes.save(folder / VOTES)
        golden = bundle.golden["history"].astype(object)
        write_golden(folder / GOLDEN, bundle.catalog.rows_of(golden), pipeline, GOLDEN_QUERY)
        with track("evaluate") as task:
            quality = evaluate_split(pipeline, split, evaluate_users, task)
        fields = bundle.manifest.model_dump(exclude={"files", "votes"})
        record = {
            **asdict(neighbourhood),
            "validation_users": len(histories),
            "validation_ndcg": {"without": alone, "with": found},
            "split": split_record(split, bundle.manifest.split_at),
        }
        fields["training"] |= {"votes": record, "quality": quality}
        version = f"{bundle.manifest.bundle_version.removesuffix('-votes')}-votes"
        return seal_bundle(folder, **(fields | {"votes": config, "bundle_version": version}))


def _require_training_part(bundle: Bundle, split: Split) -> None:
    """Where the data holds less than the bundle was trained with, its model may have seen what is held out now."""
    trained = bundle.manifest.training.get("split", {}).get("training_interactions", 0)
    if len(split.train.rows) < trained:
        raise ValueError(
            f"{bundle.path}: was trained with {trained:,} interactions, and this data has {len(split.train.rows):,} to "
            "train with: give the data that it was built of, or newer data of the same items"
        )


def nearest_items(
    train: Sequences, items: int, shrinkages: Sequence[float], neighbours: int = NEIGHBOURS
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The nearest of a catalogue of `items` by item-kNN, for each shrinkage.

    The similarity of two items is the number of users who bought both, divided by the root of the product of both
    items' users plus the shrinkage, which is held against similarities that few users make. No item is its own
    neighbour. Gives offsets, int64 [items + 1]; neighbours, int32 [m], the most similar first, the lower row of equal
    ones; similarity, float32 [m].
    """
    lengths = np.diff(train.offsets)
    age = np.repeat(train.offsets[1:], lengths) - np.arange(train.rows.size)
    counted = age <= LONGEST
    user = np.repeat(np.arange(lengths.size), lengths)[counted]
    bought = csr_matrix((np.ones(user.size, np.float32), (user, train.rows[counted])), (lengths.size, items))
    bought.data[:] = 1.0  # csr_matrix adds up what a user bought twice
    buyers = np.asarray(bought.sum(0), np.float64).ravel()
    by_item = bought.T.tocsr()
    pairs = by_item @ np.diff(bought.indptr).astype(np.float64)
    cuts = np.flatnonzero(np.diff(pairs.cumsum() // _PAIRS)) + 1
    found: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in shrinkages]
    for rows in np.split(np.arange(items), cuts):
        both = (by_item[rows] @ bought).tocoo()
        other = rows[both.row] != both.col
        item, near, count = both.row[other], both.col[other], both.data[other].astype(np.float64)
        norm = np.sqrt(buyers[rows[item]] * buyers[near])
        first, sizes = rank_in_group(item, rows.size) < neighbours, np.bincount(item, minlength=rows.size)
        for kept, shrinkage in zip(found, shrinkages, strict=True):
            similar = count / (norm + shrinkage)
            order = np.lexsort((near, -similar, item))[first]
            kept.append(
                (np.minimum(sizes, neighbours), near[order].astype(np.int32), similar[order].astype(np.float32))
            )
    for kept in found:
        sizes, near, similar = map(np.concatenate, zip(*kept, strict=True))
        kept.clear()
        yield np.concatenate([[0], sizes.cumsum()]).astype(np.int64), near, similar


def tuned_neighbours(
    train: Sequences, items: int, validate: Callable[[ItemVotes], float]
) -> tuple[ItemVotes, Neighbourhood]:
    """The best of DECAYS and SHRINKAGES. validate: a metric on validation items, higher is better."""
    best: tuple[float, ItemVotes, Neighbourhood] | None = None
    for shrinkage, arrays in zip(SHRINKAGES, nearest_items(train, items, SHRINKAGES), strict=True):
        for decay in DECAYS:
            votes = ItemVotes(VotesConfig(decay=decay), *arrays)
            reached = validate(votes)
            if best is None or reached > best[0]:
                best = reached, votes, Neighbourhood(decay, shrinkage)
    assert best is not None
    return best[1:]


def _most_voted(votes: ItemVotes, recent: Sequence[np.ndarray]) -> np.ndarray:
    """What the votes alone rank, the history not excluded: int32 [E, 10], -1 behind the last."""
    ranked = np.full((len(recent), _TOP_K), -1, np.int32)
    for at in range(0, len(recent), _USERS):
        some = recent[at : at + _USERS]
        keys, cast = votes.cast(*joined(some), len(some))
        user, row = np.divmod(keys, len(votes))
        order = np.lexsort((-cast, user))
        rank = rank_in_group(user, len(some))
        first = rank < _TOP_K
        ranked[at + user[first], rank[first]] = row[order[first]]
    return ranked


def _drafts(pipeline: Pipeline, histories: Sequence[np.ndarray], task: Task) -> Drafts:
    """Of all `histories`, in their order."""
    prompts = [pipeline.layout.encode_history(history, pipeline.catalog.sids) for history in histories]
    shape = len(prompts), pipeline.engine.beam_width
    codes, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
    done = 0
    for users in alike_in_length(prompts, _BATCH):
        drafts = pipeline.engine.draft([prompts[user] for user in users])
        codes[users], scores[users] = drafts.codes, drafts.scores
        done += users.size
        task(done, len(prompts), "")
    return Drafts(codes, scores)


def _weighed(
    bundle: Bundle,
    votes: ItemVotes,
    drafts: Drafts,
    recent: Sequence[np.ndarray],
    ndcg: Callable[[np.ndarray], float],
    task: Task,
) -> tuple[VotesConfig, float, float]:
    """The best of WEIGHTS, DOUBTS and AFFINITY_WEIGHTS, what it reaches, and what the drafts reach alone."""
    catalog = bundle.catalog

    def reached(voting: Voting | None) -> float:
        verifier = Verifier(catalog, bundle.index, voting)
        ranked = np.full((len(recent), _TOP_K), -1, np.int32)
        for at in range(0, len(recent), _USERS):
            part = slice(at, at + _USERS)
            some = recent[part]
            nothing, wanted = [np.empty(0, np.int32)] * len(some), np.full(len(some), _TOP_K)
            found = verifier.verify(drafts.codes[part], drafts.scores[part], nothing, wanted, histories=some)
            place(ranked, np.arange(at, at + len(some)), found)
        return ndcg(ranked)

    alone, best = reached(None), (-1.0, votes.config)
    settings = list(product(AFFINITY_WEIGHTS if votes.vectors is not None else (0.0,), WEIGHTS, DOUBTS))
    for number, setting in enumerate(settings):
        task(number, len(settings), "")
        config = votes.config.model_copy(update=dict(zip(("affinity_weight", "weight", "doubt"), setting, strict=True)))
        best = max(best, (reached(Voting(replace(votes, config=config), catalog, catalog)), config), key=lambda b: b[0])
    return best[1], best[0], alone
