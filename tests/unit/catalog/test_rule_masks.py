"""The masks of rules against sets of prefixes: nothing is missing, and what is too much is of shared rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.catalog import PrefixTable, RuleMasks, SemanticIdSpace

SIZES = (2, 3, 8, 255, 256, 257, 600, 8192)
spaces = st.lists(st.sampled_from(SIZES), min_size=1, max_size=4).map(tuple).map(SemanticIdSpace)


def keys_of(space: SemanticIdSpace, level: int, codes: np.ndarray) -> np.ndarray:
    """Prefix and chunk of the codes at a level, in the words of the definition."""
    chunks = -(-space.levels[level] // 256)
    return codes % space.radix[level] * chunks + codes // space.radix[level] % space.levels[level] // 256


def allowed(arena: RuleMasks, mask: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Whether codes can be drafted, found as a graph finds it: bool [n]."""
    found = np.ones(codes.shape, bool)
    for level, size in enumerate(arena.space.levels):
        code = codes // arena.space.radix[level] % size
        row = mask[level, 0] + keys_of(arena.space, level, codes) % mask[level, 1]
        found &= (arena.bits[row, code % 256 // 8] >> (code % 8).astype(np.uint8) & 1) == 1
    return found


def explained(space: SemanticIdSpace, mask: np.ndarray, live: np.ndarray, code: int) -> bool:
    """Whether `code` has, at every level, the row and the code of some live item."""
    one = np.array([code])
    for level, size in enumerate(space.levels):
        own, theirs = (
            (keys_of(space, level, each) % mask[level, 1], each // space.radix[level] % size % 256)
            for each in (one, live)
        )
        if not ((own[0] == theirs[0]) & (own[1] == theirs[1])).any():
            return False
    return True


def check(arena: RuleMasks, mask: np.ndarray, live: set[int], rng: np.random.Generator) -> None:
    space, codes = arena.space, np.array(sorted(live), np.int64)
    assert mask.shape == (space.depth, 2) and mask.dtype == np.int64
    assert allowed(arena, mask, codes).all(), "an allowed item is missing"
    near = codes[:20, None] + rng.integers(-3, 4, 8) * rng.choice(space.radix, 8)
    asked = np.unique(np.append(near[(near >= 0) & (near < space.size)], rng.integers(0, space.size, 300)))
    np.testing.assert_array_equal(arena.allows(mask, asked), allowed(arena, mask, asked))
    others = asked[~np.isin(asked, codes)]
    for code in others[allowed(arena, mask, others)][:20].tolist():
        assert explained(space, mask, codes, code)
    keys = [int(radix) * -(-size // 256) for radix, size in zip(space.radix, space.levels, strict=True)]
    if mask[:, 1].tolist() == keys:
        assert not allowed(arena, mask, others).any(), "this mask is exact"


@settings(max_examples=60)
@given(spaces, st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_a_mask_allows_all_of_its_items_and_only_what_shares_their_rows(
    space: SemanticIdSpace, items: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arena = RuleMasks(space, 1 << 20)
    codes = rng.permutation(np.unique(rng.integers(0, space.size, items)))
    mask = arena.build(codes)
    assert mask is not None
    check(arena, mask, set(codes.tolist()), rng)
    more = rng.integers(0, space.size, 30)
    before = arena.bits.copy()
    arena.add(mask, more)
    assert not (before & ~arena.bits).any(), "a bit was cleared"
    changed = np.flatnonzero((before != arena.bits).any(1))
    assert np.isin(changed, arena.rows(mask, more)).all() and np.isin(changed, arena.rows(mask)).all()
    check(arena, mask, {*codes.tolist(), *more.tolist()}, rng)


@settings(max_examples=40)
@given(spaces, st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_a_mask_of_the_first_levels_is_exact_there(space: SemanticIdSpace, items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arena = RuleMasks(space, 1 << 24)
    codes = rng.integers(0, space.size, items)
    mask = arena.build_first_levels(codes)
    assert mask is not None
    asked = np.concatenate(
        [codes, (codes + rng.choice(space.radix, items)) % space.size, rng.integers(0, space.size, 300)]
    )
    depth = int((mask[:, 0] > 0).sum())
    assert depth and (mask[depth:] == [0, 1]).all()
    assert depth == space.depth or int(space.radix[depth]) * -(-space.levels[depth] // 256) > 1 << 17
    span = space.size if depth == space.depth else int(space.radix[depth])
    np.testing.assert_array_equal(allowed(arena, mask, asked), np.isin(asked % span, codes % span))
    more = rng.integers(0, space.size, 30)
    before = arena.bits.copy()
    arena.add(mask, more)
    changed = np.flatnonzero((before != arena.bits).any(1))
    assert np.isin(changed, arena.rows(mask, more)).all() and np.isin(changed, arena.rows(mask)).all()
    assert allowed(arena, mask, more).all()
    arena.free(mask)
    assert arena.used_bytes == 32


@settings(max_examples=30)
@given(st.lists(st.sampled_from((2, 3, 8)), min_size=1, max_size=4).map(tuple), st.integers(0, 2**32 - 1))
def test_small_spaces_are_exact(levels: tuple[int, ...], seed: int) -> None:
    space, rng = SemanticIdSpace(levels), np.random.default_rng(seed)
    codes = rng.permutation(space.size)[: max(1, space.size * 2 // 3)]
    arena = RuleMasks(space, 1 << 16)
    mask = arena.build(codes)
    assert mask is not None
    everything = np.arange(space.size)
    np.testing.assert_array_equal(allowed(arena, mask, everything), np.isin(everything, codes))
    assert allowed(arena, arena.all, everything).all()


@settings(max_examples=30)
@given(st.sampled_from(((5, 9, 7), (300, 4), (256,) * 4)), st.integers(0, 2**32 - 1))
def test_masks_come_and_go_without_touching_each_other(levels: tuple[int, ...], seed: int) -> None:
    space, rng = SemanticIdSpace(levels), np.random.default_rng(seed)
    arena = RuleMasks(space, 32 * 600)
    kept: list[tuple[np.ndarray, set[int]]] = []
    refused = 0
    for _ in range(60):
        if kept and rng.random() < 0.45:
            arena.free(kept.pop(rng.integers(len(kept)))[0])
        else:
            codes = np.unique(rng.integers(0, space.size, rng.integers(0, 60)))
            mask = arena.build(codes)
            if mask is None:
                refused += 1
            else:
                kept.append((mask, set(codes.tolist())))
        rows = np.concatenate([np.zeros(1, np.int64), *(arena.rows(mask) for mask, _ in kept)])
        assert np.unique(rows).size == rows.size, "two masks share a row"
        assert arena.used_bytes == 32 * rows.size and arena.used_bytes + arena.free_bytes == arena.bits.nbytes
    assert arena.bits[0].min() == 255
    for mask, live in kept:
        check(arena, mask, live, rng)
    for mask, _ in kept:
        arena.free(mask)
    assert arena.used_bytes == 32
    whole = RuleMasks(space, 32 * 600)
    big = np.unique(rng.integers(0, space.size, 150))
    assert (arena.build(big) is None) == (whole.build(big) is None), "free neighbours were not merged"


def test_a_full_arena_refuses_and_has_room_again_once_a_mask_is_freed() -> None:
    space = SemanticIdSpace((256,) * 4)
    arena = RuleMasks(space, 32 * 5)
    first = arena.build(np.arange(1))
    assert first is None
    nothing = arena.build(np.empty(0, np.int64))
    assert nothing is not None and arena.free_bytes == 0
    assert not allowed(arena, nothing, np.arange(1000)).any()
    assert arena.build(np.empty(0, np.int64)) is None
    arena.free(nothing)
    with pytest.raises(ValueError, match="rows 1 to 4 are free already"):
        arena.free(nothing)
    arena.free(arena.all)
    arena.add(arena.all, np.arange(3))
    assert arena.used_bytes == 32 and arena.build(np.empty(0, np.int64)) is not None


def test_a_batch_has_a_row_for_each_request() -> None:
    arena = RuleMasks(SemanticIdSpace((4, 5)), 32 * 20)
    mask = arena.build(np.arange(3))
    assert mask is not None
    assert arena.stacked([None, mask]).tolist() == [[0, 1, 0, 1], mask.reshape(-1).tolist()]
    assert arena.stacked([]).shape == (0, 4)
    for wrong in (mask[:1], mask.reshape(-1)):
        with pytest.raises(ValueError, match=r"must have the shape \(2, 2\)"):
            arena.stacked([mask, wrong])
    for wrong in (np.array([[0, 1], [19, 2]]), np.array([[-1, 1], [0, 1]]), np.array([[0, 0], [0, 1]])):
        with pytest.raises(ValueError, match="outside of the 20 that there are"):
            arena.stacked([None, wrong])


def test_wrong_codes_and_limits_are_refused() -> None:
    arena = RuleMasks(SemanticIdSpace((4, 5)), 32 * 20)
    for wrong in (-1, 20):
        with pytest.raises(ValueError, match=f"code {wrong} is outside"):
            arena.build(np.array([3, wrong]))
    assert arena.used_bytes == 32
    with pytest.raises(ValueError, match="at least 32 bytes"):
        RuleMasks(SemanticIdSpace((4,)), 31)


@settings(max_examples=10)
@given(st.sampled_from(((64,) * 4, (256,) * 4, (300, 200, 100))), st.integers(0, 2**32 - 1))
def test_beside_a_catalogues_masks_fewer_rows_let_through_hardly_more(levels: tuple[int, ...], seed: int) -> None:
    space, rng = SemanticIdSpace(levels), np.random.default_rng(seed)
    catalogue = np.unique(rng.integers(0, space.size, 60_000))
    table = PrefixTable.build(space, catalogue)
    narrow, wide = RuleMasks(space, 1 << 23, table.following()), RuleMasks(space, 1 << 23)
    codes = np.sort(rng.choice(catalogue, 3000, replace=False))
    through = []
    for arena in (narrow, wide):
        mask = arena.build(codes)
        assert mask is not None and arena.allows(mask, codes).all()
        through.append(int(np.count_nonzero(arena.allows(mask, catalogue))))
    assert narrow.used_bytes < 0.8 * wide.used_bytes
    # A tenth of what is right at each level, and room for chance.
    assert through[0] <= through[1] + 0.15 * len(levels) * codes.size


def test_following_is_the_share_of_codes_behind_a_key() -> None:
    space = SemanticIdSpace((4, 300, 5))
    sids = np.array([[0, 0, 0], [0, 0, 1], [0, 299, 2], [3, 7, 0], [3, 7, 4]])
    table = PrefixTable.build(space, space.encode(sids))
    assert table.following().tolist() == pytest.approx([2 / 4, 1.5 / 300, 5 / 3 / 5])
    assert table.unrestricted().following().tolist() == [1, 1, 1]
