"""The client before a hostile server: answers and pieces of text of wrong types, shapes, counts and encodings."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from genrec_client import wire
from genrec_client.errors import RecommendError
from genrec_client.request import RecommendRequest
from tests.fuzz.hostile import FLOATS, TEXTS, integer, mutated, scalar, tampered, text, value, written
from tests.fuzz.runner import Feed, Finding, Target

EXPLANATION = {"narrowed": True, "allowed_items": 3, "dropped": {"request.where": 2}, "boosts": [0.5]}


def packed(elements: list[bytes]) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def an_answer(rng: random.Random) -> bytes:
    """A ModelInferResponse, or what is left of one."""
    size = rng.choice((0, 1, 10))
    told = written(rng, mutated(rng, EXPLANATION)) if rng.random() < 0.5 else b""
    parts = {
        "item_ids": packed([b"item-%d" % at for at in range(size)]),
        "scores": struct.pack(f"<{size}f", *(rng.choice((*FLOATS[:3], -1.5)) for _ in range(size))),
        "source": bytes(rng.choice((0, 1)) for _ in range(size)),
        "counts": struct.pack("<4i", *(rng.choice((0, 1, -1, 2**31 - 1)) for _ in range(4))),
        "version": packed([b"v1", b"2"]),
        "explanation": packed([told]),
    }
    for name in list(parts):
        kind = rng.randrange(12)
        if kind == 0:
            del parts[name]
        elif kind == 1:
            parts[name] = tampered(rng, parts[name])
        elif kind == 2:
            parts[name] = rng.randbytes(rng.choice((0, 1, 4, 40)))
        elif kind == 3:
            parts[name] = packed([rng.choice(TEXTS).encode("utf-8", "surrogatepass")] * rng.choice((1, 2, size)))
    answer = service_pb2.ModelInferResponse(model_name="recommend", model_version="1")
    for name, raw in parts.items():
        answer.outputs.add(
            name=name, datatype=rng.choice(("BYTES", "FP32", "", "X")), shape=[1, rng.choice((size, -1, 2**62))]
        )
        if rng.random() < 0.97:
            answer.raw_output_contents.append(raw)
    data: bytes = answer.SerializeToString()
    return tampered(rng, data) if rng.random() < 0.2 else data


def read(data: bytes) -> Any:
    """As gRPC reads it, which refuses what is no message."""
    try:
        return service_pb2.ModelInferResponse.FromString(data)
    except DecodeError:
        raise RecommendError("no message", "INTERNAL") from None


@contextmanager
def answers(scratch: Path) -> Iterator[Feed]:
    def feed(rng: random.Random) -> None:
        found = wire.parse_response(read(an_answer(rng)), 1.0, 1)
        if len(found.items) > 4_000_000 or not all(isinstance(item.item_id, str) for item in found.items):
            raise Finding(f"an answer of other types: {found}")
        if any(item.score != item.score for item in found.items):
            raise Finding(f"a score that is no number: {found}")

    yield feed


@contextmanager
def pieces(scratch: Path) -> Iterator[Feed]:
    def feed(rng: random.Random) -> None:
        answer = service_pb2.ModelInferResponse()
        parts = {
            "text": packed([text(rng).encode("utf-8", "surrogatepass")]),
            "tokens": struct.pack("<i", rng.choice((0, 5, -1))),
        }
        for name, raw in parts.items():
            for _ in range(rng.choice((1, 1, 1, 0, 2))):
                answer.outputs.add(name=name)
                answer.raw_output_contents.append(tampered(rng, raw) if rng.random() < 0.5 else raw)
        data = answer.SerializeToString()
        told, _ = wire.parse_text_piece(read(tampered(rng, data) if rng.random() < 0.3 else data))
        if not isinstance(told, str):
            raise Finding(f"no text: {told!r}")

    yield feed


@contextmanager
def questions(scratch: Path) -> Iterator[Feed]:
    """What a caller gives the client."""

    def feed(rng: random.Random) -> None:
        odd = (
            scalar(rng),
            value(rng),
            [scalar(rng)],
            [text(rng)],
            {text(rng)},
            text(rng).encode("utf-8", "replace"),
            object(),
        )
        request = RecommendRequest(
            rng.choice(([], ["a", b"b", 3], *odd)),
            top_k=rng.choice((None, 5, integer(rng), *odd)),
            exclude=rng.choice((None, ["a"], *odd)),
            allow_history=rng.choice((None, True, *odd)),
            query=rng.choice((None, "a", *odd)),
            rules=rng.choice((None, {"deny": ["a"]}, *odd)),
        )
        message = wire.build_request(request, "recommend")
        if len(message.inputs) != len(message.raw_input_contents):
            raise Finding(f"inputs without data: {message}")

    yield feed


_CONTRACT = r"^INTERNAL.*(does not follow the wire contract: .|no message)"
TARGETS = [
    Target("client-answer", answers, (RecommendError,), share=15, says=_CONTRACT),
    Target("client-text", pieces, (RecommendError,), share=6, says=_CONTRACT),
    Target("client-request", questions, (RecommendError,), share=6, says=r"^INVALID_ARGUMENT.*: ."),
]
