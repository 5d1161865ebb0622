"""Ten minutes with a GPU: all that can be found out at once, in the order of what it is worth.

python -m perf.gpu.day OUT          # call it again, and it goes on where it was cut off
python -m perf.gpu.day OUT --dry    # on the CPU with tiny shapes, to try the script

Steps: parity of the engines at hand, recordings, ONNX Runtime's CUDA provider, the cells of `perf.gpu.bench` that have
published figures, memory against its plan, and bf16 on a trained bundle. OUT/results.json keeps each step as soon as it
is done, and OUT/report.md is written anew with it. A second call repeats what failed and goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from genrec.catalog import SemanticIdSpace
from genrec.engines.base import Drafts
from genrec.engines.graphs import CudaGraphs, call_again
from genrec.reporting.kept import require_same
from genrec.reporting.machine import provenance
from genrec.reporting.self_check import SelfCheck, StepFailed
from perf.gpu import checks, precision
from perf.gpu.bench import SHAPES, Bench, GpuCell, describe, draft_all, measured_rates, run_cell
from perf.gpu.report import RESULTS, write_report

LEVELS = (256, 256, 256)
Measured = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run where. cells: of one shape together, the most wanted first."""

    device: str
    cells: tuple[GpuCell, ...]
    rounds: int
    provider: str


GPU = Plan(
    "cuda",
    tuple(
        GpuCell(shape, tokens, 256, batch)
        for shape in ("1.7B", "0.6B")
        for batch in (1, 8, 4, 2)
        for tokens in (1000, 5000)
    ),
    rounds=10,
    provider="CUDAExecutionProvider",
)
DRY = Plan("cpu", tuple(GpuCell("tiny", 40, 16, batch) for batch in (1, 2)), 2, "CPUExecutionProvider")


class Kept:
    """The results of all calls in one folder, in the form of `perf.gpu.bench`'s, written after every step."""

    def __init__(self, out: Path, plan: Plan) -> None:
        """Raises ValueError if `out` has those of another device, commit or plan."""
        self.out = out
        where = {"device": describe(torch.device(plan.device)), "rounds": plan.rounds, "attention": "default"}
        self.raw: dict[str, Any] = {"settings": provenance(**where), "steps": {}, "cells": [], "measured": {}}
        if (file := out / RESULTS).is_file():
            kept = json.loads(file.read_text())
            made, now = (
                {name: str(each["settings"][name]) for name in ("device", "commit", "rounds")}
                for each in (kept, self.raw)
            )
            require_same(out, made, now, "name another folder, or remove this one")
            self.raw = kept

    def has(self, step: str) -> bool:
        """Whether it passed. What was not here may be by now, and is cheap to look for."""
        said = self.raw["steps"].get(step, "")
        return said.startswith("pass") and checks.ABSENT not in said

    def write(self) -> Path:
        """Also cut off in the middle, it leaves either the older results or the newer ones."""
        self.out.mkdir(parents=True, exist_ok=True)
        part = self.out / f"{RESULTS}.part"
        part.write_text(json.dumps(self.raw, indent=1) + "\n")
        part.replace(self.out / RESULTS)
        return write_report(self.out)


@dataclass
class Shapes:
    """The models of the cells, one shape at a time: in float32 until all of its cells have been drafted for."""

    plan: Plan
    bench: Bench | None = None
    shape: str = ""
    exact: dict[GpuCell, Drafts] = field(default_factory=dict)

    def of(self, cell: GpuCell) -> Bench:
        """The models of a cell's shape in bf16, with the cell's drafts of float32 in `exact`."""
        if self.bench is None or self.shape != cell.shape:
            self.bench = None  # before the next one takes its place in memory
            own = [each for each in self.plan.cells if each.shape == cell.shape]
            space, longest = SemanticIdSpace(LEVELS), max(each.tokens for each in own)
            self.bench = Bench(SHAPES[cell.shape], space, longest, torch.device(self.plan.device))
            self.shape = cell.shape
            draft_all(self.bench, own, self.exact)
            self.bench.halve()
        return self.bench


def steps_of(plan: Plan, kept: Kept, bundle: Path, data: Path) -> Iterator[tuple[str, Callable[[Measured], str]]]:
    """Every step by its name, in order; each puts what it measures into the dictionary that it is given."""
    device, shapes = torch.device(plan.device), Shapes(plan)
    capture = CudaGraphs(device) if device.type == "cuda" else call_again
    yield "parity", lambda measured: checks.check_parity(device, capture)
    yield "recordings", lambda measured: checks.check_recordings(device, capture, measured)
    yield "rates", partial(_rates, device, kept)
    for shape, cells in groupby(plan.cells, lambda cell: cell.shape):
        own = list(cells)
        for cell in own:
            yield cell.name, partial(_cell, shapes, cell, kept, plan.rounds)
        largest = max(own, key=lambda cell: cell.tokens * cell.batch)
        yield f"memory {shape}", partial(_memory, shapes, largest)
    yield "onnx", partial(_onnx, plan, kept)
    yield "tensorrt_llm", lambda measured: checks.check_tensorrt_llm()
    yield "bf16", partial(_precision, bundle, data, kept.out / "precision", plan.device)


def _rates(device: torch.device, kept: Kept, measured: Measured) -> str:
    rates = kept.raw["rates"] = measured_rates(device, 10)
    tera = {name: f"{rates[name] / 1e3:.3g} TFLOP/s" for name in ("bf16", "float32")}
    return f"bf16 {tera['bf16']}, float32 {tera['float32']}, copying {rates['copy']:.0f} GB/s"


@torch.inference_mode()
def _cell(shapes: Shapes, cell: GpuCell, kept: Kept, rounds: int, measured: Measured) -> str:
    bench, own = shapes.of(cell), {"rates": kept.raw["rates"], "cells": []}
    try:
        return run_cell(bench, cell, shapes.exact, own, rounds, compiled=False)
    finally:
        others = [each for each in kept.raw["cells"] if each["name"] != cell.name]
        kept.raw["cells"] = others + own["cells"]


@torch.inference_mode()
def _memory(shapes: Shapes, cell: GpuCell, measured: Measured) -> str:
    return checks.check_memory(shapes.of(cell), cell, measured)


def _onnx(plan: Plan, kept: Kept, measured: Measured) -> str:
    return checks.check_onnx(plan.provider, plan.rounds, measured, kept.out)


def _precision(bundle: Path, data: Path, out: Path, device: str, measured: Measured) -> str:
    if not (bundle / "manifest.json").is_file():
        return f"{checks.ABSENT}: {bundle} is no bundle; `make demo` makes one"
    try:
        precision.main(bundle, data, out, 2000, 16, "torch", device)
    except typer.Exit as ended:
        measured |= json.loads((out / precision.RESULTS).read_text())
        if ended.exit_code:
            raise StepFailed(f"bf16 changes too much, see {out / precision.RESULTS}") from None
    return "; ".join(said.removeprefix("pass  ") for said in measured["steps"].values())


def main(
    out: Annotated[Path, typer.Argument(help=f"Folder for {RESULTS} and report.md.")],
    dry: Annotated[bool, typer.Option("--dry", help="On the CPU with tiny shapes: a trial of the script.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="No step begins after that; call it again for the rest.")] = 540,
    bundle: Annotated[Path, typer.Option(help="A trained bundle, for what bf16 changes.")] = Path("build/shop-bundle"),
    data: Annotated[Path, typer.Option(help="The dataset that it was built from.")] = Path("build/shop"),
) -> None:
    """Run the steps that are not kept yet; exit status 1 if one fails, 3 if time ran out before the last one."""
    plan, ends, found = DRY if dry else GPU, time.monotonic() + seconds, SelfCheck()
    if not found.step("device", lambda: describe(torch.device(plan.device))):
        raise typer.Exit(1)
    try:
        kept = Kept(out, plan)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    left = []
    for name, run in steps_of(plan, kept, bundle, data):
        if kept.has(name):
            continue
        if time.monotonic() > ends:
            left.append(name)
            continue
        measured: Measured = {}
        began = time.monotonic()
        found.step(name, partial(run, measured))
        kept.raw["steps"][name] = found.steps[name]
        kept.raw["measured"][name] = measured | {"s": round(time.monotonic() - began, 1)}
        kept.write()
    said = f"; not begun: {', '.join(left)}: call it again" if left else ""
    print(f"{'pass' if found.passed else 'FAIL'}: report in {kept.write()}{said}")
    raise typer.Exit(1 if not found.passed else 3 if left else 0)


if __name__ == "__main__":
    typer.run(main)
