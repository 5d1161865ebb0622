"""The parts of a NEZHA graph as ONNX Runtime sessions of their own: prefill, and head with beam."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genrec.bundle import CHECKPOINT, Bundle
from genrec.engines.onnx import graph_masks, open_session
from genrec.model.backbone import BackboneModel
from genrec.model.draft_head import History
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec_builders.export.onnx import write_graph


class _Prefill(nn.Module):
    """The prefill of either decoder: what it goes on with, [B, L + 1, d] or [B, 1, d], and a head's `History`."""

    def __init__(self, model: BackboneModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.model, NezhaModel):
            return self.model.read_prompts(token_ids, lengths, 1)[:1]
        hidden, history = self.model.prefill(token_ids, lengths)
        return hidden, *(history or ())


class _Head(nn.Module):
    """The draft head and its beam."""

    def __init__(self, model: NezhaModel, beam_width: int) -> None:
        super().__init__()
        self.head, self.beam_width = model.draft_head, beam_width

    def forward(self, hidden: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        depth = len(self.head.levels)
        history, masks = (History(*rest[:2]), rest[2:]) if self.head.attention_heads else (None, rest)
        return self.head.beam(hidden, history, Masks(masks[:depth], masks[depth:]), self.beam_width)[:2]


def _state_names(model: BackboneModel) -> tuple[str, ...]:
    """Of what the prefill's graph gives, and the head's takes."""
    reads = isinstance(model, NezhaModel) and model.draft_head.attention_heads
    return ("hidden", "history", "seen") if reads else ("hidden",)


_FREE: dict[str, tuple[str, ...]] = {
    "hidden": ("batch",),
    "history": ("batch", "tokens"),
    "seen": ("batch", "one", "tokens"),
}


def export_prefill(model: BackboneModel, path: Path) -> None:
    """Write the prefill alone to `path`; inputs as `export_onnx`'s, outputs `hidden` and the `History` that is read."""
    inputs = {"token_ids": torch.zeros(2, 12, dtype=torch.int32), "lengths": torch.tensor([12, 9], dtype=torch.int32)}
    names = _state_names(model)
    free = {"token_ids": ("batch", "tokens"), "lengths": ("batch",), **{name: _FREE[name] for name in names}}
    write_graph(_Prefill(model), inputs, names, free, path)


def export_head(model: NezhaModel, beam_width: int, masks: Mapping[str, np.ndarray], path: Path) -> None:
    """Write head and beam alone to `path`; inputs are what the prefill gives, and the `graph_masks`."""
    size = model.config.hidden_size
    states = torch.zeros(2, len(model.levels) + 1, size), torch.zeros(2, 9, size), torch.ones(2, 1, 9, dtype=torch.bool)
    names = _state_names(model)
    inputs = dict(zip(names, states, strict=False)) | {name: torch.tensor(mask) for name, mask in masks.items()}
    free = {name: _FREE[name] for name in names} | dict.fromkeys(("codes", "scores"), ("batch",))
    free |= {name: (f"{name}_rows",) for name in masks}
    write_graph(_Head(model, beam_width), inputs, ["codes", "scores"], free, path)


class Parts:
    """Prefill and head of a bundle's checkpoint, exported apart. threads: of each session, 0 for one per core."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        model = NezhaModel.load_checkpoint(bundle.path / CHECKPOINT)
        self._masks = graph_masks(bundle.masks)
        with tempfile.TemporaryDirectory() as folder:
            prefill, head = (Path(folder) / f"{name}.onnx" for name in ("prefill", "head"))
            export_prefill(model, prefill)
            export_head(model, bundle.manifest.beam_width, self._masks, head)
            self._prefill, self._head = open_session(prefill, threads), open_session(head, threads)
        self._names = _state_names(model)

    def prefill(self, prompt: np.ndarray) -> dict[str, np.ndarray]:
        """int32 [P] -> h_0 .. h_L, float32 [1, L + 1, d], and the history that a head reads, by name."""
        found = self._prefill.run(None, {"token_ids": prompt[None], "lengths": np.array([prompt.size], np.int32)})
        return dict(zip(self._names, found, strict=True))

    def head(self, states: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What `prefill` gives -> codes int64 [1, K], scores float32 [1, K]."""
        codes, scores = self._head.run(None, {**states, **self._masks})
        return codes, scores
