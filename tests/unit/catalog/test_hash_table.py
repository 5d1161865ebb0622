import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import HashTable

keys = st.lists(st.integers(0, 2**62), unique=True, max_size=300)


@given(keys, st.lists(st.integers(-5, 2**62), max_size=100))
def test_agrees_with_a_dict(present: list[int], asked: list[int]) -> None:
    expected = {key: value for value, key in enumerate(present)}
    table = HashTable.build(np.array(present, np.int64), np.arange(len(present), dtype=np.int32))
    wanted = np.array(present + asked, np.int64)
    np.testing.assert_array_equal(table.get(wanted), [expected.get(int(key), -1) for key in wanted])


def test_keys_that_share_a_home_slot_are_all_found() -> None:
    # The home slot depends on the top bits of key * golden; keys that are multiples of a large power collide a lot.
    crowded = np.arange(1000, dtype=np.int64) << 50
    table = HashTable.build(crowded, np.arange(1000, dtype=np.int32))
    np.testing.assert_array_equal(table.get(crowded), np.arange(1000))
    assert (table.get(crowded + 1) == -1).all()


def test_keeps_the_shape_of_what_is_asked() -> None:
    table = HashTable.build(np.array([7, 9]), np.array([0, 1], np.int32))
    np.testing.assert_array_equal(table.get(np.array([[9, 7], [8, 9]])), [[1, 0], [-1, 1]])


def test_refuses_repeated_and_negative_keys() -> None:
    with pytest.raises(ValueError, match="distinct"):
        HashTable.build(np.array([3, 3]), np.array([0, 1], np.int32))
    with pytest.raises(ValueError, match="negative, got -4"):
        HashTable.build(np.array([3, -4]), np.array([0, 1], np.int32))
