"""What a full disk does to a writer of a catalogue and to a follower.

The disk is small, and nobody else's: its folder is the only argument.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import genrec.live.follower
from genrec.errors import CatalogStoreError
from genrec.live.status import Status
from tests.unit.live.test_faults import assert_whole, opened
from tests.unit.live.test_follower import FIRST, MemoryStore, assert_serves, start
from tests.unit.live.world import SPACE, CatalogStore
from tests.unit.live.writer import of_version


def fill(disk: Path, left: int = 0) -> Path:
    filler = disk / "filler"
    with filler.open("wb") as file:
        free = shutil.disk_usage(disk).free - left
        file.write(b"x" * free)
    return filler


def writer(disk: Path) -> None:
    location = disk / "store"
    CatalogStore.create(str(location), SPACE, [of_version(0)], width=2)
    store = opened(location)
    for left in (0, 4096):  # nothing can be written; the rows, or a part of them, and not the log's entry
        filler = fill(disk, left)
        try:
            store.commit(of_version(1), 0, "one")
        except CatalogStoreError as error:
            assert str(error).startswith(f"{location}: cannot be written to: "), error
            assert "has space" in str(error), error
        else:
            raise AssertionError("there was room: this shows nothing")
        filler.unlink()
        assert assert_whole(location) == 0
    assert store.commit(of_version(1), 0, "one") == 1
    assert assert_whole(location) == 1


def follower(disk: Path) -> None:
    for number, (left, most_fresh) in enumerate(itertools.product((0, 4096, 16384), (4096, 0))):
        follower_with(disk / str(number), left, most_fresh)


def follower_with(disk: Path, left: int, most_fresh: int) -> None:
    """left: bytes. most_fresh: touched items from which on they are merged into a delta of their own."""
    log = list[str]()
    disk.mkdir()
    store = MemoryStore(FIRST)
    with patch.object(genrec.live.follower, "_MOST_FRESH", most_fresh):
        following = start(store, disk / "published", log)
        filler = fill(disk, left)
        first = store.commit({"i1": None, "new": (5, 100, None)})
        following.look()
        following.look()
        assert_serves(disk / "published", store, 0, exactly=False)
        assert any("stays at version 0" in line and "No space left" in line for line in log), log
        filler.unlink()
        following.look()
        assert_serves(disk / "published", store, first, exactly=False)
        assert Status.load(disk / "published").problem == ""
        second = store.commit({"i2": None})
        following.look()
        following.look()
        assert_serves(disk / "published", store, second)
    shutil.rmtree(disk)


if __name__ == "__main__":
    for number, part in enumerate((writer, follower)):
        folder = Path(sys.argv[1]) / str(number)
        folder.mkdir()
        part(folder)
