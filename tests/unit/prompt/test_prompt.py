import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import SemanticIdSpace
from genrec.prompt import PromptLayout, runs_of

SPACE = SemanticIdSpace((4, 8, 6))


@given(st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_prompt_is_prefix_history_placeholders(items: int, seed: int) -> None:
    layout = PromptLayout.contiguous(SPACE, max_history=7)
    sids = np.random.default_rng(seed).integers(0, SPACE.levels, (items, 3))
    prompt = layout.encode(sids)
    expected = list(layout.prefix)
    for sid in sids.tolist()[-7:]:
        expected += [layout.level_tokens(level)[code] for level, code in enumerate(sid)]
    expected += list(layout.placeholders)
    assert prompt.dtype == np.int32
    assert prompt.tolist() == expected
    assert len(prompt) <= layout.max_tokens


@given(st.integers(0, 12), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_markers_stand_around_each_item_and_the_next_one_has_begun(items: int, asked: int, seed: int) -> None:
    plain = PromptLayout.contiguous(SPACE, max_history=7, max_query=2, text_tokens=3)
    begin, end = plain.vocabulary_size, plain.vocabulary_size + 1
    layout = dataclasses.replace(plain, markers=(begin, end))
    sids = np.random.default_rng(seed).integers(0, SPACE.levels, (items, 3))
    expected = [*layout.prefix, *layout.query_tokens([0, 1][:asked])]
    for sid in sids.tolist()[-7:]:
        expected += [begin, *(layout.level_tokens(level)[code] for level, code in enumerate(sid)), end]
    expected += [begin, *layout.placeholders]
    assert layout.encode(sids, layout.query_tokens([0, 1][:asked])).tolist() == expected
    assert len(expected) <= layout.max_tokens == plain.max_tokens + 7 * 2 + 1
    assert layout.vocabulary_size == end + 1
    rows = layout.history_tokens(sids[None])
    assert rows.shape == (1, items * layout.item_tokens) and rows[0].tolist() == layout.history_tokens(sids).tolist()


def test_a_made_vocabulary_has_no_gaps_and_no_shared_ids() -> None:
    layout = PromptLayout.contiguous(SPACE, 5)
    ids = [*layout.prefix, *layout.placeholders, *(t for level in range(3) for t in layout.level_tokens(level))]
    assert sorted(ids) == list(range(1, layout.vocabulary_size))


@given(st.integers(0, 60), st.integers(1, 9), st.data())
def test_old_items_are_dropped_in_blocks(items: int, longest: int, data: st.DataObject) -> None:
    block = data.draw(st.integers(1, longest))
    layout = dataclasses.replace(PromptLayout.contiguous(SPACE, longest), drop_block=block)
    history = np.arange(items)
    kept = layout.recent(history)
    assert kept.tolist() == history[items - len(kept) :].tolist(), "the most recent ones"
    assert min(items, longest - block + 1) <= len(kept) <= min(items, longest)
    assert (items - len(kept)) % block == 0
    assert layout.recent(kept).tolist() == kept.tolist()
    if block == 1:
        assert kept.tolist() == history[-longest:].tolist()


def test_a_returning_users_prompt_starts_as_the_last_one_did() -> None:
    layout = dataclasses.replace(PromptLayout.contiguous(SPACE, 6), drop_block=3)
    sids = np.random.default_rng(0).integers(0, SPACE.levels, (40, 3))
    prompts = [layout.encode(sids[:size]) for size in range(6, 30)]
    tail = len(layout.placeholders)
    alike = [
        len(old) < len(new) and old[:-tail].tolist() == new[: len(old) - tail].tolist()
        for old, new in itertools.pairwise(prompts)
    ]
    assert alike == [(at % 3) != 0 for at in range(len(alike))], "it shifts at every third visit only"


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True))
def test_runs_spell_out_any_token_map(token_ids: list[int]) -> None:
    assert [t for first, count in runs_of(np.array(token_ids)) for t in range(first, first + count)] == token_ids


def test_a_tokenizers_own_scattered_sid_tokens_are_used() -> None:
    layout = PromptLayout(
        SPACE, prefix=(900,), placeholders=(901, 902, 903), max_history=2,
        sid_tokens=(((50, 2), (10, 2)), ((20, 8),), ((70, 6),)),
    )  # fmt: skip
    assert layout.encode(np.array([[0, 0, 0], [2, 7, 5]])).tolist() == [900, 50, 20, 70, 10, 27, 75, 901, 902, 903]


@given(st.integers(0, 12), st.lists(st.integers(0, 29), max_size=9), st.integers(0, 2**32 - 1))
def test_a_query_stands_between_prefix_and_history(items: int, text_ids: list[int], seed: int) -> None:
    layout = PromptLayout.contiguous(SPACE, max_history=7, max_query=5, text_tokens=30)
    plain = PromptLayout.contiguous(SPACE, max_history=7)
    sids = np.random.default_rng(seed).integers(0, SPACE.levels, (items, 3))
    query = layout.query_tokens(text_ids)
    assert query.tolist() == [layout.text_offset + text_id for text_id in text_ids[:5]]
    prompt, without = layout.encode(sids, query), plain.encode(sids)
    assert prompt.dtype == np.int32
    assert prompt.tolist() == [1, *query, *without[1:]]
    assert layout.encode(sids).tolist() == without.tolist()
    assert len(prompt) <= layout.max_tokens == plain.max_tokens + 5
    assert prompt.max() < layout.vocabulary_size == plain.vocabulary_size + 30


def test_a_query_that_does_not_fit_is_refused() -> None:
    layout = PromptLayout.contiguous(SPACE, 7, max_query=2, text_tokens=30)
    nothing = np.empty((0, 3), np.int64)
    with pytest.raises(ValueError, match="a query of 3 tokens, but this layout holds 2"):
        layout.encode(nothing, np.full(3, layout.text_offset, np.int32))
    with pytest.raises(ValueError, match="a query of 1 tokens, but this layout holds 0"):
        PromptLayout.contiguous(SPACE, 7).encode(nothing, np.ones(1, np.int32))
    for ids in ([30], [0, -1]):
        with pytest.raises(ValueError, match="outside"):
            layout.query_tokens(ids)


@given(st.lists(st.integers(0, 109), max_size=30))
def test_text_never_becomes_an_item_a_placeholder_or_the_prefix(text_ids: list[int]) -> None:
    """A tokenizer of the backbone's own, whose ids run over everything that the layout uses."""
    layout = PromptLayout(
        SPACE, prefix=(90,), placeholders=(91, 92, 120), max_history=2, max_query=8, text_tokens=110,
        sid_tokens=(((50, 2), (10, 2)), ((20, 8),), ((70, 6),)),
    )  # fmt: skip
    taken = {90, 91, 92, 10, 11, 50, 51, *range(20, 28), *range(70, 76)}
    assert layout.query_tokens(text_ids).tolist() == [one for one in text_ids if one not in taken][:8]
    assert layout.vocabulary_size == 121


def test_a_prompt_may_have_no_placeholders() -> None:
    layout = dataclasses.replace(PromptLayout.contiguous(SPACE, 7), placeholders=())
    assert layout.encode(np.array([[1, 2, 3]])).tolist() == [1, *layout.tokens_of(np.array([1, 2, 3]))]
    assert layout.max_tokens == 1 + 7 * 3
    bare = dataclasses.replace(layout, prefix=())
    assert bare.vocabulary_size == layout.vocabulary_size
    assert bare.encode(np.empty((0, 3), np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placeholders": (2, 3)}, "as many placeholders"),
        ({"placeholders": (2, 3, 3)}, "token id of its own"),
        ({"placeholders": (2, 3, 5)}, "also used as a prefix or placeholder"),
        ({"markers": (5, 99)}, "or a marker"),
        ({"markers": (99,)}, "must be the token that begins an item and the one that ends it"),
        ({"sid_tokens": (((5, 4),), ((9, 7),), ((17, 6),))}, "level 1 has 8 codes but its token map covers 7"),
        ({"sid_tokens": (((5, 4),), ((8, 8),), ((17, 6),))}, "token id of its own"),
        ({"max_history": 0}, "max_history"),
        ({"drop_block": 0}, "drop_block must be 1 to max_history, 3, got 0"),
        ({"drop_block": 4}, "drop_block must be 1 to max_history, 3, got 4"),
        ({"prefix": (-1,)}, "must not be negative"),
        ({"sid_tokens": (((5, 7), (40, -3)), ((9, 8),), ((17, 6),))}, "holds at least one"),
        ({"sid_tokens": (((2**40, 4),), ((9, 8),), ((17, 6),))}, "token id 1099511627779 is above"),
        ({"prefix": (2**31,)}, "token id 2147483648 is above"),
        ({"max_query": 3}, "both be positive"),
        ({"text_tokens": 3}, "both be positive"),
        ({"max_query": -1, "text_tokens": 3}, "both be positive"),
        ({"max_query": 3, "text_tokens": 3, "text_offset": -1}, "text_offset -1"),
        ({"max_query": 3, "text_tokens": 3, "text_offset": 2**31}, "is above"),
        ({"max_query": 3, "text_tokens": 9, "text_offset": 22}, "text tokens 22 to 30 are also used"),
        ({"max_query": 3, "text_tokens": 2, "text_offset": 1}, "text tokens 1 to 2 are also used"),
    ],
)
def test_layouts_that_would_mix_tokens_up_are_refused(change: dict, message: str) -> None:
    fields = {f: getattr(PromptLayout.contiguous(SPACE, 3), f) for f in PromptLayout.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        PromptLayout(**(fields | change))
