"""What `perf.gpu.day` finds out of a GPU beside its speed: parity of engines, recordings, ONNX Runtime, memory.

Models are small, with random weights and heads as wide as GPU kernels take them. The reference is the PyTorch engine in
float32 on the CPU. Each check returns what to say, and raises StepFailed for what is wrong.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DECODERS, DRAFT_HEAD
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines.base import RULE_BYTES, Drafts, Engine
from genrec.engines.buckets import Buckets
from genrec.engines.graphs import Capture
from genrec.engines.memory import plan_memory
from genrec.engines.torch import PRECISIONS, TorchEngine
from genrec.evaluation.metrics import likeness
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec.reporting.self_check import StepFailed
from genrec.reporting.timing import each_ms
from genrec_builders.config import BackboneShape
from genrec_builders.export.onnx import export_onnx
from perf.gpu.bench import Bench, GpuCell, require_alike

SPACE = SemanticIdSpace((64, 64, 64))
LAYOUT = PromptLayout.contiguous(SPACE, max_history=20)
SHAPE = BackboneShape(hidden_size=128, intermediate_size=256, layers=2, heads=4, kv_heads=2, head_dim=64)
ITEMS = (1, 20, 7, 13)  # of the histories
BUCKETS = Buckets((1, 4), (16, 64))
WIDTH = 32
ABSENT = "not here"  # what a check says of something that is not installed
CODES = np.arange(0, SPACE.size - 1, 50)


def model_of(decoder: str = DRAFT_HEAD) -> BackboneModel:
    """The same model at every call."""
    torch.manual_seed(0)
    config = SHAPE.config(LAYOUT)
    if decoder == BEAM_SEARCH:
        return AutoregressiveModel(config, LAYOUT.sid_tokens).eval()
    return NezhaModel(config, SPACE.levels, 64, 128, 4).eval()


def prompts_of(decoder: str = DRAFT_HEAD) -> list[np.ndarray]:
    """A prompt for each of `ITEMS`."""
    rng, end = np.random.default_rng(0), -SPACE.depth if decoder == BEAM_SEARCH else None
    return [LAYOUT.encode(rng.integers(0, SPACE.levels, (count, SPACE.depth)))[:end] for count in ITEMS]


def engine_on(device: torch.device | str, decoder: str = DRAFT_HEAD, codes: np.ndarray = CODES, **options: Any) -> Any:
    """A torch engine of `model_of`, with masks of `codes`."""
    return TorchEngine(model_of(decoder), PrefixTable.build(SPACE, codes), WIDTH, str(device), **options)


def check_parity(device: torch.device, capture: Capture) -> str:
    """Every decoder and precision, with recordings and without, against float32 on the CPU."""
    said = []
    for decoder in DECODERS:
        asked = prompts_of(decoder)
        expected = engine_on("cpu", decoder).draft(asked)
        for precision in PRECISIONS:
            for buckets in (None, BUCKETS):
                options: dict[str, Any] = {} if buckets is None else {"buckets": buckets, "capture": capture}
                found = engine_on(device, decoder, precision=precision, **options).draft(asked)
                what = f"{decoder}, {precision}{', recorded' if buckets else ''}"
                said.append(require_alike(likeness(found, expected), what, precision))
    return "; ".join(said)


def check_recordings(device: torch.device, capture: Capture, measured: dict[str, Any]) -> str:
    """All buckets recorded by the warm-up and none after; masks and rules change where they are."""
    engine = engine_on(device, buckets=BUCKETS, capture=capture)
    before, began = _free(device), time.perf_counter()
    asked = prompts_of()
    engine.warm_up(asked[0], BUCKETS.batches[-1])
    measured["seconds"] = time.perf_counter() - began
    measured["bytes a recording"] = (before - _free(device)) / len(BUCKETS)
    try:
        engine.draft([asked[0]] * (BUCKETS.batches[-1] + 1))
    except ValueError:
        pass
    else:
        raise StepFailed("a batch that is in no bucket was answered after the warm-up")
    other, gone = PrefixTable.build(SPACE, CODES + 1), CODES[::2] + 1
    engine.set_masks(other)
    other.discard(gone)
    engine.update_masks(other.slots(gone))
    expected = engine_on("cpu", codes=np.setdiff1d(CODES + 1, gone)).draft(asked)
    masks = require_alike(likeness(engine.draft(asked), expected), "masks changed in place", "f32")
    allowed = CODES[1::4] + 1
    mask = engine.rule_masks.build(allowed)
    engine.update_rules(engine.rule_masks.rows(mask))
    drafts = engine.draft(asked, rules=[mask] * len(asked))
    if not set(_alive(drafts)) <= set(allowed.tolist()) or not _alive(drafts):
        raise StepFailed("a rule that was told to recordings does not narrow their beam")
    return f"{len(BUCKETS)} recorded in {measured['seconds']:.2f} s, none after; {masks}; rules are obeyed"


def check_onnx(provider: str, rounds: int, measured: dict[str, Any], folder: Path) -> str:
    """ONNX Runtime with `provider`, if its package is here, against float32; milliseconds of a batch."""
    if find_spec("onnxruntime") is None:
        return f"{ABSENT}: onnxruntime is not installed"
    import onnxruntime

    from genrec.engines.onnx import OnnxEngine

    if provider not in onnxruntime.get_available_providers():
        return f"{ABSENT}: onnxruntime {onnxruntime.__version__} has no {provider}; onnxruntime-gpu has"
    graph, table, asked = folder / "model.onnx", PrefixTable.build(SPACE, CODES), prompts_of()
    export_onnx(model_of(), graph, WIDTH, LAYOUT.max_tokens)
    engine = OnnxEngine(graph, table, WIDTH, provider=provider)
    # Its products of float32 may be in TF32 on a GPU, whose numbers have the digits of half precision.
    said = require_alike(likeness(engine.draft(asked), engine_on("cpu").draft(asked)), provider, "bf16")
    measured["ms"] = _milliseconds(engine, asked, rounds)
    return f"{said}; {np.median(measured['ms']):.2f} ms for {len(asked)} prompts"


def check_memory(bench: Bench, cell: GpuCell, measured: dict[str, Any]) -> str:
    """What an engine for the cell's batches takes, against what is planned for it before it starts."""
    longest = cell.tokens + bench.layout.space.depth
    buckets = Buckets((1, cell.batch) if cell.batch > 1 else (1,), (longest,))
    config = bench.nezha.config.to_dict() | {DRAFT_HEAD: bench.nezha.settings()}
    plan = plan_memory(config, bench.masks, cell.beam, RULE_BYTES, bench.precision == "bf16", buckets)
    measured["planned"] = vars(plan) | {"total": plan.total}
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    engine = bench.engine(bench.nezha, cell.beam, buckets=buckets, capture=bench.capture())
    engine.warm_up(bench.prompts(cell)[0], cell.batch)
    if not on_gpu:
        return f"{plan.total / 2**30:.2f} GiB are planned; nothing is measured on {bench.device}"
    measured["taken"] = taken = torch.cuda.max_memory_reserved(bench.device)
    said = f"{plan.total / 2**30:.2f} GiB planned, {taken / 2**30:.2f} taken by PyTorch"
    if taken > plan.total:
        raise StepFailed(f"{said}: the plan is too small, see genrec/engines/memory.py")
    return said


def check_tensorrt_llm() -> str:
    """Whether TensorRT-LLM is here, and what to run then: it needs a process of its own."""
    if find_spec("tensorrt_llm") is None:
        return f"{ABSENT}: tensorrt_llm is not installed"
    return "here: run python -m genrec_builders.export.tensorrt_llm.verify BUNDLE DATA WORK (docs/tensorrt-llm.md)"


def _alive(drafts: Drafts) -> list[int]:
    return drafts.codes[np.isfinite(drafts.scores)].tolist()


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _milliseconds(engine: Engine, asked: list[np.ndarray], rounds: int) -> list[float]:
    """Of each of `rounds` batches, behind two that do not count."""
    return each_ms(lambda _: engine.draft(asked), rounds + 2)[2:]
