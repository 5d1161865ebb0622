"""Masks of rules that are kept up with a live catalogue, over random histories of changes."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import CatalogBase, CatalogVersion, SemanticIdSpace
from genrec.catalog.rule_masks import RuleMasks
from genrec.live.changes import Changes
from genrec.live.fold import Fold
from genrec.rules import RuleBook
from genrec.rules.narrowing import Narrowing
from genrec.rules.scan import allowed_rows, popular_rows
from tests.unit.rules.shops import KINDS, Shop, allowed
from tests.unit.rules.test_narrowing import allowed_by

SPACE = SemanticIdSpace((6, 6, 6))


def changes_of(shop: Shop, rows: np.ndarray) -> Changes:
    """A commit that says everything of these items, as `shop` has them."""
    catalog = shop.catalog
    return Changes(
        catalog.item_ids[rows],
        np.zeros(rows.size, bool),
        SPACE.encode(catalog.sids[rows]),
        catalog.popularity[rows],
        catalog.available[rows].astype(np.int8),
        catalog.columns.take(rows),
        np.ones(rows.size, bool),
    )


@given(seed=st.integers(0, 2**32 - 1), commits=st.integers(1, 8), merged_at=st.integers(0, 8))
def test_every_version_has_masks_for_all_that_rules_leave(seed: int, commits: int, merged_at: int) -> None:
    rng = np.random.default_rng(seed)
    shop = Shop(rng, 40)  # item i is now as `shop` has it, or as one of its earlier states had it
    catalog = shop.catalog
    base = CatalogBase.build(
        SPACE, catalog.item_ids, SPACE.encode(catalog.sids), catalog.popularity, catalog.available, catalog.columns
    )
    states = [shop] * 40
    fold = Fold(CatalogVersion(0, base), base.live)
    masks, book = RuleMasks(SPACE, 1 << 16), RuleBook(KINDS)
    narrowing = Narrowing(SPACE, masks, wide=1.1, making=1.0)
    told = [{"where": shop.condition()} for _ in range(3)]
    view = CatalogVersion(0, base)
    for version in range(1, commits + 1):
        if version == merged_at:
            fold = Fold(CatalogVersion(version, base, fold.delta(60), base_version=0), fold.live)
        now = Shop(rng, 40)
        rows = rng.choice(40, rng.integers(1, 12), replace=False)
        fold.apply(changes_of(now, rows), version)
        for row in rows:
            states[row] = now
        view = CatalogVersion(version, base, *fold.below.deltas, fold.delta(60), base_version=0)
        for rules in told if rng.random() < 0.7 else told[:1]:
            filters = book.filters(json.dumps(rules).encode())
            live = [row for row in range(40) if states[row].catalog.available[row]]
            left = [row for row in live if allowed(rules, states[row], row)]
            found = allowed_rows(view, list(filters))
            assert sorted(view.ids_of(found).tolist()) == sorted(b"item-%d" % row for row in left)
            popular = np.concatenate([np.empty(0, np.int64), *popular_rows(view, list(filters))])
            assert sorted(popular.tolist()) == sorted(found.tolist())
            mask = narrowing.of_batch(view, version, [filters])[0].mask
            assert mask is not None
            assert allowed_by(masks, mask, np.unique(view.codes_of(found))).all()
