"""What masks cost: bytes an item, time to build and change, and the time of a draft against one without any mask.

python -m perf.speed.masks tables
python -m perf.speed.masks drafts --sizes 128x4,512x8

Catalogues are random: every prefix has as few items as can be, which is the dearest. Drafts run on one thread of ONNX
Runtime, in turn, prompt by prompt. Their times are the thread's own CPU time, so that what else runs on the machine
only shows through shared caches and memory.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genrec.bundle.checkpoint_shapes import HeadShape
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines.onnx import CODES, SCORES, OnnxEngine, graph_masks, open_session
from genrec.model import draft_head
from genrec.model.beam import Beams
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.config import BackboneShape
from genrec_builders.export.onnx import export_onnx

PROMPTS = 20
app = typer.Typer(add_completion=False, help=__doc__)
console = Console(soft_wrap=True)
Call = Callable[[int], object]
Levels = Annotated[str, typer.Option(help="Levels of semantic IDs, LEVELSxCODES.")]
Items = Annotated[str, typer.Option(help="Items of the catalogues.")]


class Unmasked(Beams):
    """The search of a graph that knows no masks at all."""

    def _mask(self, level: int, width: int) -> Tensor:
        return torch.zeros(())  # which ONNX Runtime leaves out


def space_of(levels: str) -> SemanticIdSpace:
    depth, codes = map(int, levels.split("x"))
    return SemanticIdSpace((codes,) * depth)


def random_model(size: str, layout: PromptLayout) -> NezhaModel:
    """A model with random weights, of HIDDENxLAYERS."""
    hidden, layers = map(int, size.split("x"))
    torch.manual_seed(0)
    shape = BackboneShape("qwen3", hidden, 3 * hidden, layers).config(layout)
    return NezhaModel(shape, layout.space.levels, **asdict(HeadShape())).eval()


@app.command()
def tables(
    levels: Levels = "4x256,3x512,3x8192", items: Items = "1000000,10000000", changes: int = 10_000, rounds: int = 7
) -> None:
    """Print bytes an item of all levels together, seconds of a build, and milliseconds of a batch of changes."""
    table = Table("levels", "items", "bytes an item", "build s", f"add {changes} ms", f"discard {changes} ms")
    for name in levels.split(","):
        for count in map(int, items.split(",")):
            space, rng = space_of(name), np.random.default_rng(0)
            codes = rng.integers(0, space.size, count)
            began = time.perf_counter()
            masks = PrefixTable.build(space, codes, spare=(rounds + 1) * changes)
            built = time.perf_counter() - began
            size = sum(array.nbytes for array in (*masks.bits, *masks.keys))
            added: list[float] = []
            discarded: list[float] = []
            for _ in range(rounds):
                batch = rng.integers(0, space.size, changes)
                for change, spent in ((masks.add, added), (masks.discard, discarded)):
                    began = time.perf_counter()
                    change(batch)
                    spent.append(1e3 * (time.perf_counter() - began))
            figures = size / count, built, float(np.median(added)), float(np.median(discarded))
            table.add_row(name, f"{count:,}", *(f"{each:.1f}" for each in figures))
    console.print(table)


def draft_calls(
    model: NezhaModel, layout: PromptLayout, beam_width: int, codes: np.ndarray, folder: Path
) -> dict[str, Call]:
    """A draft of one of PROMPTS prompts by its number: with masks, with masks that allow all, and without masks."""
    space, rng = layout.space, np.random.default_rng(0)
    histories = space.decode(rng.choice(codes, (PROMPTS, layout.max_history)))
    prompts = [layout.encode(history) for history in histories]
    export_onnx(model, folder / "masked.onnx", beam_width, layout.max_tokens)
    with patch.object(draft_head, "Beams", Unmasked):
        export_onnx(model, folder / "without.onnx", beam_width, layout.max_tokens)
    table = PrefixTable.build(space, codes)
    engine = OnnxEngine(folder / "masked.onnx", table, space.beams(beam_width), threads=1)
    session = open_session(folder / "without.onnx", threads=1)
    assert not {given.name for given in session.get_inputs()} & graph_masks(table).keys(), "masks are in that graph"

    def without(at: int) -> object:
        feeds = {"token_ids": prompts[at][None], "lengths": np.array([prompts[at].size], np.int32)}
        return session.run([CODES, SCORES], feeds)

    return {
        "masked": lambda at: engine.draft([prompts[at]]),
        "all allowed": lambda at: engine.draft([prompts[at]], masked=False),
        "without": without,
    }


def in_turn(calls: dict[str, Call], rounds: int) -> dict[str, np.ndarray]:
    """CPU milliseconds of each call with each prompt, float64 [rounds, PROMPTS], behind a round that does not count."""
    spent = {name: np.zeros((rounds + 1, PROMPTS)) for name in calls}
    names = list(calls)
    for number in range(rounds + 1):
        for at in range(PROMPTS):
            for turn in range(len(names)):  # each is first as often as the others
                name = names[(number + at + turn) % len(names)]
                began = time.thread_time_ns()
                calls[name](at)
                spent[name][number, at] = (time.thread_time_ns() - began) / 1e6
    return {name: each[1:] for name, each in spent.items()}


@app.command()
def drafts(
    sizes: Annotated[str, typer.Option(help="Backbones with random weights, HIDDENxLAYERS.")] = "128x4,512x8",
    levels: Levels = "4x256",
    items: Items = "100000",
    beam_widths: str = "128",
    history: Annotated[int, typer.Option(help="Items of a prompt.")] = 20,
    rounds: int = 40,
) -> None:
    """Print p50 / p95 / p99 of one prompt at a time, and how much longer it takes with masks: the median of pairs."""
    table = Table("backbone", "levels", "items", "beam", "masked ms", "all allowed", "without", "masked / without")
    for name in levels.split(","):
        space = space_of(name)
        layout = PromptLayout.contiguous(space, history)
        for size in sizes.split(","):
            model = random_model(size, layout)
            for count in map(int, items.split(",")):
                codes = np.random.default_rng(0).integers(0, space.size, count)
                for width in map(int, beam_widths.split(",")):
                    with tempfile.TemporaryDirectory() as folder:
                        spent = in_turn(draft_calls(model, layout, width, codes, Path(folder)), rounds)
                    columns = [" / ".join(f"{x:.2f}" for x in np.percentile(t, (50, 95, 99))) for t in spent.values()]
                    ratio = float(np.median(spent["masked"] / spent["without"]))
                    table.add_row(size, name, f"{count:,}", f"{width}", *columns, f"{ratio:.4f}")
    console.print(table)


if __name__ == "__main__":
    app()
