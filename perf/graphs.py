"""One ONNX graph or two: prefill, head and beam exported together, against prefill and head with beam apart.

python perf/graphs.py build/shop-bundle
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime as ort
import torch
import typer
from torch import Tensor, nn

from builders.export import write_graph
from genrec.bundle import CHECKPOINT, Bundle
from genrec.engines import open_engine
from genrec.engines.onnx import graph_masks
from genrec.model.nezha import NezhaModel


class _Prefill(nn.Module):
    def __init__(self, model: NezhaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.model.prefill(token_ids, lengths)


class _Head(nn.Module):
    def __init__(self, model: NezhaModel, beam_width: int) -> None:
        super().__init__()
        self.head, self.beam_width = model.draft_head, beam_width

    def forward(self, hidden: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        depth = len(self.head.levels)
        return self.head.beam(hidden, masks[:depth], masks[depth:], self.beam_width)


def main(
    bundle_path: Annotated[Path, typer.Argument(help="The bundle whose checkpoint is exported.")],
    threads: int = 0,
    rounds: int = 20,
) -> None:
    """Print the median milliseconds of both, measured in turn on the same prompts."""
    bundle = Bundle(bundle_path)
    model = NezhaModel.load_checkpoint(bundle.path / CHECKPOINT)
    masks = graph_masks(bundle.index.prefixes.bits, bundle.index.prefixes.first_child)
    depth = bundle.space.depth
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    token_ids, lengths = torch.zeros(2, 12, dtype=torch.int32), torch.tensor([12, 9], dtype=torch.int32)
    states = torch.zeros(2, depth + 1, model.config.hidden_size)
    nodes = {name: (f"{name}_nodes",) for name in masks}
    parts: dict[str, tuple] = {
        "prefill": (
            _Prefill(model),
            {"token_ids": token_ids, "lengths": lengths},
            ["hidden"],
            {"token_ids": ("batch", "tokens"), "lengths": ("batch",), "hidden": ("batch",)},
        ),
        "head": (
            _Head(model, bundle.manifest.beam_width),
            {"hidden": states, **{name: torch.tensor(mask) for name, mask in masks.items()}},
            ["codes", "scores"],
            {"hidden": ("batch",), **nodes},
        ),
    }
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            path = Path(folder) / f"{name}.onnx"
            write_graph(*part, path)
            sessions.append(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
        prefill, head = sessions
    engine = open_engine(bundle, threads=threads)
    rng = np.random.default_rng(0)
    prompts = [bundle.layout.encode(bundle.catalog.sids[rng.integers(0, len(bundle.catalog), 20)]) for _ in range(20)]

    def apart(prompt: np.ndarray) -> None:
        lengths = np.array([prompt.size], np.int32)
        hidden = prefill.run(None, {"token_ids": prompt[None], "lengths": lengths})[0]
        head.run(None, {"hidden": hidden, **masks})

    times: dict[str, list[float]] = {"one graph": [], "two graphs": []}
    for number in range(rounds + 1):
        for name, call in (("one graph", lambda prompt: engine.draft([prompt])), ("two graphs", apart)):
            for prompt in prompts:
                began = time.perf_counter()
                call(prompt)
                if number:
                    times[name].append(1e3 * (time.perf_counter() - began))
    one, two = (float(np.median(spent)) for spent in times.values())
    print(f"one graph p50 {one:.2f} ms, two graphs p50 {two:.2f} ms, ratio two / one {two / one:.2f}")


if __name__ == "__main__":
    typer.run(main)
