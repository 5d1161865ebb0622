"""One real server on the small bundle for all tests that only send requests, and a client that sends anything.

Without a Triton server nothing here can run: that is an error, unless it is said with `--without-triton`.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc

from genrec.bundle import QUANTIZER, Bundle
from genrec.catalog import ResidualQuantizer
from genrec.serving.repository import MODEL, STEPS, Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import TritonNotFoundError, TritonServer, find_triton
from genrec_builders.data import Dataset, popularity
from genrec_client import Recommender
from tests.near import difference
from tests.needs import all_required, missing

HERE = Path(__file__).parent
# One engine thread leaves the other cores to the tests; long timeouts, because a test machine may be busy.
PATIENT = Deployment(threads=1, timeout_ms=30_000)

DTYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "UINT8": np.uint8, "BOOL": np.bool_}


def pytest_collection_finish(session: pytest.Session) -> None:
    served = [item for item in session.items if HERE in item.path.parents]
    try:
        if served:
            find_triton()
    except TritonNotFoundError as error:
        if all_required() or not session.config.getoption("--without-triton"):
            said = f"{error}\nOr leave the tests of the served product out: pytest --without-triton"
            raise pytest.UsageError(said) from None
        for item in served:
            item.add_marker(pytest.mark.skip(f"--without-triton, and {error}"))


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    """How the tests' servers are deployed, unless they try something else."""
    return PATIENT


@pytest.fixture(scope="session")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server on the small bundle. Leave it as it is: all tests share it."""
    log = tmp_path_factory.mktemp("server") / "triton.log"
    with serve_bundle(bundle.path, PATIENT, log_path=log) as running:
        yield running


@pytest.fixture(scope="session")
def recommender(server: TritonServer) -> Iterator[Recommender]:
    """The client library on the shared server."""
    with Recommender(server.grpc_url, timeout_s=30.0) as client:
        yield client


@dataclass(frozen=True)
class Answer:
    """The contract's outputs, without their leading dimension of 1."""

    item_ids: list[str]
    scores: np.ndarray
    source: np.ndarray
    counts: list[int]
    version: list[str]

    def same_as(self, other: Answer) -> bool:
        """Equal but for the last bits of the scores, which batches of other sizes change, and what nearly ties."""
        return (
            self.counts == other.counts
            and self.version == other.version
            and np.array_equal(self.source, other.source)
            and difference(self.item_ids, self.scores, other.item_ids, other.scores) is None
        )


@dataclass(frozen=True)
class Refusal:
    """A gRPC error: name of the code, message."""

    code: str
    message: str


class Wire:
    """Sends whatever it is given over gRPC, right or wrong.

    An input is (name, datatype, shape, bytes); `ids` and `value` make well-formed ones.
    """

    def __init__(self, url: str) -> None:
        self.triton = InferenceServerClient(url)
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(url, unlimited)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def close(self) -> None:
        self.triton.close()
        self.channel.close()

    @staticmethod
    def pack(items: Sequence[str | bytes]) -> bytes:
        """Elements of a BYTES tensor."""
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        return b"".join(struct.pack("<I", len(item)) + item for item in encoded)

    @classmethod
    def ids(cls, name: str, items: Sequence[str | bytes], shape: Sequence[int] | None = None) -> tuple:
        return name, "BYTES", shape or (1, len(items)), cls.pack(items)

    @staticmethod
    def value(name: str, datatype: str, values: Any, shape: Sequence[int] | None = None) -> tuple:
        array = np.array(values, DTYPES[datatype])
        return name, datatype, array.shape if shape is None else shape, array.tobytes()

    @classmethod
    def top_k(cls, count: int) -> tuple:
        return cls.value("top_k", "INT32", [[count]])

    @classmethod
    def allow_history(cls, allowed: bool) -> tuple:
        return cls.value("allow_history", "BOOL", [[allowed]])

    @staticmethod
    def message(
        inputs: Sequence[tuple], model: str = MODEL, outputs: Sequence[str] = (), version: str = "", **parameters: int
    ) -> Any:
        message = service_pb2.ModelInferRequest(model_name=model, model_version=version)
        for name, datatype, shape, raw in inputs:
            message.inputs.add(name=name, datatype=datatype, shape=shape)
            message.raw_input_contents.append(raw)
        for name in outputs:
            message.outputs.add(name=name)
        for name, value in parameters.items():
            message.parameters[name].int64_param = value
        return message

    def send(self, *inputs: tuple, **options: Any) -> Any:
        """The answer's message; options as in `message`."""
        return self.stub.ModelInfer(self.message(inputs, **options), timeout=30)

    def ask(self, *inputs: tuple, **options: Any) -> Answer:
        return self.read(self.send(*inputs, **options))

    def refused(self, *inputs: tuple, **options: Any) -> Refusal:
        """The error that the request ends in; fails if it is answered."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send(*inputs, **options)
        return Refusal(caught.value.code().name, caught.value.details())

    def all_ready(self) -> bool:
        return self.triton.is_server_ready() and all(map(self.triton.is_model_ready, (MODEL, *STEPS)))

    @staticmethod
    def read(response: Any) -> Answer:
        found = {}
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if output.datatype == "BYTES":
                found[output.name] = Wire.unpack(raw)
            else:
                found[output.name] = np.frombuffer(raw, DTYPES[output.datatype])
        return Answer(found["item_ids"], found["scores"], found["source"], found["counts"].tolist(), found["version"])

    @staticmethod
    def unpack(raw: bytes) -> list[str]:
        items, at = [], 0
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            items.append(raw[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return items


@pytest.fixture(scope="session")
def wire(server: TritonServer) -> Iterator[Wire]:
    """Raw requests to the shared server."""
    found = Wire(server.grpc_url)
    yield found
    found.close()


class Shop:
    """What is true of the catalogue, worked out from the dataset without the index or the catalogue's files.

    ids: item ids by row. sid_of, popularity, code_of: by id; code is the semantic ID as one number. popular: ids by
    falling popularity, then row. users: histories, as ids.
    """

    def __init__(self, dataset: Dataset, bundle: Bundle) -> None:
        assert dataset.items.embeddings is not None
        self.ids = list(dataset.items.item_ids)
        sids = ResidualQuantizer.load(bundle.path / QUANTIZER).encode(dataset.items.embeddings).tolist()
        counts = popularity(dataset.interactions, len(self.ids)).tolist()
        self.row_of = {item: row for row, item in enumerate(self.ids)}
        self.sid_of = {item: tuple(sid) for item, sid in zip(self.ids, sids, strict=True)}
        self.popularity = dict(zip(self.ids, counts, strict=True))
        self.popular = sorted(self.ids, key=self.by_popularity)
        self.levels = bundle.manifest.levels
        interactions = dataset.interactions
        bounds = zip(interactions.offsets[:-1].tolist(), interactions.offsets[1:].tolist(), strict=True)
        self.users = [[self.ids[row] for row in interactions.rows[start:end].tolist()] for start, end in bounds]

    def by_popularity(self, item: str) -> tuple[int, int]:
        return -self.popularity[item], self.row_of[item]

    def code_of(self, item: str) -> int:
        code, weight = 0, 1
        for digit, size in zip(self.sid_of[item], self.levels, strict=True):
            code, weight = code + digit * weight, weight * size
        return code


@pytest.fixture(scope="session")
def shop(dataset: Dataset, bundle: Bundle) -> Shop:
    return Shop(dataset, bundle)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("integration")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key, new ones, in `folder`."""
    if shutil.which("openssl") is None:
        missing("openssl is not installed")
    folder.mkdir(exist_ok=True)
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}".split(),
        check=True,
        capture_output=True,
    )
    return cert, key
