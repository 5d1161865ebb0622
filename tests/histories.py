"""What users took, as a dataset holds it, by names instead of rows."""

from __future__ import annotations

from genrec_builders.data import Dataset


def sequences(dataset: Dataset) -> dict[str, list[str]]:
    """The item ids of each user, oldest first."""
    inter = dataset.interactions
    return {
        user: [dataset.items.item_ids[row] for row in inter.rows[inter.offsets[i] : inter.offsets[i + 1]]]
        for i, user in enumerate(inter.user_ids)
    }
