"""The OpenVINO engine beyond what every engine does: integers, few shapes, precision, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import openvino as ov
import pytest
import torch

import genrec.engines
from genrec.bundle import ONNX_GRAPH, Bundle, seal_bundle
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines import open_engine
from genrec.engines.onnx import LAST, PREFIXES, OnnxEngine
from genrec.engines.openvino import OpenVinoEngine, _chosen
from genrec.engines.openvino_graph import read_graph
from genrec.golden import check_drafts
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.config import BackboneShape
from genrec_builders.export import onnx as exporter
from tests.near import assert_same_drafts
from tests.needs import needs_avx512

pytestmark = needs_avx512


def histories_of(bundle: Bundle, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, len(bundle.catalog), rng.integers(1, 40)) for _ in range(count)]
    return [bundle.layout.encode(bundle.catalog.sids[history]) for history in rows]


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_baseline_drafts_as_in_onnx_runtime(baseline: Bundle, batch: int) -> None:
    ours, theirs = open_engine(baseline, "openvino", precision="f32", threads=1), open_engine(baseline, threads=1)
    prompts = histories_of(baseline, 200)
    for masked in (True, False):
        for at in range(0, len(prompts), batch):
            part = prompts[at : at + batch]
            assert_same_drafts(ours.draft(part, masked=masked), theirs.draft(part, masked=masked))


@pytest.mark.parametrize(
    ("levels", "width"),
    [((256,) * 4, 40), ((512,) * 4, 40), ((8192,) * 3, 40), ((300, 700, 9), 64), ((1 << 15, 1 << 16, 7), 20)],
)
def test_large_semantic_ids_come_out_exactly(levels: tuple[int, ...], width: int, tmp_path: Path) -> None:
    """Codes and keys above 2^24, which float32 does not hold, and codes above 2^32."""
    space, rng = SemanticIdSpace(levels), np.random.default_rng(0)
    layout = PromptLayout.contiguous(space, max_history=6)
    torch.manual_seed(0)
    config = BackboneShape(hidden_size=16, intermediate_size=32, layers=2, heads=2, kv_heads=2, head_dim=8)
    model = NezhaModel(config.config(layout), levels, 12, 16, 2).eval()
    exporter.export_onnx(model, tmp_path / "model.onnx", width, layout.max_tokens)
    # Many that end alike, too: the largest keys of the table.
    codes = np.concatenate([rng.integers(0, space.size, 3000), space.size - 1 - rng.integers(0, space.size // 9, 500)])
    table = PrefixTable.build(space, codes)
    theirs = OnnxEngine(tmp_path / "model.onnx", table, width, threads=1)
    ours = OpenVinoEngine(tmp_path / "model.onnx", table, width, layout.max_tokens, threads=1, precision="f32")
    prompts = [layout.encode(rng.integers(0, levels, (count, len(levels)))) for count in (1, 6, 3)]
    rules = [engine.rule_masks.build(np.unique(codes)[::3]) for engine in (ours, theirs)]
    for masked in (True, False):
        for batch in (prompts, prompts[:1]):
            assert_same_drafts(ours.draft(batch, masked=masked), theirs.draft(batch, masked=masked), apart=0)
            mine, other = (
                engine.draft(batch, masked=masked, rules=[rule] * len(batch))
                for engine, rule in zip((ours, theirs), rules, strict=True)
            )
            assert_same_drafts(mine, other, apart=0)
    drafts = ours.draft(prompts)
    assert np.isin(drafts.codes[np.isfinite(drafts.scores)], codes).all() and np.isfinite(drafts.scores).any()


def test_a_processor_that_it_is_wrong_on_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(ValueError, match=r"no AVX-512, or ONEDNN_MAX_CPU_ISA forbids it, .*; use the onnx engine"):
        open_engine(bundle, "openvino")


def test_semantic_ids_whose_prefixes_need_more_bits_are_refused(bundle: Bundle) -> None:
    table = PrefixTable.build(SemanticIdSpace((2048,) * 4), np.arange(9))
    with pytest.raises(ValueError, match=r"level 3 has 68719476736 prefixes .* no more than 2147483648, 32 bits; use"):
        OpenVinoEngine(bundle.path / ONNX_GRAPH, table, 64, 40)


def test_a_warm_up_runs_every_shape_that_is_asked_for_later(bundle: Bundle) -> None:
    """Nothing that comes afterwards has a shape for which OpenVINO has kernels still to make."""
    engine = open_engine(bundle, "openvino", precision="f32", threads=1)
    reference, prompts = open_engine(bundle, threads=1), histories_of(bundle, 40)
    seen: list[tuple[int, ...]] = []
    run = OpenVinoEngine._padded

    def noted(self: OpenVinoEngine, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
        padded = run(self, *parts)
        seen.append(padded[0].shape)
        return padded

    with patch.object(OpenVinoEngine, "_padded", noted):
        engine.warm_up(prompts[0], 5)
        warm = set(seen)
        for batch in (1, 2, 3, 4, 5):
            for at in range(0, len(prompts), batch):
                part = prompts[at : at + batch]
                assert_same_drafts(engine.draft(part), reference.draft(part))
        assert set(seen) == warm and {rows for rows, _ in warm} == {1, 2, 4, 5}
    assert_same_drafts(engine.draft(prompts), reference.draft(prompts))  # a batch that no bucket holds


def test_reduced_precision_keeps_the_best_items(bundle: Bundle) -> None:
    engine, exact = open_engine(bundle, "openvino"), open_engine(bundle)
    assert isinstance(engine, OpenVinoEngine)
    check_drafts(bundle.golden, engine)
    prompts = histories_of(bundle, 200)
    ours, theirs = engine.draft(prompts), exact.draft(prompts)
    if engine.precision == "f32":
        assert_same_drafts(ours, theirs)
        pytest.skip("this processor has no AMX, so auto is f32")
    assert not np.array_equal(ours.scores, theirs.scores), "this ran in float32"
    assert np.mean([np.isin(a[:10], b[:10]).mean() for a, b in zip(ours.codes, theirs.codes, strict=True)]) >= 0.95
    finite = np.isfinite(theirs.scores)
    np.testing.assert_array_equal(np.isfinite(ours.scores), finite)
    np.testing.assert_allclose(ours.scores[finite], theirs.scores[finite], atol=engine.score_tolerance)


def test_the_precision_is_what_the_processor_is_made_for() -> None:
    amx, emulated, neither = ["BF16", "FP32", "FP16"], ["BF16", "FP32"], ["FP32"]
    assert [_chosen("auto", found) for found in (amx, emulated, neither)] == ["bf16", "f32", "f32"]
    assert [_chosen("f32", found) for found in (amx, neither)] == ["f32", "f32"]
    assert _chosen("bf16", emulated) == "bf16"
    with pytest.raises(ValueError, match="bf16: this processor computes FP32 only; use f32 or auto"):
        _chosen("bf16", neither)
    with pytest.raises(ValueError, match="precision 'fp8' with engine openvino, which computes in f32 or bf16"):
        _chosen("fp8", amx)


def test_a_graph_from_before_is_refused_and_serves_in_onnx_runtime(bundle: Bundle, tmp_path: Path) -> None:
    """Bundles of format 4 had graphs without the codes' parts."""
    import onnx

    path = tmp_path / "older"
    shutil.copytree(bundle.path, path)
    graph = onnx.load(path / ONNX_GRAPH)
    parts = [output for output in graph.graph.output if output.name in (PREFIXES, LAST)]
    assert len(parts) == 2
    for output in parts:
        graph.graph.output.remove(output)
    onnx.save(graph, path / ONNX_GRAPH)
    seal_bundle(path, **bundle.manifest.model_dump(exclude={"files", "format_version"}))
    older, prompts = Bundle(path), histories_of(bundle, 5)
    assert_same_drafts(open_engine(older).draft(prompts), open_engine(bundle).draft(prompts))
    with pytest.raises(ValueError, match=r"has no output prefixes, last_codes: .* with `genrec export BUNDLE OUT`"):
        open_engine(older, "openvino")


def test_without_its_package_it_is_said_what_to_install(
    bundle: Bundle, run_genrec: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genrec.engines, "find_spec", lambda name: None)
    status, said = run_genrec("serve", bundle.path, "--engine", "openvino")
    assert status and "openvino is not installed" in said and "pip install 'genrec-triton[openvino]'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("largest", [1 << 24, 1 << 31])
def test_integers_are_divided_and_compared_exactly(largest: int, tmp_path: Path) -> None:
    """OpenVINO's own operators go through float32, which is not exact above 2^24."""

    class Integers(torch.nn.Module):
        def forward(self, values: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.div(values, by, rounding_mode="trunc"), values % by, values.reshape(2, -1, 8).amax((0, -1))

    rng, names = np.random.default_rng(0), ("quotient", "rest", "greatest")
    given = {"values": torch.zeros(32, dtype=torch.int32), "by": torch.ones(32, dtype=torch.int32)}
    free = dict.fromkeys((*given, *names), ("count",))
    exporter.write_graph(Integers(), given, names, free, tmp_path / "integers.onnx")
    compiled = ov.Core().compile_model(read_graph(tmp_path / "integers.onnx", names, largest), "CPU")
    for most in (2, 1000, largest):
        by = rng.integers(1, most, 4096)
        # Multiples and their neighbours are where a rounded quotient is wrong.
        values = np.clip(rng.integers(0, largest, 4096) // by * by + rng.integers(-1, 2, 4096), 0, largest - 1)
        found = compiled([values.astype(np.int32), by.astype(np.int32)])
        expected = values // by, values % by, values.reshape(2, -1, 8).max((0, 2))
        for at, numbers in enumerate(expected):
            np.testing.assert_array_equal(found[at], numbers)
