"""`items.parquet` and `interactions.parquet`: writing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.catalog.kinds import STRING, TEXTS_KEY
from genrec.errors import DataError
from genrec.reporting.kept import Fingerprint
from genrec.reporting.outputs import Output, replaced, require_replaceable
from genrec_builders.data.attributes import arrow_column
from genrec_builders.data.items import LEVELS_KEY
from genrec_builders.data.tables import Dataset

MADE_OF_KEY = b"genrec.made_of"
_FILES = ("items.parquet", "interactions.parquet")


def write_dataset(dataset: Dataset, path: Path | str, made_of: Fingerprint | None = None) -> None:
    """Writes `items.parquet` and `interactions.parquet` as the folder `path`; `read_dataset` gives the same back.

    Where only the order is known, `timestamp` is the place of the interaction in its user's sequence (0, 1, ...). A
    folder that this wrote is replaced. made_of: kept with the files, for `read_made_of` to tell.

    Raises FileExistsError if `path` holds anything else, and DataError if an attribute has the name of a reserved
    column.
    """
    path = Path(path)
    require_replaceable(path, DATASET)
    with replaced(path, DATASET) as folder:
        _write(dataset, folder, {MADE_OF_KEY: json.dumps(dict(made_of or {})).encode()})


def read_made_of(path: Path) -> Fingerprint | None:
    """What `write_dataset` was told that the dataset in `path` is made of; None if it was not, or did not write it."""
    try:
        found = json.loads((pq.read_schema(path / "items.parquet").metadata or {})[MADE_OF_KEY])
    except (OSError, ValueError, LookupError):
        return None
    return found or None


def _names(folder: Path) -> Callable[[str], bool] | None:
    try:
        metadata = [pq.read_schema(folder / name).metadata or {} for name in _FILES]
    except (OSError, ValueError):
        return None
    return _FILES.__contains__ if all(MADE_OF_KEY in each for each in metadata) else None


DATASET = Output("a dataset", _names)


def _write(dataset: Dataset, path: Path, metadata: dict[bytes, bytes]) -> None:
    items, interactions = dataset.items, dataset.interactions

    columns: dict[str, pa.Array] = {"item_id": pa.array(items.item_ids, type=pa.string())}
    for name in dict.fromkeys([*items.attributes, *items.typed]):
        if re.fullmatch(r"item_id|(sid|embedding)(_\d+)?", name):
            raise DataError(f"attribute {name!r} has the name of a reserved column; rename it")
        if name in items.typed and (name not in items.attributes or items.typed[name].kind != STRING):
            columns[name] = arrow_column(items.typed[name])
        else:
            columns[name] = pa.array(items.attributes[name], type=pa.string())
    levels = {TEXTS_KEY: json.dumps(list(items.attributes)).encode()}
    if items.sids is not None and items.levels is not None:
        columns["sid"] = _fixed_lists(items.sids)
        levels[LEVELS_KEY] = json.dumps(list(items.levels)).encode()
    if items.embeddings is not None:
        columns["embedding"] = _fixed_lists(items.embeddings)
    pq.write_table(pa.table(columns, metadata=metadata | levels), path / "items.parquet")

    lengths = np.diff(interactions.offsets)
    users = np.repeat(np.arange(len(interactions), dtype=np.int32), lengths)
    times = interactions.times
    if times is None:
        times = np.arange(len(interactions.rows), dtype=np.int64) - np.repeat(interactions.offsets[:-1], lengths)
    events = {
        "user_id": pa.array(interactions.user_ids, type=pa.string()).take(pa.array(users)),
        "item_id": columns["item_id"].take(pa.array(interactions.rows)),
        "timestamp": pa.array(times),
    }
    if interactions.queries is not None:
        events["query"] = interactions.queries
    pq.write_table(pa.table(events, metadata=metadata), path / "interactions.parquet")


def _fixed_lists(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).ravel()), matrix.shape[1])
