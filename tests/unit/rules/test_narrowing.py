"""Masks of rules: what they allow, against the rules taken item by item, and the memory that they keep to."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog.rule_masks import RuleMasks
from genrec.rules import RuleBook
from genrec.rules.narrowing import Narrowing
from genrec.rules.scan import allowed_rows, popular_rows, share_of
from tests.unit.rules.shops import KINDS, SPACE, Shop, allowed


def told(shop: Shop) -> dict:
    rules = {name: value for name, value in shop.rules().items() if name in ("where", "allow")}
    return rules or {"where": shop.condition()}


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(1, 200))
def test_scans_find_the_allowed_items(seed: int, items: int) -> None:
    shop = Shop(np.random.default_rng(seed), items)
    rules, book = told(shop), RuleBook(KINDS)
    filters = list(book.filters(json.dumps(rules).encode()))
    expected = [row for row in range(items) if shop.catalog.available[row] and allowed(rules, shop, row)]

    assert allowed_rows(shop.catalog, filters).tolist() == expected
    assert share_of(shop.catalog, filters) == len(expected) / shop.catalog.available.sum()  # a sample of all
    popular = np.concatenate([np.empty(0, np.int64), *popular_rows(shop.catalog, filters)])
    assert popular.tolist() == sorted(expected, key=lambda row: (-shop.catalog.popularity[row], row))


@given(seed=st.integers(0, 2**32 - 1), items=st.integers(1, 200), memory=st.sampled_from([0, 3000, 1 << 20]))
def test_masks_allow_what_the_rules_leave(seed: int, items: int, memory: int) -> None:
    shop = Shop(np.random.default_rng(seed), items)
    masks, book = RuleMasks(SPACE, 32 + memory), RuleBook(KINDS)
    narrowing = Narrowing(SPACE, masks, wide=0.9, most_rows=int(shop.rng.choice([3, 1000])), making=1.0)
    kinds = [told(shop) for _ in range(6)]
    for _ in range(4):
        batch = [kinds[at] for at in shop.rng.integers(0, len(kinds), 3)] + [{}]
        filters = [book.filters(json.dumps(rules).encode()) for rules in batch]
        found = narrowing.of_batch(shop.catalog, 1, filters)
        assert masks.used_bytes <= 32 + memory
        assert found[-1].mask is None
        for rules, one in zip(batch[:-1], found, strict=False):
            rows = [row for row in range(items) if shop.catalog.available[row] and allowed(rules, shop, row)]
            if one.mask is None:
                assert not memory or memory < 1 << 20 or len(rows) >= 0.9 * shop.catalog.available.sum()
                continue
            assert one.items == len(rows)
            codes = np.unique(SPACE.encode(shop.catalog.sids[rows]))
            allows = allowed_by(masks, one.mask, np.arange(SPACE.size))
            assert np.isin(codes, np.flatnonzero(allows)).all()
            assert allows.sum() <= max(4 * codes.size, 8)  # small levels are exact, the last one shares rows


def allowed_by(masks: RuleMasks, mask: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """bool [n]: which codes a mask allows, as a beam finds them."""
    found = np.ones(codes.size, bool)
    for level, size in enumerate(SPACE.levels):
        code = codes // SPACE.radix[level] % size
        row = mask[level, 0] + codes % SPACE.radix[level] % mask[level, 1]
        found &= (masks.bits[row, code // 8] >> (code % 8) & 1).astype(bool)
    return found


def test_masks_stay_where_making_others_would_take_too_long() -> None:
    shop, book = Shop(np.random.default_rng(0), 200), RuleBook(KINDS)

    def filters(number: int) -> frozenset:
        return book.filters(json.dumps({"allow": [shop.catalog.item_ids[number].decode()]}).encode())

    with patch("genrec.rules.narrowing.time.monotonic", lambda: now[0]):
        now = [0.0]
        masks = RuleMasks(SPACE, 1 << 20)
        narrowing = Narrowing(SPACE, masks, making=0.5)

        def narrowed(number: int, takes: float = 0.0) -> bool:
            made = RuleMasks.build

            def build(*arguments: Any) -> np.ndarray | None:
                now[0] += takes
                return made(*arguments)

            with patch.object(RuleMasks, "build", build):
                found = narrowing.of_batch(shop.catalog, 1, [filters(number)])[0]
            assert (found.items == -1) == (found.mask is None)
            return found.mask is not None

        # 0.05 s were saved up. 1.1 s are spent, of which half may be: half a second too much.
        assert narrowed(0) and narrowed(1, takes=1.1)
        assert not narrowed(2) and narrowed(0) and narrowed(1)
        now[0] += 0.9
        assert not narrowed(2)
        now[0] += 0.2
        assert narrowed(2, takes=0.3)
        assert not narrowed(3) and narrowed(2)
        now[0] += 0.3
        assert narrowed(3)
