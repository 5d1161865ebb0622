"""The cost model: counts against PyTorch's and the exported graph's, waiting against closed form and simulation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from genrec.bundle import Bundle
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DECODERS, DRAFT_HEAD, HeadShape, expected_shapes
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.cli.main import app
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel, backbone_config
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec.planning.deployment import Demand, Fleet, Site, fleet_for, plan
from genrec.planning.hardware import COMPUTE, MEMORY, OPERATORS, PRESETS, Hardware, measure
from genrec.planning.queueing import latency_quantiles, simulate, utilisation, wait_distribution
from genrec.planning.work import (
    DECODE,
    ENGINES,
    PRECISIONS,
    PREFILL,
    Batch,
    Part,
    Shape,
    Work,
    token_bound,
    total,
    work_of,
)
from genrec.prompt import PromptLayout
from genrec_builders.config import BackboneShape
from genrec_builders.export.onnx import export_onnx

FLOAT32, ONNX = PRECISIONS["float32"], ENGINES["onnx"]
SHAPE = Shape(48, 80, 3, 6, 2, 16, 60, (10, 7, 12), 20, 24, 2)
# 9 parents of the second transition: for 17 children they are too many, for 18 few enough.
FEW_PARENTS = Shape(1, 1, 1, 1, 1, 2, 18, (9, 2, 2), 1, 1, 0)
SITE = Site(Hardware("as given", 50.0, 10.0, 2.0), ONNX, FLOAT32)
HARDWARE = ("--gflops", "50", "--bandwidth", "10")
FOUR_HEADS = ("--hidden-size", "64", "--layers", "2", "--heads", "4")
Run = Callable[..., tuple[int, str]]

shapes = st.builds(
    lambda hidden, inner, layers, groups, members, e, levels, state, wide, heads: Shape(
        hidden,
        inner,
        layers,
        groups * members,
        groups,
        2 * e,
        2 + len(levels) + sum(levels),
        levels,
        state * max(1, heads),
        wide,
        heads,
    ),
    *(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    *(st.integers(1, 8), st.lists(st.integers(2, 12), min_size=1, max_size=4).map(tuple)),
    *(st.integers(1, 20), st.integers(1, 20), st.integers(0, 3)),
)
batches = st.builds(Batch, st.integers(1, 30), st.integers(1, 40), st.integers(1, 3))


def model_of(shape: Shape, decoder: str, family: str = "qwen3") -> BackboneModel:
    layout = PromptLayout.contiguous(SemanticIdSpace(shape.levels), max_history=20)
    config = backbone_config(
        family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=512,
    )
    if decoder == BEAM_SEARCH:
        return AutoregressiveModel(config, layout.sid_tokens).eval()
    return NezhaModel(config, shape.levels, shape.state_size, shape.transition_size, shape.attention_heads).eval()


def counted_flops(shape: Shape, decoder: str, batch: Batch) -> int:
    """What PyTorch counts in one draft: its matrix products."""
    space = SemanticIdSpace(shape.levels)
    masks = Masks.of(PrefixTable.build(space, np.random.default_rng(0).integers(0, space.size, 50)))
    rows = batch.tokens + (len(shape.levels) if decoder == DRAFT_HEAD else 0)
    prompts = torch.zeros(batch.size, rows, dtype=torch.int64), torch.full((batch.size,), rows)
    # One kernel for attention would hide its products from the counter.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model_of(shape, decoder).draft(*prompts, masks, batch.beam_width)
    return counter.get_total_flops()


@settings(max_examples=8, deadline=None)
@given(shapes, batches)
@example(FEW_PARENTS, Batch(1, 17))
@example(FEW_PARENTS, Batch(1, 18))
def test_flops_of_nezha_are_pytorchs(shape: Shape, batch: Batch) -> None:
    # PyTorch projects the whole code tables, which are constants of the exported graph.
    tables = sum(2 * size * shape.state_size * 2 * shape.transition_size for size in shape.levels[:-1])
    expected = total(work_of(shape, DRAFT_HEAD, batch, FLOAT32, ONNX)).flops + tables
    assert counted_flops(shape, DRAFT_HEAD, batch) == expected


@settings(max_examples=8, deadline=None)
@given(shapes, batches)
def test_flops_of_beam_search_are_pytorchs(shape: Shape, batch: Batch) -> None:
    # The scores of a beam with its own codes are summed element by element: no product that PyTorch counts. (Their
    # values are, too; the zeros in their place in the prompt's product cost as much.)
    widths = shape.beams(batch.beam_width)
    summed = sum(2 * level * width for level, width in enumerate(widths)) * shape.heads * shape.head_dim
    expected = total(work_of(shape, BEAM_SEARCH, batch, FLOAT32, ONNX)).flops - batch.size * shape.layers * summed
    assert counted_flops(shape, BEAM_SEARCH, batch) == expected


@pytest.mark.parametrize("decoder", DECODERS)
def test_operators_are_those_of_the_exported_graph(decoder: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort

    export_onnx(model_of(SHAPE, decoder), tmp_path / "model.onnx", 9)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = len(onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
    counted = total(work_of(SHAPE, decoder, Batch(12, 9), FLOAT32, ONNX)).operators
    assert counted == pytest.approx(nodes, rel=0.15)  # which nodes are fused depends on ONNX Runtime's version


@pytest.mark.parametrize("decoder", DECODERS)
def test_parameters_are_those_of_the_checkpoint(decoder: str) -> None:
    config = model_of(SHAPE, decoder).config.to_dict() | {
        decoder: {"levels": list(SHAPE.levels), "state_size": 20, "transition_size": 24, "attention_heads": 2}
    }
    shapes_found = expected_shapes(config, SHAPE.levels)
    matrices = [math.prod(shape) for shape in shapes_found.values() if len(shape) == 2]
    assert SHAPE.parameters(decoder) == sum(matrices)
    usual = replace(SHAPE, **asdict(HeadShape()))
    assert Shape.of_config(config) == (SHAPE if decoder == DRAFT_HEAD else usual)


def test_bytes_of_a_tiny_model_by_hand() -> None:
    shape = Shape(2, 3, 1, 1, 1, 4, 9, (5,), 6, 7, 0)
    parts = {(part.stage, part.name): part.work for part in work_of(shape, BEAM_SEARCH, Batch(10, 2), FLOAT32, ONNX)}
    weights = 2 * 8 + 2 * 4 + 4 * 2 + 2 * 6 + 3 * 2
    rows = 2 * 10 * 2 + 10 * (2 + 8) + (2 + 4) + (4 + 2) + (2 + 6) + (3 + 2)  # all keys, then one query
    assert parts[PREFILL, "projections"].bytes == 4 * (weights + rows)
    assert parts[PREFILL, "attention"].bytes == 4 * 2 * 4 * (10 + 1)
    assert parts[DECODE, "logits"] == Work(2 * 2 * 5, 4 * (2 * 5 + 2 + 5))
    assert parts[DECODE, "top-K"].bytes == 5 * 4 * 10 + 1


def test_a_batch_reads_the_weights_once_and_fewer_bytes_each() -> None:
    for decoder in DECODERS:
        parts = [work_of(SHAPE, decoder, Batch(12, 9, size), FLOAT32, ONNX) for size in (1, 2, 3)]
        one, two, three = (total(found) for found in parts)
        assert two.flops == 2 * one.flops and two.operators == one.operators
        assert three.bytes - two.bytes == two.bytes - one.bytes < one.bytes
        halved = total(work_of(SHAPE, decoder, Batch(12, 9), PRECISIONS["bf16"], ONNX))
        top_k = next(part.work.bytes for part in parts[0] if part.name == "top-K")
        assert halved.bytes - top_k == (one.bytes - top_k) / 2  # scores stay float32


def few_parents(beams: tuple[int, ...]) -> list[bool]:
    """For each transition, whether its children are at least twice as many as their parents."""
    return [2 * parents <= children for parents, children in pairwise(beams)]


@settings(max_examples=40, deadline=None)
@given(shapes, batches, st.sampled_from(DECODERS), st.sampled_from(sorted(ENGINES)))
@example(FEW_PARENTS, Batch(1, 17), DRAFT_HEAD, "fused")
def test_work_grows_with_tokens_beam_layers_and_batch(shape: Shape, batch: Batch, decoder: str, engine: str) -> None:
    def work(shape: Shape, batch: Batch) -> Work:
        return total(work_of(shape, decoder, batch, FLOAT32, ENGINES[engine]))

    small = work(shape, batch)
    for larger in (
        work(shape, replace(batch, tokens=batch.tokens + 1)),
        work(shape, replace(batch, size=batch.size + 1)),
        work(replace(shape, layers=shape.layers + 1), batch),
    ):
        assert larger.flops > small.flops and larger.bytes > small.bytes and larger.operators >= small.operators
    wider = work(shape, replace(batch, beam_width=batch.beam_width + 1))
    before, after = shape.beams(batch.beam_width), shape.beams(batch.beam_width + 1)
    assert (wider.bytes > small.bytes) == (before != after)
    # The draft head multiplies its parents instead of their children once these are twice as many: that saves products.
    if decoder == BEAM_SEARCH or few_parents(before) == few_parents(after):
        assert (wider.flops > small.flops) == (before != after)


def test_the_bound_by_tokens_is_the_papers_arithmetic() -> None:
    assert token_bound(3, 512, 512) == (512 + 2 * 512) / (512 + 4)


def test_a_part_takes_as_long_as_its_slower_side_and_its_operators() -> None:
    hardware = Hardware("h", gflops=2.0, gbytes=1.0, operator_us=5.0)
    assert hardware.ms(Work(flops=4_000_000, bytes=1_000_000, operators=100)) == pytest.approx(2.0 + 0.5)
    assert hardware.limit(Work(flops=4_000_000, bytes=1_000_000, operators=100)) == COMPUTE
    assert hardware.limit(Work(flops=1_000_000, bytes=1_000_000)) == MEMORY
    assert hardware.limit(Work(operators=1)) == OPERATORS
    assert hardware.total_ms((Part(PREFILL, "a", Work(2_000_000)), Part(DECODE, "b", Work(0, 3_000_000)))) == 4.0


def test_this_machine_can_be_measured() -> None:
    found = measure(threads=1, repeats=2)
    assert 0.1 < found.gflops < 10_000 and 0.1 < found.gbytes < 10_000 and 0.01 < found.operator_us < 10_000


@pytest.mark.parametrize("busy", [0.2, 0.7, 0.95])
def test_one_server_waits_as_erlang_says(busy: float) -> None:
    def erlang(time: float) -> float:
        """M/D/1: A. K. Erlang, "The theory of probabilities and telephone conversations", 1909."""
        terms = (
            (busy * (k - time)) ** k / math.factorial(k) * math.exp(busy * (time - k)) for k in range(int(time) + 1)
        )
        return (1 - busy) * sum(terms)

    for time in (0.0, 0.5, 1.0, 1.3, 2.7, 5.5):
        assert wait_distribution(busy, 1, time) == pytest.approx(erlang(time), abs=1e-10)


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.7), (3, 0.5), (8, 0.8)])
def test_many_servers_wait_as_in_a_simulation(servers: int, busy: float) -> None:
    waits = simulate(servers * busy, (1.0,), servers, 100_000, seed=1) - 1.0
    for time in (0.0, 0.3, 1.0, 2.5, 5.0):
        share = np.mean(waits <= time + 1e-9)
        assert wait_distribution(servers * busy, servers, time) == pytest.approx(share, abs=0.02)
    p50, p99 = latency_quantiles(servers * busy, (1.0,), servers, (0.5, 0.99))
    assert wait_distribution(servers * busy, servers, p99 - 1.0) == pytest.approx(0.99, abs=1e-6)
    assert wait_distribution(servers * busy, servers, p50 - 1.0) >= 0.5


def test_batches_carry_what_single_requests_cannot() -> None:
    service = (10.0, 12.0, 14.0, 16.0)
    p50, p99 = latency_quantiles(0.15, service, 1, (0.5, 0.99))  # 1.5 times what one server does alone
    assert 10.0 <= p50 <= p99 < 60.0
    assert utilisation(0.15, service, 1) == pytest.approx(0.6)
    # Nearly idle, nobody waits.
    assert latency_quantiles(0.0001, service, 1, (0.5,)) == [10.0]


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0.1, 500),
    st.floats(0.5, 50),
    st.floats(0.3, 0.95),
    st.one_of(st.none(), st.floats(1.05, 3)),
)
def test_replicas_suffice_and_one_fewer_does_not(rate: float, ms: float, most: float, times: float | None) -> None:
    demand = Demand(rate, most, None if times is None else times * ms)
    found = fleet_for(demand, (ms,))
    assert found.utilisation <= most * (1 + 1e-9)
    assert ms <= found.p50_ms <= found.p95_ms <= found.p99_ms <= (math.inf if times is None else times * ms)
    if found.replicas > 1:
        fewer = found.replicas - 1
        too_busy = rate * ms / 1e3 > most * fewer
        assert too_busy or latency_quantiles(rate / 1e3, (ms,), fewer, (0.99,))[0] > (demand.p99_ms or math.inf)


def test_cost_is_that_of_the_replicas_with_the_spare_one() -> None:
    site = replace(SITE, fixed_ms=3.0, price=2.0)
    alone = plan(SHAPE, DRAFT_HEAD, Batch(12, 9), site, None)
    assert alone.service_ms == (pytest.approx(3.0 + alone.engine_ms),)
    assert alone.cost == pytest.approx(2.0 / (3600 * alone.requests_per_s) * 1e6)
    loaded = plan(SHAPE, DRAFT_HEAD, Batch(12, 9), site, Demand(1000.0, spare=1))
    assert isinstance(loaded.fleet, Fleet) and loaded.fleet.spare == 1
    assert loaded.cost == pytest.approx(2.0 * (loaded.fleet.replicas + 1) / 3.6)


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["plan", *map(str, words)])


def test_a_bundle_is_planned_as_it_is_served(bundle: Bundle) -> None:
    result = run(bundle.path, *HARDWARE, "--rate", 100, "--price", 2, "--spare", 1, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    layout = bundle.layout
    assert report["batch"] == {
        "tokens": layout.max_tokens - len(layout.placeholders),
        "beam_width": bundle.manifest.beam_width,
        "size": 1,
    }
    assert report["shape"]["levels"] == list(bundle.manifest.levels) and report["shape"]["state_size"] == 24
    drafted, searched = (report["decoders"][name] for name in DECODERS)
    assert report["speed_up"]["engine"] == pytest.approx(searched["engine_ms"] / drafted["engine_ms"])
    assert drafted["fleet"]["spare"] == 1 and drafted["cost_per_million"] > 0
    shorter = json.loads(run(bundle.path, *HARDWARE, "--items", 2, "--json").output)
    assert shorter["batch"]["tokens"] == 1 + 2 * 3
    assert shorter["decoders"][DRAFT_HEAD]["engine_ms"] < drafted["engine_ms"]


def test_a_shape_is_planned_on_published_hardware() -> None:
    words = ("--hidden-size", 1024, "--layers", 28, "--heads", 16, "--kv-heads", 8, "--head-dim", 128)
    words += ("--levels", "512,512,512", "--tokens", 512, "--beam-width", 512, "--precision", "bf16")
    found = {}
    for device in PRESETS:
        result = run(*words, "--device", device, "--rate", 500, "--p99-ms", 200, "--batch-size", 4, "--json")
        assert result.exit_code == 0, result.output
        found[device] = json.loads(result.output)["decoders"][DRAFT_HEAD]["engine_ms"]
    assert found["h200-sxm"] <= found["h100-sxm"] < found["a100-sxm-80gb"] < found["l4"]
    table = run(*words, "--device", "h100-sxm", "--rate", 500)
    for said in ("top-K", "replicas (spare)", "draft head over beam search: 2.98 by tokens"):
        assert said in table.output
    alone = json.loads(run(*words, "--device", "l4", "--decoder", BEAM_SEARCH, "--json").output)
    assert list(alone["decoders"]) == [BEAM_SEARCH] and "speed_up" not in alone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--hidden-size, --layers, --heads must be given"),
        (("--hidden-size", "64", "--layers", "2", "--heads", "3"), "hidden-size 64 is no multiple of heads 3"),
        (("SHAPE", "--kv-heads", "3"), "heads 4 must be a multiple of kv heads 3"),
        (("SHAPE", "--levels", "12,x"), "levels '12,x': write whole numbers"),
        (("SHAPE", "--levels", "12,0"), "levels (12, 0) must be"),
        (("SHAPE", "--items", "3", "--tokens", "9"), "items 3 and tokens 9 both say"),
        (("SHAPE", "--precision", "fp4"), "--precision 'fp4': use one of float32, bf16, int8"),
        (("SHAPE", "--decoder", "greedy"), "--decoder 'greedy': use one of draft_head, beam_search"),
        (("SHAPE", "--engine", "fast"), "--engine 'fast': use one of onnx, fused"),
        (("SHAPE", "--spare", "1"), "give --rate"),
        (("SHAPE",), "hardware: give one of --device (h100-sxm"),
        (("SHAPE", "--device", "l4", "--measure"), "hardware: give one of --device (h100-sxm"),
        (("SHAPE", "--device", "abacus"), "--device 'abacus': use one of h100-sxm"),
        (("SHAPE", "--gflops", "5"), "bandwidth None: the two go together"),
        (("SHAPE", "--gflops", "-5", "--bandwidth", "1"), "--gflops '-5': input should be greater"),
        (("SHAPE", "--gflops", "5", "--bandwidth", "1", "--operator-us", "-1"), "--operator-us '-1': input should"),
        (("SHAPE", "--measure", "--precision", "bf16"), "precision bf16: --measure is of float32"),
        (("SHAPE", *HARDWARE, "--rate", "0"), "--rate '0': input should be greater"),
        (("SHAPE", *HARDWARE, "--rate", "1", "--utilisation", "1"), "--utilisation '1': input should be less"),
    ],
)
def test_refusals_name_what_is_wrong(words: tuple[str, ...], message: str, run_genrec: Run) -> None:
    status, said = run_genrec("plan", *(FOUR_HEADS + words[1:] if words[:1] == ("SHAPE",) else words))
    assert status == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rate", "1", "--p99-ms", "0.001"), "p99-ms 0.001 is below"),
        (("--rate", "1e9"), "needs more than 1000 replicas"),
    ],
)
def test_what_no_number_of_replicas_carries(words: tuple[str, ...], message: str, run_genrec: Run) -> None:
    status, said = run_genrec("plan", *FOUR_HEADS, *HARDWARE, *words)
    assert status == 1 and message in said and said.count("\n") == 1


def test_refusals_of_a_bundle(bundle: Bundle, bundle_copy: Path, run_genrec: Run) -> None:
    longer = bundle.layout.max_history + 1
    status, said = run_genrec("plan", bundle.path, *HARDWARE, "--items", longer)
    assert status == 1 and f"items {longer}: this bundle's prompts hold" in said
    status, said = run_genrec("plan", bundle.path, *HARDWARE, "--layers", 3)
    assert status == 2 and "--layers 3 is the bundle's to say" in said
    (bundle_copy / "checkpoint" / "config.json").write_text('{"beam_search": {}}')
    status, said = run_genrec("plan", bundle_copy, *HARDWARE)
    assert status == 1 and "config.json: cannot be used: has no 'num_attention_heads'; " in said


def test_planning_needs_neither_torch_nor_an_engine(bundle: Bundle) -> None:
    script = (
        "import sys; from genrec.cli.main import app\n"
        f"app(['plan', {str(bundle.path)!r}, *{HARDWARE!r}, '--rate', '9'], standalone_mode=False)\n"
        "print('heavy:', [name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_options_default_to_what_genrec_build_makes() -> None:
    result = json.loads(run("--hidden-size", 64, "--layers", 2, "--heads", 4, *HARDWARE, "--json").output)
    layout = PromptLayout.contiguous(SemanticIdSpace((256,) * 3), max_history=20)
    built = BackboneShape("qwen3", 64, 192, 2, 4, 4).config(layout)
    assert result["shape"]["vocabulary"] == built.vocab_size and result["shape"]["head_dim"] == built.head_dim
    assert result["batch"]["tokens"] == layout.max_tokens - 3
