"""The parts of a NEZHA graph as ONNX Runtime sessions of their own: prefill, and head with beam."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from builders.export import write_graph
from genrec.bundle import CHECKPOINT, Bundle
from genrec.engines.onnx import graph_masks, open_session
from genrec.model.backbone import BackboneModel
from genrec.model.nezha import NezhaModel


class _Prefill(nn.Module):
    """The prefill of either decoder: what it goes on with, [B, L + 1, d] or [B, 1, d]."""

    def __init__(self, model: BackboneModel) -> None:
        super().__init__()
        self.model, self.count = model, len(model.levels) + 1 if isinstance(model, NezhaModel) else 1

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.model.read_prompts(token_ids, lengths, self.count)[0]


class _Head(nn.Module):
    """The draft head and its beam."""

    def __init__(self, model: NezhaModel, beam_width: int) -> None:
        super().__init__()
        self.head, self.beam_width = model.draft_head, beam_width

    def forward(self, hidden: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        depth = len(self.head.levels)
        return self.head.beam(hidden, masks[:depth], masks[depth:], self.beam_width)


def export_prefill(model: BackboneModel, path: Path) -> None:
    """Write the prefill alone to `path`; inputs as `export_onnx`'s, output `hidden`."""
    inputs = {"token_ids": torch.zeros(2, 12, dtype=torch.int32), "lengths": torch.tensor([12, 9], dtype=torch.int32)}
    free = {"token_ids": ("batch", "tokens"), "lengths": ("batch",), "hidden": ("batch",)}
    write_graph(_Prefill(model), inputs, ["hidden"], free, path)


def export_head(model: NezhaModel, beam_width: int, masks: Mapping[str, np.ndarray], path: Path) -> None:
    """Write head and beam alone to `path`; inputs `hidden`, as the prefill gives it, and the `graph_masks`."""
    hidden = torch.zeros(2, len(model.levels) + 1, model.config.hidden_size)
    inputs = {"hidden": hidden, **{name: torch.tensor(mask) for name, mask in masks.items()}}
    free = {name: (f"{name}_nodes",) for name in masks} | dict.fromkeys(("hidden", "codes", "scores"), ("batch",))
    write_graph(_Head(model, beam_width), inputs, ["codes", "scores"], free, path)


class Parts:
    """Prefill and head of a bundle's checkpoint, exported apart. threads: of each session, 0 for one per core."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        model = NezhaModel.load_checkpoint(bundle.path / CHECKPOINT)
        self._masks = graph_masks(bundle.index.prefixes.bits, bundle.index.prefixes.first_child)
        with tempfile.TemporaryDirectory() as folder:
            prefill, head = (Path(folder) / f"{name}.onnx" for name in ("prefill", "head"))
            export_prefill(model, prefill)
            export_head(model, bundle.manifest.beam_width, self._masks, head)
            self._prefill, self._head = open_session(prefill, threads), open_session(head, threads)

    def prefill(self, prompt: np.ndarray) -> np.ndarray:
        """int32 [P] -> h_0 .. h_L, float32 [1, L + 1, d]."""
        return self._prefill.run(None, {"token_ids": prompt[None], "lengths": np.array([prompt.size], np.int32)})[0]

    def head(self, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `prefill` gives -> codes int64 [1, K], scores float32 [1, K]."""
        codes, scores = self._head.run(None, {"hidden": hidden, **self._masks})
        return codes, scores
