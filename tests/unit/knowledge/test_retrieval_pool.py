"""The retrieval pool and its groups, against counting every n-gram by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.knowledge import pool as pool_module
from genrec.knowledge.continuations import MAX_CONTEXT, MAX_DEPTH, MAX_NODES, ROWS, draft_trees
from genrec.knowledge.drafter import PoolDrafter, RunningText
from genrec.knowledge.pool import RetrievalPool
from genrec.knowledge.pool_search import continuations
from genrec.knowledge.pools import GLOBAL, Pools
from genrec.knowledge.repeats import repeats
from genrec.knowledge.token_tree import TokenTree

VOCABULARY = 4
START = -1

texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=14), max_size=12)
running = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)


def filled(written: list[list[int]], vocabulary: int = VOCABULARY, **limits: int) -> RetrievalPool:
    pool = RetrievalPool(vocabulary, **limits)
    for text in written:
        pool.add([np.array(text, np.int32)])
    return pool


def branches(tree: TokenTree) -> dict[tuple[int, ...], float]:
    """Share by the tokens from the root down to each node. Fails where a child precedes its parent."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        paths.append((*paths[parent], token) if parent >= 0 else (token,))
    assert len(set(paths)) == len(paths)
    return dict(zip(paths, tree.shares.tolist(), strict=True))


def counted(written: list[list[int]], text: list[int], depth: int) -> tuple[int, Counter[tuple[int, ...]]]:
    """What a slow search finds: how often the longest end of `text` occurs, and how often each branch follows it."""
    starting = [[START, *tokens] for tokens in written if tokens]
    context = [START, *text][-MAX_CONTEXT:]
    for length in range(len(context), 0, -1):
        followed = [
            tokens[place + length : place + length + depth]
            for tokens in starting
            for place in range(len(tokens) - length + 1)
            if tokens[place : place + length] == context[-length:]
        ]
        if followed:
            return len(followed), Counter(tuple(tail[:size]) for tail in followed for size in range(1, len(tail) + 1))
    return 0, Counter()


@given(texts, running, st.integers(1, MAX_DEPTH), st.integers(1, MAX_NODES))
def test_branches_and_frequencies_are_those_of_the_longest_match(
    written: list[list[int]], text: list[int], depth: int, nodes: int
) -> None:
    tree = filled(written).draft(np.array(text, np.int32), max_nodes=nodes, max_depth=depth)
    matches, expected = counted(written, text, depth)
    found = branches(tree)
    if matches > ROWS:
        return  # sampled, see below
    assert len(found) == min(nodes, len(expected))
    for branch, share in found.items():
        assert share == pytest.approx(expected[branch] / matches)
    assert sorted(found.values(), reverse=True) == pytest.approx(
        [count / matches for _, count in expected.most_common(nodes)]
    )


def test_of_many_matches_an_even_sample_is_read() -> None:
    rng = np.random.default_rng(0)
    written = [[0, int(rng.choice(4, p=[0.6, 0.3, 0.08, 0.02])), 1] for _ in range(3000)]
    pool = RetrievalPool(VOCABULARY)
    pool.add([np.array(text) for text in written])
    found = branches(pool.draft(np.array([0]), max_depth=1))
    matches, expected = counted(written, [0], 1)
    assert matches == 3000
    for branch, count in expected.items():
        assert abs(found.get(branch, 0.0) - count / matches) < 1 / ROWS + 1e-6


@given(texts, running)
def test_a_discount_shortens_what_few_texts_support(written: list[list[int]], text: list[int]) -> None:
    matches, expected = counted(written, text, MAX_DEPTH)
    tree = filled(written).draft(np.array(text, np.int32), discount=0.5)
    if matches <= ROWS:
        for branch, share in branches(tree).items():
            count = expected[branch]
            assert share == pytest.approx(count / matches * (count / (count + 0.5)) ** len(branch))
    kept = filled(written).draft(np.array(text, np.int32), discount=0.5, min_share=0.3)
    assert branches(kept) == {branch: share for branch, share in branches(tree).items() if share >= 0.3}


@given(st.lists(texts, max_size=6), running)
@settings(max_examples=40)
def test_growing_in_batches_equals_building_at_once(batches: list[list[list[int]]], text: list[int]) -> None:
    grown = RetrievalPool(VOCABULARY)
    with pytest.MonkeyPatch.context() as patch:  # so that small batches stay segments of their own
        patch.setattr(pool_module, "_SMALL", 0)
        patch.setattr(pool_module, "_GROWTH", 1)
        for batch in batches:
            grown.add([np.array(tokens, np.int32) for tokens in batch])
    whole = RetrievalPool(VOCABULARY)
    whole.add([np.array(tokens, np.int32) for batch in batches for tokens in batch])
    assert grown.tokens == whole.tokens
    if counted([tokens for batch in batches for tokens in batch], text, 1)[0] <= ROWS:
        for ours, other in zip(grown.draft(np.array(text)), whole.draft(np.array(text)), strict=True):
            np.testing.assert_array_equal(ours, other)


@given(
    st.lists(texts, min_size=1, max_size=3),
    st.lists(st.tuples(running, st.integers(0, 2), st.integers(1, MAX_DEPTH)), min_size=1, max_size=9),
    st.integers(1, MAX_NODES),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 0.3]),
)
def test_drafting_many_texts_at_once_equals_one_by_one(
    written: list[list[list[int]]],
    asked: list[tuple[list[int], int, int]],
    nodes: int,
    min_share: float,
    discount: float,
) -> None:
    pools = []
    with pytest.MonkeyPatch.context() as patch:  # so that pools have several segments
        patch.setattr(pool_module, "_SMALL", 0)
        patch.setattr(pool_module, "_GROWTH", 1)
        pools = [filled(of_one) for of_one in written]
    chosen = [pools[number % len(pools)] for _, number, _ in asked]
    found = continuations(chosen, [np.array(text, np.int32) for text, _, _ in asked], np.arange(len(asked)))
    together = draft_trees(
        found, [depth for *_, depth in asked], max_nodes=nodes, min_share=min_share, discount=discount
    ).split()
    for pool, (text, _, depth), tree in zip(chosen, asked, together, strict=True):
        alone = pool.draft(
            np.array(text, np.int32), max_nodes=nodes, max_depth=depth, min_share=min_share, discount=discount
        )
        for ours, other in zip(tree, alone, strict=True):
            np.testing.assert_array_equal(ours, other)
            assert ours.dtype == other.dtype


def test_a_large_pool_finds_what_stands_anywhere_in_it() -> None:
    # Many search keys and segments; wide tokens take the other sort key and four bytes each.
    rng = np.random.default_rng(1)
    for vocabulary in (1000, 200_000):
        written = [rng.integers(0, vocabulary, 40) for _ in range(600)]
        pool = RetrievalPool(vocabulary)
        pool.add(written[:500])
        for text in written[500:]:
            pool.add([text])
        for text in written[::50]:
            for end in (1, 7, 20, 33):
                drafted = pool.draft(text[:end], max_nodes=4, max_depth=4)
                matches, expected = counted([list(t) for t in written if text[end - 1] in t], list(text[:end]), 4)
                assert branches(drafted) == pytest.approx(
                    {branch: expected[branch] / matches for branch in branches(drafted)}
                )
                assert drafted.size
            assert pool.count(text[10:18]) == 1


def test_texts_without_an_end_in_common_draft_nothing() -> None:
    pool = filled([[0, 1], [1, 0]])
    assert pool.draft(np.array([0, 3])).size == 0
    assert RetrievalPool(VOCABULARY).draft(np.array([0])).size == 0
    assert branches(pool.draft(np.array([], np.int32))) == {(0,): 0.5, (0, 1): 0.5, (1,): 0.5, (1, 0): 0.5}


def test_eviction_keeps_the_bound_and_the_frequent_branches() -> None:
    rng = np.random.default_rng(2)
    phrase = np.array([5, 6, 7, 8, 9, 10, 11, 12])
    pool = RetrievalPool(1000, max_tokens=3000)
    for _ in range(400):
        pool.add([np.concatenate([phrase, rng.integers(20, 1000, 30)])])
        assert pool.tokens <= 3000
    assert pool.nbytes < 3000 * 20
    # The rare tails went, the phrase stayed in far more texts than the pool has room for as a whole.
    assert pool.count(phrase) > 100
    best = pool.draft(np.array([5, 6, 7]), max_nodes=5)
    assert best.tokens.tolist() == [8, 9, 10, 11, 12]
    # It is still how texts begin, and what was behind a cut is not.
    assert branches(pool.draft(np.array([], np.int32), max_nodes=1)) == {(5,): 1.0}


def test_eviction_prefers_older_texts_among_equals() -> None:
    pool = RetrievalPool(1000, max_tokens=100)
    rng = np.random.default_rng(3)
    written = [rng.permutation(1000)[:20] for _ in range(30)]
    for text in written:
        pool.add([text])
    assert pool.count(written[-1][:4]) == 1
    assert pool.count(written[0][:4]) == 0


def test_saved_and_loaded_it_drafts_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    pool = RetrievalPool(50)
    for size in (300, 5):
        pool.add([rng.integers(0, 50, 60) for _ in range(size)])
    pool.save(tmp_path / "pool.npz")
    loaded = RetrievalPool.load(tmp_path / "pool.npz")
    assert (loaded.tokens, loaded.nbytes, loaded.max_tokens) == (pool.tokens, pool.nbytes, pool.max_tokens)
    for _ in range(30):
        text = rng.integers(0, 50, 5)
        for ours, other in zip(pool.draft(text), loaded.draft(text), strict=True):
            np.testing.assert_array_equal(ours, other)
    loaded.add([rng.integers(0, 50, 60)])
    assert [path.name for path in tmp_path.iterdir()] == ["pool.npz"]


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60)
def test_a_damaged_file_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    folder = tmp_path_factory.mktemp("pool")
    whole, damaged = folder / "whole.npz", folder / "damaged.npz"
    pool = filled([[0, 1, 2, 3] * 20])
    pool.save(whole)
    stored = bytearray(whole.read_bytes())
    stored[place % len(stored)] ^= change
    damaged.write_bytes(stored)
    try:
        loaded = RetrievalPool.load(damaged)
    except ValueError as error:
        assert str(damaged) in str(error)
    else:  # a bit that says nothing, such as a time stamp of the archive
        np.testing.assert_array_equal(loaded.draft(np.array([0])).tokens, pool.draft(np.array([0])).tokens)


def test_files_that_are_no_pools_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.npz"
    pool = filled([[0, 1, 2]])
    pool.save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    for change, message in (
        ({"header": np.array([9, 4, 100, 1])}, "format 9"),
        ({"header": np.array([1, 4, 100, 2])}, "lacks the array 'text_1'"),
        ({"header": np.array([1, 4, 100, 1], np.float32)}, "no valid header"),
        ({"header": np.array([1, 0, 100, 1])}, "vocabulary_size is 0"),
        ({"order_0": np.array([0, 1, 1, 3], np.int32)}, "no permutation"),
        ({"order_0": np.array([0, 1, 2, -3], np.int32)}, "no permutation"),
        ({"order_0": np.array([0, 1, 2, 2**31 - 1], np.int32)}, "no permutation"),  # 16 GB, if it were counted
        ({"order_0": np.array([0, 1], np.int32)}, "of one length"),
        ({"text_0": np.array([1, 2, 3, 9], ">u2")}, "no token of a vocabulary of 4"),
    ):
        with path.open("wb") as file:
            np.savez(file, **(arrays | change))
        with pytest.raises(ValueError, match=message) as caught:
            RetrievalPool.load(path)
        assert str(path) in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read as a retrieval pool"):
        RetrievalPool.load(path)
    with pytest.raises(ValueError, match="cannot be read as a retrieval pool"):
        RetrievalPool.load(tmp_path / "none.npz")


def test_what_is_out_of_range_is_refused() -> None:
    pool = filled([[0, 1, 2]])
    with pytest.raises(ValueError, match="token 4 is outside the pool's vocabulary, 0 to 3"):
        pool.add([np.array([0]), np.array([1, 4])])
    with pytest.raises(ValueError, match="token -1"):
        pool.add([np.array([-1])])
    assert pool.tokens == 4
    for budget in ({"max_nodes": 0}, {"max_nodes": 65}, {"max_depth": 0}, {"max_depth": 25}):
        ((name, value),) = budget.items()
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be 1 to"):
            pool.draft(np.array([0]), **budget)
    with pytest.raises(ValueError, match="1 to 8 can be counted"):
        pool.count(np.array([], np.int32))
    with pytest.raises(ValueError, match="vocabulary_size is 0"):
        RetrievalPool(0)
    with pytest.raises(ValueError, match="max_tokens is 1;"):
        RetrievalPool(4, max_tokens=1)


def drafted(pools: Pools, text: list[int], group: str, **options: float) -> dict[tuple[int, ...], float]:
    """By its branches, what is drafted behind `text`, of which the first token is the prompt."""
    drafter = PoolDrafter(pools, **{"discount": 0.0, "min_share": 0.0, **options})
    (tree,) = drafter.draft([RunningText(np.array(text, np.int32), 1, group, MAX_DEPTH)]).split()
    return branches(tree)


def test_a_group_drafts_from_its_own_pool_and_from_all_texts() -> None:
    pools = Pools(10)
    pools.add([np.array([1, 2]), np.array([1, 3]), np.array([7, 8])], ["a", "b", "b"])
    both = {(2,): 0.5, (3,): 0.5}
    assert drafted(pools, [9, 1], GLOBAL) == drafted(pools, [9, 1], "c") == both  # nobody has heard of group c
    assert drafted(pools, [9, 1], "a") == pytest.approx({(2,): (1.3 + 0.5) / 2.3, (3,): 0.5 / 2.3})
    assert drafted(pools, [9, 1], "a", group_weight=0) == both
    assert drafted(pools, [9, 1], "a", group_weight=1e9) == pytest.approx({(2,): 1.0, (3,): 0.0}, abs=1e-8)
    assert drafted(pools, [9, 7], "a") == {(8,): 1.0}  # which group a does not know
    with pytest.raises(ValueError, match="2 texts were given with 1 groups"):
        pools.add([np.array([1]), np.array([2])], ["a"])


def test_longer_matches_count_more() -> None:
    pools = Pools(10)
    pools.add([np.array([1, 2, 3, 4]), np.array([5, 3, 6])], ["a", "b"])
    # Start, 1 and 3 match two tokens (2, 3) in group a and all texts, and one in group b.
    text = [9, 5, 2, 3]
    assert drafted(pools, text, "b") == pytest.approx({(4,): 4 / 5.3, (6,): 1.3 / 5.3})


def by_hand(text: list[int], least: int) -> list[list[int]]:
    """What followed the longest earlier occurrences of the end of `text` in it, by a slow search."""
    for length in range(min(MAX_CONTEXT, len(text) - 1), least - 1, -1):
        ends = [end for end in range(length, len(text)) if text[end - length : end] == text[-length:]]
        if ends:
            return [text[end : end + MAX_DEPTH] for end in ends[-ROWS:]]
    return []


@given(st.lists(st.lists(st.integers(0, 2), max_size=50), min_size=1, max_size=5), st.integers(1, 3))
def test_what_texts_repeat_of_themselves(asked: list[list[int]], least: int) -> None:
    found = repeats([np.array(text, np.int32) for text in asked], np.dtype(">u2"), least)
    rows = found.suffixes.view(">u2").reshape(-1, MAX_DEPTH).astype(np.int64) - 2
    for number, text in enumerate(asked):
        at = (found.texts == number).nonzero()[0]
        follows = by_hand(text, least)
        assert at.size == bool(follows)
        if follows:
            own = rows[found.owners == at[0]].tolist()
            assert sorted(own) == sorted([*tail, *[-2] * (MAX_DEPTH - len(tail))] for tail in follows)


def test_the_prompt_and_the_text_itself_are_drafted_from() -> None:
    pools = Pools(100)
    assert drafted(pools, [1, 40, 41, 42, 43, 7, 40, 41], GLOBAL, max_depth=3) == {
        (42,): 1.0,
        (42, 43): 1.0,
        (42, 43, 7): 1.0,
    }
    assert drafted(pools, [1, 40, 41, 42, 7, 40, 41], GLOBAL, own_weight=0) == {}
    pools.add([np.array([40, 41, 50])], ["a"])
    assert set(drafted(pools, [40, 41, 42, 7, 40, 41], GLOBAL, max_depth=1)) == {(42,), (50,)}


@given(texts, st.lists(st.tuples(running, st.booleans()), min_size=1, max_size=6), st.sampled_from([0.0, 0.05, 0.3]))
def test_shares_of_several_sources_are_their_mean(
    written: list[list[int]], asked: list[tuple[list[int], bool]], min_share: float
) -> None:
    """Against joining the sources' branches by hand; parents come before children, whatever is left out."""
    pools = Pools(VOCABULARY)
    kept = [text for text in written if text]
    pools.add([np.array(text) for text in kept], ["ab"[number % 2] for number in range(len(kept))])
    drafter = PoolDrafter(pools, discount=0.0, min_share=min_share, max_nodes=MAX_NODES)
    runnings = [RunningText(np.array([0, *text], np.int32), 1, "ab"[group], 6) for text, group in asked]
    for (text, _), one, tree in zip(asked, runnings, drafter.draft(runnings).split(), strict=True):
        sources = []  # weight, count, branches
        for group, weight in ((one.group, 1.3), (GLOBAL, 1.0)):
            of_group = [t for n, t in enumerate(kept) if group == GLOBAL or "ab"[n % 2] == group]
            matches, expected = counted(of_group, text, 6)
            length = next((n for n in range(MAX_CONTEXT, 0, -1) if occurs(of_group, text, n)), 0)
            if matches and (group == GLOBAL or group in pools.by_group):
                sources.append((weight * length**2, matches, expected))
        whole = [0, *text]
        if follows := by_hand(whole, 2):
            length = next(n for n in range(min(MAX_CONTEXT, len(whole) - 1), 1, -1) if by_hand(whole, n))
            tails = Counter(tuple(tail[:size]) for tail in follows for size in range(1, min(6, len(tail)) + 1))
            sources.append((0.6 * length**2, len(follows), tails))
        if any(count > ROWS for _, count, _ in sources):
            continue
        total = sum(weight for weight, *_ in sources)
        shares: Counter[tuple[int, ...]] = Counter()
        for weight, count, of_source in sources:
            for branch, times in of_source.items():
                shares[branch] += weight / total * times / count
        found = branches(tree)
        assert len(found) == tree.size <= MAX_NODES
        for branch, share in found.items():
            assert shares[branch] - min_share / 4 - 1e-6 < share < shares[branch] + 1e-6
        missing = [share for branch, share in shares.items() if branch not in found]
        if missing and tree.size < MAX_NODES:
            assert max(missing) < 1.25 * min_share + 1e-9


def occurs(written: list[list[int]], text: list[int], length: int) -> bool:
    """Whether the last `length` codes, starts counted, stand in `written`."""
    context = [START, *text]
    starting = [[START, *tokens] for tokens in written if tokens]
    return length <= len(context) and any(
        tokens[at : at + length] == context[-length:] for tokens in starting for at in range(len(tokens) - length + 1)
    )


def test_pools_are_saved_and_loaded_with_any_group_names(tmp_path: Path) -> None:
    pools = Pools(10, max_tokens=500)
    pools.add([np.array([1, 2]), np.array([1, 3])], ["user:category:DIY & más/..", GLOBAL])
    pools.save(tmp_path / "pools")
    loaded = Pools.load(tmp_path / "pools")
    assert loaded.max_tokens == 500
    assert set(drafted(loaded, [9, 1], "user:category:DIY & más/..")) == {(2,), (3,)}
    assert "user:category:DIY & más/.." in loaded.by_group
    assert loaded.by_group[GLOBAL].tokens == 6 and not loaded.sources
    loaded.sources.append("a file")
    for _ in range(2):  # what is saved takes the place of what was there
        loaded.save(tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["1-0.npz", "1-1.npz", "pools.json"]
    assert Pools.load(tmp_path / "again").sources == ["a file"]
    (tmp_path / "pools" / "0-1.npz").unlink()
    with pytest.raises(ValueError, match=r"0-1\.npz: cannot be read"):
        Pools.load(tmp_path / "pools")
    for index, message in (
        ("{", "cannot be read as an index"),
        ("{}", "pools: has no 'format'"),
        ('{"format": 2}', "has format 2"),
        ('{"format": 1, "vocabulary_size": 10, "max_tokens": 5, "files": {}}', "names no pool of the group 'global'"),
        ('{"format": 1, "vocabulary_size": 9, "max_tokens": 5, "files": {"global": "0-0.npz"}}', "vocabulary of 10"),
    ):
        (tmp_path / "pools" / "pools.json").write_text(index)
        with pytest.raises(ValueError, match=message):
            Pools.load(tmp_path / "pools")


def test_depths_of_a_tree() -> None:
    tree = TokenTree(np.arange(5, dtype=np.int32), np.array([-1, 0, 1, 0, -1]), np.ones(5, np.float32))
    assert tree.depths.tolist() == [1, 2, 3, 2, 1]
    assert TokenTree.chain(np.array([4, 5, 6])).depths.tolist() == [1, 2, 3]
