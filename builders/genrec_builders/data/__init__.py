"""Catalogue and interactions: reading, writing, and the splits into training, validation and test.

`read_dataset` takes a folder with one file of interactions and one of items. docs/data.md says which forms they may
have, with an example each. Everything that the files get wrong is reported as a `DataError` that names the file, the
place and the fix.
"""

from __future__ import annotations

from genrec_builders.data.reading import read_dataset
from genrec_builders.data.split import (
    Holdout,
    Split,
    popularity,
    sample,
    sample_queries,
    sample_users,
    split_by_time,
    split_interactions,
    split_leave_one_out,
    user_sample,
)
from genrec_builders.data.table_form import write_dataset
from genrec_builders.data.tables import Dataset, Interactions, ItemTable, Sequences

__all__ = [
    "Dataset",
    "Holdout",
    "Interactions",
    "ItemTable",
    "Sequences",
    "Split",
    "popularity",
    "read_dataset",
    "sample",
    "sample_queries",
    "sample_users",
    "split_by_time",
    "split_interactions",
    "split_leave_one_out",
    "user_sample",
    "write_dataset",
]
