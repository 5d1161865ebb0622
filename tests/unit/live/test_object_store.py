"""A live catalogue in an object store that speaks S3: moto's, in a process of its own."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector

from genrec.cli.main import main
from genrec.errors import CatalogConflict, CatalogStoreError
from genrec.live.delta_log import DeltaLog
from genrec.live.store import CatalogStore
from tests.needs import missing
from tests.unit.live.world import QUANTIZER, SPACE, Reader, changes, items, state_at, write_raw

pytestmark = pytest.mark.training  # processes that are killed, and stores that do not answer, take seconds

STATE = {"a": (1, 5, True), "b": (2, 6, False)}


class S3:
    """A server with one bucket. It can be stopped and started again, with all that it holds gone."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.options = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "max_retries": "1",
            "retry_timeout": "2s",
        }
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bucket = urllib.request.Request(f"{self.url}/bucket", method="PUT")
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(bucket, timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < until and self.process.poll() is None, "moto does not start"
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def s3() -> Iterator[S3]:
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "flask_cors")):
        missing("moto's S3 server is not installed: pip install 'moto[s3]' flask flask-cors")
    server = S3()
    yield server
    server.stop()


class Counted:
    """The server behind a door that notes requests; the client holds the interpreter's lock while it waits for some."""

    def __init__(self, behind: S3, notes: Path) -> None:
        notes.touch()
        command = [sys.executable, "-m", "tests.unit.live.door", str(behind.port), str(notes)]
        self.notes, self.process = notes, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def during(self, call: Callable[[], object]) -> list[str]:
        """The methods of the requests that a call makes."""
        before = len(self.notes.read_text())
        call()
        return self.notes.read_text()[before:].split()


@pytest.fixture
def counted(s3: S3, tmp_path: Path) -> Iterator[Counted]:
    door = Counted(s3, tmp_path / "requests")
    yield door
    door.process.kill()
    door.process.wait()


def test_a_look_that_finds_nothing_new_is_one_request(s3: S3, counted: Counted) -> None:
    location = "s3://bucket/shop/polled"
    CatalogStore.create(location, SPACE, [items(STATE)], s3.options, width=2)
    writer = CatalogStore.open(location, QUANTIZER, s3.options)
    reader = CatalogStore.open(location, QUANTIZER, s3.options | {"AWS_ENDPOINT_URL": counted.url})
    assert reader.latest() == 0  # the first look is whole
    looks = [counted.during(reader.latest) for _ in range(20)]
    assert looks.count(["HEAD"]) == 18 and sum(map(len, looks)) <= 30
    assert all(len(look) <= 6 for look in looks)
    assert writer.commit(changes(("a", -1, 9)), 0, "one") == 1
    assert reader.latest() == 1
    assert counted.during(reader.latest) == ["HEAD"]


def test_an_object_store_that_was_replaced_is_told_within_ten_looks(s3: S3) -> None:
    location = "s3://bucket/shop/replaced"
    CatalogStore.create(location, SPACE, [items(STATE)], s3.options, width=2)
    reader = CatalogStore.open(location, QUANTIZER, s3.options)
    CatalogStore.open(location, QUANTIZER, s3.options).commit(changes(("a", -1, 9)), 0, "one")
    assert [reader.latest() for _ in range(5)] == [1] * 5
    files = DeltaLog(location, s3.options).files

    def empty() -> None:
        for info in files.get_file_info(FileSelector("", recursive=True)):
            files.delete_file(info.path)

    def looks(count: int, message: str) -> int:
        """Of so many looks in a row, those that say it: once it is said, it is said by all."""
        said = []
        for _ in range(count):
            try:
                reader.latest()
                said.append(False)
            except CatalogStoreError as error:
                assert re.search(message, str(error))
                said.append(True)
        assert said == sorted(said)
        return sum(said)

    empty()
    assert looks(10, "there is no live catalogue") >= 1
    CatalogStore.create(location, SPACE, [items(STATE)], s3.options, width=2)
    assert looks(3, "is at version 0, and was at 1: it was replaced; start again") == 3
    writer = CatalogStore.open(location, QUANTIZER, s3.options)
    writer.commit(changes(("a", -1, 9)), 0, "one")
    writer.commit(changes(("a", -1, 8)), 1, "two")
    assert reader.latest() == 2


def test_a_catalogue_in_an_object_store(s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    location = "s3://bucket/shop/catalogue"
    CatalogStore.create(location, SPACE, [items(STATE)], s3.options, width=2)
    first, second = (CatalogStore.open(location, QUANTIZER, s3.options) for _ in range(2))
    reader = Reader(CatalogStore.open(location, QUANTIZER, s3.options)).start()
    assert reader.state == STATE
    assert first.commit(changes(("a", -1, 9), ("c", 3)), 0, "one") == 1
    with pytest.raises(CatalogConflict, match=f"{location}: version 1 was written meanwhile"):
        second.commit(changes(("b", -1, 7)), 0, "two")
    row = {"item_id": "b", "operation": "upsert", "available": True}
    assert write_raw(location, [row], storage_options=s3.options) == 2
    assert reader.follow().state == {"a": (1, 9, True), "b": (2, 6, True), "c": (3, 0, True)}
    assert second.rollback(0) == 3
    assert reader.follow().state == STATE
    assert first.compact(keep_versions=1) == 4 and first.compact(keep_versions=1) == 4
    fresh = CatalogStore.open(location, QUANTIZER, s3.options)
    assert fresh.latest() == 4 and state_at(fresh, 4) == reader.follow().state == STATE
    with pytest.raises(CatalogStoreError, match="holds"):
        CatalogStore.create(location, SPACE, [items(STATE)], s3.options)
    pairs = [word for key, value in s3.options.items() for word in ("--storage-option", f"{key}={value}")]
    assert main(["catalog", "log", location, *pairs]) == 0
    assert "compact" in capsys.readouterr().out
    with pytest.raises(CatalogStoreError, match="s3://bucket/other: there is no live catalogue"):
        CatalogStore.open("s3://bucket/other", None, s3.options)

    s3.stop()
    began = time.monotonic()
    unreachable = f"{location}: cannot be read: .*; see that it can be reached"
    with pytest.raises(CatalogStoreError, match=unreachable) as first_look:
        reader.follow()
    assert time.monotonic() - began < 30
    with pytest.raises(CatalogStoreError, match=unreachable) as second_look:
        reader.follow()
    assert str(first_look.value) == str(second_look.value)  # a follower logs what is new
    assert main(["catalog", "log", location, *pairs]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {location}: ") and said.count("\n") == 1


def test_a_store_that_stands_still_is_given_up_and_goes_on_later(s3: S3) -> None:
    location, patience = "s3://bucket/shop/still", s3.options | {"timeout": "1s", "retry_timeout": "1s"}
    CatalogStore.create(location, SPACE, [items(STATE)], s3.options, width=2)
    reader = Reader(CatalogStore.open(location, QUANTIZER, patience)).start()
    pairs = [word for key, value in patience.items() for word in ("--storage-option", f"{key}={value}")]
    s3.process.send_signal(signal.SIGSTOP)  # it takes connections, and says nothing
    try:
        began = time.monotonic()
        with pytest.raises(CatalogStoreError, match=f"{location}: cannot be read: .*; see that it can be reached"):
            reader.follow()
        assert main(["catalog", "rollback", location, "0", *pairs]) == 1
        assert time.monotonic() - began < 20
    finally:
        s3.process.send_signal(signal.SIGCONT)
    assert CatalogStore.open(location, QUANTIZER, s3.options).commit(changes(("a", -1, 9)), 0, "one") == 1
    assert reader.follow().state["a"] == (1, 9, True)
