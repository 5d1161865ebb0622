"""A GPU with PyTorch: an answer split into prefill and head, with and without CUDA graphs, against beam search.

python -m perf.gpu.bench OUT
python -m perf.gpu.bench OUT --device cpu --shapes tiny --tokens 60 --beams 16 --batches 1,2 --rounds 3  # a trial

Backbones have the shapes of Qwen3-0.6B and Qwen3-1.7B, random weights (speed does not depend on them) and a vocabulary
of semantic-ID tokens and placeholders alone: a text vocabulary would add rows to a table of which a prompt reads few.
All calls of a cell take turns, and each is timed by the device's own clock, from before its first kernel to behind its
last: what the host takes to start kernels counts where the device waits for it. The same run measures what the device
reaches in matrix products and in copying, checks every cell's answers, and writes results.json and report.md; a cell
that fails, or does not fit, leaves the others to go on.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DRAFT_HEAD, HeadShape
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines.base import Drafts
from genrec.engines.buckets import Buckets
from genrec.engines.graphs import Capture, CudaGraphs, call_again
from genrec.engines.torch import TorchEngine
from genrec.evaluation.metrics import likeness
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec.planning.hardware import Hardware
from genrec.planning.work import DECODE, ENGINES, PRECISIONS, PREFILL, Batch, Part, Shape, Work, total, work_of
from genrec.prompt import PromptLayout
from genrec.reporting.machine import provenance
from genrec.reporting.self_check import SelfCheck, StepFailed
from genrec.reporting.timing import in_turn
from genrec_builders.config import BackboneShape
from perf.gpu.report import RESULTS, write_report
from perf.speed.cells import SHAPES as CELL_SHAPES

SHAPES = {
    "0.6B": CELL_SHAPES["0.6B"],
    # Qwen3-1.7B's
    "1.7B": BackboneShape(hidden_size=2048, intermediate_size=6144, layers=28, heads=16, kv_heads=8, head_dim=128),
    "tiny": BackboneShape(hidden_size=64, intermediate_size=128, layers=2, heads=4, kv_heads=2, head_dim=16),
}
ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
ITEMS = 100_000  # of the random catalogue whose prefixes mask the beams
# Of two passes that differ by rounding alone: at least this share of the ten best drafts, at most this much between
# scores in the same place. With random weights the best lie close together, and rounding in half precision changes
# some; answers to another prompt share hardly any. `perf.gpu.precision` is the test of a trained model.
OVERLAP, GAPS = 0.5, {"f32": 1e-3, "bf16": 0.5}
WARM_UP = 2  # rounds before those that count


@dataclass(frozen=True)
class GpuCell:
    """What is measured together. tokens: of each prompt, placeholders not counted. beam: width K. batch: prompts."""

    shape: str
    tokens: int
    beam: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.shape}-P{self.tokens}-K{self.beam}-B{self.batch}"


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, by CUDA events, or by the host's clock where there are none."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measured_rates(device: torch.device, rounds: int) -> dict[str, float]:
    """What the device reaches: GFLOP/s of square matrix products in either precision, GB/s of a copy."""
    size, values = (8192, 2**29) if device.type == "cuda" else (512, 2**22)
    half = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    single, source = half.float(), torch.zeros(values, device=device, dtype=torch.bfloat16)
    copy = torch.empty_like(source)
    calls = {"bf16": lambda: half @ half, "float32": lambda: single @ single, "copy": lambda: copy.copy_(source)}
    times = in_turn(calls, rounds, partial(milliseconds, device=device), WARM_UP)
    ms = {name: median(spent) for name, spent in times.items()}
    rates = {name: 2 * size**3 / ms[name] / 1e6 for name in ("bf16", "float32")}
    return rates | {"copy": 2 * source.nbytes / ms["copy"] / 1e6}


def limits(config: Mapping[str, Any], cell: GpuCell, rates: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds that arithmetic or memory alone would take at the measured rates, and a prefill's FLOPs.

    Each part of the work as `genrec.planning.work` counts it for an engine that keeps attention scores on the chip, but
    half of a prefill's attention, because what the causal mask hides is skipped here. Starting kernels is left out.
    """
    batch, engine = Batch(cell.tokens, cell.beam, cell.batch), ENGINES["fused"]
    hardware = {name: Hardware(name, rates[name], rates["copy"], 0.0) for name in ("bf16", "float32")}

    def parts(decoder: str, stage: str, precision: str) -> tuple[Part, ...]:
        found = work_of(Shape.of_config(config), decoder, batch, PRECISIONS[precision], engine)
        return tuple(causal(part) for part in found if part.stage == stage)

    prefill = parts(DRAFT_HEAD, PREFILL, "bf16")
    searched = parts(BEAM_SEARCH, PREFILL, "bf16") + parts(BEAM_SEARCH, DECODE, "bf16")
    return {
        "prefill_flops": total(prefill).flops,
        "prefill_ms": hardware["bf16"].total_ms(prefill),
        "head_ms": hardware["float32"].total_ms(parts(DRAFT_HEAD, DECODE, "float32")),
        "beam_search_ms": hardware["bf16"].total_ms(searched),
    }


def causal(part: Part) -> Part:
    """A prefill's attention without what the mask hides: half of the square."""
    if (part.stage, part.name) != (PREFILL, "attention"):
        return part
    return replace(part, work=Work(part.work.flops // 2, part.work.bytes))


class Bench:
    """The models of one shape, in float32 until `halve`, and the random catalogue whose prefixes mask them."""

    def __init__(self, shape: BackboneShape, space: SemanticIdSpace, tokens: int, device: torch.device) -> None:
        """tokens: of the longest prompt."""
        self.device, self.rng = device, np.random.default_rng(0)
        self.layout = PromptLayout.contiguous(space, max_history=-(-tokens // space.depth) + 1)
        config, head = shape.config(self.layout), HeadShape()
        torch.manual_seed(0)
        self.nezha = NezhaModel(config, space.levels, **asdict(head)).eval().to(device)
        # The same backbone: neither decoder changes it.
        self.baseline = AutoregressiveModel(config, self.layout.sid_tokens, self.nezha.model).eval().to(device)
        self.masks = PrefixTable.build(space, self.rng.integers(0, space.size, ITEMS))
        self.precision = "f32"

    def halve(self) -> None:
        """Go on in bf16."""
        self.precision = "bf16"
        self.nezha.model.to(torch.bfloat16)

    def prompts(self, cell: GpuCell) -> list[np.ndarray]:
        """The cell's prompts for the draft head, the same at every call: int32 [tokens + L] each."""
        rng = np.random.default_rng(cell.tokens)
        history = rng.integers(2, self.layout.vocabulary_size - self.layout.space.depth, (cell.batch, cell.tokens))
        return [np.array([*tokens, *self.layout.placeholders], np.int32) for tokens in history]

    def engine(self, model: NezhaModel | AutoregressiveModel, beam: int, **options: Any) -> TorchEngine:
        return TorchEngine(model, self.masks, beam, str(self.device), self.precision, **options)

    def capture(self) -> Capture:
        return CudaGraphs(self.device) if self.device.type == "cuda" else call_again


def calls_of(bench: Bench, cell: GpuCell, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Everything that is measured of a cell. "graph" is a recorded call, "eager" one that is not."""
    device, depth, capture = bench.device, bench.layout.space.depth, bench.capture()
    prompts, model = bench.prompts(cell), bench.nezha
    histories = [prompt[: cell.tokens] for prompt in prompts]
    token_ids = torch.tensor(np.stack(prompts), device=device)
    lengths = torch.full((cell.batch,), cell.tokens + depth, dtype=torch.int32, device=device)
    masks = Masks.of(bench.masks, device)
    hidden, history = model.prefill(token_ids, lengths)

    def prefill() -> tuple[torch.Tensor, ...]:
        return model.prefill(token_ids, lengths)[:1]

    def head() -> tuple[torch.Tensor, ...]:
        return model.draft_head.beam(hidden, history, masks, cell.beam)

    calls: dict[str, Callable[[], Any]] = {
        "prefill, eager": prefill,
        "prefill, graph": capture(prefill),
        "head, eager": head,
        "head, graph": capture(head),
    }
    if compiled:
        torch.compiler.reset()  # shapes of earlier cells count against what may be compiled of one function
        fast = torch.compile(model.prefill, fullgraph=True, dynamic=False)
        calls["prefill, compiled, graph"] = capture(lambda: fast(token_ids, lengths)[:1])
    for name, decoder, asked in (("engine", model, prompts), ("beam search", bench.baseline, histories)):
        own = Buckets((cell.batch,), (len(asked[0]),))
        eager, graphs = bench.engine(decoder, cell.beam), bench.engine(decoder, cell.beam, buckets=own, capture=capture)
        calls[f"{name}, eager"] = partial(eager.draft, asked)
        calls[f"{name}, graph"] = partial(graphs.draft, asked)
    return calls


def require_alike(found: Mapping[str, float], what: str, precision: str = "bf16") -> str:
    """`likeness` in words. Raises StepFailed where it is more than rounding in that precision."""
    said = f"{what}: {found['overlap']:.1%} of the ten best, scores within {found['gap']:.2g}"
    if not (found["gap"] <= GAPS[precision] and found["overlap"] >= OVERLAP):
        raise StepFailed(f"{said}; wanted {OVERLAP:.0%} and {GAPS[precision]}")
    return said


def check_buckets(bench: Bench, cell: GpuCell) -> str:
    """Prompts of different lengths through a bucket that is wider than any, asked twice, as without buckets."""
    longest = cell.tokens + bench.layout.space.depth
    asked = bench.prompts(replace(cell, batch=3))
    asked = [prompt[-size:] for prompt, size in zip(asked, (longest - 1, longest // 2 + 3, longest - 5), strict=True)]
    graphs = bench.engine(bench.nezha, cell.beam, buckets=Buckets((1, 4), (longest,)), capture=bench.capture())
    graphs.draft(asked[::-1])
    expected = bench.engine(bench.nezha, cell.beam).draft(asked)
    what = "float32, lengths in one bucket and without"
    return require_alike(likeness(graphs.draft(asked), expected), what, "f32")


def draft_all(bench: Bench, cells: Sequence[GpuCell], drafts: dict[GpuCell, Drafts]) -> str:
    """The drafts of every cell as things stand, into `drafts`."""
    for cell in cells:
        drafts[cell] = bench.engine(bench.nezha, cell.beam).draft(bench.prompts(cell))
    return f"drafted for {len(cells)} cells in {bench.precision}"


def main(
    out: Annotated[Path, typer.Argument(help=f"Folder for {RESULTS} and report.md.")],
    shapes: Annotated[str, typer.Option(help="Backbones, of " + ", ".join(SHAPES))] = "0.6B,1.7B",
    tokens: Annotated[str, typer.Option(help="Tokens of the prompts, placeholders not counted.")] = "1000,5000",
    beams: Annotated[str, typer.Option(help="Beam widths.")] = "128,256,512",
    batches: Annotated[str, typer.Option(help="Prompts at once.")] = "1,2,4,8",
    levels: Annotated[str, typer.Option(help="Codes per level.")] = "256,256,256",
    device: Annotated[str, typer.Option(help="cuda, cuda:N or cpu.")] = "cuda",
    rounds: Annotated[int, typer.Option(min=1, help="Times that every call is measured.")] = 30,
    attention: Annotated[str, typer.Option(help="default (PyTorch chooses), " + " or ".join(ATTENTION))] = "default",
    compiled: Annotated[bool, typer.Option(help="Also the prefill by torch.compile: a minute or so a cell.")] = False,
) -> None:
    """Measure every cell; exit status 1 if a check fails. Missed targets are in the report."""
    at, checks, space = torch.device(device), SelfCheck(), SemanticIdSpace(tuple(map(int, levels.split(","))))
    for name, given, known in (("shapes", shapes, SHAPES), ("attention", attention, ("default", *ATTENTION))):
        if unknown := set(given.split(",")) - set(known):
            raise typer.BadParameter(f"{name} {', '.join(sorted(unknown))}: use one of {', '.join(known)}")
    if not checks.step("device", lambda: describe(at)):
        raise typer.Exit(1)
    if at.type == "cuda":
        torch.cuda.set_device(at)
    out.mkdir(parents=True, exist_ok=True)
    sizes = [list(map(int, each.split(","))) for each in (tokens, beams, batches)]
    raw = {
        "settings": provenance(device=describe(at), levels=levels, rounds=rounds, attention=attention),
        "rates": measured_rates(at, rounds),
        "cells": [],
        "steps": checks.steps,
    }
    with torch.inference_mode():
        for shape in shapes.split(","):
            cells = [GpuCell(shape, *values) for values in itertools.product(*sizes)]
            bench, exact = Bench(SHAPES[shape], space, max(sizes[0]), at), dict[GpuCell, Drafts]()
            checks.step(f"{shape}, float32", partial(draft_all, bench, cells, exact))
            checks.step(f"{shape}, buckets", partial(check_buckets, bench, cells[0]))
            bench.halve()
            for cell in cells:
                with chosen(attention):
                    checks.step(cell.name, partial(run_cell, bench, cell, exact, raw, rounds, compiled))
                (out / RESULTS).write_text(json.dumps(raw, indent=1) + "\n")
    print(f"{'pass' if checks.passed else 'FAIL'}: report in {write_report(out)}")
    raise typer.Exit(not checks.passed)


def run_cell(
    bench: Bench, cell: GpuCell, exact: Mapping[GpuCell, Drafts], raw: dict[str, Any], rounds: int, compiled: bool
) -> str:
    """Measure one cell, add it to the results, and check its answers. exact: the drafts of float32."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    calls = calls_of(bench, cell, compiled)
    times = in_turn(calls, rounds, partial(milliseconds, device=bench.device), WARM_UP)
    eager, graph = calls["engine, eager"](), calls["engine, graph"]()
    checks = {
        "graph": likeness(graph, eager),
        "bf16": likeness(eager, exact[cell]),
        "beam search, graph": likeness(calls["beam search, graph"](), calls["beam search, eager"]()),
    }
    config = bench.nezha.config.to_dict() | {DRAFT_HEAD: bench.nezha.settings()}
    peak = torch.cuda.max_memory_allocated(bench.device) / 2**30 if bench.device.type == "cuda" else None
    found = {"limits": limits(config, cell, raw["rates"]), "times": times, "checks": checks, "peak_gib": peak}
    raw["cells"].append({"name": cell.name, **asdict(cell), "depth": bench.layout.space.depth, **found})
    names = {"graph": "graph and eager", "beam search, graph": "of beam search", "bf16": "bf16 and float32"}
    return "; ".join(require_alike(checks[name], what) for name, what in names.items())


def describe(device: torch.device) -> str:
    """The device, in words. Raises StepFailed if it is not there."""
    if device.type != "cuda":
        return f"{device}: no CUDA graphs and no CUDA events, so nothing here says how fast a GPU is"
    if not torch.cuda.is_available():
        raise StepFailed(f"torch {torch.__version__} sees no GPU for {device}; --device cpu tries the script without")
    found = torch.cuda.get_device_properties(device)
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    return f"{found.name}, {memory}, compute capability {found.major}.{found.minor}, CUDA {torch.version.cuda}"


@contextmanager
def chosen(attention: str) -> Iterator[None]:
    """Attention by the kernel of that name alone; by PyTorch's choice for "default"."""
    with nullcontext() if attention == "default" else sdpa_kernel(ATTENTION[attention]):
        yield


if __name__ == "__main__":
    typer.run(main)
