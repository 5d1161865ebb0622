"""More requests than an engine can answer: the rest is refused at once, and afterwards all is as before."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.errors import TOO_MANY
from genrec.serving.front import Front, FrontError
from genrec.serving.repository import STEPS, Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.statistics import read_step_counts
from genrec.serving.triton import TritonServer
from genrec_builders.data import Dataset, write_dataset
from genrec_client import (
    AsyncRecommender,
    Recommendations,
    Recommender,
    RecommendRequest,
)
from perf.speed import engines, overload
from tests.integration.conftest import Wire
from tests.needs import missing
from tests.processes import descendants

FLOOD, DEADLINE_US = 80, 40_000


@contextmanager
def stopped_engine(server: TritonServer) -> Iterator[None]:
    """The engine's process does not run meanwhile. Not for long: Triton ends where it waits a second for a lock."""
    assert server.pid is not None
    stubs = [pid for pid, line in descendants(server.pid).items() if "/backbone/" in line]
    assert len(stubs) == 1
    os.kill(stubs[0], signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stubs[0], signal.SIGCONT)


def flood(server: TritonServer, front: Front, histories: list[list[str]]) -> tuple[list[Any], Any, tuple[int, str]]:
    """What becomes of many requests at once while the engine stands still, every other of which may be shed.

    Gives the error of each, None for an answer; that of one past the front; and what is said over HTTP.
    """
    wire, past = Wire(front.grpc_url), Wire(server.grpc_url)
    for _ in range(4):
        for opened in (wire, past):
            opened.ask(Wire.ids("history", histories[0]))
    messages = [
        Wire.message([Wire.ids("history", histories[at % len(histories)])], timeout=DEADLINE_US) for at in range(FLOOD)
    ]
    for message in messages[1::2]:
        message.parameters["sheddable"].bool_param = True
    with stopped_engine(server):
        sent = [wire.stub.ModelInfer.future(message, timeout=30) for message in messages]
        refused = past.refused(Wire.ids("history", []), timeout=10_000)
        over_http = post(front.http_url)
    found = [future.exception() for future in sent]
    wire.close()
    past.close()
    return found, refused, over_http


def post(url: str) -> tuple[int, str]:
    """What is said over HTTP to a request that has 10 ms."""
    history = {"name": "history", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    connection = http.client.HTTPConnection(url, timeout=30)
    connection.request(
        "POST", "/v2/models/recommend/infer", json.dumps({"parameters": {"timeout": 10_000}, "inputs": [history]})
    )
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def refusals(found: list[Any]) -> list[str]:
    """What was said to those that were refused at the door; the others had been let through, and came too late."""
    said = []
    for error in found:
        if error is None:
            continue
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            said.append(error.details())
        else:
            assert error.code() is grpc.StatusCode.UNAVAILABLE and "timeout expired" in error.details(), error
    return said


def test_a_flood_is_refused_and_leaves_nothing_behind(bundle: Bundle, shop: Any, tmp_path: Path) -> None:
    try:
        front = Front("recommend", log_path=tmp_path / "haproxy.log")
    except FrontError as error:
        missing(str(error))
    deployment, log = Deployment(threads=1), tmp_path / "triton.log"
    for _ in range(3):  # Triton ends a process that stands still for a second, as it may for us on a busy machine
        with front, serve_bundle(bundle.path, deployment, sockets=front.sockets, log_path=log) as server:
            found, past, over_http = flood(server, front, shop.users)
            if not any(error is not None and "not healthy" in error.details() for error in found):
                return assert_refused(found, past, over_http, server, front, shop.users)
    pytest.fail("this machine is too slow for this test")


def assert_refused(
    found: list[Any], past: Any, over_http: tuple[int, str], server: TritonServer, front: Front, users: list[list[str]]
) -> None:
    needed, sheddable = refusals(found[::2]), refusals(found[1::2])
    said = needed + sheddable
    # What the engine would get done in half of the deadline goes through, and expires.
    assert needed and all("requests are waiting" in one and "allow more time or send fewer" in one for one in said)
    # Who may be shed is, while the others still find room.
    assert len(sheddable) > len(needed)
    assert all("may be shed" in one for one in sheddable) and not any("may be shed" in one for one in needed)
    # Triton's Python models have no other code; the front has, by which nobody sends it again.
    assert past.code == "UNAVAILABLE" and TOO_MANY in past.message
    assert over_http[0] == 429 and TOO_MANY in over_http[1]
    refused = len(said) + 2
    counted, waits_until = 0.0, time.monotonic() + 10
    while counted < refused and time.monotonic() < waits_until:
        with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
            line = re.search(r"^genrec_overloaded_requests_total\{.*\} (\S+)$", page.read().decode(), re.M)
        counted = float(line[1]) if line else 0.0
    assert counted == refused
    with Recommender(front.grpc_url, timeout_s=10.0) as client:
        after = client.recommend_many(
            [RecommendRequest(user) for user in users[:50]], concurrency=8, return_exceptions=True
        )
    assert [one for one in after if not isinstance(one, Recommendations)] == []


def test_batches_that_come_apart_are_answered_as_requests_alone(bundle: Bundle, shop: Any, tmp_path: Path) -> None:
    users = [user[:length] for length, user in zip(list(range(1, 13)) * 4, shop.users, strict=False)]

    async def at_once(server: TritonServer) -> list[Recommendations]:
        async with AsyncRecommender(server.grpc_url, timeout_s=30.0) as client:
            with stopped_engine(server):
                calls = [asyncio.create_task(client.recommend(user)) for user in users]
                await asyncio.sleep(0.15)
            return await asyncio.gather(*calls)

    deployment = Deployment(threads=1, timeout_ms=30_000, max_batch_size=32)
    with serve_bundle(bundle.path, deployment, log_path=tmp_path / "triton.log") as server:
        together = asyncio.run(at_once(server))
        batches = read_step_counts(server.grpc_url)["backbone"].executions
        with Recommender(server.grpc_url, timeout_s=30.0) as client:
            for user, answer in zip(users, together, strict=True):
                scores = [[item.score for item in one.items] for one in (answer, client.recommend(user))]
                np.testing.assert_allclose(*scores, atol=1e-4)  # of items that nearly tie another one may come
    assert batches <= 4  # so one of them had 16 requests or more, of all lengths


def test_goodput_is_measured(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    write_dataset(dataset, tmp_path / "shop")
    overload.main(bundle.path, tmp_path, tmp_path / "shop", 500.0, "2", seconds=1.0, users=20, threads=1)
    found = json.loads((tmp_path / overload.RESULTS).read_text())
    assert found["saturation"] > 0 and set(found["factors"]) == {"2"}
    run = found["factors"]["2"]
    assert run["requests"] >= run["goodput"] > 0 and set(run["steps"]) == set(STEPS)


def test_engines_are_measured_through_the_ensemble(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    write_dataset(dataset, tmp_path / "shop")
    engines.main(bundle.path, tmp_path, tmp_path / "shop", "onnx:1", 1, users=20, rounds=1, seconds=0.5)
    neighbours = json.loads((tmp_path / engines.RESULTS).read_text())["neighbours"]
    assert set(neighbours) == {"0", "1"}
    for found in neighbours.values():
        assert 0 < found["onnx:1"]["alone"]["p50"] <= found["onnx:1"]["alone"]["p99"]
        assert found["onnx:1"]["saturated"]["goodput"] > 0


def test_deployments_are_spelt_shortly(bundle: Bundle) -> None:
    assert engines.deployment_of("openvino/bf16:2x3", bundle.path) == Deployment(
        engine="openvino", precision="bf16", threads=2, instances=3, timeout_ms=engines.PATIENT_MS
    )
    assert engines.deployment_of("onnx", bundle.path) == Deployment(timeout_ms=engines.PATIENT_MS)
    with pytest.raises(ValueError, match=r"deployment 'onnx:x2': write ENGINE\[/PRECISION\]"):
        engines.deployment_of("onnx:x2", bundle.path)
