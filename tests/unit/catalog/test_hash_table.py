import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.arrays import in_memory
from genrec.catalog import HashTable
from genrec.catalog.hash_table import RepeatedKey

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


@given(st.lists(st.integers(0, 2**62) | st.integers(0, 7), unique=True, max_size=300), st.data())
def test_filled_in_parts_is_the_same_as_at_once(present: list[int], data: st.DataObject) -> None:
    known, rows = np.array(present, np.int64), np.arange(len(present), dtype=np.int32)
    load = data.draw(st.sampled_from([0.3, 0.65, 1.0]))
    whole, table = HashTable.build(known, rows, load), HashTable.blank("", len(present), in_memory, load)
    order = np.argsort(table.homes(known), kind="stable")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(present)), max_size=8)))
    table.fill((known[part], rows[part]) for part in np.split(order, cuts))
    np.testing.assert_array_equal(table.keys, whole.keys)
    np.testing.assert_array_equal(table.values, whole.values)
    assert table.get(known).tolist() == rows.tolist()


@given(st.lists(st.integers(0, 2**62), unique=True, min_size=1, max_size=60), st.data())
def test_a_key_that_comes_twice_is_found_across_parts(present: list[int], data: st.DataObject) -> None:
    twice = data.draw(st.integers(0, len(present) - 1))
    known, rows = np.array([*present, present[twice]], np.int64), np.arange(len(present) + 1, dtype=np.int32)
    table = HashTable.blank("", known.size, in_memory)
    order = np.argsort(table.homes(known), kind="stable")
    cuts = sorted(data.draw(st.lists(st.integers(0, known.size), max_size=8)))
    with pytest.raises(RepeatedKey) as error:
        table.fill((known[part], rows[part]) for part in np.split(order, cuts))
    assert error.value.values == (twice, len(present))
