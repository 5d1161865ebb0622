"""Engines of any beam width over a bundle's checkpoint, for comparisons."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from genrec.bundle import CHECKPOINT, ONNX_GRAPH, Bundle
from genrec.engines.base import Engine
from genrec.engines.onnx import OnnxEngine
from genrec.engines.torch import TorchEngine
from genrec.evaluation.comparison import ComparisonSettings, OpenEngine
from genrec.model.checkpoint import load_checkpoint
from genrec.reporting.progress import Track
from genrec_builders.export.onnx import export_onnx


def opener(settings: ComparisonSettings, track: Track) -> OpenEngine:
    """What opens the engines of a comparison. An ONNX graph's width is fixed: another one is exported and forgotten."""
    if settings.threads:
        torch.set_num_threads(settings.threads)

    def open_engine(bundle: Bundle, width: int) -> Engine:
        beams = bundle.space.beams(width)
        if settings.engine == "torch":
            return TorchEngine(bundle.path / CHECKPOINT, bundle.masks, beams, settings.device)
        if width == bundle.manifest.beam_width:
            return OnnxEngine(bundle.path / ONNX_GRAPH, bundle.graph_masks, beams, threads=settings.threads)
        with tempfile.TemporaryDirectory() as folder, track(f"{bundle.path.name}, export for beam {width}"):
            graph = Path(folder) / Path(ONNX_GRAPH).name
            export_onnx(load_checkpoint(bundle.path / CHECKPOINT), graph, width, bundle.layout.max_tokens)
            return OnnxEngine(graph, bundle.masks, beams, threads=settings.threads)

    return open_engine
