"""What a dataset holds, and what a build makes of it: used, dropped, refused."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from genrec.catalog import SemanticIdSpace
from genrec.prompt import PromptLayout
from genrec_builders.data.found import Found, some
from genrec_builders.data.split import LEAVE_ONE_OUT, TESTED_FROM, Split, popularity
from genrec_builders.data.tables import Dataset, Interactions, ItemTable, Sequences
from genrec_builders.data.times import UNITS, as_moments

NO_BEHAVIOUR = (
    "nobody took two different items in training, so there is no behaviour to make semantic IDs from; give longer "
    "histories, or the items semantic IDs or embeddings"
)


def summary(dataset: Dataset, found: Found) -> list[str]:
    """One line on what was read and, if something was not used, one on that."""
    interactions = dataset.interactions
    lines = [
        f"data: {found.taken()}; {len(interactions):,} users, {len(interactions.rows):,} interactions, "
        f"{len(dataset.items):,} items"
    ]
    if unused := found.not_used():
        lines.append(f"not used: {'; '.join(unused)}")
    return lines


def describe(dataset: Dataset, found: Found, split: Split) -> list[tuple[str, str]]:
    """(what, in words) of everything that a build reads from the folder; what goes on has no name of its own."""
    items, interactions = dataset.items, dataset.interactions
    first, *others = found.not_used() or ["nothing is left out"]
    return [
        ("folder", str(found.folder)),
        ("files", found.taken()),
        ("not used", first),
        *(("", other) for other in others),
        ("users", _users(interactions)),
        ("interactions", _lengths(interactions)),
        ("times", _times(interactions)),
        *_split(interactions, split),
        ("items", _items(dataset, split)),
        ("semantic IDs", semantic_ids_in_words(items)),
        ("embeddings", "none" if items.embeddings is None else f"{items.embeddings.shape[1]} dimensions"),
        ("attributes", _attributes(items)),
        ("queries", _queries(interactions)),
    ]


def problems(dataset: Dataset, split: Split, trains: bool = True) -> list[str]:
    """Why a build refuses the dataset; empty if it does not. trains: whether it has epochs, which need targets."""
    items, lengths = dataset.items, np.diff(split.train.offsets)
    found = []
    if items.levels is not None:
        try:
            PromptLayout.contiguous(SemanticIdSpace(items.levels), max_history=1)
        except ValueError as error:
            found.append(str(error))
    elif items.embeddings is None and not _behaves(split.train):
        found.append(NO_BEHAVIOUR)
    if not (tested := len(split.test)):
        found.append(f"there is nothing to test with: {_nobody_tested(dataset.interactions, split)}")
    elif trains and not training_targets(split):
        found.append(
            f"there is nothing to train on: {tested:,} users are tested, and none of {len(lengths):,} has two "
            f"interactions left in training (the most are {lengths.max()}); give longer histories"
        )
    return found


def _behaves(train: Sequences) -> bool:
    """Whether two different items follow each other in a history."""
    users = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    return bool(((train.rows[1:] != train.rows[:-1]) & (users[1:] == users[:-1])).any())


def training_targets(split: Split) -> int:
    """Training targets: every item of a user's training part but the first."""
    return int(np.maximum(np.diff(split.train.offsets) - 1, 0).sum())


def _nobody_tested(interactions: Interactions, split: Split) -> str:
    if split.protocol == LEAVE_ONE_OUT:
        lengths = np.diff(interactions.offsets)
        return (
            f"the longest of {len(lengths):,} histories has {lengths.max(initial=0)} interactions, and a user is "
            f"tested with {TESTED_FROM} or more; give longer histories"
        )
    return (
        f"split {split.protocol}, no user has one interaction before the moment and two from it on "
        f"({len(split.validation):,} have one); choose an earlier moment"
    )


def _users(interactions: Interactions) -> str:
    single = np.flatnonzero(np.diff(interactions.offsets) == 1)
    return f"{len(interactions):,}; {_some_users(interactions, single)} with one interaction"


def _lengths(interactions: Interactions) -> str:
    lengths = np.diff(interactions.offsets)
    return f"{len(interactions.rows):,}; {lengths.min()} to {lengths.max()} per user, median {np.median(lengths):g}"


def _times(interactions: Interactions) -> str:
    times = interactions.times
    if times is None:
        return "none; the order of each user's list is what is known"
    same = times[1:] == times[:-1]
    same[interactions.offsets[1:-1] - 1] = False  # the first of a user
    at = np.partition(times, [0, int(0.9 * (len(times) - 1)), len(times) - 1])
    first, late, last = as_moments(at)[[0, int(0.9 * (len(times) - 1)), -1]]
    unit = "" if times.dtype.kind == "M" else f", from numbers that look like {UNITS[np.datetime_data(first)[0]]}"
    return (
        f"{first} to {last} (UTC{unit}), nine tenths before {late}; {int(same.sum()):,} interactions at the time of "
        "the user's one before keep the order of the file"
    )


def _split(interactions: Interactions, split: Split) -> list[tuple[str, str]]:
    lengths, train = np.diff(interactions.offsets), np.diff(split.train.offsets)
    tested = np.zeros(len(lengths), bool)
    tested[split.test.histories.users] = True
    targets = training_targets(split)
    lines = [
        f"{split.protocol}: {targets:,} training targets, {len(split.validation):,} users to validate with, "
        f"{len(split.test):,} to test with"
    ]
    if split.protocol == LEAVE_ONE_OUT:
        why = f"too short to be tested (under {TESTED_FROM} interactions): they train with all they have"
        lines.append(f"{_some_users(interactions, np.flatnonzero(~tested))} {why}")
    else:
        gone, new = np.flatnonzero(lengths == train), np.flatnonzero(train == 0)
        once = np.flatnonzero((train > 0) & (lengths == train + 1))
        later = int(np.maximum(lengths - train - 2, 0)[train > 0].sum())
        lines += [
            f"{_some_users(interactions, gone)} without an interaction from the moment on: they only train",
            f"{_some_users(interactions, once)} with one from the moment on: they validate and do not test",
            f"dropped: {_some_users(interactions, new)} without an interaction before the moment",
            f"dropped: {later:,} interactions behind a user's second from the moment on",
        ]
    lines.append(f"{_some_users(interactions, np.flatnonzero(train == 1))} with one interaction in training: no target")
    return [("split", lines[0]), *(("", line) for line in lines[1:])]


def _some_users(interactions: Interactions, users: np.ndarray) -> str:
    such = f" (such as {interactions.user_ids[int(users[0])]!r})" if users.size else ""
    return f"{users.size:,} users{such}"


def _items(dataset: Dataset, split: Split) -> str:
    n = len(dataset.items)
    bought = np.bincount(dataset.interactions.rows, minlength=n) > 0
    trained = popularity(split, n) > 0

    def such(rows: np.ndarray) -> str:
        places = np.flatnonzero(rows)
        return f"{places.size:,}" + (f" (such as {dataset.items.item_ids[int(places[0])]!r})" if places.size else "")

    return f"{n:,}; {such(~bought)} never bought, {such(bought & ~trained)} bought only in what does not train"


def _attributes(items: ItemTable) -> str:
    kinds = items.typed.kinds
    texts = [f"{name!r} ({'text only' if name not in kinds else kinds[name]})" for name in items.attributes]
    return (
        ", ".join([*texts, *(f"{name!r} ({kind})" for name, kind in kinds.items() if name not in items.attributes)])
        or "none"
    )


def semantic_ids_in_words(items: ItemTable) -> str:
    """What the data has of them, or what a build makes them of unless it is told."""
    if items.sids is not None and items.levels is not None:
        from genrec_builders.semantic_ids import semantic_id_report

        return str(semantic_id_report(items.sids, items.levels))
    if items.embeddings is not None:
        return "none; a build makes them from the embeddings"
    columns = some([repr(name) for name in items.attributes])
    rename = f" (if one of the columns {columns} holds them, name it 'sid' or 'embedding')" if columns else ""
    return f"none, and no embeddings; a build makes them from what users took in training{rename}"


def _queries(interactions: Interactions) -> str:
    if interactions.queries is None:
        return "none"
    asked = int((pc.binary_length(interactions.queries).to_numpy(zero_copy_only=False) > 0).sum())
    return f"{asked:,} of {len(interactions.rows):,} interactions have one"
