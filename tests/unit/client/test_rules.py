"""Rules as the client builds and sends them: what it refuses, and that the server reads the same out of them."""

from __future__ import annotations

import json
import operator
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.rules import bind, parse
from genrec_client import (
    AsyncRecommender,
    Boost,
    BucketOrder,
    Condition,
    InvalidRequest,
    Recommender,
    RecommendError,
    RecommendRequest,
    Rules,
    attribute,
    cli,
)
from genrec_client.wire import build_request
from tests.unit.client.faulty_server import FaultyServer, answer, fixture_of, ids_of, inputs, pack
from tests.unit.client.test_async_client import using
from tests.unit.rules.shops import KINDS, Shop, holds

server = fixture_of(FaultyServer)
RULES = Rules(where=attribute("price") < 50, at_most={"brand": 2}, explain=True)
TOLD = {"narrowed": True, "dropped": {"request.where": 3}, "boosts": [0.5]}


def explained(text: bytes) -> Any:
    response = answer(["i1"])
    response.outputs.add(name="explanation", datatype="BYTES", shape=(1, 1))
    response.raw_output_contents.append(pack([text]))
    return response


# --- what is built ---


def built(condition: dict[str, Any]) -> Condition:
    """A condition in the form of JSON, made by the builders."""
    if "not" in condition:
        return ~built(condition["not"])
    for form, join in (("all", operator.and_), ("any", operator.or_)):
        if form in condition:
            first, *rest = map(built, condition[form])
            for one in rest:
                first = join(first, one)
            return first
    own = attribute(condition["attribute"])

    def read(value: Any) -> Any:
        return datetime.fromisoformat(value) if KINDS[condition["attribute"]] == "timestamp" else value

    compare: dict[str, Callable[[Any], Condition]] = {
        "is": lambda value: own.is_(read(value)),
        "in": lambda values: own.one_of(*map(read, values)),
        "not_in": lambda values: ~own.one_of(*map(read, values)),
        "<": lambda value: own < read(value),
        "<=": lambda value: own <= read(value),
        ">": lambda value: own > read(value),
        ">=": lambda value: own >= read(value),
    }
    first, *rest = (compare[name](value) for name, value in condition.items() if name != "attribute")
    for one in rest:
        first &= one
    return first


@given(st.integers(0, 2**32 - 1))
def test_the_server_reads_what_is_built_and_it_means_the_same(seed: int) -> None:
    shop = Shop(np.random.default_rng(seed), 12)
    told = shop.rules()
    order = told.get("bucket_order")
    rules = Rules(
        where=built(told["where"]) if "where" in told else None,
        allow=told.get("allow"),
        deny=told.get("deny", ()),
        at_most={cap["attribute"]: cap["items"] for cap in told.get("at_most", ())},
        boost=[
            Boost(where=built(boost["where"]), add=boost["add"]) if "where" in boost else Boost(**boost)
            for boost in told.get("boost", ())
        ],
        bucket_order=BucketOrder(**order) if isinstance(order, dict) else order,
    )
    bind(parse(rules.to_json()), KINDS)
    form = json.loads(rules.to_json())
    for row in range(12):
        item = shop.item(row)
        if "where" in told:
            assert holds(form["where"], item) == holds(told["where"], item)
        for made, boost in zip(form.get("boost", ()), told.get("boost", ()), strict=True):
            assert "where" not in boost or holds(made["where"], item) == holds(boost["where"], item)
    others = ("allow", "deny", "at_most", "bucket_order")
    assert {name: form.get(name) for name in others} == {name: told.get(name) for name in others}


numbers = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
names, ids = st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20) | st.integers()
times = st.datetimes(timezones=st.none() | st.timezones())
conditions = st.recursive(
    st.builds(lambda name, value: attribute(name).is_(value), names, texts | st.booleans() | numbers | times)
    | st.builds(lambda name, values: attribute(name).one_of(*values), names, st.lists(texts | numbers, min_size=1))
    | st.builds(
        lambda name, compare, bound: compare(attribute(name), bound),
        names,
        st.sampled_from([operator.lt, operator.le, operator.gt, operator.ge]),
        numbers | times,
    ),
    lambda inner: (
        st.builds(operator.and_, inner, inner)
        | st.builds(operator.or_, inner, inner)
        | st.builds(operator.invert, inner)
    ),
    max_leaves=12,
)


@given(
    st.builds(
        Rules,
        where=st.none() | conditions,
        allow=st.none() | st.lists(ids, max_size=5),
        deny=st.lists(ids, max_size=5),
        at_most=st.dictionaries(names, st.integers(1, 2**63), max_size=4),
        boost=st.lists(
            st.builds(Boost, where=conditions, add=st.floats(-100, 100))
            | st.builds(Boost, attribute=names, times=numbers),
            max_size=4,
        ),
        bucket_order=st.sampled_from([None, "popularity"])
        | st.builds(BucketOrder, highest=names)
        | st.builds(BucketOrder, lowest=names)
        | st.builds(BucketOrder, rotate=st.integers(0, 2**31 - 1)),
        explain=st.booleans(),
    )
)
def test_the_server_reads_whatever_the_builders_make(rules: Rules) -> None:
    parse(rules.to_json())
    assert pickle.loads(pickle.dumps(rules)).to_json() == rules.to_json()


def test_values_travel_as_the_form_has_them() -> None:
    rules = Rules(
        where=attribute("category").one_of("shoes", "größe")
        & ((10 < attribute("price")) | attribute("in_stock").is_(np.bool_(True)))
        & ~(attribute("released") >= datetime(2026, 11, 29, 12)),
        allow=("a", b"b", 7, np.int64(8)),
        deny=iter(["x"]),
        at_most={"brand": np.int64(2)},
        boost=[Boost(where=attribute("sizes").one_of(np.int32(40), 41.5), add=1), Boost(attribute="margin", times=0.1)],
        bucket_order=BucketOrder(rotate=17),
    )
    assert json.loads(rules.to_json()) == {
        "where": {
            "all": [
                {"attribute": "category", "in": ["shoes", "größe"]},
                {"any": [{"attribute": "price", ">": 10}, {"attribute": "in_stock", "is": True}]},
                {"not": {"attribute": "released", ">=": "2026-11-29T12:00:00+00:00"}},
            ]
        },
        "allow": ["a", "b", "7", "8"],
        "deny": ["x"],
        "at_most": [{"attribute": "brand", "items": 2}],
        "boost": [
            {"where": {"attribute": "sizes", "in": [40, 41.5]}, "add": 1},
            {"attribute": "margin", "times": 0.1},
        ],
        "bucket_order": {"rotate": 17},
    }
    assert (Rules().to_json(), Rules(allow=[]).to_json()) == ("{}", '{"allow":[]}')


def test_times_keep_their_zone_and_no_more_than_microseconds() -> None:
    east = timezone(timedelta(hours=9))
    for moment, text in (
        (datetime(2026, 11, 29, tzinfo=east), "2026-11-29T00:00:00+09:00"),
        (pd.Timestamp("2026-11-29T12:00:00.123456789", tz="UTC"), "2026-11-29T12:00:00.123456+00:00"),
        (datetime(1, 1, 1), "0001-01-01T00:00:00+00:00"),
    ):
        rules = Rules(where=attribute("released") > moment)
        assert json.loads(rules.to_json())["where"][">"] == text
        bind(parse(rules.to_json()), {"released": "timestamp"})


def test_conditions_of_one_kind_are_joined_flat() -> None:
    """The server limits how deep conditions may be nested."""
    joined = attribute("price") < 0
    for bound in range(200):
        joined |= attribute("price") < bound
    assert len(json.loads(Rules(where=~~joined).to_json())["where"]["any"]) == 201
    parse(Rules(where=joined).to_json())


# --- what is refused ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attribute(""), "attribute is ''; give a name"),
        (lambda: attribute(5), "attribute is 5; give a name"),
        (lambda: attribute("\ud800"), "cannot be encoded as UTF-8"),
        (lambda: attribute("price").is_(None), "price.is_: None is a NoneType; give str, bool, int, float or datetime"),
        (lambda: attribute("price").is_(b"x"), "price.is_: b'x' is a bytes"),
        (lambda: attribute("price").is_("\ud800"), "cannot be encoded as UTF-8"),
        (lambda: attribute("price").one_of(), "price.one_of: got no value"),
        (lambda: attribute("price").one_of(["a", "b"]), r"price.one_of: \['a', 'b'\] is a list"),
        (lambda: attribute("price") < float("nan"), "price <: nan is a float that rules cannot have"),
        (lambda: attribute("price") <= float("inf"), "price <=: inf"),
        (lambda: attribute("price") > 10**400, "price >: 1000"),
        (lambda: attribute("price") >= "5", "price >=: '5' is a str; give a number or a datetime"),
        (lambda: attribute("price") < True, "price <: True is a bool; give a number or a datetime"),
        (lambda: attribute("released") < datetime(2026, 1, 1).date(), "is a date"),
        (lambda: attribute("released") < pd.NaT, "NaT is no time"),
        (lambda: (attribute("price") < 5) & True, "True is a bool; combine conditions, and put each comparison"),
        (lambda: Rules(where=attribute("price")), "where: .* is a Attribute; give a condition"),
        (lambda: Rules(where=False), "where: False is a bool; give a condition"),
        (lambda: Rules(where={"attribute": "price", "<": 5}), "where: .* is a dict; give a condition"),
        (lambda: Rules(allow="abc"), "allow: 'abc' is a str; give a sequence of item ids"),
        (lambda: Rules(allow={"a": 1}), "allow: .* is a dict"),
        (lambda: Rules(deny=None), "deny: None is a NoneType"),
        (lambda: Rules(deny=["a", 1.5]), r"deny\[1\]: 1.5 is a float; an item id is str, bytes or int"),
        (lambda: Rules(deny=[b"\xff"]), r"deny\[0\]: b'\\xff' is not UTF-8"),
        (lambda: Rules(deny=[""]), r"deny\[0\] is empty"),
        (lambda: Rules(at_most=[("brand", 2)]), "at_most: .* is a list; give items by attribute"),
        (lambda: Rules(at_most={"brand": 0}), r"at_most\['brand'\] is 0; it must be at least 1"),
        (lambda: Rules(at_most={"brand": 2.0}), r"at_most\['brand'\] is 2.0, a float"),
        (lambda: Rules(at_most={5: 2}), "at_most: attribute is 5; give a name"),
        (lambda: Rules(boost=Boost(attribute="margin", times=1)), "boost: .* is a Boost; give a sequence of Boost"),
        (lambda: Rules(boost=[{"attribute": "margin", "times": 1}]), r"boost\[0\]: .* is a dict; give a Boost"),
        (lambda: Rules(bucket_order="margin"), "bucket_order: 'margin' is a str; give a BucketOrder or 'popularity'"),
        (lambda: Rules(explain=1), "explain is 1, a int; give True or False"),
        (lambda: Boost(add=1), "a Boost has add; give where and add, or attribute and times"),
        (lambda: Boost(), "a Boost has nothing"),
        (lambda: Boost(where=attribute("a").is_(1), add="1"), "boost: add: '1' is a str; give a number"),
        (lambda: Boost(attribute="margin", times=True), "boost: times: True is a bool"),
        (lambda: Boost(attribute=5, times=1), "boost: attribute is 5"),
        (lambda: BucketOrder(), "a BucketOrder has none of highest, lowest, rotate; give one"),
        (lambda: BucketOrder(highest="a", rotate=1), "a BucketOrder has highest and rotate of"),
        (lambda: BucketOrder(rotate=2**31), "rotate: 2147483648 is a int; give a whole number, 0 to 2147483647"),
        (lambda: BucketOrder(lowest=5), "bucket_order: lowest is 5; give a name"),
    ],
)
def test_another_type_is_refused_at_once(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_what_python_would_read_otherwise_is_refused() -> None:
    price = attribute("price")
    for make in (
        lambda: (price > 5) and (price < 9),
        lambda: 5 < price < 9,
        lambda: not (price < 9),
        lambda: price in [attribute("price")] or price == 5,
        lambda: price != 5,
    ):
        with pytest.raises(TypeError, match=r"combine with & \| ~|write attribute\('price'\).is_"):
            make()


# --- on the wire ---


def test_without_rules_the_request_is_that_of_before_byte_for_byte() -> None:
    head, history = b"\n\trecommend*\x14\n\x07history\x12\x05BYTES\x1a\x02\x01\x02", b"\x01\x00\x00\x00a"
    plain = build_request(RecommendRequest(["a", "bé"]), "recommend")
    assert plain.SerializeToString() == head + b":\x0c" + history + b"\x03\x00\x00\x00b\xc3\xa9"
    full = build_request(RecommendRequest(["a", 7], 7, ["x"], True, "red"), "recommend")
    assert full.SerializeToString() == (
        head + b"*\x12\n\x05top_k\x12\x05INT32\x1a\x02\x01\x01*\x14\n\x07exclude\x12\x05BYTES\x1a\x02\x01\x01"
        b"*\x19\n\rallow_history\x12\x04BOOL\x1a\x02\x01\x01*\x12\n\x05query\x12\x05BYTES\x1a\x02\x01\x01"
        b":\n"
        + history
        + b"\x01\x00\x00\x007:\x04\x07\x00\x00\x00:\x05\x01\x00\x00\x00x:\x01\x01:\x07\x03\x00\x00\x00red"
    )


@pytest.mark.parametrize(
    ("rules", "sent"),
    [
        (RULES, RULES.to_json()),
        (Rules(), "{}"),
        ({"where": {"attribute": "category", "is": "größe"}}, '{"where":{"attribute":"category","is":"größe"}}'),
        (' {"explain": true}', ' {"explain": true}'),
        ("", ""),
    ],
)
def test_rules_go_as_json_by_both_clients(server: FaultyServer, rules: Any, sent: str) -> None:
    with Recommender(server.url) as recommender:
        recommender.recommend(["a"], rules=rules)
        recommender.recommend_many([RecommendRequest(["a"], rules=rules)])
    using(server.url, lambda recommender: recommender.recommend(["a"], rules=rules))
    for request in server.requests:
        assert set(inputs(request)) == {"history", "rules"}
        assert ids_of(inputs(request)["rules"]) == [sent.encode()]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (b"{}", "rules: b'{}' is a bytes; give Rules, a mapping, or JSON text"),
        ([], r"rules: \[\] is a list"),
        (attribute("price") < 5, "rules: .* is a Condition; give Rules"),
        ({"where": {"attribute": "price", "<": float("nan")}}, "rules: cannot be written as JSON"),
        (
            {"where": {"attribute": "released", "<": datetime(2026, 1, 1)}},
            "rules: cannot be written as JSON: .*datetime",
        ),
        ({"deny": ["\ud800"]}, "rules: cannot be written as JSON"),
        ("\ud800", "cannot be encoded as UTF-8"),
    ],
)
def test_rules_that_cannot_be_sent_are_refused_before(server: FaultyServer, rules: Any, words: str) -> None:
    with Recommender(server.url) as recommender, pytest.raises(InvalidRequest, match=words):
        recommender.recommend(["a"], rules=rules)
    assert not server.requests


@pytest.mark.parametrize(
    ("response", "explanation"),
    [(answer(["i1"]), None), (explained(b""), None), (explained(json.dumps(TOLD).encode()), TOLD)],
)
def test_the_explanation_is_parsed(server: FaultyServer, response: Any, explanation: Any) -> None:
    server.behave = lambda request: response
    with Recommender(server.url) as recommender:
        assert recommender.recommend(["a"], rules=RULES).explanation == explanation

    async def ask(recommender: AsyncRecommender) -> Any:
        return (await recommender.recommend(["a"], rules=RULES)).explanation

    assert using(server.url, ask) == explanation


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"3"])
def test_an_explanation_that_is_none_breaks_the_contract(server: FaultyServer, text: bytes) -> None:
    server.behave = lambda request: explained(text)
    with Recommender(server.url) as recommender, pytest.raises(RecommendError, match="wire contract") as caught:
        recommender.recommend(["a"])
    assert caught.value.code == "INTERNAL"


# --- the command line ---


def test_cli_takes_rules_and_prints_the_explanation(
    server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda request: explained(json.dumps(TOLD | {"x": "\x1b[31m"}).encode())
    file = tmp_path / "rules.json"
    file.write_text('{"deny": ["größe"]}', "utf-8")
    for given_as, sent in (('{"explain": true}', '{"explain": true}'), (f"@{file}", '{"deny": ["größe"]}')):
        assert cli.main(["recommend", "--url", server.url, "--history", "a", "--rules", given_as]) == 0
        out = capsys.readouterr().out
        assert json.loads(out.splitlines()[-1].removeprefix("explanation "))["dropped"] == TOLD["dropped"]
        assert "\x1b" not in out
        assert ids_of(inputs(server.requests[-1])["rules"]) == [sent.encode()]
    assert cli.main(["recommend", "--url", server.url, "--history", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explanation"]["narrowed"] is True
    assert "rules" not in inputs(server.requests[-1])


@pytest.mark.parametrize("given_as", ["@/no/such/file", "@/"])
def test_cli_names_a_file_of_rules_that_cannot_be_read(given_as: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["recommend", "--history", "a", "--rules", given_as])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and given_as in said
