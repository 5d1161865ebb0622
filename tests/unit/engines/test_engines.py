"""ONNX Runtime and OpenVINO against PyTorch on one bundle: the same items in the same order."""

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.bundle import CHECKPOINT, ONNX_GRAPH, Bundle
from genrec.catalog import PrefixTable
from genrec.engines import open_engine
from genrec.engines.base import Drafts, Engine
from genrec.engines.onnx import OnnxEngine
from genrec.engines.openvino import OpenVinoEngine
from genrec.engines.torch import TorchEngine
from tests.near import assert_same_drafts
from tests.needs import OPENVINO


@pytest.fixture(scope="module")
def opened(bundle: Bundle) -> Callable[[str], Engine]:
    """An engine by its name, opened once."""

    @cache
    def engine(kind: str) -> Engine:
        options: dict[str, dict[str, Any]] = {"onnx": {"threads": 1}, "openvino": {"threads": 1, "precision": "f32"}}
        return open_engine(bundle, kind, **options.get(kind, {}))

    return engine


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("kind", ["onnx", OPENVINO])
def test_graphs_draft_the_same_as_torch(
    bundle: Bundle,
    opened: Callable[[str], Engine],
    rng: np.random.Generator,
    kind: str,
    masked: bool,
    batch: int,
) -> None:
    rows = [rng.integers(0, len(bundle.catalog), rng.integers(1, 40)) for _ in range(200)]
    prompts = [bundle.layout.encode(bundle.catalog.sids[history]) for history in rows]
    for at in range(0, len(prompts), batch):
        part = prompts[at : at + batch]
        assert_same_drafts(opened(kind).draft(part, masked=masked), opened("torch").draft(part, masked=masked))


@pytest.mark.parametrize("kind", ["onnx", "torch", OPENVINO])
def test_drafts_are_ordered_distinct_and_valid(bundle: Bundle, opened: Callable[[str], Engine], kind: str) -> None:
    prompts = [bundle.layout.encode(bundle.catalog.sids[first : first + 3]) for first in range(0, 120, 3)]
    drafts = opened(kind).draft(prompts)
    for codes, scores in zip(drafts.codes, drafts.scores, strict=True):
        live = codes[np.isfinite(scores)]
        assert len(set(live.tolist())) == len(live)
        assert (bundle.index.buckets_of(live) >= 0).all()
    keys = [list(zip((-s).tolist(), c.tolist(), strict=True)) for s, c in zip(drafts.scores, drafts.codes, strict=True)]
    assert all(row == sorted(row) for row in keys)


@pytest.mark.parametrize("kind", ["onnx", OPENVINO])
def test_an_empty_prompt_drafts_nothing_and_disturbs_nobody(
    bundle: Bundle, opened: Callable[[str], Engine], kind: str
) -> None:
    engine = opened(kind)
    prompt = bundle.layout.encode(bundle.catalog.sids[:4])
    nothing = np.empty(0, np.int32)
    mixed = engine.draft([nothing, prompt, nothing])
    assert (mixed.scores[[0, 2]] == -np.inf).all()
    np.testing.assert_array_equal(mixed.codes[1], engine.draft([prompt]).codes[0])
    assert (engine.draft([nothing]).scores == -np.inf).all()


def test_ties_are_ordered_by_code() -> None:
    drafts = Drafts.ordered(
        np.array([[9, 5, 7, 1, 3]]), np.array([[-1.0, -1.0, -2.0, -np.inf, -np.inf]], dtype=np.float32)
    )
    assert drafts.codes.tolist() == [[5, 9, 7, 1, 3]]


def test_an_unknown_engine_is_named(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="'tpu' is unknown; use one of"):
        open_engine(bundle, "tpu")


def engine_on(kind: str, bundle: Bundle, table: PrefixTable) -> Engine:
    width = bundle.space.beams(bundle.manifest.beam_width)
    if kind == "onnx":
        return OnnxEngine(bundle.path / ONNX_GRAPH, table, width, threads=1)
    if kind == "openvino":
        longest = bundle.layout.max_tokens
        return OpenVinoEngine(bundle.path / ONNX_GRAPH, table, width, longest, threads=1, precision="f32")
    return TorchEngine(bundle.path / CHECKPOINT, table, width, "cpu")


def drafted(engine: Engine, prompt: np.ndarray) -> set[int]:
    drafts = engine.draft([prompt])
    return set(drafts.codes[np.isfinite(drafts.scores)].tolist())


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("kind", ["onnx", OPENVINO, "torch"])
def test_an_item_is_drafted_as_soon_as_the_table_allows_it(
    bundle: Bundle, kind: str, mapped: bool, tmp_path: Path
) -> None:
    """The engine is not told: it drafts with the table's own memory, or with a file's that another table changes."""
    prompt = bundle.layout.encode(bundle.catalog.sids[:4])
    best = open_engine(bundle, kind).draft([prompt]).codes[0, :1]
    live = np.setdiff1d(bundle.space.encode(bundle.catalog.sids), best)
    table = PrefixTable.build(bundle.space, live)
    engine = engine_on(kind, bundle, table)
    if mapped:
        table.save(tmp_path)
        engine = engine_on(kind, bundle, PrefixTable.load(tmp_path, bundle.space))
        table = PrefixTable.load(tmp_path, bundle.space, writable=True)
    before = drafted(engine, prompt)
    assert int(best[0]) not in before and before <= set(live.tolist())
    table.add(best)
    assert engine.draft([prompt]).codes[0, 0] == best[0]
    table.discard(best)
    assert drafted(engine, prompt) == before
    table.discard(live)
    assert drafted(engine, prompt) == set()


@pytest.mark.parametrize("kind", ["onnx", OPENVINO, "torch"])
def test_masks_can_be_swapped_while_requests_are_drafted(bundle: Bundle, kind: str) -> None:
    codes = np.unique(bundle.space.encode(bundle.catalog.sids))
    tables = [PrefixTable.build(bundle.space, part) for part in (codes[::2], codes[1::2])]
    engine = engine_on(kind, bundle, tables[0])
    prompt = bundle.layout.encode(bundle.catalog.sids[:4])
    answers = []
    for table in tables:
        engine.set_masks(table)
        answers.append(drafted(engine, prompt))
    assert answers[0] <= set(codes[::2].tolist()) and answers[1] <= set(codes[1::2].tolist())
    found: list[set[int]] = []
    asking = threading.Thread(target=lambda: found.extend(drafted(engine, prompt) for _ in range(60)))
    asking.start()
    while asking.is_alive():
        for table in tables:
            engine.set_masks(table)
    asking.join()
    assert len(found) == 60 and all(answer in answers for answer in found)
    assert np.isfinite(engine.draft([prompt], masked=False).scores).all()


@pytest.mark.parametrize("kind", ["onnx", OPENVINO])
def test_a_graph_refuses_masks_of_another_form(bundle: Bundle, kind: str) -> None:
    deeper = PrefixTable.build(type(bundle.space)((16, 16, 16, 16)), np.arange(9))
    with pytest.raises(ValueError, match=r"model.onnx: takes masks as .*mask_keys_2, not .*mask_keys_3"):
        open_engine(bundle, kind).set_masks(deeper)
