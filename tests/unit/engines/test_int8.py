"""The graph with the backbone's products in int8: what it computes, for whom, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from genrec.bundle import ONNX_GRAPH, ONNX_INT8, Bundle
from genrec.engines import onnx as engine_module
from genrec.engines import open_engine
from genrec.engines.onnx import OnnxEngine
from genrec.golden import check_drafts
from genrec_builders.export import int8 as exporter
from genrec_builders.export.int8 import quantize_backbone
from tests.needs import needs_vnni


def prompts_of(bundle: Bundle, rng: np.random.Generator, count: int = 200) -> list[np.ndarray]:
    rows = [rng.integers(0, len(bundle.catalog), rng.integers(1, 40)) for _ in range(count)]
    return [bundle.layout.encode(bundle.catalog.sids[history]) for history in rows]


@pytest.mark.parametrize("kind", ["bundle", "baseline"])
def test_every_product_of_a_layer_is_in_int8_and_none_of_the_decoder(kind: str, request: pytest.FixtureRequest) -> None:
    found: Bundle = request.getfixturevalue(kind)
    exact, reduced = (onnx.load(found.path / name).graph for name in (ONNX_GRAPH, ONNX_INT8))
    whole = [weight for weight in reduced.initializer if weight.data_type == TensorProto.INT8]
    layers, steps = 2, len(found.space.levels) - 1
    passes = 1 if kind == "bundle" else 1 + steps  # a beam search goes through the backbone for each level
    products = sum(node.op_type == "MatMulIntegerToFloat" for node in reduced.node)
    assert (len(whole), products) == (7 * layers, 7 * layers * passes)  # all passes share the weights
    names = {node.name for node in exact.node if node.op_type in ("MatMul", "Gemm")}
    kept = {node.name for node in reduced.node if node.op_type in ("MatMul", "Gemm")}
    assert len(names - kept) == products and not any("_proj/" in name or "_proj_" in name for name in kept)


def graph_of(weight: np.ndarray, path: Path) -> Path:
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", "c"]) for name in ("x", "y")]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "/layer/q_proj_3/MatMul")
    graph = helper.make_graph([product], "g", rows[:1], rows[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


@needs_vnni
@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 80), st.integers(1, 40), st.integers(0, 1 << 32))
def test_a_product_is_the_formula(
    tmp_path_factory: pytest.TempPathFactory, batch: int, rows: int, inner: int, columns: int, seed: int
) -> None:
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("g")
    weight = rng.normal(size=(inner, columns)).astype(np.float32) * rng.uniform(0.01, 10, columns).astype(np.float32)
    weight[:, 0] = 0
    values = rng.normal(size=(batch, rows, inner)).astype(np.float32) * rng.uniform(0.01, 99, (batch, rows, 1))
    values = values.astype(np.float32)
    values[0, 0] = 0
    quantize_backbone(graph_of(weight, folder / "f32.onnx"), folder / "int8.onnx")
    found = ort.InferenceSession(folder / "int8.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": values})[0]
    of_rows, of_columns = np.abs(values).max(2, keepdims=True) / 127, np.abs(weight).max(0) / 127
    # Each factor is off by half a step at most.
    allowed = of_rows * np.abs(weight).sum(0) + of_columns * np.abs(values).sum(2, keepdims=True)
    assert np.all(np.abs(found - values @ weight) <= 0.5 * allowed + inner * of_rows * of_columns + 1e-5)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = [np.nan_to_num(np.rint(each / step)) for each, step in ((values, of_rows), (weight, of_columns))]
    # A value that lies half way between two integers may be rounded to either.
    np.testing.assert_allclose(found, of_rows * of_columns * (whole[0] @ whole[1]), atol=float(allowed.max()) / 50)


@needs_vnni
@pytest.mark.parametrize("kind", ["bundle", "baseline"])
def test_int8_keeps_the_best_and_no_prompt_sees_its_batch(
    kind: str, request: pytest.FixtureRequest, rng: np.random.Generator
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    engine, exact = (open_engine(bundle, threads=1, precision=precision) for precision in ("int8", "f32"))
    check_drafts(bundle.golden, engine)
    prompts = prompts_of(bundle, rng)
    for masked in (True, False):
        theirs = exact.draft(prompts, masked=masked)
        alone = [engine.draft([prompt], masked=masked) for prompt in prompts]
        assert not np.array_equal(np.concatenate([one.scores for one in alone]), theirs.scores), "this ran in float32"
        kept = [np.isin(one.codes[0, :10], codes[:10]).mean() for one, codes in zip(alone, theirs.codes, strict=True)]
        assert np.mean(kept) >= 0.95
        for batch in (3, 16):
            for at in range(0, len(prompts), batch):
                together = engine.draft(prompts[at : at + batch], masked=masked)
                for scores, one in zip(together.scores, alone[at:], strict=False):
                    # Sums of integers are exact. The rest is float32, whose sums may be in another order, and a value
                    # half way between two integers may then be rounded to the other one: some of the best move a bit.
                    finite = np.isfinite(one.scores[0])
                    np.testing.assert_allclose(scores[finite], one.scores[0][finite], atol=0.02)


def test_int8_is_refused_where_it_cannot_be(
    bundle: Bundle, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="precision 'bf16' with engine onnx, which computes in f32 or int8: leave it"):
        open_engine(bundle, precision="bf16")
    weight = np.ones((2, 2), np.float32)
    named = onnx.load(graph_of(weight, tmp_path / "named.onnx"))
    named.graph.node[0].name = "/projections.0/MatMul"
    onnx.save(named, str(tmp_path / "named.onnx"))
    with pytest.raises(ValueError, match=r"named.onnx: its layers' products, such as q_proj, are not as exported"):
        quantize_backbone(tmp_path / "named.onnx", tmp_path / "out.onnx")
    (bundle_copy / ONNX_INT8).unlink()
    with pytest.raises(ValueError, match=r"int8.onnx is missing: .* make a newer one with `genrec export`"):
        open_engine(Bundle(bundle_copy), precision="int8")
    assert isinstance(open_engine(Bundle(bundle_copy)), OnnxEngine)
    monkeypatch.setattr(engine_module, "processor_line", lambda name: "fpu sse2 avx2 avx512f")
    with pytest.raises(ValueError, match="precision int8: this processor has no VNNI"):
        open_engine(bundle, precision="int8")


@needs_vnni
def test_large_weights_stand_in_a_file_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_ONE_FILE", 1000)
    graph = graph_of(np.eye(64, dtype=np.float32), tmp_path / "f32.onnx")
    quantize_backbone(graph, tmp_path / "int8.onnx")
    beside = tmp_path / "int8.onnx.weights"
    assert beside.stat().st_size >= 64 * 64 and beside.stat().st_mode == graph.stat().st_mode
    values = np.full((1, 2, 64), 2, np.float32)
    session = ort.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": values})[0], values, rtol=1e-5)
