"""Runs against the baseline's: computed, then as tables, a plot and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from genrec.reporting.page import markdown_table
from perf.knowledge.runs import BASELINE, OURS, SUFFIX, Run, best_runs

_COLUMNS = (
    "",
    "tokens/s",
    "speed-up",
    "over its best",
    "tokens/step",
    "drafted/step",
    "accepted",
    "outside model",
    "texts differ",
)


class Compared(NamedTuple):
    """A run, and how many of its texts are not the baseline's.

    speed_up: over the baseline at the same batch size; over_best: over the baseline at its best one.
    """

    run: Run
    speed_up: float
    over_best: float
    texts_differ: int

    def as_json(self) -> dict[str, Any]:
        """Without the texts."""
        measured = {name: value for name, value in vars(self.run).items() if name != "texts"}
        return measured | self._asdict() | {"run": None}


@dataclass(frozen=True)
class Comparison:
    """runs: by name of a way, one for each batch size. ablations: by name, measured apart.

    against: how many times as fast ours is, by batch size and name of the other way; the best of SuffixDecoding's.
    """

    runs: dict[str, list[Compared]]
    ablations: dict[str, Compared]
    against: dict[int, dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": {name: [one.as_json() for one in found] for name, found in self.runs.items()},
            "ablations": {name: one.as_json() for name, one in self.ablations.items()},
            "against": self.against,
        }


def compare_runs(runs: Mapping[str, Sequence[Run]], ablations: Mapping[str, Run]) -> Comparison:
    """Speed-ups of the ablations are over the baseline that was measured with them.

    Texts are compared token for token, with the baseline's of the same batch size.
    """
    plain = {run.batch_size: run for run in runs[BASELINE]}
    best = best_runs(runs)[BASELINE]

    def compared(run: Run, base: Run, best: Run) -> Compared:
        texts = zip(run.texts, plain[run.batch_size].texts, strict=True)
        differ = sum(text != other for text, other in texts)
        return Compared(run, run.speed_up(base), run.speed_up(best), differ)

    against = {}
    if OURS in runs:
        for ours, *others in zip(runs[OURS], *(found for name, found in runs.items() if name != OURS), strict=True):
            names = [name for name in runs if name != OURS]
            ratios = {name: ours.speed_up(other) for name, other in zip(names, others, strict=True)}
            suffix = [ratios.pop(name) for name in names if name.startswith(SUFFIX.partition(",")[0])]
            against[ours.batch_size] = ratios | ({SUFFIX.partition(",")[0]: min(suffix)} if suffix else {})
    return Comparison(
        runs={name: [compared(run, plain[run.batch_size], best) for run in found] for name, found in runs.items()},
        ablations={name: compared(run, ablations[BASELINE], ablations[BASELINE]) for name, run in ablations.items()},
        against=against,
    )


def comparison_tables(comparison: Comparison) -> list[str]:
    """The lines of its Markdown tables."""
    lines: list[str] = []
    for of_size in zip(*comparison.runs.values(), strict=True):
        run = of_size[0].run
        title = f"{len(run.texts)} texts, {run.batch_size} at once"
        lines += _table(title, dict(zip(comparison.runs, of_size, strict=True)))
    if comparison.ablations:
        lines += _table("Ours with one thing changed, measured again with the baseline", comparison.ablations)
    if comparison.against:
        names = list(next(iter(comparison.against.values())))
        rows = [(size, *(f"{ratios[name]:.2f}" for name in names)) for size, ratios in comparison.against.items()]
        lines += ["Ours, times as fast as:", "", *markdown_table(("texts at once", *names), rows), ""]
    return lines


def _table(title: str, rows: Mapping[str, Compared]) -> list[str]:
    return [f"{title}:", "", *markdown_table(_COLUMNS, _cells(rows)), ""]


def _cells(rows: Mapping[str, Compared]) -> Iterable[Sequence[object]]:
    for name, (run, speed_up, over_best, texts_differ) in rows.items():
        yield (
            name,
            f"{run.tokens_per_s:.0f}",
            f"{speed_up:.2f}",
            f"{over_best:.2f}",
            f"{run.tokens_per_step:.2f}",
            f"{run.drafted / max(1, run.text_steps):.1f}",
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
