"""Requests of every hostile kind to a real server behind the front, over gRPC and HTTP.

What must not come of them: an end or a hang of the server or the front, a status that blames the server (INTERNAL,
UNKNOWN, 500), a refusal without words, another answer to a good request in between.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import struct
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from genrec.bundle import Bundle
from genrec.serving.front import Front
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import TritonServer
from genrec_client import Recommender
from tests.fuzz.client import packed
from tests.fuzz.front import framed
from tests.fuzz.hostile import INTEGERS, mutated, tampered, text, value, written
from tests.fuzz.requests import rules_text
from tests.fuzz.runner import Result

SERVICE = "/inference.GRPCInferenceService/"
INFER = "/v2/models/recommend/infer"
DTYPES = (
    "BYTES",
    "INT32",
    "BOOL",
    "INT64",
    "UINT8",
    "FP32",
    "FP64",
    "FP16",
    "BF16",
    "INT8",
    "UINT64",
    "",
    "STRING",
    "X",
)
INPUTS = {
    "history": "BYTES",
    "top_k": "INT32",
    "exclude": "BYTES",
    "allow_history": "BOOL",
    "query": "BYTES",
    "rules": "BYTES",
}
KNOWLEDGE = "knowledge"
OF_TEXTS = {"history": "BYTES", "item": "BYTES", "max_new_tokens": "INT32", "stream": "BOOL"}  # inputs of that model
OUTPUTS = ("item_ids", "scores", "source", "counts", "version", "explanation")
PARAMETERS = (
    "classification", "binary_data", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end",
    "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "binary_data_size",
    "binary_data_output", "triton_enable_empty_final_response", "headers", "sheddable", "genrec-arrived", "x",
)  # fmt: skip
METHODS = (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
    "RepositoryIndex", "RepositoryModelLoad", "SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "TraceSetting",
    "LogSettings", "ModelStreamInfer", "Nothing",
)  # fmt: skip
PATHS = (
    INFER, "/v2/models/recommend/versions/1/infer", "/v2/models/recommend/versions/99/infer", "/v2", "/metrics", "/",
    "/v2/models/backbone/infer", "/v2/models/recommend/generate", "/v2/repository/index", "/v2/models/stats",
    "/v2/systemsharedmemory/status", "/v2/logging", "/v2/trace/setting", "/v2/models/recommend/config",
    "/v2/models/nobody/config", "/v2/health/ready", "/v2/../../etc/passwd",
)  # fmt: skip
HEADERS = (
    ("triton_grpc_error", "true"), ("x", "y" * 3000), ("x", "y" * 9000), ("x", "y" * 20_000), ("x-bin", b"\xff" * 100),
    ("user-agent", ""), ("traceparent", "x"), ("authorization", "Bearer x"),
)  # fmt: skip
BLAME = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED"}
GOOD_EVERY, AT_ONCE, WAIT_S = 50, 16, 30.0
# A server that is busy may say so; one that is gone may not.
BUSY = re.compile(r"exceeds maximum queue size|request timeout expired")


def tensor_bytes(rng: random.Random, name: str, datatype: str, known: Sequence[str]) -> tuple[list[int], bytes]:
    """A shape and the bytes of a tensor, which mostly fit."""
    if name == "rules":
        return [1, 1], packed([rules_text(rng)])
    if datatype == "BYTES":
        size = rng.choice((0, 1, 3, 20))
        ids = [rng.choice((*known, text(rng))).encode("utf-8", "surrogatepass")[:5000] for _ in range(size)]
        ids = [rng.randbytes(5) if rng.random() < 0.1 else one for one in ids]
        return ([1, size], packed(ids)) if name not in ("query", "item") else ([1, 1], packed(ids[:1] or [b"tent"]))
    number = rng.choice(INTEGERS) % 2**31
    return [1, 1], {
        "INT32": struct.pack("<I", number),
        "BOOL": b"\1",
        "FP32": struct.pack("<f", rng.choice((float("nan"), 1.0))),
    }.get(datatype, number.to_bytes(8, "little"))


def parameter(rng: random.Random, into: Any, name: str) -> None:
    """A parameter of any type."""
    kind = rng.randrange(4)
    if kind == 0:
        into[name].int64_param = rng.choice([number for number in INTEGERS if -(2**63) <= number < 2**63])
    elif kind == 1:
        into[name].bool_param = rng.random() < 0.5
    elif kind == 2:
        into[name].string_param = rng.choice(("", "a", "../../etc/passwd", "0", "x" * 300))
    else:
        into[name].double_param = rng.choice((0.0, float("nan"), float("inf"), -1e308))


def message(rng: random.Random, known: Sequence[str], model: str = "recommend") -> bytes:
    """A ModelInferRequest, good as such or not."""
    request = service_pb2.ModelInferRequest(model_name=model)
    inputs = OF_TEXTS if model == KNOWLEDGE else INPUTS
    if rng.random() < 0.08:
        request.model_name = rng.choice(("", "backbone", "nobody", "recommend "))
    if rng.random() < 0.08:
        request.model_version = rng.choice(("1", "0", "99", "-1", "x", "9" * 30))
    if rng.random() < 0.2:
        request.id = rng.choice(("a", "x" * 300, "\n", "%s", "\u202e", "\0"))
    names = ["history", *(name for name in list(inputs)[1:] if rng.random() < 0.2)]
    if model == KNOWLEDGE and rng.random() < 0.4:
        names = ["item"]
    if rng.random() < 0.1:
        names = [rng.choice((*inputs, "stamp", "", "x" * 300)) for _ in range(rng.randrange(4))]
    in_contents = rng.random() < 0.15
    for name in names:
        datatype = inputs.get(name, "BYTES") if rng.random() < 0.92 else rng.choice(DTYPES)
        shape, raw = tensor_bytes(rng, name, datatype, known)
        if rng.random() < 0.08:
            shape = rng.choice(
                ([], [0], [1], [0, 0], [1, -1], [2, 1], [1, 1, 1], [1, 2**31], [2**62, 4], [2**40, 2**40], [1] * 40)
            )
        if rng.random() < 0.08:
            raw = tampered(rng, raw)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        if rng.random() < 0.05:
            parameter(rng, tensor.parameters, rng.choice(PARAMETERS))
        if in_contents or rng.random() < 0.02:
            if rng.random() < 0.8:
                tensor.contents.bytes_contents.extend([b"a"] * rng.choice((0, 1, 3)))
            if rng.random() < 0.3:
                tensor.contents.int_contents.extend([rng.choice((3, -1, 2**31 - 1))] * rng.choice((1, 2)))
            if rng.random() < 0.2:
                tensor.contents.bool_contents.append(True)
        if not in_contents or rng.random() < 0.1:
            request.raw_input_contents.append(raw)
    if rng.random() < 0.05:
        request.raw_input_contents.append(b"abcd")
    if rng.random() < 0.3:
        for _ in range(rng.randrange(4)):
            output = request.outputs.add(name=rng.choice((*OUTPUTS, "nobody", "")))
            if rng.random() < 0.2:
                parameter(rng, output.parameters, rng.choice(PARAMETERS))
    if rng.random() < 0.15:
        parameter(rng, request.parameters, rng.choice(PARAMETERS))
    data: bytes = request.SerializeToString()
    return tampered(rng, data) if rng.random() < 0.15 else data


def body(rng: random.Random, known: Sequence[str]) -> tuple[bytes, dict[str, str]]:
    """A request over HTTP and its headers."""
    inputs = []
    tail = b""
    for name in ["history", *(name for name in list(INPUTS)[1:] if rng.random() < 0.2)]:
        datatype = INPUTS[name] if rng.random() < 0.95 else rng.choice(DTYPES)
        shape, raw = tensor_bytes(rng, name, datatype, known)
        one: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if rng.random() < 0.3:
            one["parameters"] = {"binary_data_size": len(raw) if rng.random() < 0.8 else rng.choice(INTEGERS[:20])}
            tail += raw
        elif datatype == "BYTES":
            one["data"] = [rng.choice((*known, text(rng))) for _ in range(shape[-1])]
        else:
            one["data"] = [rng.choice((3, True, 1.5, "a", 2**31))]
        inputs.append(one)
    request: Any = {"inputs": inputs}
    if rng.random() < 0.3:
        request["outputs"] = [
            {"name": rng.choice((*OUTPUTS, "x")), "parameters": {rng.choice(PARAMETERS): rng.choice((True, 1, "a"))}}
        ]
    if rng.random() < 0.2:
        request["parameters"] = {rng.choice(PARAMETERS): value(rng)}
    if rng.random() < 0.2:
        request["id"] = rng.choice(("a", "x" * 300, 5, None))
    for _ in range(rng.choice((0, 0, 1, 2))):
        request = mutated(rng, request, ("inputs", "outputs", "name", "shape", "data", "datatype", "parameters"))
    data = written(rng, request)
    headers = {}
    if tail or rng.random() < 0.05:
        size = len(data) if rng.random() < 0.9 else rng.choice((0, 1, len(data) + 1, 10**9))
        headers["Inference-Header-Content-Length"] = (
            str(size) if rng.random() < 0.97 else rng.choice(("-1", "x", "1e3", "0x10"))
        )
    if rng.random() < 0.03:
        headers[
            rng.choice(
                ("Content-Encoding", "Accept-Encoding", "Content-Type", "triton_grpc_error", "Expect", "Upgrade")
            )
        ] = rng.choice(("gzip", "true", "100-continue", "h2c", "a" * 500))
    return data + tail, headers


class Hammer:
    """Sends requests, and notes what came of them in a `Result`.

    texts: whether the server writes knowledge texts, which are then asked for, too. status: how often each one came,
    for a report.
    """

    def __init__(
        self, front: Front, server: TritonServer, known: Sequence[str], result: Result, texts: bool = False
    ) -> None:
        self.front, self.server, self.known, self.result, self.texts = front, server, known[:20], result, texts
        self.status: Counter[str] = Counter()
        self.channel = grpc.insecure_channel(front.grpc_url, [("grpc.max_receive_message_length", -1)])
        self.pids = server.pid, front.pid
        self.client = Recommender(front.grpc_url, timeout_s=WAIT_S)
        self.good = self._asked()
        self.pending: deque[tuple[str, Any]] = deque()
        self.connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Wait for the last answers."""
        self._drain(0)
        self._still_good("the end")
        self.client.close()
        self.channel.close()

    def one(self, seed: str) -> None:
        """Send the request of a seed."""
        rng = random.Random(seed)
        kind = rng.random()
        if kind < 0.6:
            data = message(rng, self.known)
            self._send("ModelInfer", data, seed, rng)
        elif kind < 0.63:
            name = rng.choice(METHODS)
            data = tampered(rng, b"\x0a\x09recommend") if rng.random() < 0.5 else message(rng, self.known)
            if name == "ModelStreamInfer":
                self._stream([message(rng, self.known) for _ in range(rng.randrange(1, 4))], seed)
            else:
                self._send(name, data, seed, rng)
        elif kind < 0.65 and self.texts:
            self._stream([message(rng, self.known, KNOWLEDGE) for _ in range(rng.randrange(1, 4))], seed)
        elif kind < 0.98:
            self._post(rng, seed)
        else:
            self._lie(rng, seed)
        self._drain(AT_ONCE)
        self.result.inputs += 1
        if self.result.inputs % GOOD_EVERY == 0:
            self._still_good(seed)

    def _send(self, method: str, data: bytes, seed: str, rng: random.Random) -> None:
        metadata = [rng.choice(HEADERS)] if rng.random() < 0.05 else []
        call = self.channel.unary_unary(SERVICE + method).future(data, timeout=WAIT_S, metadata=metadata)
        self.pending.append((seed, call))

    def _drain(self, most: int) -> None:
        while len(self.pending) > most:
            seed, call = self.pending.popleft()
            try:
                code, said = call.code().name, call.details() or ""
            except Exception as error:
                code, said = "UNKNOWN", repr(error)
            self._note(code, said, seed, blames=code in BLAME or (code == "UNAVAILABLE" and not BUSY.search(said)))

    def _stream(self, messages: list[bytes], seed: str) -> None:
        call = self.channel.stream_stream(
            SERVICE + "ModelStreamInfer", None, service_pb2.ModelStreamInferResponse.FromString
        )
        try:
            for answer in call(iter(messages), timeout=WAIT_S):
                said = answer.error_message
                self._note("STREAM" if said else "OK", said, seed, blames="INTERNAL" in said)
        except grpc.RpcError as error:
            code = error.code().name  # what becomes of a stream that the front ends is gRPC's own affair
            self._note(code, error.details() or "", seed, blames=code in BLAME and len(messages) == 1)

    def _post(self, rng: random.Random, seed: str) -> None:
        data, headers = body(rng, self.known)
        path = INFER if rng.random() < 0.93 else rng.choice(PATHS)
        method = "POST" if rng.random() < 0.97 else rng.choice(("GET", "PUT", "DELETE", "OPTIONS", "PATCH"))
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.front.http_url, timeout=WAIT_S)
            self.connection.request(method, path, data, headers)
            answer = self.connection.getresponse()
            said = answer.read().decode("utf-8", "replace")
            self._note(
                str(answer.status),
                said if answer.status != 200 else "",
                seed,
                blames=answer.status >= 500 and not BUSY.search(said),
            )
        except (OSError, http.client.HTTPException) as error:
            # One that is refused before it is whole may be cut off; then the next one has a connection of its own.
            self.connection = None
            self._note(type(error).__name__, "cut off", seed, blames=isinstance(error, TimeoutError))

    def _lie(self, rng: random.Random, seed: str) -> None:
        """Bytes that are no whole request: lengths that lie, heads of another protocol."""
        import socket

        address = rng.choice((self.front.http_url, self.front.grpc_url)).rpartition(":")
        length = rng.choice(("0", "5", "-1", "99999999999", "x", "3, 3", "18446744073709551617"))
        chunked = "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n"
        raw = rng.choice(
            (
                f"{head}Content-Length: {length}\r\n\r\n{{}}".encode(),
                f"{head}{chunked}{{}}".encode(),
                f"{head}Content-Length: 2\r\nContent-Length: 9\r\n\r\n{{}}".encode(),
                f"{head}Content-Length: 2\r\n{chunked}{{}}".encode(),
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(rng.choice((9, 100))),
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + framed(rng, rng.randbytes(30)),
                rng.randbytes(40),
            )
        )
        with suppress(OSError), socket.create_connection((address[0], int(address[2])), timeout=5) as connection:
            connection.sendall(tampered(rng, raw) if rng.random() < 0.3 else raw)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.05)
            with suppress(TimeoutError):
                said = connection.recv(4096)
                if re.match(rb"HTTP/1\.1 5(?!03)", said):
                    self._note("5xx", said.decode("utf-8", "replace"), seed, blames=True)
        self.status["half a request"] += 1

    def _note(self, status: str, said: str, seed: str, blames: bool) -> None:
        self.status[status] += 1
        if status not in ("OK", "200"):
            self.result.refused += 1
        self.status[f"{status} {shape_of(said)}"] += 1
        if blames:
            self.result.found(f"{status}: {shape_of(said)}", seed, said[:500])
        elif status not in ("OK", "200", "404", "405") and not said.strip():
            self.result.found(f"{status} without a word", seed, "")

    def _asked(self) -> tuple[Any, ...]:
        return tuple(item.item_id for item in self.client.recommend(self.known[:5], top_k=5).items)

    def _still_good(self, seed: str) -> None:
        if (self.server.pid, self.front.pid) != self.pids or None in self.pids:
            what = "the front" if self.server.pid == self.pids[0] else "the server"
            self.result.found(f"{what} ended", seed, "")
            raise SystemExit(f"{what} ended after {seed}")
        try:
            if (now := self._asked()) != self.good:
                self.result.found("another answer to a good request", seed, f"{now} {self.good}")
        except Exception as error:
            self.result.found("a good request failed", seed, str(error))


def shape_of(said: str) -> str:
    """What a message says, without its values."""
    with suppress(ValueError):
        found = json.loads(said)
        said = str(found.get("error", said)) if isinstance(found, dict) else said
    return re.sub(r"'[^']*'|\"[^\"]*\"|b'.*'|-?\d+(\.\d+)?(e[+-]?\d+)?|\[[^\]]*\]", "_", said)[:90].strip()


def hammer(
    front: Front,
    server: TritonServer,
    known: Sequence[str],
    inputs: int,
    seconds: float,
    base: str,
    texts: bool = False,
) -> tuple[Result, Counter[str]]:
    """Send requests to a running server; known: ids of its catalogue. texts: as of `Hammer`."""
    result = Result("server")
    began = time.monotonic()
    one = Hammer(front, server, known, result, texts)
    try:
        for number in range(inputs):
            if time.monotonic() - began > seconds:
                break
            one.one(f"{base}-{number}")
            if number and number % 5000 == 0:
                print(f"{number:,} requests, {sum(result.findings.values())} findings", flush=True)
        one.close()
    finally:
        result.seconds = time.monotonic() - began
    return result, one.status


@contextmanager
def served(bundle: Path, knowledge: Path | None, logs: Path) -> Iterator[tuple[Front, TritonServer]]:
    """A server of a bundle, and of texts where there is a folder of `genrec knowledge build`, behind the front."""
    with ExitStack() as running:
        front = running.enter_context(
            Front("recommend", None if knowledge is None else KNOWLEDGE, log_path=logs / "haproxy.log")
        )
        deployment = Deployment(threads=1, timeout_ms=30_000, knowledge=knowledge)
        server = running.enter_context(
            serve_bundle(bundle, deployment, sockets=front.sockets, log_path=logs / "triton.log")
        )
        yield front, server


def fuzz_server(bundle: Path, knowledge: Path | None, inputs: int, seconds: float, base: str) -> Result:
    """As `hammer`, on a server of its own; prints how often it said what."""
    known = [one.decode() for one in Bundle(bundle).catalog.item_ids[:50].tolist()]
    with tempfile.TemporaryDirectory(prefix="genrec-fuzz-") as folder:
        with served(bundle, knowledge, Path(folder)) as (front, server):
            try:
                result, status = hammer(front, server, known, inputs, seconds, base, knowledge is not None)
            except SystemExit:
                for log in sorted(Path(folder).glob("*.log")):
                    print(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}", flush=True)
                raise
    for said, count in sorted(status.items(), key=lambda pair: -pair[1]):
        print(f"{count:>9,}  {said}")
    print("\n".join(result.lines()), flush=True)
    return result
