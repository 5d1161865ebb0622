"""Text queries on a real server: a bundle that takes them, and what must not be taken for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genrec.bundle import Bundle
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import TritonServer
from genrec_client import InvalidRequest, Recommender, RecommendRequest, Source
from genrec_client.cli import main as command_line
from tests.near import assert_same_items

MAX_QUERY = 8  # of the text bundle


@pytest.fixture(scope="module")
def text_server(text_bundle: Bundle, deployment: Deployment, scratch: Path) -> Iterator[TritonServer]:
    with serve_bundle(text_bundle.path, deployment, log_path=scratch / "text.log") as running:
        yield running


@pytest.fixture(scope="module")
def asker(text_server: TritonServer, wire: Any) -> Iterator[Any]:
    """Raw requests to the server with the text bundle."""
    found = type(wire)(text_server.grpc_url)
    yield found
    found.close()


def query(asker: Any, text: str | bytes) -> tuple:
    return asker.ids("query", [text])


# Answered


@pytest.mark.parametrize("history", [[], ["?"], [b"\xff", "", "nobody sells this"]], ids=["empty", "one", "three"])
def test_a_query_without_a_known_item_is_answered_by_the_model(
    asker: Any, shop: Any, history: list[str | bytes]
) -> None:
    answer = asker.ask(asker.ids("history", history), query(asker, "gas stove"))
    assert answer.source.tolist() == [0] * 10
    assert answer.counts == [64, 64, len(history), 0]
    assert len(set(answer.item_ids)) == 10 and set(answer.item_ids) <= set(shop.ids)
    assert (-100 < answer.scores).all() and (answer.scores < 0).all()
    assert answer.item_ids != shop.popular[:10]


def test_the_query_changes_the_answer(asker: Any, shop: Any) -> None:
    for user in ([], shop.users[0]):
        texts = ("gas stove", "tents", "the gilded key")
        answers = [asker.ask(asker.ids("history", user), query(asker, text)) for text in texts]
        answers.append(asker.ask(asker.ids("history", user)))
        assert len({tuple(answer.item_ids) for answer in answers}) == 4
    assert not asker.ask(asker.ids("history", []), query(asker, "tents")).same_as(
        asker.ask(asker.ids("history", shop.users[0]), query(asker, "tents"))
    )


@pytest.mark.parametrize("blank", ["", " ", "\t\r\n ", "\u3000"], ids=["empty", "space", "control", "wide"])
def test_white_space_is_no_query(asker: Any, shop: Any, blank: str) -> None:
    nobody = asker.ask(asker.ids("history", []), query(asker, blank))
    assert nobody.item_ids == shop.popular[:10] and nobody.counts == [0, 0, 0, 10]
    known = asker.ids("history", shop.users[0])
    assert asker.ask(known, query(asker, blank)).same_as(asker.ask(known))


def test_case_and_spacing_do_not_matter_and_a_long_query_is_cut(asker: Any) -> None:
    nobody = asker.ids("history", [])
    assert asker.ask(nobody, query(asker, "  GAS\tStove ")).same_as(asker.ask(nobody, query(asker, "gas stove")))
    start = "qz " * MAX_QUERY  # at least a token each
    assert asker.ask(nobody, query(asker, start + "tent")).same_as(asker.ask(nobody, query(asker, start + "stove")))


@pytest.mark.parametrize(
    "text", ["\0", "\ufffd\u200b", "<a_1><b_2>", "é" * 100, "q" * 200, "%s{}'\";--", "\U0001f6d2 \u5e10\u7bf7"]
)
def test_any_text_is_answered(asker: Any, text: str) -> None:
    answer = asker.ask(asker.ids("history", []), query(asker, text))
    assert answer.counts == [64, 64, 0, 0] and len(answer.item_ids) == 10


def test_requests_with_and_without_queries_share_batches(asker: Any, shop: Any) -> None:
    texts = [None, "tents", "gas stove", "a much longer query about sleeping bags", None, " "]
    asked = []
    for number in range(120):
        inputs = [asker.ids("history", shop.users[number % 7] if number % 3 else [])]
        if (text := texts[number % len(texts)]) is not None:
            inputs.append(query(asker, text))
        asked.append(asker.message(inputs))
    alone = [asker.read(asker.stub.ModelInfer(message, timeout=30)) for message in asked]
    for _ in range(3):
        together = [asker.stub.ModelInfer.future(message, timeout=30) for message in asked]
        assert all(
            asker.read(future.result()).same_as(expected) for future, expected in zip(together, alone, strict=True)
        )


def test_through_the_client(
    text_server: TritonServer, asker: Any, shop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with Recommender(text_server.grpc_url, timeout_s=30.0) as client:
        found = client.recommend([], query="gas stove")
        assert {item.source for item in found.items} == {Source.DRAFTED} and found.filled == 0
        expected = asker.ask(asker.ids("history", []), query(asker, "gas stove"))
        assert list(found.item_ids) == expected.item_ids
        many = client.recommend_many(
            [RecommendRequest(shop.users[0], query=text) for text in ("tents", None, "tents")],
            concurrency=3,
            return_exceptions=False,
        )
        assert_same_items(many[0], many[2])
        assert many[0].item_ids != many[1].item_ids
        with pytest.raises(InvalidRequest, match="query has 201 bytes; at most 200"):
            client.recommend([], query="q" * 201)
    asked = [
        "recommend",
        "--url",
        text_server.grpc_url,
        "--history",
        "",
        "--query",
        "gas stove",
        "--timeout-ms",
        "30000",
    ]
    assert command_line([*asked, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [item["item_id"] for item in shown["items"]] == expected.item_ids


# Refused


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"\xff\xfe", "query is not valid UTF-8: invalid start byte at byte 0, b'\\xff'; encode the text as UTF-8"),
        (b"tent \xc3", "query is not valid UTF-8: unexpected end of data at byte 5"),
        (b"\xed\xa0\x80", "query is not valid UTF-8"),
        (b"q" * 201, "query has 201 bytes; at most 200 are accepted, shorten it"),
        (b"q" * 2**20, "query has 1048576 bytes"),
        (b"\xff" * 201, "query has 201 bytes"),
    ],
    ids=["not UTF-8", "cut", "surrogate", "too long", "a megabyte", "too long and not UTF-8"],
)
def test_refused_as_invalid_and_nothing_is_harmed(asker: Any, shop: Any, text: bytes, says: str) -> None:
    known, good = asker.ids("history", shop.users[0]), query(asker, "tents")
    before = asker.ask(known, good)
    refusal = asker.refused(known, query(asker, text))
    assert refusal.code == "INVALID_ARGUMENT" and says in refusal.message
    assert asker.all_ready() and asker.ask(known, good).same_as(before)


def test_a_refused_query_does_not_touch_those_beside_it(asker: Any, shop: Any) -> None:
    known = asker.ids("history", shop.users[0])
    good, bad = asker.message([known, query(asker, "tents")]), asker.message([known, query(asker, b"\xff")])
    expected = asker.ask(known, query(asker, "tents"))
    sent = [(asker.stub.ModelInfer.future(message, timeout=30), message) for _ in range(24) for message in (good, bad)]
    for future, message in sent:
        if message is good:
            assert asker.read(future.result()).same_as(expected)
        else:
            assert future.exception().code().name == "INVALID_ARGUMENT"


def test_a_bundle_without_queries_refuses_one(wire: Any, shop: Any) -> None:
    known = wire.ids("history", shop.users[0])
    before = wire.ask(known)
    refusal = wire.refused(known, wire.ids("query", ["tents"]))
    assert (
        refusal.code == "INVALID_ARGUMENT" and "not trained with text queries; leave the query out" in refusal.message
    )
    assert wire.ask(known, wire.ids("query", [""])).same_as(before), "an empty text is no query"


# The bundle


def test_queries_help_on_held_out_pairs(text_bundle: Bundle) -> None:
    quality = text_bundle.manifest.training["quality"]
    without, found = quality["queried_without_query"], quality["queried_with_query"]
    assert found["hit@10"] > 1.1 * without["hit@10"] and found["ndcg@10"] > 1.1 * without["ndcg@10"]
    assert quality["queried_by_query_alone"]["hit@10"] > 3 * quality["popularity"]["hit@10"]
