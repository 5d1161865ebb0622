"""The measurement of masks, at the smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from genrec.catalog import SemanticIdSpace
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.config import BackboneShape
from perf.speed import masks
from tests.near import NEAR


def test_tables_are_measured() -> None:
    said = CliRunner().invoke(masks.app, ["tables", "--levels", "3x16", "--items", "500", "--rounds", "1"])
    assert said.exit_code == 0, said.output
    assert "3x16" in said.output and "bytes an item" in said.output


@pytest.mark.training
def test_the_graph_without_masks_drafts_what_the_other_one_drafts_where_all_is_allowed(tmp_path: Path) -> None:
    space = SemanticIdSpace((9, 12, 7))
    layout = PromptLayout.contiguous(space, 4)
    torch.manual_seed(0)
    model = NezhaModel(BackboneShape("qwen3", 32, 64, 1).config(layout), space.levels, 24, 48).eval()
    calls = masks.draft_calls(model, layout, 20, np.arange(0, space.size, 9), tmp_path)
    _, scores = calls["without"](0)  # type: ignore[misc]
    np.testing.assert_allclose(calls["all allowed"](0).scores, scores, rtol=0, atol=NEAR)  # type: ignore[attr-defined]
    assert not (calls["masked"](0).codes % 9).any()  # type: ignore[attr-defined]
    spent = masks.in_turn(calls, 2)
    assert all(each.shape == (2, masks.PROMPTS) and (each > 0).all() for each in spent.values())
