"""The follower with a store in memory: what it publishes, and what it does when something is in its way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.catalog import CatalogVersion
from genrec.catalog.published import BASES, CURRENT, VERSIONS, Published, Record, load_version
from genrec.errors import CatalogStoreError
from genrec.live import bases, follower
from genrec.live.changes import Changes
from genrec.live.follower import Follower
from genrec.live.status import Status
from genrec.live.store import Commits
from tests.unit.live.test_fold import KINDS, SPACE, Item, applied, assert_holds, changes_of, commits
from tests.unit.live.test_fold import Commit as Fields

FIRST: dict[str, Item] = {
    f"i{number}": (
        number % SPACE.size,
        number,
        number % 4 != 3,
        {"brand": f"b{number % 3}", "price": float(number), "tags": ["a", "b"][: number % 3]},
    )
    for number in range(8)
}


class MemoryStore:
    """A store whose table is a list. down: what reading it fails with."""

    space, table_id, kinds = SPACE, "a-table", KINDS

    def __init__(self, first: dict[str, Item]) -> None:
        self.states = [first]
        self.commits: list[Fields | str] = ["the base"]
        self.base = 0
        self.quantizer = None
        self.down = ""
        self.unreadable: set[int] = set()

    def commit(self, fields: Fields) -> int:
        self.states.append(applied(self.states[-1], fields))
        self.commits.append(fields)
        return len(self.commits) - 1

    def compact(self) -> int:
        self.states.append(self.states[-1])
        self.commits.append({})
        self.base = len(self.commits) - 1
        return self.base

    def latest(self) -> int:
        if self.down:
            raise CatalogStoreError(self.down)
        return len(self.commits) - 1

    def base_version(self) -> int:
        return self.base

    def committed_at(self, version: int) -> float:
        if version in self.unreadable:
            raise CatalogStoreError(f"version {version} cannot be read")
        return 1000.0 + version

    def read_base(self, version: int) -> Iterator[Changes]:
        every: Any = dict(self.states[self.base])
        yield changes_of(every)

    def read_commits(self, after: int, upto: int, known: Any) -> Commits:
        parts, refused = [Changes.empty()], []
        for version in range(after + 1, upto + 1):
            if version in self.unreadable:
                return Commits(Changes.concatenate(parts), version - 1, refused, (version, "is cut"))
            fields = self.commits[version]
            if isinstance(fields, str):
                refused.append((version, fields))
            elif fields:
                parts.append(changes_of(fields))
        return Commits(Changes.concatenate(parts), upto, refused, None)


def start(store: Any, root: Path, log: list[str] | None = None) -> Follower:
    return Follower(store, root, most_popular=20, keep_s=0.0, log=(log if log is not None else []).append)


def published(root: Path) -> CatalogVersion:
    return load_version(root, Record.load(root / CURRENT).version, SPACE)


def assert_serves(root: Path, store: MemoryStore, version: int, exactly: bool = True) -> None:
    """The published version holds what the store's does, and its masks allow at least that."""
    current = published(root)
    assert current.version == version
    assert_holds(current, store.states[version])
    record = Record.load(root / CURRENT)
    live = {item[0] for item in store.states[version].values() if item[2]}
    assert record.items == sum(item[2] for item in store.states[version].values())
    masks = bases.LocalBase.load(root, record.base, SPACE).masks
    every = np.arange(SPACE.size)
    allowed = set(every[masks.allows(every)].tolist())
    assert allowed == live if exactly else allowed >= live


def test_a_commit_is_published(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    follower = start(store, tmp_path)
    assert_serves(tmp_path, store, 0)
    version = store.commit({"i1": None, "new": (5, 100, None), "i2": (None, None, False)})
    follower.look()
    assert_serves(tmp_path, store, version, exactly=False)
    follower.look()  # nobody can ask for the version before any more
    assert_serves(tmp_path, store, version)
    status = Status.load(tmp_path)
    assert (status.seen, status.published, status.problem, status.waiting_since) == (version, version, "", None)


def test_masks_keep_what_the_version_before_needs(tmp_path: Path) -> None:
    store = MemoryStore({"a": (1, 0, True), "b": (2, 0, True)})
    follower = Follower(store, tmp_path, 20, keep_s=60.0, log=lambda line: None)  # type: ignore[arg-type]
    store.commit({"a": None})
    follower.look()
    follower.look()
    masks = bases.LocalBase.load(tmp_path, Record.load(tmp_path / CURRENT).base, SPACE).masks
    assert masks.allows(np.array([1, 2])).all()


@given(
    st.lists(st.one_of(commits, st.sampled_from(["refused", "compact", "restart", "look"])), max_size=12),
    st.sampled_from([0, 3, 4096]),
)
@settings(max_examples=30)
def test_any_history_ends_with_what_the_store_holds(tmp_path_factory: Any, history: list[Any], fresh: int) -> None:
    with patch.object(follower, "_MOST_FRESH", fresh):
        assert_any_history(tmp_path_factory.mktemp("published"), history)


def assert_any_history(root: Path, history: list[Any]) -> None:
    store, log = MemoryStore(FIRST), list[str]()
    running = start(store, root, log)
    for event in history:
        if event == "refused":
            store.states.append(store.states[-1])
            store.commits.append("an id comes twice")
        elif event == "compact":
            store.compact()
        elif event == "restart":
            running = start(store, root, log)
        elif event == "look":
            running.look()
            assert_serves(root, store, store.latest(), exactly=False)
        else:
            try:
                store.commit(event)
            except KeyError:
                continue
    running.look()
    running.look()
    assert_serves(root, store, store.latest())
    assert sum("refused" in line for line in log) == 0 or "an id comes twice" in "".join(log)


def test_a_new_base_is_made_while_versions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "most_touched", lambda items: 3)
    store = MemoryStore(FIRST)
    running = start(store, tmp_path)
    first = Record.load(tmp_path / CURRENT).base
    for number in range(4):
        store.commit({f"n{number}": (number, number, None)})
    running.look()  # it begins
    store.commit({"i0": None, "n1": (11, None, None)})
    running.look()
    deadline = time.monotonic() + 60
    while running._rebase is not None and time.monotonic() < deadline:
        time.sleep(0.05)
        running.look()
    assert_serves(tmp_path, store, store.latest())
    version = store.commit({"last": (3, 3, True)})
    running.look()
    assert Record.load(tmp_path / CURRENT).base != first
    running.look()
    assert_serves(tmp_path, store, version)
    store.commit({"last": None})
    running.look()  # the version before is of the new base too
    running._superseded = dict.fromkeys(running._superseded, 0.0)
    running.look()
    assert [folder.name for folder in (tmp_path / BASES).iterdir()] == [Record.load(tmp_path / CURRENT).base]


def test_masks_that_are_full_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "spare_prefixes", lambda items: 0)
    store = MemoryStore(FIRST)
    log: list[str] = []
    running = start(store, tmp_path, log)

    class Full:
        def add(self, codes: np.ndarray) -> None:
            if codes.size:
                raise follower.TableFull("no room")

    object.__setattr__(running._base, "masks", Full())
    version = store.commit({"new": (9, 9, True)})
    running.look()
    assert_serves(tmp_path, store, version)
    assert any("full" in line for line in log)


def test_a_store_that_goes_and_comes(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    log: list[str] = []
    running = start(store, tmp_path, log)
    store.commit({"i0": None})
    store.down = "the store is not there"
    for _ in range(3):
        running.look()
    assert_serves(tmp_path, store, 0)
    status = Status.load(tmp_path)
    assert status.problem == "the store is not there" and status.published == 0
    assert status.lag_s(status.reached_at + 90) == pytest.approx(90)
    assert len(log) == 1  # not a line every look
    store.down = ""
    running.look()
    running.look()
    assert_serves(tmp_path, store, 1)
    assert Status.load(tmp_path).problem == ""


def test_a_version_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    running = start(store, tmp_path)
    store.commit({"a": (1, 1, True)})
    store.commit({"b": (2, 2, True)})
    store.commit({"c": (3, 3, True)})
    store.unreadable = {2}
    running.look()
    assert_serves(tmp_path, store, 1)
    status = Status.load(tmp_path)
    assert "version 2 cannot be read" in status.problem and status.waiting_since == 1001.0  # at least since then
    store.unreadable = set()
    running.look()
    assert_serves(tmp_path, store, 3)


def test_a_follower_that_starts_before_a_commit_that_cannot_be_read_waits_too(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    for number in range(3):
        store.commit({f"n{number}": (number, 1, True)})
    store.unreadable = {2}
    for _ in range(2):  # on a base of its own, and on what the one before left
        log: list[str] = []
        running = start(store, tmp_path, log)
        assert_serves(tmp_path, store, 1)
        assert not log and len(list((tmp_path / BASES).iterdir())) == 1
    running.look()
    assert "version 2 cannot be read" in Status.load(tmp_path).problem
    store.unreadable = set()
    running.look()
    assert_serves(tmp_path, store, 3)


def test_a_newer_base_goes_past_what_cannot_be_read(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    running = start(store, tmp_path)
    store.commit({"b": (2, 2, True)})
    store.unreadable = {1}
    running.look()
    store.compact()
    store.commit({"c": (3, 3, True)})
    running.look()
    assert_serves(tmp_path, store, 3)
    assert Status.load(tmp_path).problem == ""


def test_a_follower_that_is_behind_what_was_compacted_away_goes_on_from_the_new_base(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    log: list[str] = []
    running = start(store, tmp_path)
    for number in range(3):
        store.commit({f"n{number}": (number, 1, True)})
        running.look()
    store.compact()
    store.unreadable = {1, 2, 3}  # they are not kept
    store.commit({"c": (3, 3, True)})
    start(store, tmp_path, log)  # its own base is of version 0
    assert_serves(tmp_path, store, 5)
    assert not log
    running = start(store, tmp_path)
    store.commit({"d": (2, 2, True)})
    running.look()
    assert_serves(tmp_path, store, 6)
    assert Status.load(tmp_path).problem == ""


def test_the_folder_of_another_store_is_not_used(tmp_path: Path) -> None:
    start(MemoryStore(FIRST), tmp_path)
    other = MemoryStore({"z": (3, 3, True)})
    other.table_id = "another-table"
    start(other, tmp_path)
    assert_serves(tmp_path, other, 0)


def test_a_damaged_base_is_made_anew(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    start(store, tmp_path)
    base = tmp_path / BASES / Record.load(tmp_path / CURRENT).base
    codes = (base / "codes.npy").read_bytes()
    (base / "codes.npy").write_bytes(codes[: len(codes) // 2])
    log: list[str] = []
    version = store.commit({"b": (2, 2, True)})
    start(store, tmp_path, log)
    assert_serves(tmp_path, store, version)
    assert any("codes.npy" in line for line in log)


def test_a_look_that_finds_nothing_new_looks_through_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(FIRST)
    running = start(store, tmp_path)
    for number in range(3):
        store.commit({f"n{number}": (number, number, None)})
        running.look()
    running._superseded = dict.fromkeys(running._superseded, 0.0)
    running.look()
    assert len(list((tmp_path / VERSIONS).iterdir())) == 2
    listed: list[Path] = []
    iterdir = Path.iterdir

    def noted(folder: Path) -> Iterator[Path]:
        listed.append(folder)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", noted)
    for _ in range(3):
        running.look()
    assert not listed
    unused = tmp_path / BASES / "99.0"
    unused.mkdir()
    version = store.commit({"last": (1, 1, None)})
    running.look()
    running._superseded = dict.fromkeys(running._superseded, 0.0)
    running.look()
    assert listed and not unused.exists()
    assert_serves(tmp_path, store, version)


def test_a_base_that_cannot_be_read_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    whole = store.read_base

    def broken(version: int) -> Iterator[Changes]:
        yield from whole(version)
        raise CatalogStoreError("the store is away")

    store.read_base = broken  # type: ignore[method-assign]
    with pytest.raises(CatalogStoreError, match="away"):
        start(store, tmp_path)
    assert not list((tmp_path / BASES).iterdir())
    store.read_base = whole  # type: ignore[method-assign]
    start(store, tmp_path)
    assert_serves(tmp_path, store, 0)


def test_a_new_base_that_was_killed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "most_touched", lambda items: 3)
    store, log = MemoryStore(FIRST), list[str]()
    running = start(store, tmp_path, log)
    for number in range(4):
        store.commit({f"n{number}": (number, number, None)})
    running.look()
    assert running._rebase is not None
    running._rebase.process.kill()
    running._rebase.process.wait()
    (tmp_path / BASES / ".unfinished-4.0").mkdir(exist_ok=True)
    running.look()
    assert "no new base could be made" in log[-1] and len(list((tmp_path / BASES).iterdir())) == 1
    assert_serves(tmp_path, store, 4)


def test_readers_keep_the_versions_that_can_be_asked_for(tmp_path: Path) -> None:
    store = MemoryStore(FIRST)
    running = Follower(store, tmp_path, 20, keep_s=0.5, log=lambda line: None)  # type: ignore[arg-type]
    reader = Published(tmp_path, SPACE, lambda catalog, base: catalog, keep_s=0.5)
    try:
        for number in range(5):
            store.commit({f"n{number}": (number, number, None)})
            running.look()
            entry = reader.at(number + 1)  # at once, before the reader's thread has seen it
            assert entry is not None and entry.version == number + 1
            assert_holds(entry.made, store.states[number + 1])
        assert reader.at(99) is None
        first = reader.at(1)
        assert first is not None
        time.sleep(2)
        running.look()
        assert reader.current.version == 5
        assert reader.at(4) is not None and reader.at(1) is None  # the one before stays
        assert_holds(first.made, store.states[1])  # who has it keeps it
        assert sorted(folder.name for folder in (tmp_path / VERSIONS).iterdir()) == ["4", "5"]
    finally:
        reader.close()
