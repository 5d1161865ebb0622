"""How well `genrec plan` predicts: its arithmetic against ONNX Runtime here, one thread, rates of the same run.

python -m perf.speed.plan_check build/shop-bundle
python -m perf.speed.plan_check --sizes 128x4,256x6,512x8 --levels 256,256,256,256

Times are the thread's own CPU time, so that what else runs on the machine only shows through shared caches and memory.
Everything is measured in turn, round by round, the probes of the machine's rates too; medians.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import CHECKPOINT, Bundle
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DRAFT_HEAD, HeadShape
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines.onnx import graph_masks, open_session
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel
from genrec.model.checkpoint import load_checkpoint
from genrec.model.nezha import NezhaModel
from genrec.planning.hardware import Hardware, hardware_of, probes
from genrec.planning.work import DECODE, ENGINES, PRECISIONS, PREFILL, Batch, Shape, work_of
from genrec.prompt import PromptLayout
from genrec.reporting.timing import medians
from genrec_builders.config import BackboneShape
from genrec_builders.export.onnx import export_onnx
from perf.speed.parts import export_head, export_prefill

ITEMS = 100_000  # of the random catalogue whose prefixes mask the beams
Calls = dict[str, Callable[[], object]]


def random_models(sizes: str, space: SemanticIdSpace, items: int) -> dict[str, BackboneModel]:
    """Both decoders over backbones of HIDDENxLAYERS, random weights."""
    models: dict[str, BackboneModel] = {}
    layout = PromptLayout.contiguous(space, items)
    head = asdict(HeadShape())
    for size in sizes.split(","):
        hidden, layers = map(int, size.split("x"))
        config = BackboneShape("qwen3", hidden, 3 * hidden, layers).config(layout)
        torch.manual_seed(0)
        models[f"{size}, {DRAFT_HEAD}"] = NezhaModel(config, space.levels, **head).eval()
        models[f"{size}, {BEAM_SEARCH}"] = AutoregressiveModel(config, layout.sid_tokens).eval()
    return models


def engine_calls(model: BackboneModel, tokens: int, beam_width: int, masks: PrefixTable, folder: Path) -> Calls:
    """Prefill, and the head alone or (beam search, whose decode steps need the prefill's cache) the whole draft."""
    rng = np.random.default_rng(0)
    own = tokens + (len(model.levels) if isinstance(model, NezhaModel) else 0)
    prompt = {
        "token_ids": rng.integers(2, model.config.vocab_size, (1, own)).astype(np.int32),
        "lengths": np.array([own], np.int32),
    }
    feeds = graph_masks(masks)
    export_prefill(model, folder / "prefill.onnx")
    calls = {"prefill": _call(folder / "prefill.onnx", prompt)}
    if isinstance(model, NezhaModel):
        size = model.config.hidden_size
        states = {"hidden": rng.standard_normal((1, len(model.levels) + 1, size), np.float32)}
        if model.draft_head.attention_heads:
            states |= {"history": rng.standard_normal((1, own, size), np.float32), "seen": np.ones((1, 1, own), bool)}
        export_head(model, beam_width, feeds, folder / "head.onnx")
        return calls | {"decode": _call(folder / "head.onnx", states | feeds)}
    export_onnx(model, folder / "draft.onnx", beam_width)
    return calls | {"draft": _call(folder / "draft.onnx", prompt | feeds)}


def predicted_ms(model: BackboneModel, batch: Batch, hardware: Hardware) -> dict[str, float]:
    """Milliseconds of both stages."""
    config = model.config.to_dict() | {model.DECODER: model.settings()}
    shape = Shape.of_config(config)
    parts = work_of(shape, model.DECODER, batch, PRECISIONS["float32"], ENGINES["onnx"])
    return {stage: hardware.total_ms(tuple(p for p in parts if p.stage == stage)) for stage in (PREFILL, DECODE)}


def main(
    bundles: Annotated[Optional[list[Path]], typer.Argument(help="Bundles to check; or --sizes.")] = None,
    sizes: Annotated[str, typer.Option(help="Backbones with random weights, HIDDENxLAYERS.")] = "128x4,256x6,512x8",
    levels: Annotated[str, typer.Option(help="Codes per level, with random weights.")] = "256,256,256,256",
    items: Annotated[int, typer.Option(help="Items of the history.")] = 20,
    beam_width: int = 128,
    rounds: int = 30,
) -> None:
    """Print predicted and measured milliseconds of prefill and decoder, and predicted / measured."""
    if bundles:
        models = {path.name: load_checkpoint(path / CHECKPOINT) for path in bundles}
        prefixes = [len(Bundle(path).layout.prefix) for path in bundles]
    else:
        space = SemanticIdSpace(tuple(map(int, levels.split(","))))
        models = random_models(sizes, space, items)
        prefixes = [1] * len(models)
    rng = np.random.default_rng(0)
    machine = probes(1)
    calls = {("machine", name): call for name, (call, _) in machine.items()}
    batches = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for number, ((name, model), prefix) in enumerate(zip(models.items(), prefixes, strict=True)):
            space = SemanticIdSpace(model.levels)
            masks = PrefixTable.build(space, rng.integers(0, space.size, ITEMS))
            batches[name] = Batch(prefix + items * space.depth, beam_width)
            (own := Path(folder) / str(number)).mkdir()
            made = engine_calls(model, batches[name].tokens, beam_width, masks, own)
            calls |= {(name, stage): call for stage, call in made.items()}
        seconds = medians(calls, rounds, time.thread_time)
    hardware = hardware_of("this machine, 1 thread", {name: seconds["machine", name] for name in machine}, machine)
    title = (
        f"{hardware.name}: {hardware.gflops:.0f} GFLOP/s, {hardware.gbytes:.1f} GB/s, "
        f"{hardware.operator_us:.1f} us per operator"
    )
    table = Table("model", "tokens", "beam", "stage", "predicted ms", "measured ms", "ratio", title=title)
    for name, model in models.items():
        expected = predicted_ms(model, batches[name], hardware)
        prefill = seconds[name, "prefill"]
        decode = seconds[name, "decode"] if (name, "decode") in seconds else seconds[name, "draft"] - prefill
        for stage, spent in (PREFILL, prefill), (DECODE, decode):
            figures = expected[stage], 1e3 * spent, expected[stage] / (1e3 * spent)
            shown = (f"{figure:.2f}" for figure in figures)
            table.add_row(name, str(batches[name].tokens), str(beam_width), stage, *shown)
    Console(width=120).print(table)


def _call(graph: Path, feeds: dict[str, np.ndarray]) -> Callable[[], object]:
    session = open_session(graph, threads=1)
    return lambda: session.run(None, feeds)


if __name__ == "__main__":
    typer.run(main)
