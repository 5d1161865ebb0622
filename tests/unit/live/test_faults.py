"""Writers at once, killed writers, stores that go and come back, damaged files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genrec.catalog.published import CURRENT, Record
from genrec.cli.main import main
from genrec.errors import CatalogConflict, CatalogStoreError
from genrec.live.status import Status
from genrec.live.store import CatalogStore
from tests.namespaces import seen_by, tmpfs
from tests.unit.live.test_follower import FIRST, MemoryStore, assert_serves, start
from tests.unit.live.world import (
    QUANTIZER,
    SPACE,
    Reader,
    applied,
    changes,
    data_files,
    entry_file,
    items,
    new_store,
    state_at,
    write_raw,
)
from tests.unit.live.writer import WIDE, of_version

pytestmark = pytest.mark.training  # processes that are killed, and stores that do not answer, take seconds


def writer(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.live.writer", *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(processes: list[subprocess.Popen[str]]) -> None:
    """Let writers of commits begin together."""
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def opened(location: Path) -> CatalogStore:
    return CatalogStore.open(str(location), QUANTIZER)


def assert_whole(location: Path) -> int:
    """Every version is there wholly or not at all; gives the newest."""
    store = opened(location)
    newest = store.latest()
    for version in range(newest + 1):
        popularity = {popularity for _, popularity, _ in state_at(store, version).values()}
        assert popularity == {version}, version
    return newest


@pytest.fixture
def location(tmp_path: Path) -> Path:
    CatalogStore.create(str(tmp_path / "c"), SPACE, [of_version(0)], width=2)
    return tmp_path / "c"


# --- writers ---


def test_of_two_writers_one_is_told(location: Path) -> None:
    first, second = opened(location), opened(location)
    assert first.commit(of_version(1), 0, "first") == 1
    with pytest.raises(CatalogConflict, match=r"/c: version 1 was written meanwhile; read it and apply again"):
        second.commit(changes(("i0", 2, 9, 0)), 0, "second")
    assert second.commit(of_version(2), second.latest(), "second") == 2
    assert assert_whole(location) == 2
    with pytest.raises(CatalogStoreError, match="version 7 cannot be loaded"):
        first.commit(of_version(8), 7, "ahead")


def test_two_processes_that_write_at_once_lose_nothing(location: Path) -> None:
    both = [writer(location, "commits", 25) for _ in range(2)]
    begin(both)
    for process in both:
        process.communicate(
            timeout=120
        )  # whether they meet is up to the machine; the test above has a conflict for sure
    assert [process.returncode for process in both] == [0, 0]
    assert assert_whole(location) == 50
    authors = {entry.message for entry in opened(location).log()[:-1]}
    assert len(authors) == 2


def test_a_compaction_goes_behind_what_is_committed_meanwhile(location: Path) -> None:
    store, other = opened(location), opened(location)
    store.commit(of_version(1), 0, "")
    write = store._log.write

    def slow(*words: object) -> object:
        added = write(*words)  # type: ignore[arg-type]
        for version in (2, 3):
            other.commit(of_version(version), version - 1, "meanwhile")
        return added

    store._log.write = slow  # type: ignore[method-assign, assignment]
    assert store.compact() == 4
    assert store.base_version(4) == 1 and store.base_version(3) == 0
    assert {popularity for _, popularity, _ in state_at(opened(location), 4).values()} == {3}


def test_a_compaction_gives_way_to_another_base(location: Path) -> None:
    store, other = opened(location), opened(location)
    store.commit(of_version(1), 0, "")
    write = store._log.write
    store._log.write = lambda *words: (write(*words), other.compact())[0]  # type: ignore[method-assign]
    with pytest.raises(CatalogConflict, match="a base was written meanwhile"):
        store.compact()
    assert store.base_version(store.latest()) == 1


def test_writers_killed_at_random_leave_whole_versions(location: Path) -> None:
    random.seed(1)
    for _ in range(6):
        process = writer(location, "commits", 10_000)
        before = opened(location).latest()
        begin([process])
        until = time.monotonic() + 60
        while opened(location).latest() == before and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert opened(location).latest() > before
    newest = assert_whole(location)
    assert opened(location).commit(of_version(newest + 1), newest, "") == newest + 1


@pytest.mark.parametrize("action", ["commit", "compact", "rollback"])
def test_a_writer_killed_at_every_step_leaves_whole_versions(location: Path, action: str, tmp_path: Path) -> None:
    store = opened(location)
    for version in (1, 2):
        store.commit(of_version(version), version - 1, "")
    store.compact()
    for version in (4, 5):
        store.commit(of_version(version), version - 1, "")
    states = [state_at(store, version) for version in range(6)]
    states.append({"commit": applied(states[5], of_version(6)), "compact": states[5], "rollback": states[4]}[action])
    shutil.copytree(location, tmp_path / "before")
    steps, newest_seen = 0, set()
    while (process := writer(location, action, steps)).wait(timeout=60):
        assert process.returncode == -signal.SIGKILL
        store = opened(location)
        newest = store.latest()
        newest_seen.add(newest)
        kept = [5, 6] if action == "compact" and newest == 6 else range(newest + 1)
        assert [state_at(store, version) for version in kept] == [states[version] for version in kept]
        # What it left does not stop the next one, and goes when it is old.
        assert store.commit(of_version(newest + 1), newest, "") == newest + 1
        for path in location.glob("*.parquet*"):
            os.utime(path, (0, 0))
        store.compact(keep_versions=1)
        store.compact(keep_versions=1)
        assert len(list(location.glob("*.parquet*"))) == 1
        assert state_at(store, store.version) == applied(states[newest], of_version(newest + 1))
        shutil.rmtree(location)
        shutil.copytree(tmp_path / "before", location)
        steps += 1
    assert newest_seen == {5, 6} and steps >= (14 if action == "compact" else 6)


def test_a_catalogue_killed_while_it_is_made_is_there_or_not(tmp_path: Path) -> None:
    steps = there = 0
    while (process := writer(location := tmp_path / f"c{steps}", "create", steps)).wait(timeout=60):
        assert process.returncode == -signal.SIGKILL
        if entry_file(location, 0).exists():
            there += 1
            assert state_at(opened(location), 0) == {"a": (1, 0, True)}
        else:
            with pytest.raises(CatalogStoreError, match="there is no live catalogue"):
                opened(location)
        steps += 1
    assert steps >= 6 and there == 1


# --- the store goes and comes back ---


def test_a_store_that_goes_says_so_and_is_followed_when_it_is_back(location: Path) -> None:
    reader = Reader(opened(location)).start().follow()
    away = location.with_name("away")
    location.rename(away)
    for _ in range(2):
        with pytest.raises(CatalogStoreError, match=r"/c: .*; (see|name|make)"):
            reader.follow()
    location.mkdir()
    with pytest.raises(CatalogStoreError, match=r"/c: "):
        reader.follow()
    location.rmdir()
    away.rename(location)
    opened(location).commit(of_version(1), 0, "")
    reader.follow()
    assert reader.version == 1 and {popularity for _, popularity, _ in reader.state.values()} == {1}


def test_another_catalogue_in_its_place_is_told(location: Path) -> None:
    reader = Reader(opened(location)).start()
    opened(location).commit(of_version(1), 0, "")
    reader.follow()
    shutil.rmtree(location)
    CatalogStore.create(str(location), SPACE, [of_version(0)], width=2)
    with pytest.raises(CatalogStoreError, match="is at version 0, and was at 1: it was replaced"):
        reader.follow()


# --- damage ---

CUT: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "other": lambda content: b"PAR1 and then something else" * 20,
}


def damage(path: Path, edit: Callable[[bytes], bytes | None]) -> bytes:
    content = path.read_bytes()
    damaged = edit(content)
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    return content


@pytest.mark.parametrize("edit", CUT.values(), ids=CUT.keys())
def test_a_damaged_file_stops_readers_before_its_version(location: Path, edit: Callable[[bytes], bytes | None]) -> None:
    store = opened(location)
    for version in range(1, 5):
        store.commit(of_version(version), version - 1, "")
    [file] = data_files(location, 3)
    content = damage(file, edit)
    reader = Reader(opened(location)).start().follow().follow()
    assert reader.version == 2 and reader.blocked is not None and reader.blocked[0] == 3
    assert file.name in reader.blocked[1]
    assert {popularity for _, popularity, _ in reader.state.values()} == {2}
    for call in (store.compact, lambda: store.rollback(3)):
        with pytest.raises(CatalogStoreError, match=r"/c: version 3 cannot be read: .*roll"):
            call()
    file.write_bytes(content)
    assert reader.follow().version == 4
    damage(file, edit)
    early = Reader(opened(location)).start().follow()
    assert store.rollback(2) == 5  # as a base, past what cannot be read
    for each in (reader, early, Reader(opened(location)).start()):
        assert each.follow().version == 5
        assert {popularity for _, popularity, _ in each.state.values()} == {2}
    assert store.commit(of_version(6), 5, "") == 6
    assert store.compact() == 7 and reader.follow().version == 7


@pytest.mark.parametrize("edit", [*CUT.values(), lambda content: content.splitlines(True)[0]], ids=[*CUT, "first line"])
def test_a_damaged_log_entry_is_no_version(location: Path, edit: Callable[[bytes], bytes | None]) -> None:
    store = opened(location)
    for version in (1, 2):
        store.commit(of_version(version), version - 1, "")
    reader = Reader(opened(location)).start().follow()
    store.commit(of_version(3), 2, "")
    entry = entry_file(location, 3)
    content = damage(entry, edit)
    late = opened(location)  # a server that starts now
    assert state_at(late, 2) == reader.state
    for each in (reader, Reader(late, 2, reader.state)) if entry.exists() else ():
        said = ""
        try:
            each.follow()
        except CatalogStoreError as error:
            said = str(error)
        assert each.version == 2 and ("version 3 cannot be read" in said or (each.blocked or (0,))[0] == 3)
        assert entry.name in (said or (each.blocked or (0, ""))[1])
    entry.unlink(missing_ok=True)
    entry.write_bytes(content)
    assert reader.follow().version == 3 and late.latest() == 3


def test_a_damaged_base_is_named(location: Path) -> None:
    [file] = data_files(location, 0)
    damage(file, CUT["half"])
    with pytest.raises(CatalogStoreError, match=rf"/c: the base of version 0 cannot be read: file {file.name}: .*copy"):
        state_at(opened(location), 0)


def test_nothing_is_removed_that_a_damaged_entry_may_need(location: Path) -> None:
    store = opened(location)
    for version in (1, 2, 3):
        store.commit(of_version(version), version - 1, "")
    content = damage(entry_file(location, 2), lambda content: b"")
    assert store.rollback(1) == 4
    for path in location.glob("*.parquet"):
        os.utime(path, (0, 0))
    store.compact(keep_versions=10)
    entry_file(location, 2).write_bytes(content)
    assert {popularity for _, popularity, _ in state_at(opened(location), 3).values()} == {3}


# --- what is kept ---


def test_rollback_goes_back_as_far_as_is_kept(location: Path) -> None:
    store = opened(location)
    version = 0
    while version < 150:
        version = store.commit(of_version(version + 1), version, "")
        if version % 40 == 0:
            version = store.compact(keep_versions=100)
            version = store.commit(of_version(version + 1), version, "")
    version = store.compact(keep_versions=100)
    oldest = version - 99
    before = state_at(opened(location), oldest)
    assert {popularity for _, popularity, _ in before.values()} == {oldest}
    assert opened(location).rollback(oldest) == version + 1
    assert state_at(opened(location), version + 1) == before
    kept = [entry.version for entry in store.log()]
    assert kept[0] == version + 1 and oldest in kept and kept == sorted(kept, reverse=True)
    assert 0 not in kept and state_at(store, kept[-1])
    assert [entry.version for entry in store.log(3)] == kept[:3]
    with pytest.raises(CatalogStoreError, match=r"version 0 cannot be loaded: .*genrec catalog log"):
        store.rollback(0)
    assert len(list(location.glob("*.parquet"))) < 150 and len(list(entry_file(location, 0).parent.iterdir())) < 160
    store.compact(keep_versions=1)
    store.compact(keep_versions=1)
    assert len(list(location.glob("*.parquet"))) == 1


# --- what is no catalogue, or another's ---


def test_places_that_are_no_catalogue_are_told(location: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("nothing", "file"):
        with pytest.raises(CatalogStoreError, match=rf"/{place}: .*; "):
            opened(tmp_path / place)
    write_raw(tmp_path / "foreign", [{"item_id": "a"}])
    with pytest.raises(CatalogStoreError, match=r"/foreign: is a Delta table, and not a catalogue"):
        opened(tmp_path / "foreign")
    with pytest.raises(CatalogStoreError, match=r"/c: holds .*name an empty location"):
        CatalogStore.create(str(location), SPACE, [])
    with pytest.raises(CatalogStoreError, match=r"/file: cannot be written to"):
        CatalogStore.create(str(tmp_path / "file"), SPACE, [])


def test_another_quantiser_is_refused(tmp_path: Path) -> None:
    CatalogStore.create(str(tmp_path / "c"), SPACE, [items({"a": (1, 0, True)})], width=3)
    with pytest.raises(CatalogStoreError, match=r"embeddings of 3, the bundle's quantiser has \(4, 3, 5\) and 2"):
        opened(tmp_path / "c")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changes(("a", 60)), r"item b'a': code 60 is not below 60"),
        (changes(("a", 1), ("a", 2)), "item 'a' is named 2 times"),
        (changes(("a" * 129, 1)), "has 129 bytes; an id has 1 to 128"),
    ],
)
def test_a_wrong_commit_is_refused_before_it_is_written(location: Path, rows: object, message: str) -> None:
    store = opened(location)
    before = sorted(location.iterdir())
    with pytest.raises(CatalogStoreError, match=message):
        store.commit(rows, 0, "")  # type: ignore[arg-type]
    assert sorted(location.iterdir()) == before and WIDE == len(state_at(store, 0))


def test_an_empty_catalogue_can_be_filled(tmp_path: Path) -> None:
    store = new_store(tmp_path / "c", {})
    assert state_at(store, 0) == {}
    store.commit(changes(("a", 1)), 0, "")
    store.commit(changes(("a", -1, -1, -1, True)), 1, "")
    assert store.compact(1) == 3 and state_at(store, 3) == {}
    store.commit(changes(("b", 2)), 3, "")
    assert state_at(store, 4) == {"b": (2, 0, True)}


# --- a full disk ---


def test_a_full_disk_stops_a_commit_and_a_follower_and_leaves_every_version_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.live.full_disk", str(tmp_path)]
    done = subprocess.run(seen_by(command, tmpfs(tmp_path, "4m")), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- a store that accepts and never answers ---


@pytest.fixture
def silent() -> Iterator[str]:
    """Options of an object store that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def options(url: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    return keys | {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "timeout": "1s", "retry_timeout": "1s"}


def test_a_store_that_hangs_is_given_up_and_said(
    silent: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    location, began = "s3://bucket/catalogue", time.monotonic()
    pairs = [word for key, value in options(silent).items() for word in ("--storage-option", f"{key}={value}")]
    assert main(["catalog", "log", location, *pairs]) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"error: {location}: ") and said.count("\n") == 1
    assert time.monotonic() - began < 20


# --- a clock that is set back ---


def test_a_follower_that_starts_again_after_a_compaction_goes_on(location: Path, tmp_path: Path) -> None:
    store, root = opened(location), tmp_path / "published"
    start(store, root)
    for version in range(1, 5):
        store.commit(of_version(version), store.latest(), "")
    store.compact(keep_versions=1)
    newest = store.commit(of_version(9), store.latest(), "")
    assert not entry_file(location, 1).exists()
    start(opened(location), root)  # its own base is older than what the store still has
    assert Record.load(root / CURRENT).version == newest
    assert {popularity for _, popularity, _ in state_at(opened(location), newest).values()} == {9}


def test_a_clock_that_is_set_back_or_on_stops_no_follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(FIRST)
    following = start(store, tmp_path)
    real = time.time
    for hours in (-1000, 1000):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
        version = store.commit({"i1": None, "new": (5, 100, None)})
        following.look()
        assert_serves(tmp_path, store, version, exactly=False)
        assert Status.load(tmp_path).problem == "" and Status.load(tmp_path).lag_s(time.time()) < 60
        store.commit({"i1": (1, 0, True)})
        following.look()
