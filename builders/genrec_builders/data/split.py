"""The leave-one-out split of the literature, and popularity in its training part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genrec.errors import DataError
from genrec.evaluation.comparison import UserSample
from genrec_builders.data.tables import Dataset, Interactions, Sequences, slices, taken


@dataclass(frozen=True, eq=False)
class Holdout:
    """One held-out item per user.

    histories: E sequences. targets: int32 [E], rows of the item table. queries: large_string [E], the query that led to
    each target, "" for none; or None if there are no queries.
    """

    histories: Sequences
    targets: np.ndarray
    queries: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Split:
    """Leave-one-out: `train` holds every user, `validation` and `test` the users with at least 3 interactions."""

    train: Sequences
    validation: Holdout
    test: Holdout


def split_leave_one_out(interactions: Interactions) -> Split:
    """Splits by the protocol of the literature: last item = test, the one before = validation, the rest = training.

    The test history contains the validation item. Users with fewer than 3 interactions only train, with all of them.
    """
    starts = interactions.offsets[:-1].astype(np.int64)
    lengths = np.diff(interactions.offsets).astype(np.int64)
    held = np.flatnonzero(lengths >= 3)
    rows, queries = interactions.rows, interactions.queries
    kept = np.where(lengths >= 3, lengths - 2, lengths)
    train = slices(np.arange(len(lengths), dtype=np.int64), rows, queries, starts, kept)

    def holdout(back: int) -> Holdout:
        sizes = lengths[held] - back
        histories = slices(held, rows, queries, starts[held], sizes)
        at = starts[held] + sizes
        return Holdout(histories=histories, targets=rows[at].astype(np.int32), queries=taken(queries, at))

    return Split(train=train, validation=holdout(2), test=holdout(1))


def popularity(interactions: Interactions | Sequences | Split, n_items: int) -> np.ndarray:
    """int64 [n_items]: how often each item occurs in the training part.

    `Interactions` are split first, so that held-out items never count; `Sequences` are taken as they are.
    Raises DataError if a row is not below `n_items`.
    """
    if isinstance(interactions, Interactions):
        interactions = split_leave_one_out(interactions)
    rows = interactions.train.rows if isinstance(interactions, Split) else interactions.rows
    if rows.size and rows.max() >= n_items:
        raise DataError(f"popularity: item row {rows.max()} is outside a catalogue of {n_items} items")
    return np.bincount(rows, minlength=n_items).astype(np.int64)


def sample(holdout: Holdout, users: int | None, seed: int = 0) -> np.ndarray:
    """int64 [E], ascending: which of a holdout's users are ranked, `users` of them at random, all if None."""
    count = len(holdout)
    if users is None or users >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, users, replace=False))


def sample_users(holdout: Holdout, users: int | None, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Histories and targets (int32 [E]) of `users` users of a holdout, of all if None."""
    chosen = sample(holdout, users, seed)
    return [holdout.histories[int(user)] for user in chosen], holdout.targets[chosen]


def sample_queries(holdout: Holdout, users: int | None, seed: int = 0) -> list[str]:
    """The queries that led to the targets of the same users, "" for none."""
    chosen = sample(holdout, users, seed)
    return [""] * chosen.size if holdout.queries is None else holdout.queries.take(chosen).to_pylist()


def user_sample(name: str, dataset: Dataset, users: int | None, seed: int = 0) -> UserSample:
    """`users` users of the test split of the dataset `name`, of all if None, for a comparison."""
    test = split_leave_one_out(dataset.interactions).test
    chosen = sample(test, users, seed)
    histories, targets = sample_users(test, users, seed)
    return UserSample(
        name=name,
        item_ids=dataset.items.item_ids,
        user_ids=[dataset.interactions.user_ids[user] for user in test.histories.users[chosen]],
        histories=histories,
        targets=targets,
        test_users=len(test),
        seed=seed,
    )
