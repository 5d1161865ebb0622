"""ONNX Runtime against PyTorch on one bundle: the same items in the same order."""

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.engines import open_engine
from genrec.engines.base import Drafts, Engine
from tests.near import assert_same_drafts


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> tuple[Engine, Engine]:
    return open_engine(bundle, "onnx", threads=1), open_engine(bundle, "torch")


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_onnx_and_torch_draft_the_same(
    bundle: Bundle, engines: tuple[Engine, Engine], rng: np.random.Generator, masked: bool, batch: int
) -> None:
    onnx, torch = engines
    rows = [rng.integers(0, len(bundle.catalog), rng.integers(1, 40)) for _ in range(80)]
    prompts = [bundle.layout.encode(bundle.catalog.sids[history]) for history in rows]
    for at in range(0, len(prompts), batch):
        part = prompts[at : at + batch]
        assert_same_drafts(onnx.draft(part, masked=masked), torch.draft(part, masked=masked))


@pytest.mark.parametrize("kind", [0, 1])
def test_drafts_are_ordered_distinct_and_valid(bundle: Bundle, engines: tuple[Engine, Engine], kind: int) -> None:
    prompts = [bundle.layout.encode(bundle.catalog.sids[first : first + 3]) for first in range(0, 120, 3)]
    drafts = engines[kind].draft(prompts)
    for codes, scores in zip(drafts.codes, drafts.scores, strict=True):
        live = codes[np.isfinite(scores)]
        assert len(set(live.tolist())) == len(live)
        assert (bundle.index.buckets_of(live) >= 0).all()
    keys = [list(zip((-s).tolist(), c.tolist(), strict=True)) for s, c in zip(drafts.scores, drafts.codes, strict=True)]
    assert all(row == sorted(row) for row in keys)


def test_an_empty_prompt_drafts_nothing_and_disturbs_nobody(bundle: Bundle, engines: tuple[Engine, Engine]) -> None:
    prompt = bundle.layout.encode(bundle.catalog.sids[:4])
    nothing = np.empty(0, np.int32)
    mixed = engines[0].draft([nothing, prompt, nothing])
    assert (mixed.scores[[0, 2]] == -np.inf).all()
    np.testing.assert_array_equal(mixed.codes[1], engines[0].draft([prompt]).codes[0])
    assert (engines[0].draft([nothing]).scores == -np.inf).all()


def test_ties_are_ordered_by_code() -> None:
    drafts = Drafts.ordered(
        np.array([[9, 5, 7, 1, 3]]), np.array([[-1.0, -1.0, -2.0, -np.inf, -np.inf]], dtype=np.float32)
    )
    assert drafts.codes.tolist() == [[5, 9, 7, 1, 3]]


def test_an_unknown_engine_is_named(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="'tpu' is unknown; use one of"):
        open_engine(bundle, "tpu")
