"""Bundles that must not be served are refused with what and where; servers that break or are stopped end cleanly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.bundle import GOLDEN, MANIFEST, Bundle, BundleError, seal_bundle
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import STUB_NAME, TritonStartError
from genrec_client import Recommender, RecommendError, RecommendRequest
from tests.near import assert_same_items
from tests.processes import descendants, processes


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def seal_again(folder: Path) -> None:
    """Make checksums hold again after a change."""
    fields = json.loads((folder / MANIFEST).read_text())
    del fields["files"], fields["format_version"]
    (folder / MANIFEST).unlink()
    seal_bundle(folder, **fields)


def edit_golden(folder: Path, **changed: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / GOLDEN) as arrays:
        golden = dict(arrays)
    for name, change in changed.items():
        golden[name] = change(golden[name].copy())
    np.savez(folder / GOLDEN, **golden)
    seal_again(folder)


# The golden request


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        # Of another prompt the backbone drafts something else, too: either may say so first.
        ({"prompt": lambda prompt: prompt[::-1]}, "golden history gave prompt|the engine's scores differ"),
        ({"scores": lambda scores: scores - 0.01}, "the engine's scores differ from the build's by 0.01"),
        ({"items": lambda items: items[::-1]}, "golden drafts gave items"),
    ],
    ids=["preprocessing", "backbone", "verifier"],
)
def test_a_step_that_computes_something_else_does_not_come_up(
    bundle_copy: Path, deployment: Deployment, tmp_path: Path, changed: dict, says: str
) -> None:
    edit_golden(bundle_copy, **changed)
    Bundle(bundle_copy).check()
    with pytest.raises(TritonStartError) as caught:
        with serve_bundle(bundle_copy, deployment, log_path=tmp_path / "log"):
            pytest.fail("the bundle is served")
    first = str(caught.value).splitlines()[0]
    assert "GoldenMismatch" in first and re.search(says, first)


# Beside a running server


def test_a_good_server_goes_on_while_bad_bundles_are_refused(
    bundle_copy: Path, recommender: Recommender, shop: Any, wire: Any, deployment: Deployment, tmp_path: Path
) -> None:
    asked = [RecommendRequest(user, top_k=20) for user in shop.users[:300]]
    before = recommender.recommend_many(asked, concurrency=8, return_exceptions=False)
    edit_golden(bundle_copy, scores=lambda scores: scores + 1)

    def requests_during_refusals() -> Iterator[RecommendRequest]:
        for number, request in enumerate(asked):
            if number == 100:  # with the earlier ones under way
                with pytest.raises(TritonStartError, match="GoldenMismatch"):
                    serve_bundle(bundle_copy, deployment, log_path=tmp_path / "log").__enter__()
            if number == 200:
                flip_a_byte(bundle_copy / "engines/onnx/model.onnx")
                with pytest.raises(BundleError, match=r"model\.onnx: is damaged"):
                    serve_bundle(bundle_copy).__enter__()
            yield request

    during = recommender.recommend_many(requests_during_refusals(), concurrency=8, return_exceptions=False)
    assert wire.all_ready()
    for one, other in zip(before, during, strict=True):
        assert_same_items(other, one)


# The command line


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "genrec.cli", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    # Wide, so that no message is folded.
    return os.environ | {"COLUMNS": "500", "PYTHONUNBUFFERED": "1"} | variables


def test_check_and_serve_refuse_with_status_1(bundle_copy: Path) -> None:
    good = subprocess.run(command("check", bundle_copy), env=environment(), capture_output=True, text=True, timeout=60)
    assert good.returncode == 0 and good.stdout.startswith("ok: bundle "), good.stderr
    flip_a_byte(bundle_copy / "index/rows.npy")
    for name, ports in (("check", []), ("serve", ["--grpc-port=0", "--http-port=0", "--metrics-port=0"])):
        done = subprocess.run(
            command(name, bundle_copy, *ports), env=environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1, done.stdout
        assert f"error: bundle {bundle_copy} cannot be served:" in done.stderr
        assert "  - index/rows.npy: is damaged: sha256" in done.stderr
        assert "Traceback" not in done.stderr and "tritonserver" not in done.stderr


def test_serve_says_in_one_line_why_its_server_ended(bundle_copy: Path) -> None:
    edit_golden(bundle_copy, scores=lambda scores: scores + 1)
    words = command("serve", bundle_copy, "--grpc-port=0", "--http-port=0", "--metrics-port=0", "--threads=1")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout
    log, _, said = done.stderr.partition("error: the Triton server ")
    first, *others = said.splitlines()
    assert re.match(r"ended before it was ready \(exit status 1\): .*GoldenMismatch: the engine's scores", first), said
    assert "successfully unloaded" in log and others and not any(line.startswith("error:") for line in others), said


@contextmanager
def serving(bundle: Bundle, scratch: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`genrec serve` as a process of its own, and its gRPC address once it is ready."""
    (scratch / "tmp").mkdir()
    ports = ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    with (scratch / "stderr").open("w") as errors:
        process = subprocess.Popen(
            command("serve", bundle.path, *ports, "--threads=1", "--timeout-ms=30000", *words),
            env=environment(TMPDIR=str(scratch / "tmp")),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            ready = re.search(r"ready: gRPC ([\w.:]+), HTTP", process.stdout.readline())
            assert ready, (scratch / "stderr").read_text()
            yield process, ready[1]
        finally:
            process.kill()
            process.wait()


def shared_memory(family: dict[int, str]) -> list[str]:
    """Files in shared memory of the server that the family is."""
    prefixes = {found[0] for line in family.values() if (found := re.search(r"genrec-[0-9a-f]{12}-", line))}
    assert len(prefixes) == 1, prefixes
    return [file.name for file in Path("/dev/shm").glob(f"{prefixes.pop()}*")]


def assert_nothing_left(family: dict[int, str], scratch: Path) -> None:
    """No process of the family, none of its shared memory, none of its temporary files."""
    deadline = time.monotonic() + 5
    while True:
        now = processes()
        left = {line for pid, line in family.items() if pid in now and now[pid][1] == line}
        left |= {*shared_memory(family), *os.listdir(scratch / "tmp")}
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_sigterm_ends_serve_with_0_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle, tmp_path) as (process, url):
        family = descendants(process.pid)
        assert len([line for line in family.values() if STUB_NAME in line.split(" ")[0]]) == 3
        assert shared_memory(family) and os.listdir(tmp_path / "tmp"), "the search for leftovers would find nothing"
        with Recommender(url, timeout_s=30.0) as client:
            assert len(client.recommend([]).items) == 10
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "stderr").read_text()
        assert_nothing_left(family, tmp_path)


def test_a_killed_backbone_ends_serve_with_1_where_it_may_not_be_started_again(
    bundle: Bundle, shop: Any, tmp_path: Path
) -> None:
    with serving(bundle, tmp_path, "--restarts=0") as (process, url):
        family = descendants(process.pid)
        (stub,) = [pid for pid, line in family.items() if STUB_NAME in line.split(" ")[0] and "/backbone/" in line]
        with Recommender(url, timeout_s=30.0) as client:
            assert client.recommend(shop.users[0]).drafted == 64
            os.kill(stub, signal.SIGKILL)
            with pytest.raises(RecommendError):
                client.recommend(shop.users[0], timeout_s=10.0)
        assert process.wait(20) == 1
        errors = (tmp_path / "stderr").read_text()
        assert f"a Python model's process crashed (pid {stub}): ending the server" in errors
        assert_nothing_left(family, tmp_path)
