"""Splits into training, validation and test: leave-one-out or at a moment; popularity in the training part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genrec.errors import DataError
from genrec.evaluation.comparison import UserSample
from genrec_builders.data.tables import Dataset, Interactions, Sequences, slices, taken
from genrec_builders.data.times import as_moments, moment_among

LEAVE_ONE_OUT = "leave-one-out"
TESTED_FROM = 3  # interactions, by leave-one-out: the last is the test item, the one before the validation item


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
    """`train` holds every user's training part, `validation` and `test` those users of whom something is held out.

    protocol: how it was split, in words.
    """

    train: Sequences
    validation: Holdout
    test: Holdout
    protocol: str = LEAVE_ONE_OUT


def split_interactions(interactions: Interactions, split_at: str | None = None) -> Split:
    """`split_by_time` at the moment `split_at`; `split_leave_one_out` without one."""
    return split_leave_one_out(interactions) if split_at is None else split_by_time(interactions, split_at)


def split_leave_one_out(interactions: Interactions) -> Split:
    """Splits by the protocol of the literature: last item = test, the one before = validation, the rest = training.

    The test history contains the validation item. Users with fewer than `TESTED_FROM` interactions only train, with
    all of them.
    """
    lengths = np.diff(interactions.offsets).astype(np.int64)
    held = lengths >= TESTED_FROM
    kept = np.where(held, lengths - 2, lengths)
    return _split(interactions, kept, np.flatnonzero(held), np.flatnonzero(held), LEAVE_ONE_OUT)


def split_by_time(interactions: Interactions, moment: str) -> Split:
    """What lies before `moment` trains; each user's next item is the validation target, the one after it the test's.

    The test history contains the validation item, as in `split_leave_one_out`. A user without an item before the
    moment is in no part but training's, where the history is empty; later items than these two are in none.

    moment: a date in ISO 8601 (UTC), or a number as the file writes its timestamps. Raises DataError for interactions
    without times, a moment that is none, and one with nothing before or nothing after it.
    """
    if interactions.times is None:
        raise DataError(
            f"cannot split at {moment}: these interactions have no timestamps, only an order; add the timestamps, or "
            "split without a moment, which holds out the last two items of each user"
        )
    times, lengths = interactions.times, np.diff(interactions.offsets).astype(np.int64)
    try:
        before = times < moment_among(moment, times)
    except ValueError as error:
        raise DataError(str(error)) from error
    if before.all() or not before.any():
        first, last = as_moments(np.array([times.min(), times.max()])) if times.size else ("nothing", "nothing")
        raise DataError(
            f"cannot split at {moment}: all interactions lie {'before' if before.all() else 'at or after'} it; they "
            f"are of {first} to {last} (UTC)"
        )
    counts = np.concatenate([[0], np.cumsum(before, dtype=np.int64)])
    kept = counts[interactions.offsets[1:]] - counts[interactions.offsets[:-1]]
    returned = np.flatnonzero((kept > 0) & (lengths > kept))
    again = np.flatnonzero((kept > 0) & (lengths > kept + 1))
    return _split(interactions, kept, returned, again, f"at {moment}")


def _split(interactions: Interactions, kept: np.ndarray, validated: np.ndarray, tested: np.ndarray, how: str) -> Split:
    """kept: int64 [U], each user's interactions in training. The next one is validation's, the one after it test's."""
    starts = interactions.offsets[:-1].astype(np.int64)
    rows, queries = interactions.rows, interactions.queries

    def holdout(users: np.ndarray, more: int) -> Holdout:
        sizes = kept[users] + more
        histories = slices(users, rows, queries, starts[users], sizes)
        at = starts[users] + sizes
        return Holdout(histories=histories, targets=rows[at].astype(np.int32), queries=taken(queries, at))

    train = slices(np.arange(len(starts), dtype=np.int64), rows, queries, starts, kept)
    return Split(train, holdout(validated, 0), holdout(tested, 1), how)


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


def user_sample(
    name: str, dataset: Dataset, users: int | None, seed: int = 0, split_at: str | None = None
) -> UserSample:
    """`users` users of the test split of the dataset `name`, of all if None, for a comparison."""
    split = split_interactions(dataset.interactions, split_at)
    test = split.test
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
        protocol=split.protocol,
    )
