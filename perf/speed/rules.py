"""What rules cost: time and bytes to build their masks, and the time of a draft against a graph that takes none.

python -m perf.speed.rules masks
python -m perf.speed.rules drafts --sizes 128x4,512x8

Items are random, which is the dearest. Drafts run and are timed as those of `perf.speed.masks`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.catalog import PrefixTable, RuleMasks
from genrec.engines.onnx import OnnxEngine
from genrec.model import draft_head
from genrec.model.beam import Beams
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.export.onnx import export_onnx
from perf.speed.masks import PROMPTS, Call, Items, Levels, in_turn, random_model, space_of

ARENA = 1 << 30
app = typer.Typer(add_completion=False, help=__doc__)
console = Console(soft_wrap=True)


class Unruled(Beams):
    """The search of a graph that knows no rules."""

    def __init__(self, batch: int, levels: tuple[int, ...], masks: Masks, beam_width: int) -> None:
        super().__init__(batch, levels, masks._replace(rules=None), beam_width)


@app.command()
def masks(levels: Levels = "4x256,3x512,3x8192", items: Items = "1000,10000,100000,1000000", rounds: int = 15) -> None:
    """Print bytes an item of a rule's mask, and p50 / p95 milliseconds of a build, and of adding 100 items to it."""
    table = Table("levels", "items", "bytes an item", "build ms", "add 100 ms")
    for name in levels.split(","):
        space, rng = space_of(name), np.random.default_rng(0)
        for count in map(int, items.split(",")):
            codes = rng.permutation(np.unique(rng.integers(0, space.size, count)))
            arena, used = RuleMasks(space, ARENA), 0
            spent: list[list[float]] = [[], []]
            for _ in range(rounds):
                began = time.perf_counter()
                mask = arena.build(codes)
                built = time.perf_counter()
                assert mask is not None, "the arena is too small"
                used = arena.used_bytes
                more = rng.integers(0, space.size, 100)
                adding = time.perf_counter()
                arena.add(mask, more)
                for times, took in zip(spent, (built - began, time.perf_counter() - adding), strict=True):
                    times.append(1e3 * took)
                arena.free(mask)
            columns = [" / ".join(f"{each:.2f}" for each in np.percentile(times, (50, 95))) for times in spent]
            table.add_row(name, f"{count:,}", f"{used / codes.size:.0f}", *columns)
    console.print(table)


def draft_calls(
    model: NezhaModel, layout: PromptLayout, beam_width: int, codes: np.ndarray, batch: int, share: float, folder: Path
) -> dict[str, Call]:
    """A draft of `batch` of PROMPTS prompts by the first one's number: by a graph that takes no rules, and without and
    with a rule by one that does."""
    space, rng = layout.space, np.random.default_rng(0)
    prompts = [layout.encode(space.decode(rng.choice(codes, layout.max_history))) for _ in range(PROMPTS)]
    export_onnx(model, folder / "takes.onnx", beam_width, layout.max_tokens)
    with patch.object(draft_head, "Beams", Unruled):
        export_onnx(model, folder / "before.onnx", beam_width, layout.max_tokens)
    table, width = PrefixTable.build(space, codes), space.beams(beam_width)
    before, takes = (OnnxEngine(folder / f"{name}.onnx", table, width, threads=1) for name in ("before", "takes"))
    assert takes.takes_rules and not before.takes_rules, "rules are in the wrong graph"
    rule = takes.rule_masks.build(np.unique(rng.choice(codes, int(share * codes.size))))
    assert rule is not None, "the arena is too small"

    def call(engine: OnnxEngine, rules: list[np.ndarray | None] | None) -> Call:
        return lambda at: engine.draft([prompts[(at + more) % PROMPTS] for more in range(batch)], rules=rules)

    return {"before": call(before, None), "no rule": call(takes, None), "a rule": call(takes, [rule] * batch)}


@app.command()
def drafts(
    sizes: Annotated[str, typer.Option(help="Backbones with random weights, HIDDENxLAYERS.")] = "128x4,512x8",
    levels: Levels = "4x256",
    items: Items = "100000",
    batches: str = "1,8",
    beam_width: int = 128,
    history: Annotated[int, typer.Option(help="Items of a prompt.")] = 20,
    share: Annotated[float, typer.Option(help="Of the items that the rule allows.")] = 0.01,
    rounds: int = 40,
) -> None:
    """Print p50 / p95 / p99 of a draft, and how much longer it takes than before: the median of pairs."""
    names = "before ms", "no rule ms", "a rule ms", "no rule / before", "a rule / before"
    table = Table("backbone", "levels", "items", "batch", *names)
    for name in levels.split(","):
        space = space_of(name)
        layout = PromptLayout.contiguous(space, history)
        for size in sizes.split(","):
            for count in map(int, items.split(",")):
                for batch in map(int, batches.split(",")):
                    model = random_model(size, layout)
                    codes = np.unique(np.random.default_rng(0).integers(0, space.size, count))
                    with tempfile.TemporaryDirectory() as folder:
                        calls = draft_calls(model, layout, beam_width, codes, batch, share, Path(folder))
                        spent = in_turn(calls, rounds)
                    columns = [" / ".join(f"{x:.2f}" for x in np.percentile(t, (50, 95, 99))) for t in spent.values()]
                    before = spent.pop("before")
                    ratios = [f"{float(np.median(times / before)):.4f}" for times in spent.values()]
                    table.add_row(size, name, f"{count:,}", f"{batch}", *columns, *ratios)
    console.print(table)


if __name__ == "__main__":
    app()
