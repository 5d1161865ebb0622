"""Rules in the verifier, against what they mean item by item."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.rules import Applied, bind, parse
from genrec.rules.caps import first_within_caps
from genrec.verifier import DRAFTED, FALLBACK, FALLBACK_SCORE, Verifier
from tests.unit.rules.shops import KINDS, SPACE, Shop, allowed, holds


def applied(shop: Shop, *told: dict[str, Any]) -> Applied:
    rules = {name: bind(parse(json.dumps(one)), KINDS) for name, one in zip("ab", told, strict=False)}
    return Applied(shop.catalog, rules)


def boost(rules: dict[str, Any], item: dict[str, Any]) -> float:
    total = 0.0
    for one in rules.get("boost", []):
        if "where" in one:
            total += one["add"] * holds(one["where"], item)
        else:
            total += one["times"] * (item[one["attribute"]] or 0.0)
    return max(-100.0, min(100.0, total))


def oracle(
    shop: Shop, rules: list[dict[str, Any]], codes: np.ndarray, scores: np.ndarray, blocked: np.ndarray, top_k: int
) -> list[tuple[int, float, int]]:
    """Item by item, for rules without `rotate`."""
    catalog = shop.catalog
    by_popularity = sorted(np.flatnonzero(catalog.available), key=lambda row: (-catalog.popularity[row], row))
    code_of = SPACE.encode(catalog.sids)
    order = next((one["bucket_order"] for one in rules if isinstance(one.get("bucket_order"), dict)), None)

    def within(row: int) -> tuple[float, int]:
        place = by_popularity.index(row)
        if order is None:
            return 0.0, place
        (way, name), value = next(iter(order.items())), None
        value = shop.item(row)[name]
        if value is None:
            return np.inf, place
        number = value.timestamp() if name == "released" else value
        return (-number if way == "highest" else number), place

    drafts = []
    for beam, (code, score) in enumerate(zip(codes.tolist(), scores.tolist(), strict=True)):
        for row in by_popularity if np.isfinite(score) else []:
            if code_of[row] == code and row not in blocked and all(allowed(one, shop, row) for one in rules):
                added = np.float32(sum(boost(one, shop.item(row)) for one in rules))
                drafts.append((-(np.float32(score) + added), beam, within(row), row, score))
    drafts.sort()
    caps = [(cap["attribute"], cap["items"]) for one in rules for cap in one.get("at_most", [])]
    counts: dict[tuple[int, Any], int] = {}
    out: list[tuple[int, float, int]] = []

    def take(row: int, score: float, source: int) -> None:
        own = [(at, shop.item(row)[name]) for at, (name, _) in enumerate(caps)]
        own = [one for one in own if one[1] is not None]
        if len(out) < top_k and all(counts.get(one, 0) < caps[one[0]][1] for one in own):
            out.append((row, score, source))
            for one in own:
                counts[one] = counts.get(one, 0) + 1

    for *_, row, score in drafts:
        if row not in [one[0] for one in out]:
            take(row, score, DRAFTED)
    drafted = {row for row, _, _ in out}
    for row in by_popularity:
        if row not in drafted and row not in blocked and all(allowed(one, shop, row) for one in rules):
            take(row, float(FALLBACK_SCORE), FALLBACK)
    return out


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(1, 120), batch=st.integers(1, 4), width=st.integers(1, 60))
def test_answers_are_those_of_the_rules_taken_one_by_one(seed: int, items: int, batch: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    shop = Shop(rng, items)
    verifier = Verifier(shop.catalog, shop.index)
    pool = np.unique(np.concatenate([SPACE.encode(shop.catalog.sids), rng.integers(0, SPACE.size, items)]))
    codes = np.stack([rng.permutation(np.resize(pool, max(width, pool.size)))[:width] for _ in range(batch)])
    scores = -np.sort(rng.exponential(size=(batch, width)).astype(np.float32), axis=1)
    scores[rng.random((batch, width)) < 0.2] = -np.inf
    blocked = [rng.integers(0, items, rng.integers(0, 10)).astype(np.int32) for _ in range(batch)]
    top_k = rng.integers(1, 20, batch)
    told = [[] if rng.random() < 0.2 else [shop.rules() for _ in range(rng.integers(1, 3))] for _ in range(batch)]
    for one in (rules for many in told for rules in many):
        if isinstance(one.get("bucket_order"), dict) and "rotate" in one["bucket_order"]:
            del one["bucket_order"]

    result = verifier.verify(
        codes, scores, blocked, top_k, [applied(shop, *rules) if rules else None for rules in told]
    )

    for b in range(batch):
        part = slice(result.offsets[b], result.offsets[b + 1])
        got = [
            *zip(result.rows[part].tolist(), result.scores[part].tolist(), result.source[part].tolist(), strict=True)
        ]
        expected = oracle(shop, told[b], codes[b], scores[b], blocked[b], int(top_k[b]))
        assert got == expected, told[b]
        assert result.filled[b] == sum(source for _, _, source in expected)
        assert result.drafted[b] == np.isfinite(scores[b]).sum()
        boosts = [sum(boost(rules, shop.item(row)) for rules in told[b]) for row, _, source in expected]
        sources = [source for _, _, source in expected]
        close = np.isclose(result.boosts[part], boosts, rtol=1e-5)  # float32 of a sum of a few numbers
        assert all(close | (np.array(sources, int) == FALLBACK))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 60), caps=st.integers(1, 3), most=st.integers(1, 20))
def test_caps_are_as_if_items_were_taken_one_by_one(seed: int, count: int, caps: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.integers(-1, 4, count) for _ in range(caps)]
    limits = rng.integers(1, 4, caps).tolist()
    taken: list[int] = []
    for place in range(count):
        own = [(at, value[place]) for at, value in enumerate(values) if value[place] >= 0]
        if all(sum(values[at][one] == value for one in taken) < limits[at] for at, value in own):
            taken.append(place)
    assert first_within_caps(values, limits, most).tolist() == taken[:most]


def test_a_rotation_depends_on_the_seed_and_not_on_the_rows() -> None:
    shop = Shop(np.random.default_rng(3), 40)
    long = np.array([*shop.catalog.item_ids[:-1].tolist(), b"an id of more bytes than the others have"])
    shop.catalog = replace(shop.catalog, item_ids=long)
    rows = np.arange(40, dtype=np.int32)
    nothing = np.empty(0, np.int32)

    def answer(seed: int, given: np.ndarray) -> list[int]:
        rules = applied(shop, {"bucket_order": {"rotate": seed}})
        one_draft = np.zeros(given.size, np.int64)
        return rules.answer(lambda *_: (given, one_draft), np.zeros(1, np.float32), nothing, given.size).rows.tolist()

    assert answer(1, rows) == answer(1, rows[::-1].copy())
    assert answer(1, rows) != answer(2, rows)
    assert sorted(answer(1, rows)) == rows.tolist()
    few = rows[:7]  # with shorter ids than some of the others
    assert answer(1, few) == [row for row in answer(1, rows) if row in few]


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        ({"deny": ["item-0", "item-1"]}, {"a.deny": 2}),
        ({"where": {"attribute": "category", "is": "unheard of"}}, {"a.where": 40}),
        ({"at_most": [{"attribute": "in_stock", "items": 1}]}, {}),
    ],
)
def test_what_was_dropped_is_counted(told: dict[str, Any], counts: dict[str, int]) -> None:
    shop = Shop(np.random.default_rng(3), 40)
    rows = np.arange(40, dtype=np.int32)
    rules = applied(shop, told | {"explain": True})
    result = rules.answer(
        lambda begin, end: (rows[begin:end], np.arange(begin, end)), np.zeros(40, np.float32), np.array([39]), 10
    )
    assert result.dropped["blocked"] == 1
    for name, count in counts.items():
        assert result.dropped[name] == count - (name == "a.where")  # the blocked one was gone already
    if "at_most" in told:
        assert result.dropped["at_most"] > 0
