"""What the front lets through, with a real HAProxy and no server behind it: what passes finds nobody there."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from genrec.cli.serving import _with_front
from genrec.serving.front import Front, FrontError, find_haproxy
from genrec.serving.front import haproxy as haproxy_module
from tests.needs import missing

METHOD = "/inference.GRPCInferenceService/ModelInfer"
WORD = "classification"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    try:
        find_haproxy()
    except FrontError as error:
        missing(str(error))
    with Front("recommend", log_path=tmp_path_factory.mktemp("front") / "log", max_request_bytes=1 << 16) as running:
        yield running


@pytest.fixture(scope="module")
def infer(front: Front) -> Iterator[grpc.UnaryUnaryMultiCallable]:
    with grpc.insecure_channel(front.grpc_url) as channel:
        yield channel.unary_unary(METHOD)


def passes(infer: grpc.UnaryUnaryMultiCallable, message: bytes) -> bool:
    """Whether a ModelInferRequest goes through to a server, which is not there."""
    with pytest.raises(grpc.RpcError) as caught:
        infer(message, timeout=30)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT), caught.value
    return caught.value.code() == grpc.StatusCode.UNAVAILABLE


def harmless(message: bytes) -> bool:
    """Whether Triton can read it, and finds nothing in it that is closed."""
    try:
        read = service_pb2.ModelInferRequest.FromString(message)
    except DecodeError:
        return False
    return read.model_name == "recommend" and not any(WORD in output.parameters for output in read.outputs)


names = st.sampled_from(["", "a", WORD, WORD[:-1], WORD + "s", WORD.upper(), "item_ids"]) | st.text(max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=draw(st.sampled_from(["recommend"] * 4 + ["backbone", ""])))
    request.id = draw(names)
    for into in (request.inputs, request.outputs):
        for name in draw(st.lists(names, max_size=3)):
            tensor = into.add(name=name)
            for key in draw(st.lists(names, max_size=2)):
                tensor.parameters[key].int64_param = draw(st.integers(-5, 5))
    for name in draw(st.lists(names, max_size=3)):
        request.raw_input_contents.append(name.encode())
        request.inputs.add(name="b").contents.bytes_contents.append(name.encode())
    return request.SerializeToString()


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A request with some bytes changed, cut, repeated or put in."""
    data = bytearray(draw(requests()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(data)


def entry(key: bytes) -> bytes:
    """An output with one parameter, in bytes as `key` makes them."""
    return b"\x32" + bytes([len(key) + 2]) + b"\x12" + bytes([len(key)]) + key


NAMED = b"\x0a\x09recommend"
KEY = b"\x0a\x0e" + WORD.encode()


@given(requests() | broken())
@example(NAMED + entry(KEY))
@example(NAMED + entry(b"\x0a\x01a" + KEY))  # the last of two keys counts
@example(NAMED + entry(KEY + b"\x0a\x01a"))
@example(NAMED + entry(b"\x8a\x00\x8e\x00" + WORD.encode()))  # numbers that are longer than they need be
@example(NAMED + b"\xb2\x80\x80\x80\x00" + entry(KEY)[1:])
@example(NAMED + b"\xb2\x80\x80\x80\x10" + entry(KEY)[1:])  # more than 32 bits, which protobuf drops
@example(NAMED + b"\x33" + entry(KEY) + b"\x34")  # a group
@example(NAMED + b"\x32\x80\x80\x80\x80\x10")
@example(NAMED + b"\x0a\x08backbone")
@example(b"\x0a\x08backbone" + NAMED)
def test_nothing_passes_that_protobuf_reads_as_closed(infer: grpc.UnaryUnaryMultiCallable, message: bytes) -> None:
    if passes(infer, message):
        assert harmless(message)


@given(requests())
def test_what_is_harmless_passes(infer: grpc.UnaryUnaryMultiCallable, message: bytes) -> None:
    # A parameter of that name is refused on the request and its inputs, too: there it means nothing.
    request = service_pb2.ModelInferRequest.FromString(message)
    named = any(WORD in part.parameters for part in (request, *request.inputs))
    assert passes(infer, message) == (harmless(message) and not named)


def posted(front: Front, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection(front.http_url, timeout=30)
    connection.request("POST", "/v2/models/recommend/infer", body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


def has_key(value: object) -> bool:
    if isinstance(value, dict):
        return WORD in value or any(map(has_key, value.values()))
    return isinstance(value, list) and any(map(has_key, value))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names.filter(lambda name: name.isidentifier()), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["inputs", "outputs", "id", "data"]), json_values), st.booleans(), st.booleans())
def test_json_passes_unless_a_name_is_closed(front: Front, value: dict, spaced: bool, ascii_only: bool) -> None:
    text = json.dumps(value, indent=1 if spaced else None, ensure_ascii=False)
    if ascii_only:  # texts with escapes; names have none
        text = re.sub(r"[^\x00-\x7f]", lambda sign: json.dumps(sign[0])[1:-1], text)
        if any(not key.isascii() for key in re.findall(r'"([^"]*)": ', text)) or "\\u" in "".join(
            re.findall(r'"([^"]*)":', text)
        ):
            return
    status, said = posted(front, text.encode("utf-8", "surrogatepass"))
    assert status == (400 if has_key(value) else 503), said


@given(st.text(alphabet='{}[]":,\\u01eE+-.truefalsn \n', max_size=40))
def test_what_is_no_json_never_passes(front: Front, inside: str) -> None:
    text = '{"a":' + inside + "}"

    def refused(constant: str) -> float:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refused)
    except ValueError:
        assert posted(front, text.encode())[0] == 400


def test_the_front_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(haproxy_module.shutil, "which", lambda name, path=None: None)
    for wanted, host in ((True, "127.0.0.1"), (None, "0.0.0.0"), (None, "10.0.0.1")):
        with pytest.raises(FrontError, match=r"apt-get install haproxy.*--no-front"):
            _with_front(wanted, host)
    assert not _with_front(None, "127.0.0.1") and "any client can end this server" in capsys.readouterr().err
    assert not _with_front(False, "0.0.0.0")
    for said, why in (
        ("HAProxy version 2.4.3", "is version 2.4"),
        ("no", "does not say"),
        ("HAProxy version 3.0.1", "LUA"),
    ):
        program = tmp_path / "haproxy"
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
        monkeypatch.setattr(haproxy_module.shutil, "which", lambda name, path=None, found=str(program): found)
        with pytest.raises(FrontError, match=why):
            find_haproxy()
