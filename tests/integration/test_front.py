"""The front before a real server: what would end or change it is refused, and everything else is as without it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import hashlib
import http.client
import json
import os
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.grpc import service_pb2

from genrec.bundle import Bundle
from genrec.serving.front import Front, FrontError, find_haproxy
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import ServerTls, TritonServer
from genrec.serving.triton.ports import choose_ports
from genrec_client import AsyncRecommender, KnowledgeWriter, Recommender, RecommendError
from genrec_client.channel import TlsOptions
from tests.fuzz.served import hammer
from tests.integration.conftest import Shop, Wire, make_certificate
from tests.needs import missing
from tests.unit.bundle.keys import make_keys

SERVICE = "/inference.GRPCInferenceService/"
INFER = "/v2/models/recommend/infer"
MOST = 1 << 16  # of the shared front: what is too large need not be large
KNOWLEDGE = "knowledge"


@pytest.fixture(scope="module")
def haproxy() -> Path:
    try:
        return find_haproxy()
    except FrontError as error:
        missing(str(error))


@pytest.fixture(scope="module")
def front(haproxy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    log = tmp_path_factory.mktemp("front") / "haproxy.log"
    with Front("recommend", KNOWLEDGE, metrics_port=0, max_request_bytes=MOST, log_path=log) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def server(
    front: Front, bundle: Bundle, knowledge_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """Behind the front; whatever a test sends, it runs on."""
    deployment = Deployment(threads=1, timeout_ms=30_000, knowledge=knowledge_folder)
    log = tmp_path_factory.mktemp("behind") / "triton.log"
    with serve_bundle(bundle.path, deployment, sockets=front.sockets, log_path=log) as running:
        yield running


@pytest.fixture(autouse=True)
def still_up(server: TritonServer, front: Front) -> Iterator[None]:
    pids = server.pid, front.pid
    yield
    assert (server.pid, front.pid) == pids and None not in pids
    with Recommender(front.grpc_url, timeout_s=30.0) as client:
        assert client.recommend([]).items


@pytest.fixture(scope="module")
def through(front: Front) -> Iterator[Wire]:
    found = Wire(front.grpc_url)
    yield found
    found.close()


@pytest.fixture(scope="module")
def past(server: TritonServer) -> Iterator[Wire]:
    """The same server without the front."""
    found = Wire(server.grpc_url)
    yield found
    found.close()


def classified(message: Any, output: str = "item_ids") -> Any:
    message.outputs.add(name=output).parameters["classification"].int64_param = 2
    return message


def history_of(items: list[str]) -> dict[str, Any]:
    return {"name": "history", "shape": [1, len(items)], "datatype": "BYTES", "data": items}


def post(front: Front, body: bytes | dict, path: str = INFER, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(front.http_url, timeout=30)
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, encoded, named)
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


def health_status(url: str) -> int:
    connection = http.client.HTTPConnection(url, timeout=30)
    connection.request("GET", "/v2/health/ready")
    return connection.getresponse().status


CRASH = """
import subprocess, sys, urllib.request
import numpy as np, tritonclient.{kind} as client
from pathlib import Path
from genrec.serving.serve import serve_bundle
with serve_bundle(Path(sys.argv[1]), log_path=Path(sys.argv[2])) as server:
    wanted = client.InferInput("history", [1, 0], "BYTES")
    wanted.set_data_from_numpy(np.zeros((1, 0), np.object_))
    asking = client.InferenceServerClient(server.{kind}_url)
    for _ in range(5):  # now and then one is refused for another reason, or the crash hangs
        try:
            asking.infer("recommend", [wanted], outputs=[client.InferRequestedOutput("item_ids", class_count=2)])
        except Exception as error:
            print(error, file=sys.stderr)
        try:
            print("status", server.wait(4))
            break
        except subprocess.TimeoutExpired:
            pass
        try:
            urllib.request.urlopen("http://" + server.http_url + "/v2/health/ready", timeout=5)
        except OSError:
            print("no answer")
            break
    server.stop(0)
"""


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_without_the_front_one_request_ends_the_server(bundle: Bundle, kind: str, tmp_path: Path) -> None:
    """Why there is a front: if this fails, this Triton no longer needs one. The server is a child's own."""
    words = [sys.executable, "-c", CRASH.format(kind=kind), str(bundle.path), str(tmp_path / "log")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout in (f"status {128 + signal.SIGFPE}\n", "no answer\n"), done.stderr


def test_classification_is_refused_over_grpc(through: Wire) -> None:
    for output in ("item_ids", "scores"):
        with pytest.raises(grpc.RpcError) as caught:
            through.stub.ModelInfer(classified(Wire.message([Wire.ids("history", [])]), output), timeout=30)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "the classification extension is closed here" in caught.value.details()


@pytest.mark.parametrize("binary", [False, True])
def test_classification_is_refused_over_http(front: Front, binary: bool) -> None:
    client = http_client.InferenceServerClient(front.http_url)
    asked = http_client.InferInput("history", [1, 1], "BYTES")
    asked.set_data_from_numpy(np.array([["a"]], np.object_), binary_data=binary)
    for output in ("item_ids", "scores"):
        wanted = http_client.InferRequestedOutput(output, binary_data=binary, class_count=2)
        with pytest.raises(http_client.InferenceServerException, match="classification extension is closed here"):
            client.infer("recommend", [asked], outputs=[wanted])
    wanted = http_client.InferRequestedOutput("scores", binary_data=binary)
    assert client.infer("recommend", [asked], outputs=[wanted]).as_numpy("scores").shape == (1, 10)
    client.close()


def test_no_other_spelling_gets_through(front: Front) -> None:
    for name in (r"classific\u0061tion", r"\u0063lassification", "classification"):
        outputs = f'[{{"name":"item_ids","parameters":{{"{name}":2}}}}]'
        text = f'{{"inputs":[{json.dumps(history_of(["a"]))}],"outputs":{outputs}}}'
        assert post(front, text.encode())[0] == 400


def test_hostile_requests_of_every_kind(front: Front, server: TritonServer, shop: Shop) -> None:
    """The short form of `make fuzz`."""
    result, _ = hammer(front, server, shop.ids, 600, 60.0, "test")
    assert result.inputs == 600 and not result.findings, "\n".join(result.lines())


BROKEN = Wire.pack(["abc"])[:-1]  # says three bytes, and has two


def test_a_tensor_that_breaks_off_does_not_fail_those_of_others(
    front: Front, through: Wire, past: Wire, shop: Shop
) -> None:
    """Past the front, requests that are in one batch with it are refused with its words."""
    broken = Wire.message([("history", "BYTES", (1, 1), BROKEN)])

    def refused_beside_it(wire: Wire) -> int:
        """Good requests that are refused, and what the broken one was told."""
        calls = [
            wire.stub.ModelInfer.future(good, timeout=30) for good in [Wire.message([Wire.ids("history", [])])] * 12
        ]
        with pytest.raises(grpc.RpcError) as caught:
            wire.stub.ModelInfer(broken, timeout=30)
        said.append(caught.value.details())
        return sum(call.code() is not grpc.StatusCode.OK for call in calls)

    said: list[str] = []
    assert any(refused_beside_it(past) for _ in range(30)), "this Triton no longer needs the check"
    assert not sum(refused_beside_it(through) for _ in range(30))
    assert "the data of input 1 break off" in said[-1]
    tensor = {"name": "history", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(BROKEN)}}
    text = json.dumps({"inputs": [tensor]}).encode()
    status, words = post(front, text + BROKEN, Inference_Header_Content_Length=str(len(text)))
    assert status == 400 and "the data of input 1 break off" in words
    whole = Wire.pack(["abc"])
    text = text.replace(b'"binary_data_size": %d' % len(BROKEN), b'"binary_data_size": %d' % len(whole))
    assert post(front, text + whole, Inference_Header_Content_Length=str(len(text)))[0] == 200


def test_what_would_end_the_connection_does_not_reach_it(through: Wire) -> None:
    """gRPC ends a connection with a message that cannot be read, or long headers, and with it others' requests."""
    infer = through.channel.unary_unary(SERVICE + "ModelInfer")
    good = Wire.message([Wire.ids("history", [])]).SerializeToString()
    for data, headers, code, words in (
        (good + b"\x1a\x02\xff\xfe", (), "INVALID_ARGUMENT", "a name or another text is not UTF-8"),  # its id
        (good + b"\x2a\x03\x2a\x01\x08", (), "INVALID_ARGUMENT", "the message cannot be read"),  # within an input
        (good, (("x", "y" * 9000),), "RESOURCE_EXHAUSTED", "the headers have more than 4096 bytes"),
    ):
        calls = [infer.future(good, timeout=30) for _ in range(12)]
        with pytest.raises(grpc.RpcError) as caught:
            infer(data, timeout=30, metadata=headers)
        assert (caught.value.code().name, words in caught.value.details()) == (code, True), caught.value
        assert all(call.code() is grpc.StatusCode.OK for call in calls)


def stream_request(history: list[str], **options: Any) -> Any:
    return Wire.message([Wire.ids("history", history)], model=KNOWLEDGE, **options)


def test_a_stream_is_one_text_and_what_is_closed_is_refused(through: Wire, shop: Shop) -> None:
    answers = list(through.stub.ModelStreamInfer(iter([stream_request(shop.ids[:4])]), timeout=30))
    assert len(answers) > 1 and not any(answer.error_message for answer in answers)
    bad = {
        "the classification extension is closed": classified(stream_request(shop.ids[:4]), "text"),
        "this call reaches the model 'knowledge' only": Wire.message([], model="preprocessing"),
    }
    for reason, message in bad.items():
        (answer,) = through.stub.ModelStreamInfer(iter([message]), timeout=30)
        assert reason in answer.error_message


def test_a_second_message_ends_a_stream_and_not_the_server(
    through: Wire, past: Wire, front: Front, server: TritonServer, shop: Shop
) -> None:
    """Past the front the server ends, after tens of such streams: it refuses the one while it writes the other."""
    refused = stream_request(shop.ids[:4])
    refused.model_version = "0"
    for _ in range(100):
        messages: queue.Queue[Any] = queue.Queue()
        call = through.stub.ModelStreamInfer(iter(messages.get, None), timeout=30)
        messages.put(stream_request(shop.ids[:4]))
        assert not next(call).error_message
        messages.put(refused)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED
        messages.put(None)
    assert server.is_running and front.fault() == ""
    assert through.stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=10).ready


def test_a_streams_message_that_is_too_large_or_compressed_is_refused(through: Wire, shop: Shop) -> None:
    large = stream_request(shop.ids[:4])
    large.id = "x" * MOST
    (answer,) = through.stub.ModelStreamInfer(iter([large]), timeout=30)
    assert re.search(r"the message has \d+ bytes; at most 65536 are accepted", answer.error_message)
    stream = through.channel.stream_stream(
        SERVICE + "ModelStreamInfer", None, service_pb2.ModelStreamInferResponse.FromString
    )
    large.id = "x" * 1000  # worth the compression
    (answer,) = stream(iter([large.SerializeToString()]), timeout=30, compression=grpc.Compression.Gzip)
    assert "compressed messages are closed here" in answer.error_message


def test_texts_through_the_front_are_written_and_their_end_reaches_the_server(
    front: Front, server: TritonServer, shop: Shop
) -> None:
    def cancelled() -> float:
        with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
            page = answer.read().decode()
        return float(re.findall(r'^genrec_texts_total{outcome="cancelled"} (\S+)$', page, flags=re.M)[0])

    with KnowledgeWriter(front.grpc_url, timeout_s=30.0) as writer:
        assert len(list(writer.user(shop.ids[:4]))) > 1
        before, deadline = cancelled(), time.monotonic() + 10
        while cancelled() == before and time.monotonic() < deadline:  # a text may be written before its end is heard
            stream = writer.user(shop.ids[:4])
            next(stream)
            stream.close()
            time.sleep(0.1)
        assert cancelled() > before


def test_a_stream_that_asks_for_its_status_does_not_end_the_server(through: Wire) -> None:
    """Past the front it does, after tens or thousands of refusals."""
    asking = [("triton_grpc_error", "true")]
    for _ in range(100):
        (answer,) = through.stub.ModelStreamInfer(iter([stream_request(["nobody"])]), timeout=30, metadata=asking)
        assert answer.error_message.startswith("INVALID_ARGUMENT: history has 1 items")


CLOSED = {
    "a step": lambda c: c.infer("preprocessing", []),
    "index": lambda c: c.get_model_repository_index(),
    "load": lambda c: c.load_model("recommend"),
    "unload": lambda c: c.unload_model("recommend"),
    "system memory": lambda c: c.get_system_shared_memory_status(),
    "register": lambda c: c.register_system_shared_memory("a", "/a", 4),
    "cuda memory": lambda c: c.get_cuda_shared_memory_status(),
    "trace": lambda c: c.get_trace_settings(),
    "trace settings": lambda c: c.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
    "log": lambda c: c.update_log_settings({"log_verbose_level": 1}),
}


@pytest.mark.parametrize("name", CLOSED)
def test_what_changes_the_server_is_closed(front: Front, server: TritonServer, name: str) -> None:
    with grpc_client.InferenceServerClient(front.grpc_url) as client:
        with pytest.raises(grpc_client.InferenceServerException) as caught:
            CLOSED[name](client)
        assert caught.value.status() in ("StatusCode.PERMISSION_DENIED", "StatusCode.INVALID_ARGUMENT"), caught.value
        assert re.search("closed here|reaches the model 'recommend' only", caught.value.message())
    with http_client.InferenceServerClient(front.http_url) as client:
        with pytest.raises(http_client.InferenceServerException, match="closed here"):
            CLOSED[name](client)
    if name != "a step":  # Triton itself keeps them closed, with a front and without one
        with grpc_client.InferenceServerClient(server.grpc_url) as client:
            with pytest.raises(grpc_client.InferenceServerException, match="restricted"):
                CLOSED[name](client)


@pytest.mark.parametrize(
    "path",
    ["/v2/models/backbone/infer", "/v2/models/recommend/generate", "/v2/models/recommend/infer?a=b/../..", "/metrics",
     "//v2/models/recommend/infer", "/v2/models/recommend/../backbone/infer", "/v2/models/%62ackbone/infer",
     "/v2/models/backbone/infer#/v2/models/recommend/infer", "http://x/v2/models/backbone/infer"],
)  # fmt: skip
def test_no_path_leads_around(front: Front, path: str) -> None:
    status, said = post(front, {"inputs": [history_of(["a"])]}, path)
    assert status in (400, 403) or ("?" in path and status == 200), (status, said)


@pytest.mark.parametrize(
    "body",
    ["", "{", '{"inputs":[', "[]", "5", "{} {}", '{"inputs":5}', '{"inputs":[{"name":5}]}', '{"a":1e999}',
     '{"a":"\\ud800"}', '{"a":NaN}', '{"id":5,"inputs":[]}', "{'a':1}",
     '{"a":01}', '{"a":"\x01"}', "[" * 60_000, '{"a":' * 9000],
)  # fmt: skip
def test_what_is_no_json_is_the_clients_fault(front: Front, body: str) -> None:
    status, said = post(front, body.encode())
    assert status == 400 and "error" in json.loads(said)


def test_more_values_than_anybody_needs_are_refused(haproxy: Path, tmp_path: Path) -> None:
    with Front("recommend", log_path=tmp_path / "log") as front:
        for values, status in ((99_990, 503), (100_010, 400)):  # 503: looked into, and nobody is there
            assert post(front, b'{"a":[' + b"1," * values + b"1]}")[0] == status


def test_numbers_that_triton_would_cut_are_refused(front: Front) -> None:
    top_k = {"name": "top_k", "shape": [1, 1], "datatype": "INT32"}
    status, said = post(front, {"inputs": [history_of(["a"]), top_k | {"data": [2**32 + 3]}]})
    assert status == 400 and "more than 32 bits" in said
    assert post(front, {"inputs": [history_of(["a"]), top_k | {"data": [3]}]})[0] == 200


def test_what_triton_calls_its_own_fault_is_the_clients(front: Front, through: Wire) -> None:
    whole = {"inputs": [history_of(["a"])]}
    broken = json.dumps(whole | {"parameters": {"shared": "x"}}).encode().replace(b"shared", b"\xa8hared")
    status, said = post(front, broken)
    assert status == 400 and "the request's parameters are not UTF-8" in said, said
    status, said = post(front, whole | {"parameters": {"sequence_id": "A" * 129}})
    assert status == 400 and "longer than 128 characters" in said
    for rows in (2**32 + 3, 11111111111):
        no_ids = {"name": "history", "datatype": "BYTES", "shape": [rows, 0], "parameters": {"binary_data_size": 0}}
        assert post(front, {"inputs": [no_ids]})[0] == 400
        message = service_pb2.ModelInferRequest(model_name="recommend")
        message.inputs.add(name="history", datatype="BYTES", shape=[rows, 0])
        message.raw_input_contents.append(b"")
        with pytest.raises(grpc.RpcError) as caught:
            through.stub.ModelInfer(message, timeout=30)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    # Of a refusal the step's log tells the id.
    nameless = json.dumps({"id": "shared", "inputs": [history_of(["a"] * 11_000)]}).encode()
    status, said = post(front, nameless.replace(b"shared", b"\xa8hared"))
    assert status == 400 and "history has 11000 items" in said, said
    message = through.message([through.ids("history", ["a"])])
    message.parameters["sequence_id"].string_param = "A" * 129
    with pytest.raises(grpc.RpcError) as caught:
        through.stub.ModelInfer(message, timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "longer than 128 characters" in caught.value.details()


def test_room_is_made_for_no_shape_that_is_too_large(front: Front) -> None:
    """Past the front the second one ends the server: std::bad_alloc."""
    for shape in ([1, 2**28], [1, 2**36], [2**32, 2**32], [2**62, 4, 1]):
        top_k = {"name": "top_k", "shape": shape, "datatype": "INT32", "data": [3]}
        status, said = post(front, {"inputs": [top_k]})
        assert status == 400 and "a shape has more than 1048576 elements" in said


def test_too_much_is_refused_and_says_so(front: Front, through: Wire) -> None:
    for size in (MOST, 1 << 20, 1 << 24):
        said = through.refused(Wire.ids("history", ["x" * size]))
        assert said.code == "INVALID_ARGUMENT" and f"at most {MOST} are accepted" in said.message
    connection = http.client.HTTPConnection(front.http_url, timeout=30)
    connection.putrequest("POST", INFER)
    connection.putheader("Content-Length", str(MOST + 1))
    connection.endheaders()  # it is answered without its body
    assert connection.getresponse().status == 413
    parts = iter([b"{", *[b" " * 1000] * 70])  # chunked, so its size is not told
    connection = http.client.HTTPConnection(front.http_url, timeout=30)
    connection.request("POST", INFER, parts, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 413


def test_what_cannot_be_looked_into_is_refused(front: Front, through: Wire) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        message = Wire.message([Wire.ids("history", ["a"] * 1000)])
        through.stub.ModelInfer(message, timeout=30, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED and "compressed" in caught.value.details()
    body = gzip.compress(json.dumps({"inputs": [history_of(["a"])]}).encode())
    assert post(front, body, Content_Encoding="gzip")[0] == 415
    body = json.dumps({"inputs": [history_of(["a"])]}).encode()
    for length in ("-1", "x", "99999", "0", "1e2", f"{len(body)}, 3", f"3, {len(body)}"):
        assert post(front, body, Inference_Header_Content_Length=length)[0] == 400


def test_half_a_request_holds_up_nobody(front: Front) -> None:
    host, _, port = front.http_url.partition(":")
    with (
        socket.create_connection((host, int(port))) as half,
        socket.create_connection(front.grpc_url.split(":")) as rest,
    ):
        half.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode())
        rest.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        with Recommender(front.grpc_url, timeout_s=30.0) as client:
            assert client.recommend([]).items


def test_connections_that_say_nothing_hold_up_nobody(front: Front, shop: Shop) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    host, port = front.grpc_url.split(":")
    with contextlib.ExitStack() as open_ones:
        for _ in range(1000):
            open_ones.enter_context(socket.create_connection((host, int(port)), timeout=10))
        with Recommender(front.grpc_url, timeout_s=10.0) as client:
            assert all(client.recommend(user).items for user in shop.users[:10])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_answers_are_the_same_as_without_it(front: Front, through: Wire, past: Wire, shop: Shop) -> None:
    asked: list[list[tuple]] = [[Wire.ids("history", user)] for user in shop.users[:6]]
    asked += [[Wire.ids("history", ["classification"])], [Wire.ids("history", shop.ids[:3] + ["classification"] * 3)]]
    asked += [[Wire.ids("history", shop.ids[:2]), Wire.top_k(5), Wire.ids("exclude", ["classification"])]]
    for inputs in asked:
        assert through.ask(*inputs).same_as(past.ask(*inputs))
    assert through.refused(Wire.ids("history", []), Wire.top_k(0)) == past.refused(
        Wire.ids("history", []), Wire.top_k(0)
    )
    body = {"id": "classification", "inputs": [history_of(["classification", 'a"\\classification'])]}
    assert post(front, body)[0] == 200


def test_every_client_and_every_question_passes(front: Front, shop: Shop) -> None:
    import asyncio

    async def asked() -> int:
        async with AsyncRecommender(front.grpc_url, timeout_s=30.0) as client:
            return len((await client.recommend(shop.ids[:3])).items)

    assert asyncio.run(asked()) == 10
    for client in (
        grpc_client.InferenceServerClient(front.grpc_url),
        http_client.InferenceServerClient(front.http_url),
    ):
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("recommend")
        for question in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
            assert question("recommend") and question("backbone")
        assert client.get_server_metadata() and client.get_inference_statistics()
        client.close()
    with grpc.insecure_channel(front.grpc_url) as channel:
        health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30)
    assert health == b"\x08\x01"  # SERVING
    with urllib.request.urlopen(front.metrics_url, timeout=10) as page:
        assert b"haproxy_frontend_http_requests_total" in page.read()


def test_many_at_once(front: Front, shop: Shop) -> None:
    with Recommender(front.grpc_url, timeout_s=30.0) as client, concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda at: client.recommend(shop.users[at % 50]), range(200)))
    assert all(len(answer.items) == 10 for answer in answers)


def test_a_free_port_that_is_taken_meanwhile_is_replaced(
    haproxy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port, times = taken.getsockname()[1], []

        def chosen(host: str, wanted: Any) -> dict[str, int]:
            times.append(wanted)
            return choose_ports(host, wanted) | ({"grpc": port} if len(times) == 1 else {})

        monkeypatch.setattr("genrec.serving.front.front.choose_ports", chosen)
        with Front("recommend", log_path=tmp_path / "log") as front:
            assert len(times) == 2 and front.pid is not None and front.grpc_url != f"127.0.0.1:{port}"


def test_before_and_after_the_server_calls_are_unavailable(haproxy: Path, tmp_path: Path) -> None:
    with Front("recommend", log_path=tmp_path / "log") as front:
        wire = Wire(front.grpc_url)
        said = wire.refused(Wire.ids("history", []))
        assert said.code == "UNAVAILABLE" and said.message == "the server is not there"
        with pytest.raises(grpc.RpcError) as caught:  # without a knowledge folder there is no stream
            list(wire.stub.ModelStreamInfer(iter([stream_request([])]), timeout=30))
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        wire.close()
        folder, pid = front.sockets, front.pid
        assert (folder.stat().st_mode & 0o777) == 0o700
    assert not folder.exists() and pid is not None and not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "log").read_text(), "HAProxy warns of its configuration"


def test_what_is_wrong_with_a_certificate_is_said(haproxy: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    tls = ServerTls(tmp_path / "junk.pem", tmp_path / "junk.pem")
    with pytest.raises(FrontError, match=r"ended at its start[^$]*unable to load certificate"):
        Front("recommend", tls=tls, log_path=tmp_path / "log").__enter__()


def reaches(front: Front, server: TritonServer) -> Front:
    """Another front before the same server."""
    (front.sockets / "grpc:8001").symlink_to(server.grpc_url.removeprefix("unix:"))
    (front.sockets / "http").symlink_to(server.http_url.removeprefix("unix:"))
    return front


TOKEN = "a-token_of.the~shop+/="


def tokens_file(folder: Path) -> Path:
    lines = [
        f"{name} {hashlib.sha256(token.encode()).hexdigest()}" for name, token in (("shop", TOKEN), ("batch", "b"))
    ]
    (folder / "tokens").write_text("\n".join(["# name and SHA-256", *lines]).upper().replace("SHOP", "shop") + "\n")
    return folder / "tokens"


def test_only_clients_with_a_token_are_answered(
    haproxy: Path, server: TritonServer, shop: Shop, tmp_path: Path
) -> None:
    tokens = tokens_file(tmp_path)
    with Front("recommend", KNOWLEDGE, tokens=tokens, log_path=tmp_path / "log") as front:
        reaches(front, server)
        for token in (TOKEN, "b"):
            with Recommender(front.grpc_url, token=token, timeout_s=30.0) as client:
                assert len(client.recommend([], top_k=3).items) == 3
        for token in (None, TOKEN[:-1], TOKEN.upper(), "x", hashlib.sha256(TOKEN.encode()).hexdigest()):
            with Recommender(front.grpc_url, token=token, timeout_s=30.0) as client:
                with pytest.raises(RecommendError) as caught:
                    client.recommend([])
                assert caught.value.code == "UNAUTHENTICATED" and "authorization: Bearer TOKEN" in caught.value.message
                assert client.readiness()[0].ready  # probes have no token
        with grpc_client.InferenceServerClient(front.grpc_url) as asking:
            assert asking.is_server_live() and asking.is_server_ready()
            with pytest.raises(grpc_client.InferenceServerException, match="UNAUTHENTICATED"):
                asking.get_model_config("recommend")
        with KnowledgeWriter(front.grpc_url, token=TOKEN, timeout_s=30.0) as writer:
            assert list(writer.user(shop.ids[:4]))
        with KnowledgeWriter(front.grpc_url, timeout_s=30.0) as writer, pytest.raises(RecommendError):
            list(writer.user(shop.ids[:4]))
        body = {"inputs": [history_of(["a"])]}
        assert post(front, body)[0] == 401 and "authorization: Bearer" in post(front, body)[1]
        for sent, status in (
            (f"Bearer {TOKEN}", 200),
            (f"bearer {TOKEN}", 200),
            (f"Basic {TOKEN}", 401),
            (TOKEN, 401),
            ("Bearer ", 401),
        ):
            assert post(front, body, Authorization=sent)[0] == status, sent
        assert health_status(front.http_url) == 200
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"http://{front.http_url}/v2/models/recommend/config", timeout=10)
        assert refused.value.headers["WWW-Authenticate"] == "Bearer"
        assert (front.sockets / "tokens.map").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "log").read_text()


def test_certificates_are_rotated_one_server_after_the_other(
    haproxy: Path, server: TritonServer, tmp_path: Path
) -> None:
    """A rolling restart, while clients trust both authorities: no request is lost, and in the end all is new."""
    old, new = (make_certificate(tmp_path / name) for name in ("old", "new"))
    both = tmp_path / "both.pem"
    both.write_text(old[0].read_text() + new[0].read_text())

    def started(pair: tuple[Path, Path], port: int = 0) -> Front:
        front = Front("recommend", grpc_port=port, tls=ServerTls(*pair), log_path=tmp_path / "log")
        return reaches(front.__enter__(), server)

    fronts = [started(old), started(old)]
    urls = [front.grpc_url for front in fronts]
    try:
        with Recommender(urls, tls=TlsOptions(str(both)), timeout_s=10.0) as client:
            assert client.recommend([]).items
            stop, answered = threading.Event(), []

            def asks() -> None:
                while not stop.is_set():
                    answered.append(len(client.recommend([]).items))

            thread = threading.Thread(target=asks)
            thread.start()
            try:
                for place, front in enumerate(fronts):
                    front.__exit__(None, None, None)
                    fronts[place] = started(new, int(urls[place].rpartition(":")[2]))
                    # gRPC tries an address again that refused it, after 1.2 s at most; until then the other answers.
                    before, until = len(answered), time.monotonic() + 2.0
                    while thread.is_alive() and (len(answered) < before + 20 or time.monotonic() < until):
                        time.sleep(0.01)
            finally:
                stop.set()
                thread.join(30)
            assert set(answered) == {10} and client.statistics.failures == 0
        for url in urls:
            with Recommender(url, tls=TlsOptions(str(new[0])), timeout_s=10.0) as client:
                assert client.recommend([]).items
            with Recommender(url, tls=TlsOptions(str(old[0])), timeout_s=1.0) as client, pytest.raises(RecommendError):
                client.recommend([])
    finally:
        for front in fronts:
            front.__exit__(None, None, None)


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_ends_at_the_front(
    haproxy: Path, server: TritonServer, certificate: tuple[Path, Path], mutual: bool, tmp_path: Path
) -> None:
    cert, key = certificate
    tls = ServerTls(cert, key, client_ca=cert if mutual else None)
    with Front("recommend", tls=tls, log_path=tmp_path / "log") as front:
        reaches(front, server)
        anyone, known = TlsOptions(str(cert)), TlsOptions(str(cert), str(cert), str(key))
        with Recommender(front.grpc_url, tls=known if mutual else anyone, timeout_s=30.0) as client:
            assert len(client.recommend([], top_k=3).items) == 3
        for refused in [False, anyone] if mutual else [False]:
            with Recommender(front.grpc_url, tls=refused, timeout_s=1.0) as client, pytest.raises(RecommendError):
                client.recommend([])
        assert post(front, {"inputs": [history_of(["a"])]})[0] == 403  # nothing else is asked without TLS
        with urllib.request.urlopen(f"http://{front.http_url}/v2/health/ready", timeout=10) as answer:
            assert answer.status == 200


@pytest.fixture
def serve(bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """`genrec serve` as a process of its own, and the line that says where, or all that it said if it ended."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **added: str) -> tuple[subprocess.Popen[str], str]:
        ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
        command = [sys.executable, "-m", "genrec.cli", "serve", str(bundle.path), "--threads=1", *ports, *words]
        with (tmp_path / "stderr").open("w") as errors:
            process = subprocess.Popen(
                command, env=os.environ | added, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            process.wait(30)
        return process, said or (tmp_path / "stderr").read_text()

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_serve_has_the_front_by_default_and_ends_when_it_dies(haproxy: Path, serve: Any, tmp_path: Path) -> None:
    process, said = serve("--restarts=0")
    url, http_url = re.findall(r"gRPC (\S+), HTTP (\S+),", said)[0]
    while health_status(http_url) != 200:  # Triton's HTTP endpoint comes after gRPC's
        time.sleep(0.05)
    wire = Wire(url)
    with pytest.raises(grpc.RpcError, match="classification extension is closed here"):
        wire.stub.ModelInfer(classified(Wire.message([Wire.ids("history", [])])), timeout=30)
    wire.close()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (of_front,) = [pid for pid in children if "haproxy" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(of_front), signal.SIGKILL)
    assert process.wait(30) == 1
    assert "the front (HAProxy) ended with status 137: ending the server" in (tmp_path / "stderr").read_text()


def test_neither_secrets_nor_histories_are_logged(haproxy: Path, serve: Any, shop: Shop, tmp_path: Path) -> None:
    tokens = tokens_file(tmp_path)
    process, said = serve("--tokens", str(tokens))
    url, http_url = re.findall(r"gRPC (\S+), HTTP (\S+),", said)[0]
    private = ["a-private-item", "a private query", "a-private-brand", "a-private-request"]
    with Recommender(url, token=TOKEN, timeout_s=30.0) as client:
        assert client.recommend([private[0], *shop.ids[:3]]).items
        for wrong in (
            {"top_k": 10**6},
            {"query": private[1]},
            {"rules": {"where": {"attribute": private[2], "is": 1}}},
        ):
            with pytest.raises(RecommendError, match="INVALID_ARGUMENT"):
                client.recommend([private[0]], **wrong)
    with Recommender(url, token="a-wrong-token", timeout_s=30.0) as client, pytest.raises(RecommendError):
        client.recommend([private[0]])
    while health_status(http_url) != 200:
        time.sleep(0.05)
    connection = http.client.HTTPConnection(http_url, timeout=30)
    for data in (b"{", json.dumps({"id": private[3], "inputs": [history_of([private[0]])]}).encode()):
        connection.request("POST", INFER, data, {"Authorization": f"Bearer {TOKEN}"})
        connection.getresponse().read()
    process.terminate()
    assert process.stdout is not None
    log = said + process.stdout.read() + (tmp_path / "stderr").read_text()
    assert process.wait(30) == 0 and "ready: gRPC" in log
    hashes = [line.split()[1] for line in tokens.read_text().splitlines()[1:]]
    for secret in (TOKEN, "a-wrong-token", *hashes, *(digest.lower() for digest in hashes), *private, *shop.ids[:3]):
        assert secret not in log, f"{secret} is in the log"


def test_serve_takes_only_bundles_that_were_signed(serve: Any, tmp_path: Path, bundle: Bundle) -> None:
    private, public = make_keys(tmp_path)
    process, said = serve("--no-front", "--public-key", str(public))
    assert process.returncode == 1 and "manifest.json.sig: is missing, and only signed bundles are taken" in said
    process, said = serve("--no-front", "--tokens", str(tokens_file(tmp_path)))
    assert process.returncode == 2 and "--tokens are asked for by the front" in said
    assert private.exists()
