"""The local folder in which a follower publishes versions of a live catalogue, and its readers.

    current -> versions/17          replaced by one atomic rename
    versions/17/version.json, *.npy what changed since
    merged/16.0/*.npy               what changed between, made now and then
    bases/12.0/*.npy, masks/*.npy   a whole catalogue; the masks alone change in place

Files are never written again once they can be found, so a process that mapped them may go on however long it likes.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from genrec.catalog.base import CatalogBase
from genrec.catalog.semantic_id import SemanticIdSpace
from genrec.catalog.version import CatalogVersion, Delta
from genrec.errors import in_words, shown
from genrec.json_files import read_json

CURRENT, VERSIONS, MERGED, BASES, MASKS, RECORD = "current", "versions", "merged", "bases", "masks", "version.json"
POLL_S = 0.05

Made = TypeVar("Made")


def keep_versions_s(timeout_ms: int) -> float:
    """For how long a version can be asked for after another took its place, by the requests' default deadline."""
    return 1.0 + timeout_ms / 1e3


@dataclass(frozen=True)
class Record:
    """What is noted of a version.

    base, merged: the names of what it stands on, "" for nothing between. items: available ones. Times are Unix seconds.
    """

    version: int
    base: str
    merged: str
    items: int
    committed_at: float
    published_at: float

    def save(self, folder: Path) -> None:
        """Write the record into the version's folder."""
        (folder / RECORD).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Raises ValueError that names the file at fault, and FileNotFoundError if it is gone."""
        path = folder / RECORD
        try:
            record = cls(**read_json(path))
            for name in ("base", "merged"):
                if not re.fullmatch(r"\d+\.\d+" if name == "base" else r"(\d+\.\d+)?", getattr(record, name)):
                    raise ValueError(f"{name} is {shown(getattr(record, name))}, no name of one")
            return record
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: cannot be read as the record of a version: {in_words(error)}") from error


def load_version(root: Path, version: int, space: SemanticIdSpace) -> CatalogVersion:
    """Map a published version. Raises ValueError that names the file at fault, and OSError."""
    folder = root / VERSIONS / str(version)
    record = Record.load(folder)
    merged = [Delta.load(root / MERGED / record.merged)] if record.merged else []
    base = CatalogBase.load(root / BASES / record.base, space)
    return CatalogVersion(version, base, *merged, Delta.load(folder), base_version=version_of(record.base))


def version_of(base: str) -> int:
    """The version that a base holds, by its name."""
    return int(base.partition(".")[0])


@dataclass(frozen=True)
class Entry(Generic[Made]):
    """A version that can be asked for. created: Unix time of its commit. made: what the reader made of it."""

    version: int
    created: float
    made: Made


class OneVersion(Generic[Made]):
    """A catalogue that does not change, asked as `Published` is."""

    def __init__(self, version: int, created: float, made: Made) -> None:
        self.current = Entry(version, created, made)

    def at(self, version: int) -> Entry[Made] | None:
        """The entry of `version`, if that is the one."""
        return self.current if version == self.current.version else None

    def close(self) -> None:
        """Nothing goes on here."""


class Published(Generic[Made]):
    """The versions of a published folder, kept up by a thread.

    make(catalog, base folder): what a reader wants of a version, once for each. keep_s: how long a version can be asked
    for after another took its place; the one before the current always can.
    """

    def __init__(
        self, root: Path, space: SemanticIdSpace, make: Callable[[CatalogVersion, Path], Made], keep_s: float
    ) -> None:
        """Raises ValueError or OSError if there is no whole version."""
        self.root, self._space, self._make, self._keep_s = root, space, make, keep_s
        self._lock = threading.Lock()
        self._entries: dict[int, Entry[Made]] = {}
        self._bases: WeakValueDictionary[str, CatalogBase] = WeakValueDictionary()
        self._merged: WeakValueDictionary[str, Delta] = WeakValueDictionary()
        self._superseded: dict[int, float] = {}
        self.current = self._load(self._pointed_at())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="catalogue", daemon=True)
        self._thread.start()

    def at(self, version: int) -> Entry[Made] | None:
        """The entry of `version`; None if it is too old or not there."""
        entry = self._entries.get(version)
        if entry is not None:
            return entry
        try:
            return self._load(self.root / VERSIONS / str(version))  # published a moment ago
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Stop following."""
        self._closed.set()
        self._thread.join()

    def _pointed_at(self) -> Path:
        return self.root / os.readlink(self.root / CURRENT)

    def _load(self, folder: Path) -> Entry[Made]:
        with self._lock:
            number = int(folder.name)
            if number not in self._entries:
                record = Record.load(folder)
                base_folder = self.root / BASES / record.base
                base = self._bases.get(record.base) or CatalogBase.load(base_folder, self._space)
                self._bases[record.base] = base
                deltas = [Delta.load(folder)]
                if record.merged:
                    below = self._merged.get(record.merged) or Delta.load(self.root / MERGED / record.merged)
                    self._merged[record.merged] = below
                    deltas.insert(0, below)
                catalog = CatalogVersion(number, base, *deltas, base_version=version_of(record.base))
                self._entries[number] = Entry(number, record.committed_at, self._make(catalog, base_folder))
            return self._entries[number]

    def _follow(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                folder = self._pointed_at()
                if int(folder.name) != self.current.version:
                    self.current = self._load(folder)
            except (OSError, ValueError):
                pass  # the follower replaces it, or reports it
            self._drop_old()

    def _drop_old(self) -> None:
        now, current = time.monotonic(), self.current.version
        with self._lock:
            self._superseded.pop(current, None)
            for version in self._entries.keys() - {current}:
                self._superseded.setdefault(version, now)
            newest = max(self._superseded, default=None)
            for version, since in list(self._superseded.items()):
                if version != newest and now - since > self._keep_s:
                    del self._superseded[version], self._entries[version]
