"""How fast the beam-search baseline does its arithmetic: decode steps against prefill, PyTorch and ONNX Runtime.

python -m perf.speed.decode_rate --threads 1

Rates count the matrix products' floating-point operations from their shapes, attention included, as they are executed
(a prefill's scores are a full square). The time of the decode steps is the median of whole drafts less the median of
prefills alone (for ONNX Runtime a graph of its own), measured in turn. Top-K and masks count as decoding.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig

from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines.onnx import graph_masks, open_session
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.masks import Masks
from genrec.prompt import PromptLayout
from genrec.reporting.timing import medians
from genrec_builders.config import BackboneShape
from genrec_builders.export.onnx import export_onnx
from perf.speed.parts import export_prefill

SHAPES = {
    "3M": BackboneShape("qwen3", 192, 576, layers=6, heads=6, kv_heads=3),
    "25M": BackboneShape("qwen3", 512, 1536, layers=8, heads=8, kv_heads=4),
    "110M": BackboneShape("qwen3", 768, 3072, layers=12, heads=12, kv_heads=6),
}
Calls = dict[str, Callable[[], object]]
ITEMS = 100_000  # of the random catalogue whose prefixes mask the beams


def random_model(shape: str, layout: PromptLayout) -> AutoregressiveModel:
    """A backbone of one of the SHAPES with random weights."""
    torch.manual_seed(0)
    return AutoregressiveModel(SHAPES[shape].config(layout), layout.sid_tokens).eval()


def operations(config: PretrainedConfig, levels: tuple[int, ...], tokens: int, beam_width: int) -> tuple[int, int]:
    """Floating-point operations of the matrix products: one prompt's prefill, and its decode steps with all logits."""
    d, e = config.hidden_size, config.head_dim
    heads, kv_heads, layers = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
    key_values = 2 * d * 2 * kv_heads * e
    per_row = 2 * (2 * d * heads * e + 3 * d * config.intermediate_size)  # queries, output, feed-forward

    def rows(count: int, keys: int) -> int:
        return count * (per_row + 4 * keys * heads * e)

    prefill = layers * tokens * key_values + (layers - 1) * rows(tokens, tokens) + rows(1, tokens)
    decode = 2 * d * levels[0]
    for level in range(1, len(levels)):
        width = min(beam_width, math.prod(levels[:level]))
        decode += width * (layers * key_values + 2 * d * levels[level]) + layers * rows(width, tokens + level)
    return prefill, decode


def torch_calls(model: AutoregressiveModel, token_ids: np.ndarray, prefixes: PrefixTable, beam_width: int) -> Calls:
    """The two calls of PyTorch."""
    tokens, lengths = torch.tensor(token_ids), torch.tensor([token_ids.shape[1]])
    masks = Masks.of(prefixes)
    return {
        "prefill": lambda: model.prefill(tokens.long(), lengths),
        "draft": lambda: model.draft(tokens, lengths, masks, beam_width),
    }


def onnx_calls(graphs: dict[str, Path], token_ids: np.ndarray, prefixes: PrefixTable, threads: int) -> Calls:
    """The two calls of ONNX Runtime, of the graphs of those names."""
    sessions = {name: open_session(path, threads) for name, path in graphs.items()}
    feeds = {"token_ids": token_ids, "lengths": np.array([token_ids.shape[1]], np.int32)}
    masked = feeds | graph_masks(prefixes)
    return {
        "prefill": lambda: sessions["prefill"].run(None, feeds),
        "draft": lambda: sessions["draft"].run(None, masked),
    }


def main(
    shapes: Annotated[str, typer.Option(help="Backbones, of " + ", ".join(SHAPES))] = ",".join(SHAPES),
    beams: Annotated[str, typer.Option(help="Beam widths.")] = "50,128,512",
    engines: Annotated[str, typer.Option(help="Of torch, onnx.")] = "torch,onnx",
    tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 80,
    depth: Annotated[int, typer.Option(help="Levels of the semantic IDs.")] = 4,
    codes: Annotated[int, typer.Option(help="Codes per level.")] = 256,
    threads: int = 1,
    rounds: int = 20,
) -> None:
    """Print the rates; the ratio is decode steps / prefill."""
    torch.set_num_threads(threads)
    space = SemanticIdSpace((codes,) * depth)
    layout = replace(PromptLayout.contiguous(space, max_history=tokens // depth), placeholders=())
    rng = np.random.default_rng(0)
    prefixes = PrefixTable.build(space, rng.integers(0, space.size, ITEMS))
    token_ids = rng.integers(2, layout.vocabulary_size, (1, tokens)).astype(np.int32)
    console = Console(soft_wrap=True)
    heads = ("engine", "backbone", "beam", "prefill ms", "decode ms", "prefill GFLOP/s", "decode GFLOP/s", "ratio")
    table = Table(*heads, title=f"prompt of {tokens} tokens, {depth} levels of {codes}, {threads} threads")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for shape in shapes.split(","):
            model = random_model(shape, layout)
            graphs = {name: Path(folder) / f"{name}.onnx" for name in ("prefill", "draft")}
            if "onnx" in engines:
                export_prefill(model, graphs["prefill"])
            for beam_width in map(int, beams.split(",")):
                work = operations(model.config, space.levels, tokens, beam_width)
                for engine in engines.split(","):
                    if engine == "onnx":
                        console.print(f"exporting {shape}, beam {beam_width}")
                        export_onnx(model, graphs["draft"], beam_width)
                        calls = onnx_calls(graphs, token_ids, prefixes, threads)
                    else:
                        calls = torch_calls(model, token_ids, prefixes, beam_width)
                    seconds = medians(calls, rounds)
                    prefill, decode = seconds["prefill"], seconds["draft"] - seconds["prefill"]
                    rates = work[0] / prefill / 1e9, work[1] / decode / 1e9
                    figures = [f"{x:.1f}" for x in (1e3 * prefill, 1e3 * decode, *rates)]
                    table.add_row(engine, shape, str(beam_width), *figures, f"{rates[1] / rates[0]:.2f}")
                    console.print(engine, shape, beam_width, *figures, f"ratio {rates[1] / rates[0]:.2f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
