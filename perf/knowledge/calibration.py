"""How well the chances of drafted tokens are predicted: against what was accepted, by bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from genrec.knowledge.budget import VerificationBudget
from genrec.knowledge.drafter import PoolDrafter
from genrec.knowledge.model import RELAXED, KnowledgeModel
from genrec.knowledge.texts import TextRequest
from genrec.reporting.page import markdown_table

_BINS = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
_LEAST = 20  # tokens of a bin that is plotted
Bins = list[dict[str, float]]


class _Recording(VerificationBudget):
    """Keeps the chances of what was verified, and whether it was accepted."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.chance: list[np.ndarray] = []
        self.accepted: list[np.ndarray] = []

    def learn(self, accepted: np.ndarray, *arguments: Any) -> None:
        self.chance.append(self.verified.chances)
        self.accepted.append(accepted)
        super().learn(accepted, *arguments)


def calibration(model: KnowledgeModel, requests: Sequence[TextRequest], batch_size: int) -> Bins:
    """By bins of their chance, of the tokens that are verified (relaxed): tokens, mean chance, accepted share."""
    decoder = model.decoder(RELAXED, batch_size, drafter=PoolDrafter(model.pools))
    assert decoder.budget is not None
    decoder.budget = recording = _Recording(decoder.budget.cost)
    for _ in decoder.generate(requests):
        pass
    chance, accepted = np.concatenate(recording.chance), np.concatenate(recording.accepted)
    number = np.clip(_BINS.searchsorted(chance, "right") - 1, 0, _BINS.size - 2)
    return [
        {
            "tokens": int(inside.sum()),
            "predicted": float(chance[inside].mean()),
            "accepted": float(accepted[inside].mean()),
        }
        for at in range(_BINS.size - 1)
        if (inside := number == at).any()
    ]


def calibration_table(found: Mapping[int, Bins]) -> list[str]:
    """The lines of a Markdown table. found: by batch size."""
    rows = [
        (size, f"{one['predicted']:.3f}", f"{one['accepted']:.3f}", one["tokens"])
        for size, bins in found.items()
        for one in bins
    ]
    columns = ("texts at once", "predicted chance", "accepted", "tokens")
    return ["Chances of what was verified:", "", *markdown_table(columns, rows), ""]


def plot_calibration(found: Mapping[int, Bins], path: Path) -> None:
    """Accepted over predicted, a line per batch size; without bins of very few tokens."""
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", label="perfect")
    for size, bins in found.items():
        told = [(one["predicted"], one["accepted"]) for one in bins if one["tokens"] > _LEAST]
        axes.plot(*zip(*told, strict=True), marker="o", label=f"{size} at once")
    axes.set(xlabel="predicted chance to survive", ylabel="accepted share")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
