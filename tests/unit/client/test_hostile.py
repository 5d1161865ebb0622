"""A server that does not keep to the contract, and secrets that no message shows."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from genrec_client import AsyncRecommender, KnowledgeWriter, Recommender, RecommendError, wire
from genrec_client.cli import main
from genrec_client.request import RecommendRequest


def answer(**changed: bytes) -> Any:
    text = wire._pack_bytes
    good = {
        "item_ids": text([b"a"]),
        "scores": struct.pack("<f", -1.0),
        "source": b"\0",
        "counts": struct.pack("<4i", 1, 1, 0, 0),
        "version": text([b"v1", b"2"]),
        "explanation": text([b"{}"]),
    }
    message = service_pb2.ModelInferResponse()
    for name, raw in (good | changed).items():
        message.outputs.add(name=name)
        message.raw_output_contents.append(raw)
    return message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"scores": struct.pack("<f", float("nan"))}, "a score is no finite number"),
        ({"scores": struct.pack("<f", float("inf"))}, "a score is no finite number"),
        ({"explanation": wire._pack_bytes([b"[" * 100_000])}, "the explanation is nested too deep"),
        ({"item_ids": b"\xff\xff\xff\xffa"}, "breaks off inside element 0"),
        ({"item_ids": wire._pack_bytes([b"\xff"])}, "utf-8"),
        ({"counts": b""}, "unpack requires a buffer of 16 bytes"),
    ],
)
def test_an_answer_that_breaks_the_contract(changed: dict[str, bytes], says: str) -> None:
    assert wire.parse_response(answer(), 1.0, 1).items
    with pytest.raises(RecommendError, match=r"does not follow the wire contract") as caught:
        wire.parse_response(answer(**changed), 1.0, 1)
    assert says in str(caught.value)


def test_what_is_refused_is_shown_in_short() -> None:
    for wrong in (
        {"query": ["x" * 9000]},
        {"top_k": 10**5000},
        {"history": [["x" * 9000]]},
        {"history": ["\ud800" * 999]},
    ):
        with pytest.raises(RecommendError) as caught:
            wire.build_request(RecommendRequest(**({"history": []} | wrong)), "recommend")
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender, KnowledgeWriter])
def test_a_token_is_sent_and_never_shown(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = kind("localhost:8001", token="a-secret")
    headers = made._metadata if kind is KnowledgeWriter else made._context.metadata
    assert headers == (("authorization", "Bearer a-secret"),)
    for wrong in ("a secret", "secret\n", "", 5, "s\u00e9cret", "secret" * 1000):
        with pytest.raises(ValueError, match="the token cannot be sent") as caught:
            kind("localhost:8001", token=wrong)
        assert "secret" not in str(caught.value)
    for pairs in ((("authorization", "secret\n"),), (("authorization", 5),), (("authorization", "secret", 1),)):
        with pytest.raises(ValueError, match="metadata") as caught:
            kind("localhost:8001", metadata=pairs)
        assert "secret" not in str(caught.value)


def test_the_command_takes_a_token_from_a_file_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sent: list[Any] = []
    made = Recommender.__init__

    def noted(self: Any, *given: Any, **options: Any) -> None:
        sent.append(options["token"])
        made(self, *given, **options)

    monkeypatch.setattr(Recommender, "__init__", noted)
    words = ["ready", "--url", "127.0.0.1:1", "--timeout-ms", "50"]
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    assert main(words) == 1
    monkeypatch.setenv("GENREC_TOKEN", "of-the-environment")
    assert main(words) == 1 and main([*words, "--token-file", str(file)]) == 1
    assert sent == [None, "of-the-environment", "of-the-file"]
    assert main([*words, "--token-file", str(tmp_path / "nothing")]) == 2
    file.write_text("two words")
    assert main([*words, "--token-file", str(file)]) == 2 and "two words" not in capsys.readouterr().err
