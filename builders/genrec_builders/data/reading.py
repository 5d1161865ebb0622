"""Reads a dataset folder, whatever the forms of its files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from genrec.reporting.progress import Track, untracked
from genrec_builders.data.atomic_form import open_atomic
from genrec_builders.data.attributes import require_known
from genrec_builders.data.columns import is_text
from genrec_builders.data.folder import ending, find_files
from genrec_builders.data.found import Found
from genrec_builders.data.interactions import interactions_of_table
from genrec_builders.data.items import item_table
from genrec_builders.data.joined_items import joined
from genrec_builders.data.json_form import read_index, read_texts, read_user_lists
from genrec_builders.data.movielens_form import open_movies, open_ratings
from genrec_builders.data.report import summary
from genrec_builders.data.table_files import TableFile, check_columns, known_names, open_table
from genrec_builders.data.tables import Dataset, ItemTable

log = logging.getLogger(__name__)
_FORMS = {".json": "JSON", ".inter": "RecBole", ".item": "RecBole", ".parquet": "Parquet", ".csv": "CSV"}
_FORMS |= {".tsv": "tab-separated", ".jsonl": "JSON Lines", ".dat": "MovieLens"}


def read_dataset(
    path: Path | str,
    tell: Callable[[str], object] | None = None,
    attribute_types: Mapping[str, str] = MappingProxyType({}),
    track: Track = untracked,
) -> Dataset:
    """Reads a dataset directory (see the package's docstring for the forms).

    Users come in the order of their first appearance; interactions are ordered by timestamp within the user, and by
    their place in the file where timestamps are equal. Users without interactions are left out, and so are interactions
    with items that the catalogue does not list, unless these are half of them or more.

    tell: gets one line on what was read and, if something in the directory was not used, one on that; by default only
    the latter is logged, as a warning. attribute_types: kinds of attributes by the names of their columns, for columns
    whose own type is not meant, such as those of CSV, which are text. track: shows how much of a table of interactions
    is read.

    Raises DataError for missing, ambiguous, unreadable or empty files; missing columns; ids that are empty, duplicated,
    not UTF-8 or over 128 bytes; interactions mostly with unknown items; negative or ragged semantic IDs; embeddings
    that are ragged or not finite; queries that are not text; attributes that are not of the kinds asked for.
    """
    dataset, found = load(Path(path), attribute_types, track)
    read, *unused = summary(dataset, found)
    if tell is not None:
        tell(read)
    for line in unused:
        (tell or log.warning)(line)
    return dataset


def load(
    folder: Path, attribute_types: Mapping[str, str] = MappingProxyType({}), track: Track = untracked
) -> tuple[Dataset, Found]:
    """As `read_dataset`; also what the data was read from, and what was not used."""
    files = find_files(folder)
    found = Found(folder, ignored=files.others)
    found.used[files.interactions.name] = f"interactions: {_FORMS[ending(files.interactions)]}"
    if files.items is None:
        require_known(folder, [], attribute_types)
    tables = []
    for path, what in ((files.items, "items"), (files.embeddings, "embeddings"), (files.index, "semantic IDs")):
        if path is not None:
            found.used[path.name] = f"{what}: {_FORMS[ending(path)]}"
            kinds = attribute_types if path == files.items else {}
            tables.append((path, read_index(path) if path == files.index else _read_items(path, what, kinds, found)))
    items, catalogue = joined(tables, found), tables[-1][0].name
    if ending(files.interactions) == ".json":
        return Dataset(items, read_user_lists(files.interactions, items, catalogue, found)), found
    source = _open(files.interactions)
    source = _renamed(source, ("user_id", "item_id", "timestamp"), found)
    return Dataset(items, interactions_of_table(source, items, catalogue, found, track)), found


def _open(path: Path) -> TableFile:
    if ending(path) == ".dat":
        return open_ratings(path) if path.name.startswith("ratings") else open_movies(path)
    return open_atomic(path) if ending(path) in (".inter", ".item") else open_table(path)


def _renamed(source: TableFile, wanted: Sequence[str], found: Found) -> TableFile:
    """The table with the columns' names that are used here; `found` notes those of well-known datasets."""
    names = known_names(source, wanted)
    found.used[source.path.name] += "".join(f", {there} as {name}" for name, there in names.items())
    return source.renamed(names) if names else source


def _read_items(path: Path, what: str, kinds: Mapping[str, str], found: Found) -> ItemTable:
    if ending(path) == ".json":
        return item_table(path, read_texts(path, found), found, kinds)
    source = _renamed(_open(path), ("item_id",), found)
    names = source.schema.names
    vectors = ["embedding"] if what == "embeddings" and "embedding_0" not in names else []
    check_columns(path, names, ["item_id", *vectors])
    table = source.read(None)
    stated = {}
    if ending(path) == ".item":  # what RecBole calls a float is a number, or left out
        declared = [field.name for field in source.schema if pa.types.is_floating(field.type)]
        stated = {name: "number" for name in declared if is_text(table.schema.field(name).type)}
    return item_table(path, table, found, kinds, stated)
