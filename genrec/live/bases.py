"""Local bases: made of a store's base, or of a published version, each with its masks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from genrec.catalog import CatalogBase, CatalogVersion, Columns, PrefixTable, SemanticIdSpace
from genrec.catalog.kinds import Kinds
from genrec.catalog.published import BASES, MASKS, load_version
from genrec.live.changes import Changes

_NOTE = "base.json"
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class LocalBase:
    """A base and its masks, which alone change. name: its folder's. version: of the catalogue that it holds."""

    name: str
    version: int
    items: CatalogBase
    masks: PrefixTable

    @classmethod
    def load(cls, root: Path, name: str, space: SemanticIdSpace) -> LocalBase:
        """Map the base in the folder `name`, its masks to be changed. Raises ValueError that names the bad file."""
        folder = root / BASES / name
        masks = PrefixTable.load(folder / MASKS, space, writable=True)
        return cls(name, _version_of(name), CatalogBase.load(folder, space), masks)


def usable_bases(root: Path, table: str, space: SemanticIdSpace, kinds: Kinds) -> list[str]:
    """Names of the whole local bases of the store's table with this id, the newest last."""
    found = []
    for note in (root / BASES).glob(f"*/{_NOTE}"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(note.read_text()) == _note(table, space, kinds):
                found.append(note.parent.name)
    return sorted(found, key=_version_of)


def _note(table: str, space: SemanticIdSpace, kinds: Kinds) -> dict[str, Any]:
    note: dict[str, Any] = {"table": table, "levels": list(space.levels)}
    return note | {"attributes": dict(kinds)} if kinds else note


def _version_of(name: str) -> int:
    return int(name.partition(".")[0])


def base_of_batches(
    root: Path, table: str, space: SemanticIdSpace, version: int, batches: Iterable[Changes], kinds: Kinds
) -> str:
    """Write the base of `version` from a store's batches, in which every field is set. Returns its name."""
    parts = list(batches)
    if parts:
        ids, codes, popularity, available = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("item_ids", "codes", "popularity", "available")
        )
    else:
        ids, codes, popularity, available = np.empty(0, "S1"), *(np.empty(0, np.int64) for _ in range(3))
    attributes = Columns.concatenate([Columns.empty(kinds), *(part.columns for part in parts)])
    del parts
    return _write(root, table, space, version, ids, codes, popularity, available == 1, attributes)


def base_of_version(root: Path, table: str, catalog: CatalogVersion) -> str:
    """Write the base of a version: what it holds, without a delta. Returns its name."""
    ids, codes, popularity, available, attributes = [], [], [], [], []
    for part, counts, live in catalog.current():
        ids.append(part.item_ids[counts])
        codes.append(part.codes[counts].astype(np.int64))
        popularity.append(part.popularity[counts])
        available.append(live[counts])
        attributes.append(part.columns.take(counts))
    return _write(
        root,
        table,
        catalog.space,
        catalog.version,
        np.concatenate(ids),
        np.concatenate(codes),
        np.concatenate(popularity),
        np.concatenate(available),
        Columns.concatenate(attributes),
    )


def _write(
    root: Path,
    table: str,
    space: SemanticIdSpace,
    version: int,
    ids: np.ndarray,
    codes: np.ndarray,
    popularity: np.ndarray,
    available: np.ndarray,
    columns: Columns,
) -> str:
    name = unused_name(root / BASES, version)
    with new_folder(root / BASES / name) as folder:
        CatalogBase.build(space, ids, codes, popularity, available, columns).save(folder)
        PrefixTable.build(space, np.unique(codes[available]), spare=spare_prefixes(ids.size)).save(folder / MASKS)
        (folder / _NOTE).write_text(json.dumps(_note(table, space, columns.kinds)))
    return name


def unused_name(folder: Path, version: int) -> str:
    """A name in `folder` for what is made of a version: a reader may hold another of it, whose rows are others."""
    return next(name for i in count() if not (folder / (name := f"{version}.{i}")).exists())


def spare_prefixes(items: int) -> int:
    """Prefixes that the masks of a base have room for besides: more than come before the next base."""
    return 2 * most_touched(items)


def most_touched(items: int) -> int:
    """Touched items over a base of `items` at which the next one is made."""
    return max(20_000, items // 40)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which is at `folder` once it is whole; one that is there goes first."""
    unfinished = folder.with_name(f"{_UNFINISHED}{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def remove_unfinished(root: Path) -> None:
    """Remove what a killed process left half made."""
    for folder in root.glob(f"*/{_UNFINISHED}*"):
        shutil.rmtree(folder)


def main() -> None:
    """Make the base of a published version, in a process of its own, and print its name: ROOT TABLE VERSION LEVELS."""
    root, table, version, levels = sys.argv[1:]
    os.nice(10)
    space = SemanticIdSpace(tuple(map(int, levels.split(","))))
    print(base_of_version(Path(root), table, load_version(Path(root), int(version), space)))


if __name__ == "__main__":
    main()
