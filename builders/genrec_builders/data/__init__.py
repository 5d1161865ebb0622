"""Catalogue and interactions: reading, writing, and the leave-one-out split.

`read_dataset` takes a directory with one file of interactions and one of items. Their names may have a prefix
(`Beauty.inter.json`) and, but for Parquet, end in `.gz`. The forms, which may be mixed:

* `inter.json` (`{user: [item, ...]}`, items in time order), `index.json` (`{item: ["<a_128>", "<b_241>", ...]}`) and
  optional `item.json` (`{item: {"title": ...}}`), the form that the generative-recommendation literature publishes;
* `interactions.parquet|csv|tsv|jsonl` (columns `user_id`, `item_id`, `timestamp`, and optional `query`: the text that
  the user searched with before taking the item, empty if none; or one row per user with `user_id` and `item_ids`, a
  list in time order) and `items.parquet|csv|tsv|jsonl` (column `item_id`; optional `sid`, in any notation of
  `notation`, or `sid_0`, `sid_1`, ...; optional `embedding` list column or `embedding_0`, ...; every other column of
  text, numbers, booleans, dates or lists of text becomes an attribute);
* `NAME.inter` and `NAME.item`, RecBole's atomic files, with the same columns.

Everything that the files get wrong is reported as a `DataError` that names the file, the place and the fix.
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
