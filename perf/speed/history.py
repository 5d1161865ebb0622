"""What transitions that read the history cost: a bundle's graph against the same checkpoint's without them.

python -m perf.speed.history BUNDLE --threads 1
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import CHECKPOINT, Bundle
from genrec.engines.base import Drafts
from genrec.engines.onnx import OnnxEngine
from genrec.model.nezha import NezhaModel
from genrec.reporting.timing import each_ms, in_turn, median_ratio
from genrec_builders.export.onnx import export_onnx


def without_history(model: NezhaModel) -> NezhaModel:
    """A model of the same weights whose transitions read no history; its answers are no use."""
    head = model.draft_head
    bare = NezhaModel(model.config, head.levels, head.state_size, head.transition_size)
    bare.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in bare.state_dict()})
    return bare.eval()


PROMPTS = 20
Call = Callable[[int], Drafts]


def prompts_of(bundle: Bundle) -> list[np.ndarray]:
    """PROMPTS prompts of random items, as long as they may be."""
    rng, length = np.random.default_rng(0), bundle.layout.max_history
    histories = [bundle.catalog.sids[rng.integers(0, len(bundle.catalog), length)] for _ in range(PROMPTS)]
    return [bundle.layout.encode(history) for history in histories]


def engine_calls(bundle: Bundle, beam_width: int, threads: int) -> dict[str, Call]:
    """Drafts of one of `prompts_of` by its number, with what is read and without it. Raises ValueError."""
    model = NezhaModel.load_checkpoint(bundle.path / CHECKPOINT)
    if not model.draft_head.attention_heads:
        raise ValueError(f"{bundle.path}: its draft head reads no history; give a bundle whose head does")
    prompts = prompts_of(bundle)
    calls: dict[str, Call] = {}
    for name, each in (("reading", model), ("without", without_history(model))):
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            export_onnx(each, graph, beam_width)
            engine = OnnxEngine(graph, bundle.masks, beam_width, threads=threads)
        calls[name] = lambda at, engine=engine: engine.draft([prompts[at]])  # type: ignore[misc]
    return calls


def main(
    bundle_path: Annotated[Path, typer.Argument(help="A bundle whose draft head reads the history.")],
    beam_widths: Annotated[str, typer.Option(help="Comma-separated.")] = "20,128,512",
    threads: Annotated[int, typer.Option(help="Of the engines; 0 for one per core.")] = 0,
    rounds: int = 30,
) -> None:
    """Print p50, p95 and p99 of one prompt at a time, the longest, in turn, and the ratio's median over rounds."""
    bundle = Bundle(bundle_path)
    table = Table("beam", "reading: p50 / p95 / p99 ms", "without", "ratio of p50")
    for width in map(int, beam_widths.split(",")):
        times = in_turn(
            engine_calls(bundle, bundle.space.beams(width), threads), rounds, lambda call: each_ms(call, PROMPTS)
        )
        columns = [" / ".join(f"{each:.2f}" for each in np.percentile(turns, (50, 95, 99))) for turns in times.values()]
        ratio = median_ratio(*([statistics.median(turn) for turn in turns] for turns in times.values()))
        table.add_row(f"{width}", *columns, f"{ratio:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
