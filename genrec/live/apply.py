"""What `genrec catalog apply` does: one commit from files, checked against the catalogue before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.errors import DataError
from genrec.live.item_files import read_ids, read_items
from genrec.live.rows import REMOVE, UPSERT, conform, is_new_without_code, keys_of, problems, says_code
from genrec.live.store import CatalogStore

ADD = "add"
# What a list of ids says of its items: the operation, and whether they are available.
LISTS = {"remove": (REMOVE, None), "available": (UPSERT, True), "unavailable": (UPSERT, False)}


@dataclass(frozen=True)
class Applied:
    """The version that was written, and of how many items it says what. added: those that are new."""

    version: int
    added: int
    changed: int
    removed: int
    available: int
    unavailable: int


def apply_files(
    store: CatalogStore, files: Mapping[str, Path], *, change_sids: bool = False, message: str = ""
) -> Applied:
    """Commit what files say, as one version.

    files: by `ADD`, items as `read_items` reads them, where what one does not say stays as it is; by the names of
    `LISTS`, ids, one a line. change_sids: whether items may get another semantic ID.
    Raises DataError that names the first item that is wrong and how many are, CatalogConflict if another version is
    written meanwhile, CatalogStoreError.
    """
    roles, paths = list(files), list(files.values())
    parts = [
        read_items(path, store.kinds) if role == ADD else _of_ids(path, *LISTS[role]) for role, path in files.items()
    ]
    for path, part in zip(paths, parts, strict=True):
        for bad, text in problems(part, np.zeros(part.num_rows, np.int64), store.space, store.width, store.kinds):
            _refuse(path, bad, text)
    rows = pa.concat_tables(parts)
    source = np.repeat(np.arange(len(parts)), [part.num_rows for part in parts])
    key, distinct = keys_of(rows)

    def item(at: int) -> str:
        return f"item {rows['item_id'][at].as_py()!r}"

    def also(at: int) -> str:
        return f"{item(at)} is in {paths[source[np.flatnonzero(key == key[at])[-1]]]} too; name it in one of them"

    _refuse_any(paths, source, np.bincount(key, minlength=len(distinct))[key] > 1, also)
    version = store.latest()
    state = store.lookup(distinct, version)
    place = pc.index_in(rows["item_id"], value_set=state["item_id"]).fill_null(-1).to_numpy()
    known, coded = place >= 0, says_code(rows)

    def strange(at: int) -> str:
        if roles[source[at]] == ADD:
            return is_new_without_code(rows["item_id"][at].as_py())
        return f"{item(at)} is not in the catalogue at version {version}; take it out of the list"

    _refuse_any(paths, source, ~known & ~coded, strange)
    rows = store.with_sids(rows)
    again = np.flatnonzero(known & coded)
    new, old = store.codes(rows.take(pa.array(again))), store.codes(state.take(pa.array(place[again])))
    if not change_sids:
        moved = np.zeros(rows.num_rows, bool)
        moved[again] = new != old

        def differs(at: int) -> str:
            one = int(np.searchsorted(again, at))
            sids = [tuple(store.space.decode(codes[one : one + 1])[0].tolist()) for codes in (new, old)]
            return f"{item(at)} would get the sid {sids[0]} and has {sids[1]}; give --change-sids if it shall change"

        _refuse_any(paths, source, moved, differs)

    def count(role: str) -> int:
        return int((source == roles.index(role)).sum()) if role in roles else 0

    added = int((coded & ~known).sum())
    written = store.commit(rows, version, message)
    return Applied(written, added, count(ADD) - added, *(count(role) for role in LISTS))


def _of_ids(path: Path, operation: str, available: bool | None) -> pa.Table:
    ids = read_ids(path)
    says = pa.array([available] * len(ids), pa.bool_())
    return conform(pa.table({"item_id": ids, "operation": pa.array([operation] * len(ids)), "available": says}))


def _refuse_any(paths: list[Path], source: np.ndarray, bad: np.ndarray, text: Callable[[int], str]) -> None:
    """Raises DataError for the first bad row; source: int [n], which of `paths` each row is from."""
    if bad.any():
        _refuse(paths[source[bad.argmax()]], bad, text)


def _refuse(path: Path, bad: np.ndarray, text: Callable[[int], str]) -> None:
    if bad.any():
        many = f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
        raise DataError(f"{path}: {text(int(bad.argmax()))}{many}; nothing was written")
