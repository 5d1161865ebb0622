"""A test double of a Triton for the clients' tests: it answers and fails as they ask it to.

What a real Triton does is tested in the integration tests; the double produces the faults that a real one shows only
while it stops, and records what reached it.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from genrec_client import DeadlineExceeded, InvalidRequest, Overloaded, RecommendError

QUEUE_FULL = ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size")
STOPPING = ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting new inference requests")
UNLOADED = ("NOT_FOUND", "Request for unknown model: 'recommend' has no available versions")
DEAD_STEP = ("INTERNAL", "in ensemble 'recommend', Stub process 'backbone_0_0' is not healthy.")
QUEUE_TIMEOUT = ("UNAVAILABLE", "Request timeout expired")

Fault = tuple[str, str]

NOT_TRIED_AGAIN: list[tuple[Fault, type[RecommendError]]] = [
    (QUEUE_FULL, Overloaded),
    (QUEUE_TIMEOUT, DeadlineExceeded),
    (("DEADLINE_EXCEEDED", "Deadline Exceeded"), DeadlineExceeded),
    (("INVALID_ARGUMENT", "top_k: 0 is below 1"), InvalidRequest),
    (("NOT_FOUND", "Request for unknown model: 'recommend' is not found"), InvalidRequest),
    (("RESOURCE_EXHAUSTED", "too many requests"), Overloaded),
    (("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 8)"), InvalidRequest),
    (("INTERNAL", "internal error, see the server's log"), RecommendError),
]


class FaultyServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Test double of a Triton: a gRPC server in this process.

    `behave` is called with each request and returns a fault to abort with, a response, or None for an ordinary answer.
    `abandoned` is released for each request that was cancelled, or timed out, before `behave` was done.
    """

    def __init__(self) -> None:
        self.behave: Callable[[Any], Any] = lambda request: None
        self.requests: list[Any] = []
        self.time_remaining_s: list[float] = []
        self.metadata: list[dict[str, str]] = []
        self.ready = True
        self.in_flight = self.most_in_flight = 0
        self.abandoned = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        working = True
        context.add_callback(lambda: working and self.abandoned.release())
        with self._lock:
            self.requests.append(request)
            self.time_remaining_s.append(context.time_remaining())
            self.metadata.append(dict(context.invocation_metadata()))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            result = self.behave(request)
        finally:
            working = False
            with self._lock:
                self.in_flight -= 1
        if isinstance(result, tuple):
            context.abort(grpc.StatusCode[result[0]], result[1])
        return answer(["i1", "i2"]) if result is None else result

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.ready and request.name == "recommend")

    def stop(self) -> None:
        self._server.stop(0).wait()

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def fixture_of(kind: type[FaultyServer]) -> Any:
    """A fixture: a double that runs for one test."""

    @pytest.fixture
    def double() -> Iterator[FaultyServer]:
        with kind() as running:
            yield running

    return double


def pack(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def answer(ids: list[str], sources: list[int] | None = None, scores: list[float] | None = None) -> Any:
    """An answer as the wire contract has it."""
    sources = sources or [0] * len(ids)
    scores = scores or [-1.0 - rank for rank in range(len(ids))]
    response = service_pb2.ModelInferResponse(model_name="recommend", model_version="1")
    for name, datatype, length, raw in (
        ("item_ids", "BYTES", len(ids), pack([item.encode() for item in ids])),
        ("scores", "FP32", len(ids), np.array(scores, np.float32).tobytes()),
        ("source", "UINT8", len(ids), np.array(sources, np.uint8).tobytes()),
        ("counts", "INT32", 4, np.array([32, 20, 3, 1], np.int32).tobytes()),
        ("version", "BYTES", 2, pack([b"bundle-7", b"catalog-9"])),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=(1, length))
        response.raw_output_contents.append(raw)
    return response


def inputs(request: Any) -> dict[str, tuple[str, list[int], bytes]]:
    """Name -> datatype, shape, bytes of a request that reached the double."""
    assert len(request.inputs) == len(request.raw_input_contents)
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), raw)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def ids_of(tensor: tuple[str, list[int], bytes]) -> list[bytes]:
    datatype, shape, raw = tensor
    assert datatype == "BYTES"
    values = list(deserialize_bytes_tensor(raw)) if raw else []
    assert shape == [1, len(values)]
    return values
