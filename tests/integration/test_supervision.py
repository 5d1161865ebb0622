"""`genrec serve` and what a machine does to it: what dies is started again, a client of two servers loses nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.live.changes import Changes
from genrec.live.init import init_catalog
from genrec.live.process import FollowerProcess
from genrec.live.store import CatalogStore
from genrec.serving.front import FrontError, find_haproxy
from genrec.serving.triton import STUB_NAME, TritonServer
from genrec_client import Recommendations, Recommender, RecommendError
from tests.going_on import GoesOn
from tests.integration.conftest import Shop
from tests.namespaces import read_only, seen_by, tmpfs
from tests.needs import missing
from tests.processes import descendants

AGAIN_S = 30.0  # some 1 s on an idle machine
# gRPC would share that of the other client, which pauses between its attempts.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Served:
    """`genrec serve` as a process of its own. says: its standard error."""

    process: subprocess.Popen[str]
    url: str
    metrics_url: str
    log: Path

    def part(self, name: str) -> int:
        """The process id of a part: a step's, "triton", or "haproxy"."""
        found = []
        for pid, line in descendants(self.process.pid).items():
            program = line.split(" ")[0]
            is_step = STUB_NAME in program
            if (is_step and f"/{name}/" in line) or (not is_step and name in Path(program).name):
                found.append(pid)
        (pid,) = found
        return pid

    def restarts_told(self, within_s: float) -> float:
        """What its page says, once a step has written there."""
        deadline, counted = time.monotonic() + within_s, 0.0
        while not counted and time.monotonic() < deadline:
            with urllib.request.urlopen(self.metrics_url, timeout=10) as page:
                found = re.search(r"^genrec_server_restarts_total\{.*\} (\S+)$", page.read().decode(), re.M)
            counted = float(found[1]) if found else 0.0
        return counted

    def says(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self, name: str) -> None:
        """Kills a part, and waits until it is served again."""
        before = self.says().count("serving again after")
        os.kill(self.part(name), signal.SIGKILL)
        deadline = time.monotonic() + AGAIN_S
        while self.says().count("serving again after") == before:
            assert time.monotonic() < deadline and self.process.poll() is None, self.says()[-3000:]
            time.sleep(0.05)


@contextmanager
def serving(bundle: Path, scratch: Path, *words: str) -> Iterator[Served]:
    ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
    command = [sys.executable, "-m", "genrec.cli", "serve", str(bundle), "--threads=1", *ports, *words]
    log = scratch / "stderr" if scratch.is_dir() else scratch
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=os.environ | {"COLUMNS": "500"}, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        said = re.match(r"ready: gRPC (\S+), HTTP \S+, metrics (\S+)\n", process.stdout.readline())
        assert said, log.read_text() if log.is_file() else "it has said nothing"
        yield Served(process, said[1], said[2], log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


@dataclass
class Asking(GoesOn):
    """A client that goes on asking from a few threads, and what became of it."""

    client: Recommender
    history: list[str]
    answers: list[Recommendations] = field(default_factory=list)
    failures: list[RecommendError] = field(default_factory=list)

    threads = 3

    def go_on(self) -> None:
        while not self.ends.wait(0.02):
            try:
                self.answers.append(self.client.recommend(self.history))
            except RecommendError as error:
                self.failures.append(error)


@pytest.fixture(scope="module", autouse=True)
def haproxy() -> None:
    try:
        find_haproxy()
    except FrontError as error:
        missing(str(error))


def test_whatever_is_killed_serves_again_and_a_client_of_two_servers_loses_nothing(
    bundle: Bundle, server: TritonServer, shop: Shop, tmp_path: Path
) -> None:
    with serving(bundle.path, tmp_path, "--restarts=20") as served:
        with Recommender([served.url, server.grpc_url], timeout_s=30.0) as client:
            with Asking(client, shop.users[0]) as asking:
                for name in ("backbone", "triton", "haproxy", "verifier", "preprocessing"):
                    before = len(asking.answers)
                    served.kill(name)
                    with Recommender(served.url, timeout_s=30.0, channel_options=OWN_CONNECTION) as alone:
                        assert alone.recommend(shop.users[0]).drafted == 64
                    assert len(asking.answers) > before
            assert not asking.failures, asking.failures[:3]
            assert client.statistics.retries >= 3, "nobody had to try the other server: this shows nothing"
        assert served.restarts_told(within_s=10.0) >= 4  # all but the front's
        served.process.terminate()
        assert served.process.wait(30) == 0
    assert served.says().count("times within 5 minutes") >= 5


def test_what_stands_still_for_seconds_serves_again_and_a_client_of_two_servers_loses_nothing(
    bundle: Bundle, server: TritonServer, shop: Shop, tmp_path: Path
) -> None:
    with (
        serving(bundle.path, tmp_path, "--restarts=20", "--timeout-ms=30000") as served,
        Recommender([served.url, server.grpc_url], timeout_s=30.0) as client,
        Asking(client, shop.users[0]) as asking,
    ):
        for name in ("triton", "backbone"):
            stopped = served.part(name)
            os.kill(stopped, signal.SIGSTOP)
            time.sleep(5)
            with contextlib.suppress(ProcessLookupError):  # Triton ends a step's process that does not answer
                os.kill(stopped, signal.SIGCONT)
            deadline = time.monotonic() + AGAIN_S
            with Recommender(served.url, timeout_s=10.0) as alone:
                while True:
                    with contextlib.suppress(RecommendError):
                        assert alone.recommend(shop.users[0]).drafted == 64
                        break
                    assert time.monotonic() < deadline, served.says()[-3000:]
                    time.sleep(0.1)
    assert asking.answers and not asking.failures, asking.failures[:3]


def test_a_full_disk_under_the_log_stops_nothing(bundle: Bundle, shop: Shop, tmp_path: Path) -> None:
    """Neither the server nor the follower of a live catalogue, nor who starts them again."""
    init_catalog(bundle, str(tmp_path / "store"))
    with serving(bundle.path, Path("/dev/full"), f"--catalog={tmp_path / 'store'}") as served:
        with Recommender(served.url, timeout_s=30.0) as client:
            (follower,) = [
                pid
                for pid, line in descendants(served.process.pid).items()
                if FollowerProcess.__module__ in line.split(" ")
            ]
            os.kill(follower, signal.SIGKILL)
            store = CatalogStore.open(str(tmp_path / "store"))
            removed = client.recommend(shop.users[0]).item_ids[0]
            assert store.commit(removal(removed), 0, "a test") == 1
            deadline = time.monotonic() + AGAIN_S
            while client.recommend(shop.users[0]).catalog_version != "1":
                assert time.monotonic() < deadline
                time.sleep(0.1)
            killed = served.part("triton")
            os.kill(killed, signal.SIGKILL)
            while True:
                with contextlib.suppress(RecommendError, ValueError):
                    if served.part("triton") != killed:
                        assert removed not in client.recommend(shop.users[0], timeout_s=5.0).item_ids
                        break
                assert time.monotonic() < deadline + AGAIN_S and served.process.poll() is None
                time.sleep(0.1)


def removal(item_id: str) -> Changes:
    numbers = np.array([-1], np.int64)
    return Changes(np.array([item_id.encode()]), np.array([True]), numbers, numbers, np.array([-1], np.int8))


def started_with(bundle: Bundle, *mounts: str) -> subprocess.CompletedProcess[str]:
    """`genrec serve` where it cannot come up."""
    ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
    command = [sys.executable, "-m", "genrec.cli", "serve", str(bundle.path), "--threads=1", "--no-front", *ports]
    return subprocess.run(
        seen_by(command, *mounts), env=os.environ | {"COLUMNS": "500"}, capture_output=True, text=True, timeout=60
    )


def test_a_server_that_cannot_write_to_tmp_says_so(bundle: Bundle) -> None:
    done = started_with(bundle, read_only("/tmp"))
    assert done.returncode == 1
    assert "error: /tmp cannot be written to: Read-only file system; Triton's Python models need it" in done.stderr


def test_a_server_with_too_little_shared_memory_says_so(bundle: Bundle) -> None:
    done = started_with(bundle, tmpfs("/dev/shm", "1m"))
    assert done.returncode == 1
    assert re.search(r"error: the Triton server .*", done.stderr) and "No space left on device" in done.stderr


def test_shared_memory_that_runs_out_stops_only_what_needs_more_of_it(bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.short_of_memory", str(bundle.path), str(tmp_path / "log")]
    done = subprocess.run(seen_by(command, tmpfs("/dev/shm", "8m")), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_bundle_that_is_damaged_meanwhile_is_not_served_again(bundle_copy: Path, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    with serving(bundle_copy, tmp_path / "serve") as served:
        with Recommender(served.url, timeout_s=30.0) as client:
            before = client.recommend(shop.users[0])
            damaged = (bundle_copy / "catalog/popularity.npy").read_bytes()
            (bundle_copy / "catalog/popularity.npy").unlink()  # what runs has the old one mapped
            (bundle_copy / "catalog/popularity.npy").write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
            assert client.recommend(shop.users[0]).item_ids == before.item_ids
            os.kill(served.part("triton"), signal.SIGKILL)
        assert served.process.wait(AGAIN_S) == 1
    assert re.search(r"error: bundle .* cannot be served:\s+- catalog/popularity.npy: is damaged", served.says())


def test_a_file_that_is_cut_while_it_is_mapped_ends_the_server(bundle_copy: Path, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    with serving(bundle_copy, tmp_path / "serve") as served:
        with Recommender(served.url, timeout_s=30.0) as client:
            client.recommend(shop.users[0])
            os.truncate(bundle_copy / "index/rows.npy", 0)
            began = time.monotonic()
            with pytest.raises(RecommendError):  # no answer rather than a wrong one
                client.recommend(shop.users[0], timeout_s=10.0)
        assert served.process.wait(AGAIN_S) == 1
        assert time.monotonic() - began < 8, "Triton was waited for, whose model is gone"
    assert re.search(r"error: bundle .* cannot be served:\s+- index/rows.npy: has 0 bytes", served.says())
