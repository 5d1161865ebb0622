from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import Catalog, ItemIndex, SemanticIdSpace

SPACE = SemanticIdSpace((5, 11, 7))


def random_catalog(seed: int, count: int = 200, available_share: float = 0.8) -> Catalog:
    rng = np.random.default_rng(seed)
    sids = rng.integers(0, SPACE.levels, (count, 3))
    available = rng.random(count) < available_share
    available[0] = True
    return Catalog.build([str(i) for i in range(count)], sids, rng.integers(0, 20, count), available)


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_every_code_gives_exactly_its_live_items_by_popularity(seed: int, count: int) -> None:
    catalog = random_catalog(seed, count)
    index = ItemIndex.build(SPACE, catalog)
    expected = defaultdict(list)
    for row in catalog.popular_rows.tolist():
        expected[int(SPACE.encode(catalog.sids[row]))].append(row)
    buckets = index.buckets_of(np.arange(SPACE.size))
    for code, bucket in enumerate(buckets.tolist()):
        rows = index.expand(np.array([bucket]))[0].tolist() if bucket >= 0 else []
        assert rows == expected.get(code, [])


def test_expand_keeps_the_order_of_the_beam() -> None:
    index = ItemIndex.build(SPACE, random_catalog(1))
    asked = np.array([3, 0, 3, 5], np.int32)
    rows, source = index.expand(asked)
    pieces = [index.expand(asked[i : i + 1])[0] for i in range(4)]
    np.testing.assert_array_equal(rows, np.concatenate(pieces))
    np.testing.assert_array_equal(source, np.repeat(np.arange(4), [len(p) for p in pieces]))


def test_saved_and_mapped_index_is_the_same(tmp_path: Path) -> None:
    index = ItemIndex.build(SPACE, random_catalog(2))
    index.save(tmp_path)
    loaded = ItemIndex.load(tmp_path)
    codes = np.arange(SPACE.size)
    np.testing.assert_array_equal(loaded.buckets_of(codes), index.buckets_of(codes))
    (tmp_path / "rows.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"rows.npy: cannot be read"):
        ItemIndex.load(tmp_path)
