import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.prompt import PromptLayout, runs_of
from genrec.semantic_id import SemanticIdSpace

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


def test_a_made_vocabulary_has_no_gaps_and_no_shared_ids() -> None:
    layout = PromptLayout.contiguous(SPACE, 5)
    ids = [*layout.prefix, *layout.placeholders, *(t for level in range(3) for t in layout.level_tokens(level))]
    assert sorted(ids) == list(range(1, layout.vocabulary_size))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True))
def test_runs_spell_out_any_token_map(token_ids: list[int]) -> None:
    assert [t for first, count in runs_of(np.array(token_ids)) for t in range(first, first + count)] == token_ids


def test_a_tokenizers_own_scattered_sid_tokens_are_used() -> None:
    layout = PromptLayout(
        SPACE, prefix=(900,), placeholders=(901, 902, 903), max_history=2,
        sid_tokens=(((50, 2), (10, 2)), ((20, 8),), ((70, 6),)),
    )  # fmt: skip
    assert layout.encode(np.array([[0, 0, 0], [2, 7, 5]])).tolist() == [900, 50, 20, 70, 10, 27, 75, 901, 902, 903]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placeholders": (2, 3)}, "as many placeholders"),
        ({"placeholders": (2, 3, 3)}, "token id of its own"),
        ({"placeholders": (2, 3, 5)}, "also used as a prefix or placeholder"),
        ({"sid_tokens": (((5, 4),), ((9, 7),), ((17, 6),))}, "level 1 has 8 codes but its token map covers 7"),
        ({"sid_tokens": (((5, 4),), ((8, 8),), ((17, 6),))}, "token id of its own"),
        ({"max_history": 0}, "max_history"),
    ],
)
def test_layouts_that_would_mix_tokens_up_are_refused(change: dict, message: str) -> None:
    fields = {f: getattr(PromptLayout.contiguous(SPACE, 3), f) for f in PromptLayout.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        PromptLayout(**(fields | change))
