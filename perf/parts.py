"""The parts of a NEZHA graph as ONNX Runtime sessions of their own: prefill, and head with beam."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from builders.export import write_graph
from genrec.bundle import CHECKPOINT, Bundle
from genrec.engines.onnx import graph_masks
from genrec.model.backbone import BackboneModel
from genrec.model.nezha import NezhaModel


class PrefillGraph(nn.Module):
    """The prefill of either decoder: what it goes on with, [B, L + 1, d] or [B, 1, d]."""

    def __init__(self, model: BackboneModel) -> None:
        super().__init__()
        self.model, self.count = model, len(model.levels) + 1 if isinstance(model, NezhaModel) else 1

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.model.read_prompts(token_ids, lengths, self.count)[0]


class HeadGraph(nn.Module):
    """The draft head and its beam."""

    def __init__(self, model: NezhaModel, beam_width: int) -> None:
        super().__init__()
        self.head, self.beam_width = model.draft_head, beam_width

    def forward(self, hidden: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        depth = len(self.head.levels)
        return self.head.beam(hidden, masks[:depth], masks[depth:], self.beam_width)


class Parts:
    """Prefill and head of a bundle's checkpoint, exported apart. threads: of each session, 0 for one per core."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        model = NezhaModel.load_checkpoint(bundle.path / CHECKPOINT)
        self._masks = graph_masks(bundle.index.prefixes.bits, bundle.index.prefixes.first_child)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        token_ids, lengths = torch.zeros(2, 12, dtype=torch.int32), torch.tensor([12, 9], dtype=torch.int32)
        states = torch.zeros(2, bundle.space.depth + 1, model.config.hidden_size)
        nodes = {name: (f"{name}_nodes",) for name in self._masks}
        free = {"token_ids": ("batch", "tokens"), "lengths": ("batch",), "hidden": ("batch",)}
        masks = {name: torch.tensor(mask) for name, mask in self._masks.items()}
        with tempfile.TemporaryDirectory() as folder:

            def session(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], free: dict) -> object:
                path = Path(folder) / f"{type(module).__name__}.onnx"
                write_graph(module, inputs, outputs, free, path)
                return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

            prompts = {"token_ids": token_ids, "lengths": lengths}
            self._prefill = session(PrefillGraph(model), prompts, ["hidden"], free)
            head = HeadGraph(model, bundle.manifest.beam_width)
            self._head = session(head, {"hidden": states, **masks}, ["codes", "scores"], {"hidden": ("batch",)} | nodes)

    def prefill(self, prompt: np.ndarray) -> np.ndarray:
        """int32 [P] -> h_0 .. h_L, float32 [1, L + 1, d]."""
        return self._prefill.run(None, {"token_ids": prompt[None], "lengths": np.array([prompt.size], np.int32)})[0]

    def head(self, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `prefill` gives -> codes int64 [1, K], scores float32 [1, K]."""
        codes, scores = self._head.run(None, {"hidden": hidden, **self._masks})
        return codes, scores
