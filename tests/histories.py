"""What users took: as a dataset holds it, by names instead of rows; made up for a test; and changed in one place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from genrec_builders.data import Dataset, Sequences


def sequences(dataset: Dataset) -> dict[str, list[str]]:
    """The item ids of each user, oldest first."""
    inter = dataset.interactions
    return {
        user: [dataset.items.item_ids[row] for row in inter.rows[inter.offsets[i] : inter.offsets[i + 1]]]
        for i, user in enumerate(inter.user_ids)
    }


def sequences_of(users: list[list[int]]) -> Sequences:
    """Users whose items are these rows, oldest first."""
    lists = [np.array(user, np.int32) for user in users]
    rows = np.concatenate([np.empty(0, np.int32), *lists])
    return Sequences(users=np.arange(len(lists)), offsets=np.cumsum([0, *map(len, lists)]), rows=rows)


def swapped(dataset: Dataset, back: int) -> Dataset:
    """The dataset with the items that stand `back` from the end of each user, turned among the users."""
    interactions = dataset.interactions
    rows = interactions.rows.copy()
    at = interactions.offsets[1:] - back
    rows[at] = np.roll(rows[at], 1)
    return replace(dataset, interactions=replace(interactions, rows=rows))
