"""Catalogue and interactions: reading, writing, and the leave-one-out split.

`read_dataset` takes a directory in one of two forms:

* `inter.json` (`{user: [item, ...]}`, items in time order) and `index.json` (`{item: ["<a_128>", "<b_241>", ...]}`),
  the form that the generative-recommendation literature publishes;
* `interactions.parquet|csv` (columns `user_id`, `item_id`, `timestamp`, and optional `query`: the text that the user
  searched with before taking the item, empty if none) and `items.parquet|csv` (column `item_id`;
  optional `sid` list column or `sid_0`, `sid_1`, ...; optional `embedding` list column or `embedding_0`, ...; every
  other column of text, numbers, booleans or dates becomes an attribute).

Everything that the files get wrong is reported as a `DataError` that names the file, the place and the fix.
"""

from __future__ import annotations

from pathlib import Path

from genrec.errors import DataError
from genrec_builders.data.json_form import read_json_form
from genrec_builders.data.split import (
    Holdout,
    Split,
    popularity,
    sample,
    sample_queries,
    sample_users,
    split_leave_one_out,
    user_sample,
)
from genrec_builders.data.table_form import read_table_form, table_files, write_dataset
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
    "split_leave_one_out",
    "user_sample",
    "write_dataset",
]


def read_dataset(path: Path | str) -> Dataset:
    """Reads a dataset directory (see the module's docstring for the two forms).

    Users come in the order of their first appearance; interactions are ordered by timestamp within the user, and by
    their place in the file where timestamps are equal. Users without interactions are left out.

    Raises DataError for missing, ambiguous, unreadable or empty files; missing columns; ids that are empty, duplicated,
    not UTF-8 or over 128 bytes; interactions with unknown items; negative or ragged semantic IDs; embeddings that are
    ragged or not finite; queries that are not text.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: not a directory; give the directory that holds the interactions and the items")
    as_json = [name for name in ("inter.json", "index.json") if (path / name).exists()]
    as_table = [p.name for stem in ("interactions", "items") for p in table_files(path, stem)]
    if as_json and as_table:
        raise DataError(f"{path}: holds two forms of data, {as_json} and {as_table}; keep one of them")
    if as_json:
        return read_json_form(path)
    if as_table:
        return read_table_form(path)
    raise DataError(
        f"{path}: no data found; expected inter.json and index.json, or interactions.parquet|csv and items.parquet|csv"
    )
