"""Figures of a comparison. Every function gives a figure, or None where the results have nothing for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from genrec.evaluation.results import COMPARED, POOLED, RankingCell, Results
from genrec.reporting.page import COLOURS, tidy

MARGINS = (-0.01, -0.03)  # relative differences worth a line
TITLES = {"hit": "Hit", "ndcg": "NDCG"}
_GREY = "0.45"
_MARGIN_LINES = ("--", ":")
_DOTTED = (":", "-.")


def metric_title(metric: str) -> str:
    """ "hit@10" -> "Hit@10"."""
    name, cutoff = metric.split("@")
    return f"{TITLES[name]}@{cutoff}"


def quality_figure(results: Results, history_excluded: bool) -> Figure | None:
    """Hit@10 and NDCG@10 against beam width; seeds as points, their mean as a line."""
    if not any(cell.history_excluded == history_excluded for cell in results.record.cells):
        return None
    references = [] if history_excluded else results.record.references  # published figures do not exclude it
    figure = Figure(figsize=(8.4, 4.1), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), COMPARED, strict=True):
        _against_width(axes, results, partial(_metric, metric), (history_excluded,))
        axes.set_ylabel(f"{metric_title(metric)}, mean over users")
        for line, reference in zip(cycle(_DOTTED), references, strict=False):
            axes.axhline(reference.metrics[metric], color=_GREY, linestyle=line, linewidth=1.2)
    figure.suptitle(f"Ranking quality, history {_history(history_excluded)}", fontsize=11)
    published = [
        Line2D([], [], color=_GREY, linestyle=line, label=f"{reference.name}, published")
        for line, reference in zip(cycle(_DOTTED), references, strict=False)
    ]
    _legend(figure, results, published)
    return figure


def _metric(metric: str, cell: RankingCell) -> float:
    return cell.metrics[metric]


def time_figure(results: Results) -> Figure | None:
    """Milliseconds per user against beam width, of drafting and verifying."""
    if not results.record.cells:
        return None
    figure = Figure(figsize=(5.6, 4.1), layout="constrained")
    axes = figure.subplots()
    _against_width(axes, results, lambda cell: cell.ms_per_user, (True,))
    axes.set_yscale("log")
    ticks = [step * 10.0**e for e in range(-3, 6) for step in (1, 2, 5)]
    low, high = axes.get_ylim()
    axes.set_ylim(max(t for t in ticks if t <= low), min(t for t in ticks if t >= high))  # at least two of them
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    batches = sorted({run.batch for run in results.record.runs})
    axes.set_ylabel("ms per user, drafting and verifying")
    axes.set_title(f"Time, in batches of {', '.join(map(str, batches))}", fontsize=11)
    _legend(figure, results)
    return figure


def difference_figure(results: Results, history_excluded: bool) -> Figure | None:
    """Relative differences of the first model from each other one, with their intervals, per setting."""
    found = [
        d
        for d in results.record.differences
        if d.history_excluded == history_excluded and d.relative is not None and d.low is not None
    ]
    if not found:
        return None
    baselines = [name for name in results.names if any(d.baseline == name for d in found)]
    settings = [s for s in results.settings() if s[2] == history_excluded]
    settings = [s for s in settings if any((d.beam_width, d.masked) == s[:2] for d in found)]
    height = 1.5 + 0.32 * len(settings) * max(1.0, 0.7 * len(baselines))
    figure = Figure(figsize=(8.4, height), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(both, COMPARED, strict=True):
        axes.axvline(0, color="black", linewidth=0.9)
        for line, margin in zip(_MARGIN_LINES, MARGINS, strict=True):
            axes.axvline(100 * margin, color=_GREY, linestyle=line, linewidth=1.1)
        for d in found:
            if d.metric != metric or d.relative is None or d.low is None or d.high is None:
                continue
            number = baselines.index(d.baseline)
            colour = COLOURS[results.names.index(d.baseline) % len(COLOURS)]
            place = settings.index((d.beam_width, d.masked, history_excluded))
            y = place + 0.6 * ((number + 0.5) / len(baselines) - 0.5)
            if d.pair == POOLED:
                axes.hlines(y, 100 * d.low, 100 * d.high, color=colour, linewidth=2)
                axes.plot(100 * d.relative, y, "s" if d.masked is False else "o", color=colour, markersize=6)
            else:
                axes.plot(100 * d.relative, y, "|", color=colour, markersize=8, markeredgewidth=1)
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, -4), max(right, 2))
        axes.set_xlabel(f"{metric_title(metric)}, relative difference in %")
        tidy(axes, "x")
    names = ["no beams" if w is None else f"beam {w}, masks {'on' if m else 'off'}" for w, m, _ in settings]
    both[0].set_yticks(range(len(settings)), names)
    both[0].set_ylim(len(settings) - 0.5, -0.5)
    figure.suptitle(f"{results.names[0]}: 95 % intervals, history {_history(history_excluded)}", fontsize=11)
    colours = [COLOURS[results.names.index(name) % len(COLOURS)] for name in baselines]
    handles = [
        Line2D([], [], color=colour, linewidth=2, marker="o", label=f"against {name}, all seeds")
        for colour, name in zip(colours, baselines, strict=True)
    ]
    if any(d.pair != POOLED for d in found):
        handles.append(Line2D([], [], color=colours[0], linestyle="", marker="|", label="one pair of seeds"))
    handles += [
        Line2D([], [], color=_GREY, linestyle=line, label=f"{100 * margin:.0f} %".replace("-", "\N{MINUS SIGN}"))
        for line, margin in zip(_MARGIN_LINES, MARGINS, strict=True)
    ]
    _place(figure, handles, 4)
    return figure


def training_figure(results: Results) -> Figure | None:
    """Validation NDCG@10 and training loss per epoch of every bundle that kept them; the epoch kept is marked."""
    curves = {
        (name, trained.weights): trained.curves
        for name in results.names
        for trained in results.trained(name)
        if trained.curves and trained.curves.get("losses")
    }
    if not curves:
        return None
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    for axes, (field, title) in zip(
        figure.subplots(1, 2),
        (("validation", "NDCG@10 of validation users"), ("losses", "training loss, mean per epoch")),
        strict=True,
    ):
        for (name, _), curve in curves.items():
            values = curve.get(field) or []
            colour = COLOURS[results.names.index(name) % len(COLOURS)]
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=1.3)
            best = curve.get("best_epoch")
            if isinstance(best, int) and 0 <= best < len(values):
                axes.plot(best + 1, values[best], "o", color=colour, markersize=6)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if not axes.lines or not any(len(line.get_xdata()) for line in axes.lines):  # type: ignore[arg-type]
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_GREY)
        tidy(axes)
    figure.suptitle("Training; the point is the epoch whose weights were kept", fontsize=11)
    handles = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], label=name)
        for number, name in enumerate(results.names)
        if any(owner == name for owner, _ in curves)
    ]
    _place(figure, handles, 4)
    return figure


def _against_width(
    axes: Axes, results: Results, value: Callable[[RankingCell], float], histories: tuple[bool, ...]
) -> None:
    widths = sorted({cell.beam_width for cell in results.record.cells if cell.beam_width is not None})
    for number, name in enumerate(results.names):
        colour = COLOURS[number % len(COLOURS)]
        if flat := [value(c) for c in results.cells(name) if c.masked is None and c.history_excluded in histories]:
            axes.axhline(float(np.mean(flat)), color=colour, linewidth=1.3)
        for masked in (True, False):
            cells = [c for c in results.cells(name) if c.masked == masked and c.history_excluded in histories]
            if not cells:
                continue
            by_width = {w: [value(c) for c in cells if c.beam_width == w] for w in widths}
            by_width = {width: values for width, values in by_width.items() if values}
            if any(len(values) > 1 for values in by_width.values()):
                points = [(w, v) for w, values in by_width.items() for v in values]
                axes.plot(*zip(*points, strict=True), ".", color=colour, alpha=0.35, markersize=5)
            axes.plot(
                list(by_width),
                [float(np.mean(values)) for values in by_width.values()],
                color=colour,
                linestyle="-" if masked else "--",
                marker="o" if masked else "s",
                markerfacecolor=colour if masked else "white",
                markersize=5,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("beam width")
    tidy(axes)


def _legend(figure: Figure, results: Results, more: Sequence[Line2D] = ()) -> None:
    drawn = {(cell.model, cell.masked) for cell in results.record.cells}
    handles = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], linewidth=1.3, label=name)
        if masked is None
        else Line2D(
            [],
            [],
            color=COLOURS[number % len(COLOURS)],
            linestyle="-" if masked else "--",
            marker="o" if masked else "s",
            markerfacecolor=COLOURS[number % len(COLOURS)] if masked else "white",
            label=f"{name}, masks {'on' if masked else 'off'}",
        )
        for number, name in enumerate(results.names)
        for masked in (None, True, False)
        if (name, masked) in drawn
    ]
    _place(figure, [*handles, *more], len(results.names) + bool(more))


def _place(figure: Figure, handles: Sequence[Line2D], columns: int) -> None:
    """A legend below, of `columns` columns or as many as fit."""
    for fewer in range(columns, 0, -1):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=fewer, frameon=False, fontsize=9, handlelength=3.2
        )
        if fewer == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _history(excluded: bool) -> str:
    return "excluded" if excluded else "not excluded"
