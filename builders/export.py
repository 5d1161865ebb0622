"""Exports a checkpoint as one ONNX graph: prefill, decoder and beams, with prefix masks as inputs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genrec.engines.onnx import graph_masks
from genrec.model.backbone import BackboneModel
from genrec.prefix_trie import PrefixTrie
from genrec.semantic_id import SemanticIdSpace

OPSET = 18


class _Graph(nn.Module):
    """`BackboneModel.draft` with flat inputs and a fixed beam width."""

    def __init__(self, model: BackboneModel, beam_width: int) -> None:
        super().__init__()
        self.model, self.beam_width = model, beam_width

    def forward(self, token_ids: Tensor, lengths: Tensor, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        depth = len(self.model.levels)
        return self.model.draft(token_ids, lengths, masks[:depth], masks[depth:], self.beam_width)


def export_onnx(model: BackboneModel, path: Path, beam_width: int) -> None:
    """Write `model` to `path` (`.onnx`, weights beside it when large) for beams of `beam_width`.

    Inputs: token_ids int32 [B, S], lengths int32 [B], prefix_bits_l uint8 [nodes_l, ceil(T_l / 8)] per level,
    first_child_l int32 [nodes_l] per level but the last. Outputs: codes int64 [B, K], scores float32 [B, K].
    """
    space = SemanticIdSpace(model.levels)
    # Two prompts and a small trie to trace with; every size but T and K stays free.
    sids = np.random.default_rng(0).integers(0, space.levels, (64, space.depth))
    trie = PrefixTrie.build(space, sids)
    masks = {name: torch.tensor(array) for name, array in graph_masks(trie.bits, trie.first_child).items()}
    length = 3 * space.depth
    inputs = (
        torch.zeros(2, length, dtype=torch.int32),
        torch.tensor([length, length - space.depth], dtype=torch.int32),
        list(masks.values()),
    )
    free = torch.export.Dim.DYNAMIC
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Graph(model.eval(), beam_width),
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["token_ids", "lengths", *masks],
            output_names=["codes", "scores"],
            dynamic_shapes={"token_ids": {0: free, 1: free}, "lengths": {0: free}, "masks": [{0: free} for _ in masks]},
        )
    assert program is not None  # only without dynamo
    program.save(path)
