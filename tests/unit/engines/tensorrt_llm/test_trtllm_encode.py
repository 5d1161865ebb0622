"""The encode-only engine on the test double: parity, rules, batches that take several passes, releases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.catalog import PrefixTable
from genrec.engines import open_engine
from genrec.engines.base import InFlightEngine
from genrec.engines.tensorrt_llm.encode import EncodeEngine
from genrec.golden import check_drafts
from tests.near import assert_same_drafts

Start = Callable[..., Any]


@pytest.fixture
def encoder(start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts encode-only engines on a release that has the path."""
    monkeypatch.setattr(stand_in, "__version__", "1.3.0rc29")
    return lambda **options: start(encode_only=True, **options)


@pytest.fixture
def prompts(exported: Bundle) -> list[np.ndarray]:
    rng, sids = np.random.default_rng(3), exported.catalog.sids
    return [exported.layout.encode(sids[rng.integers(0, len(sids), rng.integers(1, 20))]) for _ in range(19)]


def test_it_drafts_what_the_pytorch_engine_drafts(
    encoder: Callable[..., Any], exported: Bundle, prompts: list[np.ndarray]
) -> None:
    engine = encoder()
    assert isinstance(engine, EncodeEngine) and not isinstance(engine, InFlightEngine)
    prompts.insert(2, np.empty(0, np.int32))
    assert_same_drafts(engine.draft(prompts), open_engine(exported, "torch").draft(prompts))
    check_drafts(exported.golden, engine)


@pytest.mark.parametrize(("tokens", "passes"), [(8192, [8, 8, 3]), (100, None)])
def test_a_batch_is_cut_where_a_pass_would_be_too_large(
    encoder: Callable[..., Any], exported: Bundle, prompts: list[np.ndarray], tokens: int, passes: list[int] | None
) -> None:
    engine = encoder(max_num_tokens=tokens)
    drafts = engine.draft(prompts)
    assert_same_drafts(drafts, open_engine(exported, "torch").draft(prompts))
    ran = [contexts for contexts, _, _, _ in engine._llm.steps]
    assert sum(ran) == 19 and (passes is None or ran == passes)
    assert all(taken <= tokens for _, _, taken, _ in engine._llm.steps) and (passes or len(ran) > 3)


def test_requests_of_one_pass_obey_their_own_rules(
    encoder: Callable[..., Any], exported: Bundle, prompts: list[np.ndarray]
) -> None:
    engine, reference = encoder(), open_engine(exported, "torch", device="cpu")
    every = np.unique(exported.space.encode(exported.catalog.sids))
    codes = [(None, every[::3], every[:20])[at % 3] for at in range(len(prompts))]

    def ruled(one: Any) -> Any:
        return one.draft(prompts, rules=[None if some is None else one.rule_masks.build(some) for some in codes])

    assert_same_drafts(ruled(engine), ruled(reference))
    assert_same_drafts(engine.draft(prompts), reference.draft(prompts))


def test_masks_change_inside_the_model(
    encoder: Callable[..., Any], exported: Bundle, prompts: list[np.ndarray]
) -> None:
    engine, expected = encoder(), open_engine(exported, "torch", device="cpu")
    table = PrefixTable.build(exported.space, np.unique(exported.space.encode(exported.catalog.sids))[::2])
    for each in (engine, expected):
        each.set_masks(table)
    assert_same_drafts(engine.draft(prompts), expected.draft(prompts))


@pytest.mark.parametrize("release", ["1.2.1", "0.0.0+test.double", "unknown"])
def test_releases_without_the_path_are_refused(
    stand_in: Any, exported: Bundle, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr(stand_in, "__version__", release)
    with pytest.raises(ValueError, match=r"encode_only is true, which TensorRT-LLM has from 1\.3 on, and this is"):
        open_engine(exported, "tensorrt_llm", encode_only=True)


def test_prompts_that_the_model_cannot_take_are_refused(encoder: Callable[..., Any], exported: Bundle) -> None:
    engine = encoder()
    with pytest.raises(ValueError, match=f"the model knows 0 to {exported.layout.vocabulary_size - 1}"):
        engine.draft([np.array([1, exported.layout.vocabulary_size], np.int32)])
    with pytest.raises(ValueError, match="masks only"):
        engine.draft([exported.golden["prompt"]], masked=False)
