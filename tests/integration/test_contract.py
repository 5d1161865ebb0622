"""The wire contract, line by line, on a real server: what is answered, what is refused, and what stays standing."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import grpc
import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.serving.triton import TritonServer
from genrec_client import InvalidRequest, Recommender

FALLBACK_SCORE = -1e9
MAX_HISTORY = 20  # items that the prompt of the small bundle holds


@pytest.fixture(scope="module")
def history(shop: Any) -> list[str]:
    """A shopper's history, as long as the prompt takes it."""
    return max(shop.users, key=len)[-MAX_HISTORY:]


def expected_fill(shop: Any, blocked: set[str], count: int) -> list[str]:
    return [item for item in shop.popular if item not in blocked][:count]


# Answered


def test_types_and_shapes_are_the_contracts(wire: Any, history: list[str]) -> None:
    for inputs, count in (((), 10), ((wire.top_k(7),), 7)):
        response = wire.send(wire.ids("history", history), *inputs)
        assert {output.name: (output.datatype, list(output.shape)) for output in response.outputs} == {
            "item_ids": ("BYTES", [1, count]),
            "scores": ("FP32", [1, count]),
            "source": ("UINT8", [1, count]),
            "counts": ("INT32", [1, 4]),
            "version": ("BYTES", [1, 2]),
            "explanation": ("BYTES", [1, 1]),
        }
        assert wire.read(response).counts[0] == 64, "the small bundle's beam is 64 wide and its catalogue fills it"


def test_the_version_is_the_bundles_and_its_catalogues(wire: Any, bundle: Bundle, history: list[str]) -> None:
    assert wire.ask(wire.ids("history", history)).version == [bundle.manifest.bundle_version, "1"]


def test_defaults_hold_for_optional_inputs_left_out(wire: Any, history: list[str]) -> None:
    short = wire.ask(wire.ids("history", history))
    spelled_out = wire.ask(
        wire.ids("history", history), wire.top_k(10), wire.ids("exclude", []), wire.allow_history(False)
    )
    assert short.same_as(spelled_out)
    assert not short.same_as(wire.ask(wire.ids("history", history), wire.top_k(11)))


@pytest.mark.parametrize("count", [1, 30])
def test_as_many_items_as_asked_for_best_first(wire: Any, shop: Any, history: list[str], count: int) -> None:
    answer = wire.ask(wire.ids("history", history), wire.top_k(count))
    assert len(answer.item_ids) == len(set(answer.item_ids)) == count
    assert set(answer.item_ids) <= set(shop.ids)
    assert np.isfinite(answer.scores).all() and (np.diff(answer.scores) <= 0).all()
    assert not answer.source.any() and (answer.scores > FALLBACK_SCORE).all() and (answer.scores < 0).all()
    assert answer.counts == [64, 64, 0, 0]


def test_ties_by_code_then_popularity(wire: Any, shop: Any) -> None:
    shared = 0
    for user in shop.users[:40]:
        answer = wire.ask(wire.ids("history", user), wire.top_k(30))
        ranked = list(zip(answer.item_ids, answer.scores.tolist(), strict=True))
        assert ranked == sorted(ranked, key=lambda one: (-one[1], shop.code_of(one[0]), *shop.by_popularity(one[0])))
        score_of_sid: dict[tuple, float] = {}
        for item, score in ranked:
            shared += shop.sid_of[item] in score_of_sid
            assert score_of_sid.setdefault(shop.sid_of[item], score) == score
    assert shared > 100, "too few collisions to say anything"


def test_a_semantic_id_brings_all_its_items(wire: Any, shop: Any, history: list[str]) -> None:
    answer = wire.ask(wire.ids("history", history), wire.top_k(30), wire.allow_history(True))
    whole = {shop.sid_of[item] for item in answer.item_ids} - {shop.sid_of[answer.item_ids[-1]]}
    assert {item for item in shop.ids if shop.sid_of[item] in whole} <= set(answer.item_ids)


def test_history_does_not_come_back_unless_allowed(wire: Any, history: list[str]) -> None:
    best = wire.ask(wire.ids("history", history), wire.allow_history(True)).item_ids
    # In front of the items that the prompt keeps, they change what is blocked and nothing else.
    longer = wire.ids("history", best + history)
    assert wire.ask(longer, wire.allow_history(True)).item_ids == best
    for extra in ((), (wire.allow_history(False),)):
        answer = wire.ask(longer, *extra)
        assert len(answer.item_ids) == 10 and not set(answer.item_ids) & {*best, *history}


def test_excluded_items_make_room_for_the_next_ones(wire: Any, history: list[str]) -> None:
    asked = wire.ids("history", history)
    best = wire.ask(asked, wire.top_k(16)).item_ids
    out = [best[0], best[3], best[12]]
    answer = wire.ask(asked, wire.ids("exclude", [*out, "no such item", b"\xff"]), wire.top_k(13))
    assert answer.item_ids == [item for item in best if item not in out]
    assert answer.counts == [64, 64, 0, 0], "unknown items are counted in the history only"


@pytest.mark.parametrize(
    "unknown",
    [
        ["no such item"],
        [""],
        ["\0"],
        [b"\xff\xfe not UTF-8", b"\xc3"],
        ["known\0"],
        ["known" + "x" * 200],
        ["item ids may be cut " * 7] * 100,
    ],
    ids=["text", "empty", "NUL", "not UTF-8", "known and NUL", "known and more", "many"],
)
def test_unknown_items_are_skipped_and_counted(wire: Any, history: list[str], unknown: list[str | bytes]) -> None:
    named = [item.replace("known", history[0]) if isinstance(item, str) else item for item in unknown]
    answer = wire.ask(wire.ids("history", [*named[:1], *history[:10], *named[1:], *history[10:]]))
    plain = wire.ask(wire.ids("history", history))
    assert answer.counts == [64, 64, len(unknown), 0]
    assert (answer.item_ids, answer.scores.tolist()) == (plain.item_ids, pytest.approx(plain.scores.tolist(), abs=1e-4))


def test_an_item_id_of_a_megabyte_is_unknown(wire: Any, history: list[str]) -> None:
    answer = wire.ask(wire.ids("history", ["x" * 2**20, *history]), wire.ids("exclude", [b"\xff" * 2**20]))
    assert answer.counts == [64, 64, 1, 0]
    assert answer.item_ids == wire.ask(wire.ids("history", history)).item_ids
    assert wire.all_ready()


def test_the_oldest_of_a_long_history_are_dropped(wire: Any, shop: Any) -> None:
    long = shop.ids[:200]
    recent = long[-MAX_HISTORY:]
    allowed = wire.allow_history(True)
    answer = wire.ask(wire.ids("history", long), allowed)
    assert answer.same_as(wire.ask(wire.ids("history", recent), allowed))
    assert not answer.same_as(wire.ask(wire.ids("history", long[-MAX_HISTORY + 1 :]), allowed))
    # Unknown items do not take the place of known ones.
    mixed = long[:80] + [name for item in recent for name in ("?", item)]
    assert wire.ask(wire.ids("history", mixed), allowed).item_ids == answer.item_ids
    # Dropped from the prompt, but still not to be shown again.
    assert not set(wire.ask(wire.ids("history", long), wire.top_k(30)).item_ids) & set(long)


@pytest.mark.parametrize("unknown", [[], ["?"], [b"\xff", "", "nobody sells this"]], ids=["empty", "one", "three"])
def test_without_a_known_item_the_most_popular_come(wire: Any, shop: Any, unknown: list[str | bytes]) -> None:
    answer = wire.ask(wire.ids("history", unknown))
    assert answer.item_ids == shop.popular[:10]
    assert answer.source.tolist() == [1] * 10 and answer.scores.tolist() == [FALLBACK_SCORE] * 10
    assert answer.counts == [0, 0, len(unknown), 10]
    out = shop.popular[2:5]
    answer = wire.ask(wire.ids("history", unknown), wire.ids("exclude", out), wire.top_k(30))
    assert answer.item_ids == expected_fill(shop, set(out), 30)
    assert answer.counts == [0, 0, len(unknown), 30]


def test_an_empty_history_needs_its_data(wire: Any) -> None:
    """Of a request without it, Triton says so in its own words, before a model sees it: docs/contract.md has them."""
    message = wire.message([])
    history = message.inputs.add(name="history", datatype="BYTES", shape=(1, 0))
    with pytest.raises(grpc.RpcError) as caught:
        wire.stub.ModelInfer(message)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert "unable to find data for input tensor 'history'" in caught.value.details()
    history.contents.SetInParent()
    assert [list(output.shape) for output in wire.stub.ModelInfer(message).outputs if output.name == "scores"] == [
        [1, 10]
    ]


def test_too_few_drafts_are_filled_up_and_counted(wire: Any, shop: Any, history: list[str]) -> None:
    blocked: list[str] = []
    while True:  # block what comes, in front of the items that the prompt keeps, until the drafts run out
        answer = wire.ask(wire.ids("history", blocked + history), wire.top_k(30))
        if answer.counts[3]:
            break
        blocked += answer.item_ids
        assert len(blocked) <= 200 - MAX_HISTORY, "the beam's items never ran out"
    drafted = 30 - answer.counts[3]
    assert answer.counts[:3] == [64, 64, 0] and 0 < drafted < 30
    assert answer.source.tolist() == [0] * drafted + [1] * answer.counts[3]
    assert (answer.scores[:drafted] > -100).all() and (answer.scores[drafted:] == np.float32(FALLBACK_SCORE)).all()
    taken = {*blocked, *history, *answer.item_ids[:drafted]}
    assert answer.item_ids[drafted:] == expected_fill(shop, taken, answer.counts[3])


def test_only_the_outputs_that_were_asked_for(wire: Any, history: list[str]) -> None:
    response = wire.send(wire.ids("history", history), outputs=["item_ids"])
    assert [output.name for output in response.outputs] == ["item_ids"]
    assert wire.unpack(response.raw_output_contents[0]) == wire.ask(wire.ids("history", history)).item_ids


def test_http_with_json(server: TritonServer, wire: Any, history: list[str]) -> None:
    inputs = [
        {"name": "history", "datatype": "BYTES", "shape": [1, len(history)], "data": [history]},
        {"name": "top_k", "datatype": "INT32", "shape": [1, 1], "data": [5]},
        {"name": "allow_history", "datatype": "BOOL", "shape": [1, 1], "data": [True]},
    ]

    def post(body: dict) -> tuple[int, dict]:
        url = f"http://{server.http_url}/v2/models/recommend/infer"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    status, body = post({"inputs": inputs})
    outputs = {output["name"]: output for output in body["outputs"]}
    same = wire.ask(wire.ids("history", history), wire.top_k(5), wire.allow_history(True))
    assert status == 200
    assert outputs["item_ids"]["data"] == same.item_ids and outputs["item_ids"]["shape"] == [1, 5]
    assert outputs["scores"]["data"] == pytest.approx(same.scores.tolist(), abs=1e-4)
    assert outputs["counts"]["data"] == same.counts and outputs["version"]["data"] == same.version
    inputs[1]["data"] = [31]
    status, body = post({"inputs": inputs})
    assert status == 400 and "top_k is 31; it must be 1 to 30" in body["error"]


# Refused


def inputs_of(wire: Any, history: list[str], name: str) -> list[tuple]:
    """Inputs of a refused request by its name, each built when it is needed."""
    good = wire.ids("history", history)
    return {
        "top_k 0": [good, wire.top_k(0)],
        "top_k negative": [good, wire.top_k(-3)],
        "top_k above the limit": [good, wire.top_k(31)],
        "top_k largest": [good, wire.top_k(2**31 - 1)],
        "top_k of two values": [good, wire.value("top_k", "INT32", [[3, 4]])],
        "top_k without a value": [good, wire.value("top_k", "INT32", [[]])],
        "top_k without its first dimension": [good, wire.value("top_k", "INT32", [3])],
        "top_k with a dimension more": [good, wire.value("top_k", "INT32", [[[3]]])],
        "top_k without dimensions": [good, wire.value("top_k", "INT32", 3, shape=())],
        "top_k of another type": [good, wire.value("top_k", "INT64", [[3]])],
        "top_k as text": [good, wire.ids("top_k", ["3"])],
        "top_k cut short": [good, ("top_k", "INT32", (1, 1), b"\3\0")],
        "top_k whose byte size overflows": [good, ("top_k", "INT32", (1, 2**62 + 1), b"\3\0\0\0")],
        "allow_history of two values": [good, wire.value("allow_history", "BOOL", [[True, False]])],
        "allow_history as a number": [good, wire.value("allow_history", "INT32", [[1]])],
        "unknown input": [good, wire.value("topk", "INT32", [[3]])],
        "unknown type": [good, ("top_k", "INT33", (1, 1), b"\3\0\0\0")],
        "history missing": [wire.top_k(3)],
        "no input at all": [],
        "history twice": [good, good],
        "history as numbers": [wire.value("history", "INT32", [[1, 2]])],
        "history without its first dimension": [wire.ids("history", history, shape=[len(history)])],
        "history of one item without its first dimension": [wire.ids("history", history[:1], shape=[1])],
        "history with a dimension more": [wire.ids("history", history, shape=[1, 1, len(history)])],
        "two users": [wire.ids("history", history[:2], shape=[2, 1])],
        "two users and one top_k": [wire.ids("history", history[:2], shape=[2, 1]), wire.top_k(3)],
        "two rows of exclude": [good, wire.ids("exclude", history[:2], shape=[2, 1])],
        "history of 3 without a user": [wire.ids("history", [], shape=[0, 3])],
        "history with a negative shape": [wire.ids("history", history, shape=[1, -1])],
        "history with fewer items than its shape": [wire.ids("history", history, shape=[1, len(history) + 1])],
        "history with more items than its shape": [wire.ids("history", history, shape=[1, len(history) - 1])],
        "history of 2^40 items": [wire.ids("history", history, shape=[1, 2**40])],
        "history cut short": [("history", "BYTES", (1, 1), b"\5\0\0\0abc")],
        "history with an item of 4 GB": [("history", "BYTES", (1, 1), b"\xff\xff\xff\xffabc")],
        "history too long": [wire.ids("history", history * 11)],
        "exclude too long": [good, wire.ids("exclude", ["?"] * 51)],
        "query": [good, wire.ids("query", ["a tent for two"])],
        "query that is not UTF-8": [good, wire.ids("query", [b"\xff\xfe"])],
        "query too long": [good, wire.ids("query", ["q" * 4097])],
        "two queries": [good, wire.ids("query", ["a", "b"])],
    }[name]


OURS = {
    "top_k 0": ["top_k is 0;", "1 to 30"],
    "top_k negative": ["top_k is -3;", "1 to 30"],
    "top_k above the limit": ["top_k is 31;", "1 to 30"],
    "top_k largest": ["top_k is 2147483647;", "1 to 30"],
    "history missing": ["history is missing", "[1, 0]"],
    "history too long": ["history has 220 items", "at most 200"],
    "exclude too long": ["exclude has 51 items", "at most 50"],
    "query": ["query 'a tent for two'", "not trained with text queries", "leave the query out"],
    "query that is not UTF-8": ["query", "not trained with text queries"],
    "query too long": ["query has 4097 bytes", "at most 4096"],
}
TRITONS = {
    "top_k of two values": ["'top_k'", "[1,2]"],
    "top_k without a value": ["'top_k'", "[1,0]"],
    "top_k without its first dimension": ["'top_k'", "[1]"],
    "top_k with a dimension more": ["'top_k'", "[1,1,1]"],
    "top_k without dimensions": ["'top_k'", "no shape"],
    "top_k of another type": ["'top_k'", "INT64", "INT32"],
    "top_k as text": ["'top_k'", "BYTES", "INT32"],
    "top_k cut short": ["'top_k'", "Expected 4, got 2"],
    "top_k whose byte size overflows": ["'top_k'", "[1,4611686018427387905]"],
    "allow_history of two values": ["'allow_history'", "[1,2]"],
    "allow_history as a number": ["'allow_history'", "INT32", "BOOL"],
    "unknown input": ["'topk'"],
    "unknown type": ["'top_k'", "INT32"],
    "no input at all": ["0 inputs"],
    "history twice": ["'history'", "already"],
    "history as numbers": ["'history'", "INT32", "BYTES"],
    "history without its first dimension": ["batch-size must be <= 1"],
    "history of one item without its first dimension": ["'history'", "[1]"],
    "history with a dimension more": ["'history'", "[1,1,20]"],
    "two users": ["batch-size must be <= 1"],
    "two users and one top_k": ["batch size does not match"],
    "two rows of exclude": ["batch size does not match"],
    "history of 3 without a user": ["'history'"],
    "history with a negative shape": ["'history'", "[1,-1]"],
    "history with fewer items than its shape": ["'history'", "expected 21", "got 20"],
    "history with more items than its shape": ["'history'", "expecting 19"],
    "history of 2^40 items": ["'history'", "1099511627776"],
    "history cut short": ["'history'", "length 5"],
    "history with an item of 4 GB": ["'history'", "4294967295"],
    "two queries": ["'query'", "[1,2]"],
}


@pytest.mark.parametrize("name", [*OURS, *TRITONS])
def test_refused_as_invalid_and_nothing_is_harmed(wire: Any, history: list[str], name: str) -> None:
    before = wire.ask(wire.ids("history", history))
    refusal = wire.refused(*inputs_of(wire, history, name))
    assert refusal.code == "INVALID_ARGUMENT", refusal
    for words in (OURS | TRITONS)[name]:
        assert words in refusal.message
    assert wire.all_ready() and wire.ask(wire.ids("history", history)).same_as(before)


def test_an_unknown_output_and_an_unknown_model(wire: Any, history: list[str]) -> None:
    good = wire.ids("history", history)
    refusal = wire.refused(good, outputs=["item_ids", "titles"])
    assert refusal.code == "INVALID_ARGUMENT" and "'titles'" in refusal.message
    for options in ({"model": "recommended"}, {"version": "7"}):
        assert wire.refused(good, **options).code == "NOT_FOUND"
    assert wire.all_ready()


def test_a_batch_of_no_user_harms_nothing(wire: Any, history: list[str]) -> None:
    """Triton takes [0, 0] for a request without a batch dimension: an empty history, answered in the same form."""
    response = wire.send(wire.ids("history", [], shape=[0, 0]))
    assert {tuple(output.shape) for output in response.outputs} == {(10,), (4,), (2,), (1,)}
    assert wire.read(response).same_as(wire.ask(wire.ids("history", [])))


def test_a_refused_request_does_not_touch_those_beside_it(wire: Any, history: list[str]) -> None:
    good = wire.message([wire.ids("history", history)])
    bad = [wire.message(inputs_of(wire, history, name)) for name in ("top_k 0", "no input at all", "history too long")]
    expected = wire.ask(wire.ids("history", history))
    sent = [(wire.stub.ModelInfer.future(message, timeout=30), message) for _ in range(12) for message in (good, *bad)]
    for future, message in sent:
        if message is good:
            assert wire.read(future.result()).same_as(expected)
        else:
            assert future.exception().code().name == "INVALID_ARGUMENT"


# Deadlines


def test_whether_a_request_may_be_shed_is_a_bool(wire: Any, history: list[str]) -> None:
    refusal = wire.refused(wire.ids("history", history), sheddable=1)
    assert refusal.code == "INVALID_ARGUMENT"
    assert refusal.message.endswith("the parameter sheddable is 1; give true or false")
    message = wire.message([wire.ids("history", history)])
    message.parameters["sheddable"].bool_param = True
    assert len(wire.read(wire.stub.ModelInfer(message, timeout=30)).item_ids) == 10


@pytest.mark.parametrize("value", ["soon", "-1", "", "٣"])
def test_when_a_request_came_is_not_for_clients_to_say(wire: Any, history: list[str], value: str) -> None:
    message = wire.message([wire.ids("history", history)])
    message.parameters["genrec-arrived"].string_param = value
    with pytest.raises(grpc.RpcError) as caught:
        wire.stub.ModelInfer(message, timeout=30)
    assert caught.value.code().name == "INVALID_ARGUMENT" and "leave it out" in caught.value.details()


@pytest.mark.parametrize("microseconds", [1, 50])
def test_a_request_without_time_is_refused(wire: Any, history: list[str], microseconds: int) -> None:
    refusal = wire.refused(wire.ids("history", history), timeout=microseconds)
    assert refusal.code == "UNAVAILABLE" and "timeout expired" in refusal.message
    assert wire.all_ready() and len(wire.ask(wire.ids("history", history)).item_ids) == 10


@pytest.mark.parametrize("microseconds", [0, 20_000_000, 2**62, 2**63 - 1, -1])
def test_any_longer_timeout_is_answered(wire: Any, history: list[str], microseconds: int) -> None:
    assert len(wire.ask(wire.ids("history", history), timeout=microseconds).item_ids) == 10


def test_the_clients_refusals_come_from_the_server(recommender: Recommender, shop: Any) -> None:
    with pytest.raises(InvalidRequest, match="top_k is 31; it must be 1 to 30"):
        recommender.recommend(shop.users[0], top_k=31)
