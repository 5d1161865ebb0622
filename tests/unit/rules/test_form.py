"""Rules as JSON: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.errors import InvalidRequest
from genrec.rules import RuleBook, parse, schema
from genrec.rules.form import MAX_BYTES
from tests.unit.rules.shops import KINDS, Shop

PRICE = {"attribute": "price", "<": 50}


def nested(depth: int) -> str:
    return '{"where":' + '{"not":' * depth + json.dumps(PRICE) + "}" * depth + "}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"were": 1}', "rules: were: is unknown; known here are allow, deny, where, at_most, boost"),
        (
            '{"where": {"all": [{"attribut": "price", "is": 1}]}}',
            "where.all[0].attribut: is unknown; known here are",
        ),
        (
            '{"at_most": [{"attribute": "brand", "item": 1}]}',
            "at_most[0].item: is unknown; known here are",
        ),
        ('{"where": {"attribute": "price", "<": [1]}}', "where.<: is no number and no text, got [1]"),
        ('{"where": {"attribute": "price"}}', "where: says nothing of attribute 'price'; give one of is, in"),
        ('{"where": {"all": [], "any": []}}', "where.all: a list should have at least 1 item"),
        ('{"where": {"any": [{"attribute": "price", "is": 1}], "is": 1}}', "where: has 'is' beside 'any'; operators"),
        (
            '{"where": {"not": {"attribute": "price", "is": 1}, "attribute": "price"}}',
            "has not and attribute of all, any",
        ),
        ('{"allow": [5]}', "allow[0]: is no text, got 5"),
        ('{"allow": ["a", ""]}', "allow[1]: text should have at least 1 character"),
        ('{"at_most": [{"attribute": "category", "items": 0}]}', "at_most[0].items: Input should be greater than"),
        ('{"boost": [{"add": 1}]}', "boost[0]: has add; give where and add, or attribute and times"),
        ('{"boost": [{"attribute": "price", "times": 1e999}]}', "boost[0].times: is no finite number, got inf"),
        ('{"bucket_order": "newest"}', "bucket_order: "),
        ('{"bucket_order": {"rotate": -1}}', "bucket_order.rotate: Input should be greater"),
        ('{"explain": 1}', "explain: is no truth value, got 1"),
        ("[]", "rules: the whole: is no object, got []"),
        ("", "rules: is not readable as JSON: EOF while parsing a value"),
        ('{"where": ', "rules: is not readable as JSON: EOF"),
        ('{"where": {"attribute": "price", "is": "\\ud800"}}', "is not readable as JSON: "),
        (nested(17), "is nested deeper than 16"),
        (nested(5000), "is not readable as JSON: recursion limit"),
        ('{"where": {"any": [' + ",".join([json.dumps(PRICE)] * 300) + "]}}", "has 301 conditions; at most 256"),
        ('{"deny": ["' + "x" * MAX_BYTES + '"]}', f"bytes; at most {MAX_BYTES} are accepted"),
        (
            '{"where": {"attribute": "colour", "is": 1}}',
            "where.attribute: attribute 'colour' is unknown; the",
        ),
        (
            '{"where": {"any": [{"attribute": "category", "<": 5}]}}',
            "where.any[0].<: attribute 'category' is of kind string",
        ),
        ('{"where": {"attribute": "price", "in": [1, "2"]}}', "where.in[1]: '2' is not a number"),
        ('{"where": {"attribute": "price", "is": true}}', "where.is: True is not a number"),
        ('{"where": {"attribute": "in_stock", "is": 1}}', "where.is: 1.0 is not true or false"),
        ('{"where": {"attribute": "released", ">": "soon"}}', "where.>: 'soon' is no time; write it as 2026-"),
        (
            '{"at_most": [{"attribute": "markets", "items": 1}]}',
            "at_most[0].attribute: attribute 'markets' is of kind strings",
        ),
        (
            '{"boost": [{"attribute": "category", "times": 1}]}',
            "boost[0].attribute: attribute 'category' is of kind string",
        ),
        ('{"bucket_order": {"highest": "category"}}', "bucket_order.highest: attribute 'category' is of kind string"),
    ],
)
def test_refused_with_place_value_and_remedy(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        RuleBook(KINDS).read(text.encode())
    assert said in str(raised.value)
    assert len(str(raised.value)) < 600


@given(text=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        RuleBook(KINDS).read(text)
    except InvalidRequest as error:
        assert str(error).startswith("rules: ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "where",
                    "all",
                    "any",
                    "not",
                    "attribute",
                    "is",
                    "in",
                    "<",
                    "allow",
                    "at_most",
                    "items",
                    "boost",
                    "price",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=_JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    try:
        RuleBook(KINDS).read(json.dumps(value).encode())
    except InvalidRequest as error:
        assert str(error).startswith("rules: ")


@given(seed=st.integers(0, 2**32 - 1))
def test_the_canonical_form_is_read_as_the_same_rules(seed: int) -> None:
    rules = parse(json.dumps(Shop(np.random.default_rng(seed), 5).rules()))
    again = parse(rules.canonical())
    assert again.canonical() == rules.canonical()
    book = RuleBook(KINDS)
    assert book.of(rules.canonical().encode()) == book.of(again.model_dump_json(by_alias=True).encode())


def test_rules_that_say_nothing_are_none() -> None:
    assert RuleBook(KINDS).read(b"{}") == RuleBook(KINDS).read(b'{"deny": [], "explain": false}') == b""


def test_equal_rules_in_another_order_are_one() -> None:
    book = RuleBook(KINDS)
    one = b'{"allow": ["b", "a"], "where": {"attribute": "category", "in": ["x", "y"]}}'
    other = b'{"where": {"in": ["y", "x", "x"], "attribute": "category"}, "allow": ["a", "b", "b"]}'
    assert book.filters(book.read(one)) == book.filters(book.read(other))


def test_the_schema_names_every_field() -> None:
    told = json.dumps(schema())
    for name in ("where", "not_in", ">=", "at_most", "rotate", "explain"):
        assert f'"{name}"' in told


def test_wrong_rules_of_a_deployment_are_named_as_such() -> None:
    with pytest.raises(InvalidRequest, match=r"the deployment's rules: where.attribute: attribute 'x' is unknown"):
        RuleBook(KINDS, '{"where": {"attribute": "x", "is": 1}}')
