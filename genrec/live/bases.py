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

from genrec.arrays import in_folder
from genrec.catalog import CatalogBase, CatalogVersion, PrefixTable, SemanticIdSpace
from genrec.catalog.arranged import COLUMNS
from genrec.catalog.published import BASES, MASKS, load_version
from genrec.catalog.sorting import Columns
from genrec.live.changes import Changes

_NOTE = "base.json"
_UNFINISHED = ".unfinished-"
_SCRATCH = "scratch"


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


def usable_bases(root: Path, table: str, space: SemanticIdSpace) -> list[str]:
    """Names of the whole local bases of the store's table with this id, the newest last."""
    found = []
    for note in (root / BASES).glob(f"*/{_NOTE}"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(note.read_text()) == {"table": table, "levels": list(space.levels)}:
                found.append(note.parent.name)
    return sorted(found, key=_version_of)


def _version_of(name: str) -> int:
    return int(name.partition(".")[0])


def base_of_batches(root: Path, table: str, space: SemanticIdSpace, version: int, batches: Iterable[Changes]) -> str:
    """Write the base of `version` from a store's batches, in which every field is set. Returns its name.

    What is in memory does not grow with the items, except by the masks' prefixes. Raises ValueError for items that do
    not make a catalogue, OSError where the disk has no room, and what `batches` raise; nothing is left then.
    """
    return _write(root, table, space, version, ({name: getattr(part, name) for name in COLUMNS} for part in batches))


def base_of_version(root: Path, table: str, catalog: CatalogVersion) -> str:
    """Write the base of a version: what it holds, without a delta. Returns its name; otherwise as above."""
    columns = (
        {name: getattr(part, name)[rows] for name in COLUMNS if name != "available"} | {"available": live}
        for part, rows, live in catalog.current()
    )
    return _write(root, table, catalog.space, catalog.version, columns)


def _write(root: Path, table: str, space: SemanticIdSpace, version: int, batches: Iterable[Columns]) -> str:
    name = unused_name(root / BASES, version)
    with new_folder(root / BASES / name) as folder:
        scratch = folder / _SCRATCH
        base = CatalogBase.write(folder, space, batches, scratch)
        scratch.rmdir()
        spare = spare_prefixes(len(base))
        PrefixTable.build(space, base.codes[: base.live], spare, in_folder(folder / MASKS))
        (folder / _NOTE).write_text(json.dumps({"table": table, "levels": list(space.levels)}))
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
    """A folder to fill, which is at `folder` once it is whole; one that is there goes first. An error removes it."""
    unfinished = folder.with_name(f"{_UNFINISHED}{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
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
