"""A catalogue that changes while a real server answers: what is added shows, what is removed is gone, nothing fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.catalog.published import CURRENT, Record
from genrec.live.changes import Changes
from genrec.live.init import init_catalog
from genrec.live.process import FollowerProcess
from genrec.live.status import Status
from genrec.live.store import CatalogStore
from genrec.serving.ready import not_ready, readiness_endpoint
from genrec.serving.repository import Deployment
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec.serving.triton import TritonServer
from genrec_client import Recommendations, Recommender
from tests.going_on import GoesOn
from tests.processes import processes

SHOWN_S = 5.0  # a change is in the answers by then: the stated p99


@dataclass
class Live:
    """A server that follows a store, and what the store holds."""

    server: TritonServer
    store: CatalogStore
    location: Path
    root: Path
    bundle: Bundle
    history: list[str]
    states: dict[int, set[str]]  # live items by version
    version: int = 0

    def commit(self, add: dict[str, int] | None = None, remove: tuple[str, ...] = ()) -> int:
        """Add items, by id their codes, and remove others."""
        add = add or {}
        ids = [*add, *remove]
        count = len(ids)
        changes = Changes(
            np.array([item_id.encode() for item_id in ids]),
            np.arange(count) >= len(add),
            np.array([*add.values(), *(-1 for _ in remove)], np.int64),
            np.where(np.arange(count) < len(add), 10**6, -1),
            np.where(np.arange(count) < len(add), 1, -1).astype(np.int8),
        )
        expected = self.version + 1
        self.states[expected] = (self.states[self.version] | set(add)) - set(remove)
        self.version = self.store.commit(changes, self.version, "a test")
        assert self.version == expected
        return self.version

    def code_of(self, item_id: str) -> int:
        row = self.bundle.catalog.rows_of(np.array([item_id.encode()], object))[0]
        return int(self.bundle.space.encode(self.bundle.catalog.sids[row]))

    def waits_for(self, client: Recommender, holds: Callable[[Recommendations], bool], within_s: float) -> float:
        """Seconds until an answer is as wanted; fails if that takes longer than it may."""
        began = time.monotonic()
        while not holds(client.recommend(self.history, top_k=20)):
            assert time.monotonic() - began < within_s
        return time.monotonic() - began


@pytest.fixture(scope="module")
def live(bundle: Bundle, dataset: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    init_catalog(bundle, str(folder / "store"))
    ids = [item_id.decode() for item_id in bundle.catalog.item_ids.tolist()]
    with serve_bundle(
        bundle.path,
        Deployment(threads=1, timeout_ms=2000),
        LiveCatalog(str(folder / "store"), folder / "published"),
        log_path=folder / "triton.log",
    ) as server:
        store = CatalogStore.open(str(folder / "store"))
        yield Live(server, store, folder / "store", folder / "published", bundle, ids[10:14], {0: set(ids)})


@dataclass
class Load(GoesOn):
    """Users who go on asking, and what became of it: answers, each with the time at which it was asked for."""

    live: Live
    answers: list[tuple[float, Recommendations]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    threads = 2

    def go_on(self) -> None:
        with Recommender(self.live.server.grpc_url, timeout_s=10.0) as client:
            while not self.ends.is_set():
                asked = time.monotonic()
                try:
                    answer = client.recommend(self.live.history, top_k=20)
                    self.answers.append((asked, answer))
                except Exception as error:
                    self.failures.append(error)

    def check(self) -> None:
        """No request failed, and every answer is whole: its items are those of the version that it names."""
        assert not self.failures and len(self.answers) > 20
        for _, answer in self.answers:
            assert set(answer.item_ids) <= self.live.states[int(answer.catalog_version)]
            assert len(answer.item_ids) == 20


def test_items_come_and_go_under_load(live: Live) -> None:
    with Recommender(live.server.grpc_url, timeout_s=10.0) as client, Load(live) as load:
        for number in range(8):
            best = client.recommend(live.history, top_k=1).item_ids[0]
            code = live.code_of(best)
            fresh = f"fresh-{number}"
            live.commit({fresh: code})
            live.waits_for(client, lambda answer, fresh=fresh: fresh in answer.item_ids, SHOWN_S)
            committed = live.commit(remove=(fresh,))
            live.waits_for(client, lambda answer, at=committed: int(answer.catalog_version) >= at, SHOWN_S)
            seen = time.monotonic()
            time.sleep(0.2)
            # Nobody who asks after the first answer of the new version gets the removed item.
            assert all(fresh not in answer.item_ids for asked, answer in list(load.answers) if asked > seen)
    load.check()
    versions = {answer.catalog_version for _, answer in load.answers}
    assert len(versions) > 8


def test_a_new_semantic_id_can_be_drafted(live: Live) -> None:
    """An item whose semantic ID no item had before: the masks have to let it through."""
    catalog, space = live.bundle.catalog, live.bundle.space
    taken = set(space.encode(catalog.sids).tolist())
    with Recommender(live.server.grpc_url, timeout_s=10.0) as client:
        best = client.recommend(live.history, top_k=1).item_ids[0]
        near = space.decode(np.array([live.code_of(best)]))[0]
        last = [(*near[:-1].tolist(), code) for code in range(space.levels[-1])]
        free = {f"free-{code}": code for code in space.encode(np.array(last)).tolist() if code not in taken}
        assert free
        live.commit(free)
        live.waits_for(client, lambda answer: bool(free.keys() & set(answer.item_ids)), SHOWN_S)
        answer = client.recommend(live.history, top_k=20)
        drafted = [item for item in answer.items if item.item_id in free and item.source == 0]
        assert drafted
        live.commit(remove=tuple(free))
        live.waits_for(client, lambda answer: not free.keys() & set(answer.item_ids), SHOWN_S)


def test_a_history_may_name_an_item_that_was_added(live: Live) -> None:
    with Recommender(live.server.grpc_url, timeout_s=10.0) as client:
        assert client.recommend([*live.history, "later"]).unknown_history == 1
        version = live.commit({"later": live.code_of(live.history[0])})
        live.waits_for(client, lambda answer: int(answer.catalog_version) >= version, SHOWN_S)
        assert client.recommend([*live.history, "later"]).unknown_history == 0
        version = live.commit(remove=("later",))
        live.waits_for(client, lambda answer: int(answer.catalog_version) >= version, SHOWN_S)
        assert client.recommend([*live.history, "later"]).unknown_history == 1


def followers_of(parent: int) -> list[int]:
    module = FollowerProcess.__module__
    return [pid for pid, (owner, line) in processes().items() if owner == parent and module in line.split(" ")]


def test_a_killed_follower_is_started_again_and_nobody_notices(live: Live) -> None:
    with Recommender(live.server.grpc_url, timeout_s=10.0) as client, Load(live) as load:
        (pid,) = followers_of(os.getpid())
        os.kill(pid, signal.SIGKILL)
        version = live.commit({"after-the-kill": live.code_of(live.history[0])})
        live.waits_for(client, lambda answer: int(answer.catalog_version) >= version, 30.0)
        assert followers_of(os.getpid()) != [pid]
    load.check()


def test_a_store_that_disappears_and_returns(live: Live) -> None:
    elsewhere = live.location.with_name("elsewhere")
    url = live.server.http_url
    with (
        readiness_endpoint("127.0.0.1", 0, partial(not_ready, url, live.root, 3.0)) as port,
        Recommender(live.server.grpc_url, timeout_s=10.0) as client,
        Load(live) as load,
    ):
        deadline = time.monotonic() + 20
        while ready(port) != (200, "ready\n"):
            assert time.monotonic() < deadline
        live.location.rename(elsewhere)
        deadline = time.monotonic() + 20
        while ready(port)[0] == 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        status, reason = ready(port)
        assert status == 503 and "behind its store, at most 3 s" in reason
        assert Status.load(live.root).problem
        served = client.recommend(live.history, top_k=20)
        assert int(served.catalog_version) == live.version
        elsewhere.rename(live.location)
        version = live.commit({"back": live.code_of(live.history[0])})
        live.waits_for(client, lambda answer: int(answer.catalog_version) >= version, 20.0)
        deadline = time.monotonic() + 20
        while ready(port)[0] != 200:
            assert time.monotonic() < deadline
    load.check()


def page(live: Live) -> str:
    """The server's page of metrics."""
    with urllib.request.urlopen(live.server.metrics_url, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_refused_commit_changes_nothing_and_is_counted(live: Live) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    with Recommender(live.server.grpc_url, timeout_s=10.0) as client:
        rows = {"item_id": ["foreign"], "operation": ["upsert"], "sid": pa.array([[1, 2, 999]], pa.list_(pa.int32()))}
        write_deltalake(str(live.location), pa.table(rows), mode="append", schema_mode="merge")
        live.states[live.version + 1] = live.states[live.version]
        live.version = live.store.latest()
        live.waits_for(client, lambda answer: int(answer.catalog_version) >= live.version, SHOWN_S)
        # The status and the page of metrics follow the answers.
        deadline = time.monotonic() + 10
        while (status := Status.load(live.root)).refused == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status.refused == 1 and "'foreign'" in status.last_refusal and "999" in status.last_refusal
        while not re.search(r"^genrec_catalog_refused_commits(\{.*\})? 1", text := page(live), re.M):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        assert "genrec_catalog_lag_seconds" in text and "genrec_catalog_store_version" in text
        assert "genrec_catalog_drift{" in text and "genrec_catalog_error_ratio{" in text


def test_what_is_published_is_what_the_store_says(live: Live) -> None:
    record = Record.load(live.root / CURRENT)
    assert record.version == live.version and record.items == len(live.states[live.version])


def test_the_command_serves_a_live_catalogue_and_leaves_nothing_behind(bundle: Bundle, tmp_path: Path) -> None:
    init_catalog(bundle, str(tmp_path / "store"))
    ports = ["--grpc-port=0", "--http-port=0", "--metrics-port=0", "--ready-port=0", "--threads=1"]
    command = [sys.executable, "-m", "genrec.cli", "serve", str(bundle.path), f"--catalog={tmp_path / 'store'}", *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as serving:
        assert serving.stdout is not None
        said = next(line for line in serving.stdout if line.startswith("ready: "))
        try:
            found = re.search(r"gRPC (\S+), .* readiness 127.0.0.1:(\d+)/ready", said)
            assert found is not None
            deadline = time.monotonic() + 10
            while (answer := ready(int(found[2])))[0] != 200:  # a busy machine may take longer than its check waits
                assert time.monotonic() < deadline, answer
                time.sleep(0.1)
            with Recommender(found[1], timeout_s=10.0) as client:
                history = [item_id.decode() for item_id in bundle.catalog.item_ids[:4].tolist()]
                assert client.recommend(history).catalog_version == "0"
            assert followers_of(serving.pid)
        finally:
            serving.terminate()
        serving.stdout.read()
    assert serving.returncode == 0
    assert not followers_of(serving.pid)


def ready(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
