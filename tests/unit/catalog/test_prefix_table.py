"""The masks of a catalogue: whatever is added and discarded, the table allows the live semantic IDs and no others."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from itertools import product
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genrec.catalog import Catalog, PrefixTable, SemanticIdSpace, TableFull
from genrec.catalog.placement import GROUP, SLOTS
from genrec.catalog.prefixes import mask_shape

# One level, plain ones, a level of one code, one whose prefixes have several rows, and one whose keys need 64 bits.
SPACES = tuple(map(SemanticIdSpace, ((9,), (5, 11, 7), (4, 1, 6), (3, 600, 5), (300, 300, 300, 300, 4))))
SPACE = SPACES[1]
SPAWN = mp.get_context("spawn")


def prefixes_of(table: PrefixTable) -> list[set[tuple[int, ...]]]:
    """The prefixes of 1 .. L codes that can be drafted, by following bits and keys as the graph does, one by one."""
    found: list[set[tuple[int, ...]]] = []
    beams: set[tuple[int, ...]] = {()}
    for level, size in enumerate(table.space.levels):
        chunks, width = mask_shape(level, size)
        grown = set()
        for beam in beams:
            prefix = sum(code * int(weight) for code, weight in zip(beam, table.space.radix, strict=False))
            for chunk in range(chunks):
                row = 0 if level == 0 else row_of(table.keys[level - 1], prefix * chunks + chunk)
                codes = np.flatnonzero(np.unpackbits(table.bits[level][row], bitorder="little"))
                grown |= {(*beam, chunk * 8 * width + int(code)) for code in codes}
        found.append(grown)
        beams = grown
    return found


def row_of(keys: np.ndarray, key: int) -> int:
    groups = len(keys) // GROUP
    group, q = key % groups, key // groups
    rows = [
        int(keys[bucket, SLOTS + slot])
        for bucket in (GROUP * group + q % 31, GROUP * group + 31 + q % 33)
        for slot in range(SLOTS)
        if keys[bucket, slot] == key
    ]
    assert len(rows) <= 1
    return rows[0] if rows else 0


def live_prefixes(space: SemanticIdSpace, codes: set[int]) -> list[set[tuple[int, ...]]]:
    sids = [tuple(sid) for sid in space.decode(np.array(sorted(codes), np.int64)).tolist()]
    return [{sid[: level + 1] for sid in sids} for level in range(space.depth)]


@st.composite
def histories(draw: st.DrawFn) -> tuple[SemanticIdSpace, list[tuple[bool, list[int]]]]:
    """A space, and changes: whether codes are added or discarded. Codes come from a few, so that they meet again."""
    space = draw(st.sampled_from(SPACES))
    some = draw(st.lists(st.integers(0, space.size - 1), min_size=1, max_size=40))
    batch = st.lists(st.sampled_from(some), max_size=25)
    return space, draw(st.lists(st.tuples(st.booleans(), batch), max_size=12))


@given(histories(), st.data())
def test_a_table_allows_what_a_set_of_tuples_holds(
    history: tuple[SemanticIdSpace, list[tuple[bool, list[int]]]], data: st.DataObject
) -> None:
    space, changes = history
    first = data.draw(st.lists(st.integers(0, space.size - 1), max_size=30))
    table, live = PrefixTable.build(space, np.array(first, np.int64)), set(first)
    seen = set(first)
    for added, codes in [(True, []), *changes]:
        live = live | set(codes) if added else live - set(codes)
        seen |= set(codes)
        (table.add if added else table.discard)(np.array(codes, np.int64))
        assert prefixes_of(table) == live_prefixes(space, live)
        asked = np.array(sorted(seen | {0, space.size - 1}), np.int64)
        assert table.allows(asked).tolist() == [code in live for code in asked.tolist()]


@pytest.mark.parametrize("space", SPACES[:4])
def test_every_code_of_a_space_can_come_and_go(space: SemanticIdSpace) -> None:
    table, every = PrefixTable.build(space, np.empty(0, np.int64), spare=space.size), np.arange(space.size)
    for part in np.array_split(np.random.default_rng(0).permutation(every), 7):
        table.add(part)
    assert table.allows(every).all()
    table.discard(every[1:])
    assert prefixes_of(table) == live_prefixes(space, {0})
    table.discard(every)
    assert not any(bits.any() for bits in table.bits)


def test_a_table_of_a_catalogue_holds_its_available_items() -> None:
    sids = np.random.default_rng(0).integers(0, SPACE.levels, (60, 3))
    available = np.arange(60) % 3 > 0
    catalog = Catalog.build([str(row) for row in range(60)], sids, np.zeros(60, np.int64), available)
    expected = live_prefixes(SPACE, set(SPACE.encode(sids[available]).tolist()))
    assert prefixes_of(PrefixTable.of(SPACE, catalog)) == expected


@settings(max_examples=25)
@example(seed=0, skew=0.03, spread=1)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.03, 0.3]), st.sampled_from([1, 16, 64]))
def test_there_is_room_for_the_spare_codes_however_they_lie(seed: int, skew: float, spread: int) -> None:
    """Uniform codes, codes of which a few are most frequent, and codes that are multiples."""
    space, rng = SemanticIdSpace((256, 256, 256)), np.random.default_rng(seed)
    drawn = rng.geometric(skew, (9000, 3)) - 1 if skew else rng.integers(0, 256, (9000, 3))
    codes = space.encode(drawn * spread % 256)
    table = PrefixTable.build(space, codes[:5000], spare=4000)
    for part in np.array_split(codes[5000:], 10):
        table.add(part)
    assert table.allows(codes).all()


def test_a_full_table_says_so_and_stays_as_it_was() -> None:
    space, rng = SemanticIdSpace((256, 256, 256)), np.random.default_rng(0)
    table, live = PrefixTable.build(space, np.empty(0, np.int64), spare=0), np.empty(0, np.int64)
    while True:
        more = rng.integers(0, space.size, 100)
        before = [array.copy() for array in (*table.bits, *table.keys, table.used)]
        try:
            table.add(more)
        except TableFull as error:
            assert "new prefixes beside" in str(error) and "build a larger table" in str(error)
            break
        live = np.append(live, more)
    for array, copy in zip((*table.bits, *table.keys, table.used), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert live.size > 200
    larger = PrefixTable.build(space, np.append(live, more))
    assert larger.allows(more).all() and larger.allows(live).all()


def test_a_slot_that_a_killed_writer_left_empty_costs_no_other_its_place() -> None:
    space, codes = SemanticIdSpace((256, 256)), np.arange(200)
    table = PrefixTable.build(space, codes, spare=0)
    keys = table.keys[0]
    lost = keys[:, 0][keys[:, 1] >= 0]  # of two slots that were filled at once, the second one came first
    keys[:, 0][keys[:, 1] >= 0] = -1
    stays = codes[~np.isin(codes, lost)]
    assert lost.size > 5 and table.allows(stays).all() and not table.allows(lost).any()
    table.add(np.arange(200, 256))
    assert table.allows(stays).all()


def test_without_masks_every_tuple_is_allowed() -> None:
    for space in SPACES:
        free = PrefixTable.build(space, np.arange(1)).unrestricted()
        assert free.allows(np.random.default_rng(0).integers(0, space.size, 500)).all()


@pytest.mark.parametrize("wrong", [-1, SPACE.size])
def test_codes_outside_the_space_are_refused_and_change_nothing(wrong: int) -> None:
    table = PrefixTable.build(SPACE, np.array([3]))
    for call in (table.add, table.discard, table.slots, lambda codes: PrefixTable.build(SPACE, codes)):
        with pytest.raises(ValueError, match=rf"code {wrong} is outside the space of levels .*, 0 to 384"):
            call(np.array([7, wrong]))
    assert prefixes_of(table) == live_prefixes(SPACE, {3})


@pytest.mark.parametrize("space", SPACES)
def test_a_copy_needs_only_the_slots_of_what_changed(space: SemanticIdSpace) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, space.size, 60)
    table = PrefixTable.build(space, codes[:40])
    bits, keys = ([array.copy() for array in arrays] for arrays in (table.bits, table.keys))
    for change, part in product((table.add, table.discard), (codes[40:], codes[30:50], codes[:5])):
        change(part)
        for level, (rows, buckets) in enumerate(table.slots(part)):
            bits[level][rows] = table.bits[level][rows]
            if level:
                keys[level - 1][buckets] = table.keys[level - 1][buckets]
    for ours, theirs in zip((*bits, *keys), (*table.bits, *table.keys), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("space", SPACES)
def test_a_saved_table_is_mapped_and_changes_for_all_who_mapped_it(space: SemanticIdSpace, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, space.size, 60)
    PrefixTable.build(space, codes[:30]).save(tmp_path)
    reader, writer = PrefixTable.load(tmp_path, space), PrefixTable.load(tmp_path, space, writable=True)
    writer.add(codes[30:])
    writer.discard(codes[:10])
    live = set(codes[10:].tolist()) - set(codes[:10].tolist())
    assert prefixes_of(reader) == live_prefixes(space, live)
    assert prefixes_of(PrefixTable.load(tmp_path, space)) == live_prefixes(space, live)
    with pytest.raises(ValueError, match="read-only"):
        reader.add(codes[:10])


def test_damaged_files_are_named(tmp_path: Path) -> None:
    PrefixTable.build(SPACE, np.arange(9)).save(tmp_path)

    def refused(name: str, array: np.ndarray) -> str:
        whole = (tmp_path / name).read_bytes()
        np.save(tmp_path / name, array)
        with pytest.raises(ValueError, match=name) as caught:
            PrefixTable.load(tmp_path, SPACE)
        (tmp_path / name).write_bytes(whole)
        return str(caught.value)

    assert "shape" in refused("bits_1.npy", np.zeros((9, 3), np.uint8))
    assert "has 1 rows" in refused("bits_1.npy", np.zeros((1, 2), np.uint8))
    assert "float64" in refused("keys_2.npy", np.zeros((64, 16)))
    assert "has 65 buckets, expected a multiple of 64" in refused("keys_2.npy", np.zeros((65, 16), np.int32))
    assert "has 0 buckets" in refused("keys_2.npy", np.zeros((0, 16), np.int32))
    assert "shape" in refused("used.npy", np.ones(2, np.int64))
    PrefixTable.load(tmp_path, SPACE)


BIG = SemanticIdSpace((64, 64, 600))


def churn(folder: Path, batches: list[np.ndarray], ready: Event) -> None:
    """Adds and discards the batches until it is killed."""
    table = PrefixTable.load(folder, BIG, writable=True)
    ready.set()
    while True:
        for batch in batches:
            table.add(batch)
        for batch in batches:
            table.discard(batch)


@pytest.mark.parametrize("seed", range(3))
def test_readers_find_what_stays_while_a_writer_changes_the_rest_and_a_killed_writer_harms_nothing(
    seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, BIG.size, 6000))
    stays, comes, never = np.split(rng.permutation(codes), [2000, 4000])
    PrefixTable.build(BIG, stays, spare=2000).save(tmp_path)
    reader, ready = PrefixTable.load(tmp_path, BIG), SPAWN.Event()
    writer = SPAWN.Process(target=churn, args=(tmp_path, np.array_split(comes, 20), ready), daemon=True)
    writer.start()
    assert ready.wait(60)
    seen, ends = set(), time.monotonic() + 0.3 + 0.1 * rng.random()
    while time.monotonic() < ends:
        assert reader.allows(stays).all() and not reader.allows(never).any()
        seen.add(int(reader.allows(comes).sum()))
    assert writer.pid is not None and len(seen) > 1, "nothing changed meanwhile"
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(20)
    assert reader.allows(stays).all() and not reader.allows(never).any()

    table = PrefixTable.load(tmp_path, BIG, writable=True)
    table.discard(comes[::2])  # whatever the state was
    table.add(comes[1::2])
    assert prefixes_of(reader) == live_prefixes(BIG, {*stays.tolist(), *comes[1::2].tolist()})


def test_a_million_random_items_take_at_most_90_bytes_each_and_more_take_less() -> None:
    space, rng = SemanticIdSpace((256, 256, 256, 256)), np.random.default_rng(0)

    def bytes_per_item(items: int) -> float:
        table = PrefixTable.build(space, rng.integers(0, space.size, items))
        return sum(array.nbytes for array in (*table.bits, *table.keys)) / items

    assert bytes_per_item(2_000_000) < bytes_per_item(1_000_000) <= 90
