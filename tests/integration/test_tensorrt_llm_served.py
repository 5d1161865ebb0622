"""A real Triton whose `backbone` runs the TensorRT-LLM engine, over the test double of its LLM API.

What is tested is everything around TensorRT-LLM: the asynchronous step in the unchanged ensemble, errors of single
requests, deadlines, cancellation. tests/unit/engines/tensorrt_llm has the test double.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.serving.repository import Deployment
from genrec.serving.serve import prepare_server
from genrec.serving.triton import TritonServer, TritonStartError
from genrec.serving.waiting import Gate, waiting_file
from genrec_builders.data import Dataset, sample_users, split_leave_one_out
from genrec_client import Recommender, RecommendRequest
from tests.near import assert_same_items
from tests.tensorrt_llm_double import STAND_IN, exported_for_double

STEP_S = 0.1
DEPLOYMENT = Deployment(engine="tensorrt_llm", timeout_ms=30_000)


@pytest.fixture(scope="module")
def exported(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported_for_double(bundle, tmp_path_factory.mktemp("tensorrt-llm") / "bundle")


@pytest.fixture(scope="module")
def on_stand_in(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server on the exported bundle; steps of the test double take STEP_S."""
    with prepared(exported, tmp_path_factory.mktemp("server") / "triton.log", delay=f"{STEP_S}") as server, server:
        yield server


@contextmanager
def prepared(bundle: Bundle, log: Path, **switches: str) -> Iterator[TritonServer]:
    """A server, not yet started, whose `backbone` finds the test double, with its switches, beside its model.py."""
    env = {f"TEST_DOUBLE_{name.upper()}": value for name, value in switches.items()}
    with prepare_server(bundle.path, DEPLOYMENT, log_path=log, env=env) as server:
        shutil.copytree(STAND_IN / "tensorrt_llm", server.repository / "backbone" / "1" / "tensorrt_llm")
        yield server


def test_the_ensemble_answers_what_onnx_answers(
    on_stand_in: TritonServer, recommender: Recommender, bundle: Bundle, dataset: Dataset
) -> None:
    histories, _ = sample_users(split_leave_one_out(dataset.interactions).test, 40)
    ids = bundle.catalog.item_ids.astype(object)
    requests = [RecommendRequest(ids[history].tolist(), top_k=20) for history in histories]
    requests += [RecommendRequest([]), RecommendRequest(["nobody sells this"])]
    expected = recommender.recommend_many(requests, concurrency=8, return_exceptions=False)
    with Recommender(on_stand_in.grpc_url, timeout_s=30.0) as client:
        for _ in range(2):  # the second time every prompt is cached, and has to be asked again
            began = time.monotonic()
            answers = client.recommend_many(requests, concurrency=16, return_exceptions=False)
            took = time.monotonic() - began
            for ours, theirs in zip(answers, expected, strict=True):
                assert_same_items(ours, theirs)
            assert took < 0.7 * len(requests) * STEP_S, "requests were not in flight together"


def test_requests_are_let_through_to_an_engine_that_batches_by_itself(
    on_stand_in: TritonServer, bundle: Bundle
) -> None:
    """It tells nobody how far it has come, so nobody may take what was let through for waiting."""
    history = [item_id.decode() for item_id in bundle.catalog.item_ids[:5].tolist()]
    with Recommender(on_stand_in.grpc_url, timeout_s=30.0) as client:
        client.recommend_many([RecommendRequest(history)] * 40, concurrency=16, return_exceptions=False)
    assert on_stand_in.pid is not None
    gate = Gate(waiting_file(on_stand_in.pid))
    assert [gate.expected_ns() for _ in range(3)] == [(0, 0)] * 3


def test_one_bad_request_does_not_disturb_the_others(on_stand_in: TritonServer, exported: Bundle) -> None:
    """`backbone` is called directly: `recommend` would not let these through."""
    layout, sids = exported.layout, exported.catalog.sids
    good = [layout.encode(sids[first : first + 5]) for first in range(8)]
    bad = [np.array([1, layout.vocabulary_size], np.int32), np.ones(layout.max_tokens + 1, np.int32)]
    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(lambda prompt: ask(on_stand_in, exported, prompt), [*good[:4], *bad, *good[4:]]))
    for outcome in (outcomes[4], outcomes[5]):
        assert outcome.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "the model knows 0 to" in outcomes[4].details()
    assert f"the model takes at most {layout.max_tokens}" in outcomes[5].details()
    assert not any(isinstance(outcome, grpc.RpcError) for outcome in outcomes[:4] + outcomes[6:])


def test_a_deadline_ends_a_request_in_the_model(on_stand_in: TritonServer, exported: Bundle) -> None:
    prompt = exported.layout.encode(exported.catalog.sids[7:12])
    outcome = ask(on_stand_in, exported, prompt, deadline_s=0.01)
    assert outcome.code() == grpc.StatusCode.UNAVAILABLE
    assert "timeout expired" in outcome.details()
    assert not isinstance(ask(on_stand_in, exported, prompt), grpc.RpcError)


def test_a_cancelled_request_is_given_up(exported: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with prepared(exported, log, delay="0.5", verbose="1") as server, server:
        prompt = exported.layout.encode(exported.catalog.sids[:5])
        with grpc.insecure_channel(server.grpc_url) as channel:
            call = stub(channel).ModelInfer.future(message(exported, prompt, 30))
            threading.Timer(0.15, call.cancel).start()
            with pytest.raises(grpc.FutureCancelledError):
                call.result(timeout=10)
            time.sleep(0.6)
        assert "test double: aborted" in log.read_text()
        assert not isinstance(ask(server, exported, prompt), grpc.RpcError)


def test_a_bundle_without_the_folder_does_not_start(bundle: Bundle, tmp_path: Path) -> None:
    with prepared(bundle, tmp_path / "triton.log") as server:
        with pytest.raises(TritonStartError, match="export-tensorrt-llm"):
            server.start()


def ask(server: TritonServer, bundle: Bundle, prompt: np.ndarray, deadline_s: float = 30.0) -> Any:
    """The answer of `backbone` to one prompt, or the error it ends in."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        try:
            return stub(channel).ModelInfer(message(bundle, prompt, deadline_s), timeout=30)
        except grpc.RpcError as error:
            return error


def stub(channel: grpc.Channel) -> Any:
    from tritonclient.grpc import service_pb2_grpc

    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(bundle: Bundle, prompt: np.ndarray, deadline_s: float) -> Any:
    from tritonclient.grpc import service_pb2

    made = service_pb2.ModelInferRequest(model_name="backbone")
    deadline = time.monotonic_ns() + int(1e9 * deadline_s)
    stamp = np.array([10, 0, bundle.manifest.catalog.version, deadline, 1, 1, 1, 0], np.int64)
    for name, datatype, array in (("input_ids", "INT32", prompt.astype(np.int32)), ("stamp", "INT64", stamp)):
        made.inputs.add(name=name, datatype=datatype, shape=[1, array.size])
        made.raw_input_contents.append(array.tobytes())
    return made
