"""Reads a dataset folder, whatever the forms of its files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from genrec_builders.data.atomic_form import open_atomic
from genrec_builders.data.attributes import require_known
from genrec_builders.data.folder import ending, find_files
from genrec_builders.data.found import Found
from genrec_builders.data.interactions import interactions_of_table
from genrec_builders.data.items import item_table, with_index
from genrec_builders.data.json_form import read_index, read_texts, read_user_lists
from genrec_builders.data.report import summary
from genrec_builders.data.table_files import TableFile, check_columns, open_table
from genrec_builders.data.tables import Dataset, ItemTable

log = logging.getLogger(__name__)
_FORMS = {".json": "JSON", ".inter": "RecBole", ".item": "RecBole", ".parquet": "Parquet", ".csv": "CSV"}
_FORMS |= {".tsv": "tab-separated", ".jsonl": "JSON Lines"}


def read_dataset(
    path: Path | str,
    tell: Callable[[str], object] | None = None,
    attribute_types: Mapping[str, str] = MappingProxyType({}),
) -> Dataset:
    """Reads a dataset directory (see the package's docstring for the forms).

    Users come in the order of their first appearance; interactions are ordered by timestamp within the user, and by
    their place in the file where timestamps are equal. Users without interactions are left out.

    tell: gets one line on what was read and, if something in the directory was not used, one on that; by default only
    the latter is logged, as a warning. attribute_types: kinds of attributes by the names of their columns, for columns
    whose own type is not meant, such as those of CSV, which are text.

    Raises DataError for missing, ambiguous, unreadable or empty files; missing columns; ids that are empty, duplicated,
    not UTF-8 or over 128 bytes; interactions with unknown items; negative or ragged semantic IDs; embeddings that are
    ragged or not finite; queries that are not text; attributes that are not of the kinds asked for.
    """
    dataset, found = load(Path(path), attribute_types)
    read, *unused = summary(dataset, found)
    if tell is not None:
        tell(read)
    for line in unused:
        (tell or log.warning)(line)
    return dataset


def load(folder: Path, attribute_types: Mapping[str, str] = MappingProxyType({})) -> tuple[Dataset, Found]:
    """As `read_dataset`; also what the data was read from, and what was not used."""
    files = find_files(folder)
    found = Found(folder, ignored=files.others)
    found.used[files.interactions.name] = f"interactions: {_FORMS[ending(files.interactions)]}"
    items = None
    if files.items is not None:
        found.used[files.items.name] = f"items: {_FORMS[ending(files.items)]}"
        items = _read_items(files.items, found, attribute_types)
    else:
        require_known(folder, [], attribute_types)
    if files.index is not None:
        found.used[files.index.name] = "semantic IDs: JSON"
        index = read_index(files.index)
        items = index if items is None else with_index(items, files.items or folder, index, files.index, found)
    assert items is not None  # find_files has seen to it
    catalogue = (files.index or files.items or folder).name
    if ending(files.interactions) == ".json":
        interactions = read_user_lists(files.interactions, items, catalogue, found)
    else:
        interactions = interactions_of_table(_open(files.interactions), items, catalogue, found)
    return Dataset(items, interactions), found


def _open(path: Path) -> TableFile:
    return open_atomic(path) if ending(path) in (".inter", ".item") else open_table(path)


def _read_items(path: Path, found: Found, kinds: Mapping[str, str]) -> ItemTable:
    if ending(path) == ".json":
        return item_table(path, read_texts(path, found), found, kinds)
    source = _open(path)
    check_columns(path, source.schema.names, ("item_id",))
    return item_table(path, source.read(None), found, kinds)
