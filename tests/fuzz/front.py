"""What the front looks into: `inspect.lua` in a Lua of this process, against protobuf's and Python's own readers.

Without HAProxy and sockets a message takes microseconds. `tests/unit/serving/test_front.py` has some with both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from genrec.serving.front.config import INSPECT
from tests.fuzz.hostile import mutated, tampered, text, written
from tests.fuzz.runner import Feed, Finding, Target

MODEL, MOST, WORD = "recommend", 4096, "classification"
NEEDS = "" if find_spec("lupa") else "the Lua that it runs in is missing: pip install lupa"
# What HAProxy gives to a Lua program, as far as it is used.
HAPROXY = """
actions, filters = {}, {}
core = { register_action = function(name, kinds, run) actions[name] = run end,
         register_filter = function(name, class, open) filters[name] = { class, open } end }
filter = { FLT_CFG_FL_HTX = 1, register_data_filter = function() end }

function transaction(body, header)
    local found = {}
    local txn = { f = {}, found = found }
    function txn.f:req_body() return body end
    function txn.f:req_fhdr() return header end
    function txn:set_var(name, value) found[name] = value end
    return txn
end

function call(body, most, model) -- its reason, its status, and whether it is too large
    local txn = transaction(body)
    actions.genrec_call(txn, most, model)
    return txn.found["txn.why"], txn.found["txn.status"], txn.found["txn.large"]
end

function json(body, header)
    local txn = transaction(body, header)
    actions.genrec_json(txn)
    return txn.found["txn.why"]
end

-- What a stream passes on of parts that come one after the other.
function stream(parts, most, model)
    local class, open = filters.genrec_stream[1], filters.genrec_stream[2]
    local one = open(class:new(), { most, model }):new()
    local held, passed, message = "", {}, {}
    function message:body(at, size)
        local stop = size < 0 and #held or at + size
        if at >= #held then return nil end
        return held:sub(at + 1, stop)
    end
    function message:remove(at, size) held = held:sub(1, at) .. held:sub(at + size + 1) end
    function message:insert(text, at) held = held:sub(1, at) .. text .. held:sub(at + 1) return #text end
    function message:input() return #held + (self.last and 1 or 0) end
    function message:eom() return self.last end
    for at = 1, #parts do
        held, message.last = held .. parts[at], at == #parts
        local done, size = pcall(one.http_payload, one, nil, message)
        if not done and not size:find("a stream is one text", 1, true) then error(size) end
        if not done then return table.concat(passed), "" end -- the stream ends
        passed[#passed + 1] = held:sub(1, size)
        held = held:sub(size + 1)
    end
    return table.concat(passed), held
end
"""


@contextmanager
def lua() -> Iterator[Any]:
    from lupa.lua53 import LuaRuntime

    runtime = LuaRuntime(encoding=None)
    runtime.execute(HAPROXY.encode())
    runtime.execute(INSPECT.read_bytes())
    yield runtime


def message(rng: random.Random) -> bytes:
    """A ModelInferRequest, or what is left of one."""
    request = service_pb2.ModelInferRequest(model_name=rng.choice((MODEL, MODEL, MODEL, "backbone", "", WORD)))
    names = (WORD, WORD[:-1], "item_ids", "history", "", "timeout")

    def parameters(into: Any) -> None:
        for _ in range(rng.randrange(3)):
            into[rng.choice(names)].int64_param = rng.choice((0, 2, -1, 2**62))

    for into in (request.inputs, request.outputs):
        for _ in range(rng.randrange(3)):
            tensor = into.add(name=rng.choice(names))
            parameters(tensor.parameters)
            if into is request.inputs and rng.random() < 0.7:
                tensor.datatype = rng.choice(("BYTES", "INT32", "BYTES\0"))
                tensor.shape.extend([1] * rng.randrange(3))
                tensor.contents.int_contents.extend([rng.choice((0, -1, 300))] * rng.randrange(2))
                tensor.contents.fp32_contents.extend([1.0] * rng.randrange(2))
                tensor.contents.bytes_contents.extend([b"a"] * rng.randrange(2))
    if rng.random() < 0.3:
        parameters(request.parameters)
    for _ in range(rng.randrange(3)):
        request.raw_input_contents.append(
            rng.choice((WORD.encode(), b"", b"\1\0\0\0a", b"\0\0\0\0", b"\5\0\0\0a", b"x" * rng.choice((10, 3000))))
        )
    data = request.SerializeToString()
    if rng.random() < 0.2:  # again, with other values: the last ones count
        data += message(rng) if rng.random() < 0.5 else b""
    return tampered(rng, data) if rng.random() < 0.7 else data


def harmless(data: bytes) -> bool:
    """Whether Triton can read it, finds nothing in it that is closed, and no BYTES tensor that is not whole."""
    try:
        read = service_pb2.ModelInferRequest.FromString(data)
    except DecodeError:
        return False
    for tensor, raw in zip(read.inputs, read.raw_input_contents, strict=False):
        if tensor.datatype == "BYTES" and not whole(raw):
            return False
    return read.model_name == MODEL and not any(WORD in output.parameters for output in read.outputs)


def whole(raw: bytes) -> bool:
    """Whether bytes are elements of a BYTES tensor, each behind its length."""
    at = 0
    while at + 4 <= len(raw):
        at += 4 + int.from_bytes(raw[at : at + 4], "little")
    return at == len(raw)


def framed(rng: random.Random, data: bytes) -> bytes:
    """A gRPC message; now and then its head lies."""
    head = bytes([0]) + len(data).to_bytes(4, "big")
    return (tampered(rng, head, 1) if rng.random() < 0.1 else head) + data


class Refused(Exception):
    """What the front said of what it refused."""


@contextmanager
def calls(scratch: Path) -> Iterator[Feed]:
    with lua() as runtime:
        look = runtime.globals().call

        def feed(rng: random.Random) -> None:
            data = message(rng)
            body = framed(rng, data)
            why, status, large = look(body, b"%d" % MOST, MODEL.encode())
            if large:
                if len(body) <= MOST + 5 and int.from_bytes(body[1:5], "big") <= MOST:
                    raise Finding(f"a small message is too large: {body[:300]!r}")
                return
            if why is not None:
                if status not in (b"3", b"12"):
                    raise Finding(f"status {status!r}: {body[:300]!r}")
                raise Refused(why.decode())
            if len(body) < 5 or body[0] or not harmless(body[5:]):
                raise Finding(f"passed what is closed: {body[:500]!r}")

        yield feed


@contextmanager
def bodies(scratch: Path) -> Iterator[Feed]:
    good = {
        "id": "a",
        "inputs": [
            {"name": "history", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]},
            {"name": "exclude", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}},
        ],
        "outputs": [{"name": "item_ids", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 1000},
    }
    names = ("id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", WORD)

    def no_constant(said: str) -> None:
        raise ValueError(said)

    def has_word(found: Any) -> bool:
        if isinstance(found, dict):
            return WORD in found or any(map(has_word, found.values()))
        return isinstance(found, list) and any(map(has_word, found))

    def breaks_off(found: dict[str, Any], rest: bytes) -> bool:
        """Whether an input's binary data are a BYTES tensor that is not whole."""
        for one in found.get("inputs") if isinstance(found.get("inputs"), list) else ():
            told = one.get("parameters") if isinstance(one, dict) else None
            size = told.get("binary_data_size") if isinstance(told, dict) else None
            if isinstance(size, int):
                if one.get("datatype") == "BYTES" and not whole(rest[:size]):
                    return True
                rest = rest[size:]
        return False

    with lua() as runtime:
        look = runtime.globals().json

        def feed(rng: random.Random) -> None:
            found: Any = good
            for _ in range(rng.randrange(4)):
                found = mutated(rng, found, names)
            data = written(rng, found)
            header = rng.choice(
                (
                    None,
                    None,
                    None,
                    b"%d" % len(data),
                    b"%d" % (len(data) - 1),
                    b"-1",
                    b"99999",
                    text(rng).encode("utf-8", "replace"),
                )
            )
            tail = rng.choice((b"", b"\1\0\0\0a", b"\2\0\0\0a", rng.randbytes(4))) if header is not None else b""
            why = look(data + tail, header)
            if why is not None:
                raise Refused(why.decode())
            read = data if header is None else (data + tail)[: int(header)]
            try:
                # The front looks at no encoding: Triton passes texts on, and the steps judge them.
                parsed = json.loads(read.decode("utf-8", "replace"), parse_constant=no_constant)
            except (ValueError, RecursionError) as error:
                raise Finding(f"passed what is no JSON: {error}: {read[:300]!r}") from None
            if not isinstance(parsed, dict) or has_word(parsed) or breaks_off(parsed, (data + tail)[len(read) :]):
                raise Finding(f"passed what is closed: {read[:300]!r}")

        yield feed


@contextmanager
def streams(scratch: Path) -> Iterator[Feed]:
    with lua() as runtime:
        run, table = runtime.globals().stream, runtime.table_from

        def feed(rng: random.Random) -> None:
            data = b"".join(framed(rng, message(rng)) for _ in range(rng.randrange(1, 4)))
            cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(5)))
            parts = [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
            passed, held = run(table(parts), b"%d" % MOST, MODEL.encode())
            if held:
                raise Finding(f"held back at the end: {held[:100]!r} of {data[:300]!r}")
            at = 0
            if len(passed) > 5 + int.from_bytes(passed[1:5], "big"):
                raise Finding(f"passed a second message: {passed[:300]!r} of {data[:300]!r}")
            while at < len(passed):
                size = int.from_bytes(passed[at + 1 : at + 5], "big")
                one = passed[at + 5 : at + 5 + size]
                if passed[at] or len(passed) < at + 5 + size or size > MOST + 200 or not harmless(one):
                    raise Finding(f"passed what is closed: {passed[at : at + 300]!r} of {data[:300]!r}")
                at += 5 + size

        yield feed


TARGETS = [
    Target("front-grpc", calls, (Refused,), share=15, needs=NEEDS),
    Target("front-http", bodies, (Refused,), share=12, needs=NEEDS),
    Target("front-stream", streams, (Refused,), share=6, needs=NEEDS),
]
