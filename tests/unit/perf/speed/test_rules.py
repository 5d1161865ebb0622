"""The measurement of rules, at the smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec.catalog import SemanticIdSpace
from genrec.engines.base import Drafts
from genrec.prompt import PromptLayout
from perf.speed import masks, rules
from tests.near import assert_same_drafts


def test_masks_are_measured() -> None:
    said = CliRunner().invoke(rules.app, ["masks", "--levels", "3x16", "--items", "500", "--rounds", "1"])
    assert said.exit_code == 0, said.output
    assert "3x16" in said.output and "bytes an item" in said.output


@pytest.mark.training
def test_the_graph_without_rules_drafts_what_the_other_one_drafts_without_a_rule(tmp_path: Path) -> None:
    space = SemanticIdSpace((9, 12, 7))
    layout = PromptLayout.contiguous(space, 4)
    model = masks.random_model("32x1", layout)
    calls = rules.draft_calls(model, layout, 20, np.arange(0, space.size, 9), 3, 0.5, tmp_path)
    before, without, ruled = (call(0) for call in calls.values())
    assert isinstance(before, Drafts) and isinstance(without, Drafts) and isinstance(ruled, Drafts)
    assert_same_drafts(before, without)
    assert np.isfinite(ruled.scores).any() and not (ruled.codes[np.isfinite(ruled.scores)] % 9).any()
