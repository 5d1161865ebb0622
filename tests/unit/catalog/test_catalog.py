from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import Catalog, SemanticIdSpace

SPACE = SemanticIdSpace((4, 4))
ids = st.lists(
    st.text(min_size=1, max_size=24).filter(lambda t: not t.endswith("\0")), min_size=1, max_size=40, unique=True
)


def catalog_of(item_ids: list[str], available: np.ndarray | None = None) -> Catalog:
    count = len(item_ids)
    return Catalog.build(item_ids, np.zeros((count, 2), np.int32), np.arange(count) % 3, available)


@given(ids, st.lists(st.binary(max_size=40), max_size=40))
def test_ids_map_to_their_rows_and_nothing_else_does(known: list[str], asked: list[bytes]) -> None:
    encoded = [item_id.encode() for item_id in known]
    expected = {item_id: row for row, item_id in enumerate(encoded)}
    near = [item_id + tail for item_id in encoded for tail in (b"\0", b" ", b"\0\0x")] + [i[:-1] for i in encoded]
    wanted = [*encoded, *asked, *near]
    rows = catalog_of(known).rows_of(np.array([*wanted, None], object)[:-1])
    assert rows.tolist() == [expected.get(item_id, -1) for item_id in wanted]


def test_huge_and_undecodable_ids_are_unknown() -> None:
    catalog = catalog_of(["a", "bb"])
    asked = np.array([b"a" * 1_000_000, b"\xff\xfe", b"bb", b""], object)
    assert catalog.rows_of(asked).tolist() == [-1, -1, 1, -1]


def test_popular_rows_are_the_available_ones_by_popularity() -> None:
    available = np.array([True, True, False, True, True, True])
    assert catalog_of(list("abcdef"), available).popular_rows.tolist() == [5, 1, 4, 0, 3]


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [(["a", "b", "a"], "'a' occurs more than once"), (["a", ""], "1 to 128 bytes"), (["x" * 129], "1 to 128 bytes")],
)
def test_unusable_ids_are_refused(item_ids: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog_of(item_ids)


def test_a_catalogue_with_nothing_available_is_refused() -> None:
    with pytest.raises(ValueError, match="no available item"):
        catalog_of(["a"], np.array([False]))


def test_saved_and_mapped_catalogue_is_the_same(tmp_path: Path) -> None:
    catalog = catalog_of([f"item-{i}" for i in range(50)])
    catalog.save(tmp_path)
    loaded = Catalog.load(tmp_path, SPACE)
    asked = np.array([b"item-3", b"item-49", b"item-50"], object)
    assert loaded.rows_of(asked).tolist() == [3, 49, -1]
    np.testing.assert_array_equal(loaded.popular_rows, catalog.popular_rows)


def test_a_file_of_another_type_or_shape_is_named(tmp_path: Path) -> None:
    catalog_of(["a", "b"]).save(tmp_path)
    np.save(tmp_path / "sids.npy", np.zeros((2, 3), np.int32))
    with pytest.raises(ValueError, match=r"sids.npy: has shape \(2, 3\), expected \(2, 2\)"):
        Catalog.load(tmp_path, SPACE)
    np.save(tmp_path / "sids.npy", np.zeros((2, 2), np.float64))
    with pytest.raises(ValueError, match=r"sids\.npy: holds float64, expected int32"):
        Catalog.load(tmp_path, SPACE)
    np.save(tmp_path / "sids.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"sids\.npy: cannot be read"):
        Catalog.load(tmp_path, SPACE)
