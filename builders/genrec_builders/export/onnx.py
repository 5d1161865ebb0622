"""Exports a checkpoint as one ONNX graph: prefill, decoder and beams, with prefix masks as inputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genrec.catalog import PrefixTable, RuleMasks, SemanticIdSpace
from genrec.catalog.rule_masks import OCTETS
from genrec.engines.onnx import CODES, LAST, PREFIXES, RULE_BITS, RULE_ROWS, SCORES, graph_masks
from genrec.model.backbone import BackboneModel
from genrec.model.beam import Drafted
from genrec.model.fused import DOMAIN
from genrec.model.masks import Masks, Rules

OPSET = 18


class _Graph(nn.Module):
    """`BackboneModel.draft` with flat inputs and a fixed beam width."""

    def __init__(self, model: BackboneModel, beam_width: int) -> None:
        super().__init__()
        self.model, self.beam_width = model, beam_width

    def forward(self, token_ids: Tensor, lengths: Tensor, *masks: Tensor) -> Drafted:
        depth = len(self.model.levels)
        table, rules = masks[:-2], Rules(*masks[-2:])
        return self.model.draft(token_ids, lengths, Masks(table[:depth], table[depth:], rules), self.beam_width)


def export_onnx(model: BackboneModel, path: Path, beam_width: int, longest_prompt: int | None = None) -> None:
    """Write `model` to `path` (`.onnx`, weights beside it when large) for beams of `beam_width`.

    longest_prompt: tokens of the longest prompt, by `PromptLayout.max_tokens`; the graph then holds no positions that
    none can have. None for as many as the model has: a long-context checkpoint's are larger than a small model.
    Inputs: token_ids int32 [B, S], lengths int32 [B], the arrays of a `PrefixTable`, mask_bits_l [rows, width] per
    level and mask_keys_l [buckets, 16] per level but the first, and those of the rules, rule_bits uint8 [rows, 32] and
    rule_rows int64 [B, 2 L], the first row and the number of rows of each level. Outputs: codes int64 [B, K], scores
    float32 [B, K], and prefixes and last_codes, the codes in two parts, as in `Drafted`.
    """
    space = SemanticIdSpace(model.levels)
    # Two prompts and a small table to trace with; every size but T and K stays free.
    table = PrefixTable.build(space, np.random.default_rng(0).integers(0, space.size, 64), spare=0)
    masks = {name: torch.tensor(array) for name, array in graph_masks(table).items()}
    rules = RuleMasks(space, OCTETS)
    no_rules = {RULE_BITS: torch.tensor(rules.bits), RULE_ROWS: torch.tensor(rules.stacked([None] * 2))}
    length = 3 * space.depth
    inputs = {
        "token_ids": torch.zeros(2, length, dtype=torch.int32),
        "lengths": torch.tensor([length, length - space.depth], dtype=torch.int32),
        **masks,
        **no_rules,
    }
    outputs = CODES, SCORES, PREFIXES, LAST
    free = {"token_ids": ("batch", "tokens"), "lengths": ("batch",), **dict.fromkeys(outputs, ("batch",))}
    free |= {name: (f"{name}_rows",) for name in (*masks, RULE_BITS)} | {RULE_ROWS: ("batch",)}
    path.parent.mkdir(parents=True, exist_ok=True)
    positions = model.config.max_position_embeddings
    if longest_prompt is not None:
        # The codes of an answer that is written token by token stand behind the prompt. There, a request's beams are
        # the rows of ONNX Runtime's operator, which takes no more rows than its table has.
        rows = max(max(longest_prompt, length) + space.depth, space.beams(beam_width))
        positions = min(positions, rows)
    with model.only_positions(positions):
        write_graph(_Graph(model.eval(), beam_width), inputs, outputs, free, path)


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    free: Mapping[str, tuple[str, ...]],
    path: Path,
) -> None:
    """Trace `module` on `inputs`, in the order of its arguments, and write the graph to `path`.

    free: names of the leading dimensions of inputs and outputs that may have any size; all others are fixed.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # Not the exporter on torch.export: for a graph that is as fast it takes 25 times as long.
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            custom_opsets={DOMAIN: 1},
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(enumerate(dimensions)) for name, dimensions in free.items()},
        )
