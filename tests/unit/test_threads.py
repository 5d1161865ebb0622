"""PyTorch's threads beside others: how long they wait in a loop, and how many there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genrec.knowledge.drafter import PromptLookupDrafter
from genrec.knowledge.model import KnowledgeModel
from genrec.knowledge.texts import GREEDY


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["by default", "as the user says", "as the user's policy says"],
)
def test_threads_wait_in_a_loop_for_a_short_time(given: dict[str, str], spins: str) -> None:
    """As the library of threads that comes with PyTorch reads it."""
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = subprocess.run(
        [sys.executable, "-c", "import genrec, torch"], env={**own, **given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown) == [spins]


def test_no_more_threads_than_a_container_has_processors(
    knowledge_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("genrec.knowledge.model.usable_cores", lambda: 2)
    try:
        torch.set_num_threads(3)
        KnowledgeModel(knowledge_folder).decoder(GREEDY, 1, drafter=PromptLookupDrafter())
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        KnowledgeModel(knowledge_folder).decoder(GREEDY, 1, drafter=PromptLookupDrafter())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
