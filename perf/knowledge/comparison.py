"""Runs against the baseline's: computed, then as tables, a plot and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from genrec.reporting.page import markdown_table
from perf.knowledge.runs import BASELINE, DARE, RESD, Run, best_runs

_COLUMNS = ("", "batch", "tokens/s", "speed-up", "tokens/step", "accepted", "outside model", "texts differ")


class Compared(NamedTuple):
    """A run, how many times as fast as the baseline it is, and how many of its texts are not the baseline's."""

    run: Run
    speed_up: float
    texts_differ: int

    def as_json(self) -> dict[str, Any]:
        """Without the texts."""
        measured = {name: value for name, value in vars(self.run).items() if name != "texts"}
        return measured | {"speed_up": self.speed_up, "texts_differ": self.texts_differ}


@dataclass(frozen=True)
class Comparison:
    """runs: by name of a way, one for each batch size. best: the fastest of each. ablations: by name, measured apart.

    dare_against_resd: how many times as fast, both at their best.
    """

    runs: dict[str, list[Compared]]
    best: dict[str, Compared]
    ablations: dict[str, Compared]
    dare_against_resd: float

    def as_json(self) -> dict[str, Any]:
        """runs and ablations."""
        return {
            "runs": {name: [one.as_json() for one in found] for name, found in self.runs.items()},
            "ablations": {name: one.as_json() for name, one in self.ablations.items()},
        }


def compare_runs(runs: Mapping[str, Sequence[Run]], ablations: Mapping[str, Run]) -> Comparison:
    """Speed-ups are over the baseline at its best, the ablations' over the baseline that was measured with them.

    Texts are compared token for token, with the baseline's of the same batch size.
    """
    plain = {run.batch_size: run.texts for run in runs[BASELINE]}

    def compared(run: Run, base: Run) -> Compared:
        texts = zip(run.texts, plain[run.batch_size], strict=True)
        return Compared(run, run.speed_up(base), sum(text != other for text, other in texts))

    best = best_runs(runs)
    base = best[BASELINE]
    return Comparison(
        runs={name: [compared(run, base) for run in found] for name, found in runs.items()},
        best={name: compared(run, base) for name, run in best.items()},
        ablations={name: compared(run, ablations[BASELINE]) for name, run in ablations.items()},
        dare_against_resd=best[DARE].speed_up(best[RESD]),
    )


def comparison_tables(comparison: Comparison, texts: int) -> list[str]:
    """The lines of its Markdown tables. texts: how many were written."""
    lines = _table(f"{texts} texts, each way at its best batch size", comparison.best)
    for of_size in zip(*comparison.runs.values(), strict=True):
        title = f"{of_size[0].run.batch_size} at once"
        lines += _table(title, dict(zip(comparison.runs, of_size, strict=True)))
    if comparison.ablations:
        lines += _table("DARE with one thing changed, measured again with its baseline", comparison.ablations)
    return [*lines, f"DARE against ReSD: {comparison.dare_against_resd:.2f}."]


def _table(title: str, rows: Mapping[str, Compared]) -> list[str]:
    return [f"{title}:", "", *markdown_table(_COLUMNS, _cells(rows)), ""]


def _cells(rows: Mapping[str, Compared]) -> Iterable[Sequence[object]]:
    for name, (run, speed_up, texts_differ) in rows.items():
        yield (
            name,
            run.batch_size,
            f"{run.tokens_per_s:.0f}",
            f"{speed_up:.2f}",
            f"{run.tokens_per_step:.2f}",
            f"{run.accepted / max(1, run.drafted):.2f}",
            f"{run.outside_model:.0%}",
            texts_differ,
        )


def plot(comparison: Comparison, path: Path) -> None:
    """Tokens per second over the batch size, a line per way of drafting."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, found in comparison.runs.items():
        sizes, rates = [one.run.batch_size for one in found], [one.run.tokens_per_s for one in found]
        axes.plot(sizes, rates, marker="o", label=name)
    axes.set(xscale="log", xlabel="texts at once", ylabel="tokens per second", ylim=0)
    axes.set_xticks(sizes, map(str, sizes))  # the same for all
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
