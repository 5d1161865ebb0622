"""The figure of `genrec catalog inspect`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from genrec.live.inspection import Drift, Inspection, Sizes
from genrec.reporting.page import COLOURS, tidy

_GREY = "0.45"
_POINTS, _GROUPS = 201, 64


def inspection_figure(found: Inspection) -> Figure:
    """Bucket sizes, items per prefix, and the codes that trained and added items use."""
    figure = Figure(figsize=(11.2, 3.8), layout="constrained")
    buckets, prefixes, usage = figure.subplots(1, 3)
    _draw_buckets(buckets, found.prefixes[-1], found.top_k)
    _draw_prefixes(prefixes, found.prefixes[:-1])
    _draw_usage(usage, found.drift)
    figure.suptitle(f"Catalogue at version {found.version}, {found.live:,} live items", fontsize=11)
    return figure


def _draw_buckets(axes: Axes, buckets: Sizes, top_k: int) -> None:
    sizes, counts = np.unique(buckets.items, return_counts=True)
    axes.vlines(sizes, 0.5, counts, color=COLOURS[0], linewidth=1.2)
    axes.plot(sizes, counts, "o", color=COLOURS[0], markersize=4)
    axes.axvline(top_k + 0.5, color=_GREY, linestyle="--", linewidth=1.1, label=f"longest answer, {top_k}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5, None)
    axes.set_xlabel("live items of a semantic ID")
    axes.set_ylabel("semantic IDs")
    _plain(axes, "xy")
    _legend(axes, "upper right")


def _draw_prefixes(axes: Axes, prefixes: list[Sizes]) -> None:
    shares = np.linspace(0, 1, _POINTS)
    for depth, sizes in enumerate(prefixes, 1):
        if sizes.items.size:
            found = np.quantile(sizes.items, shares, method="inverted_cdf")
            name = f"{depth} code{'s' if depth > 1 else ''}: {sizes.items.size:,} of {sizes.possible:,} in use"
            axes.plot(100 * shares, found, color=COLOURS[(depth - 1) % len(COLOURS)], drawstyle="steps", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("% of the prefixes in use, smallest first")
    axes.set_ylabel("live items of a prefix, at most")
    _plain(axes, "y")
    _legend(axes)


def _draw_usage(axes: Axes, drift: Drift) -> None:
    axes.set_xlabel("codes of level 0, most used first, in %")
    axes.set_ylabel("% of the items")
    tidy(axes)
    if drift.usage is None:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not known: give --bundle", transform=axes.transAxes, ha="center", color=_GREY)
        return
    trained, added = drift.usage[:, np.argsort(-drift.usage[0], kind="stable")]
    edges = np.linspace(0, trained.size, min(_GROUPS, trained.size) + 1).astype(np.int64)
    groups = [100 * np.add.reduceat(shares, edges[:-1]) for shares in (trained, added)]
    places = 100 * edges / trained.size
    axes.stairs(groups[0], places, color=COLOURS[0], fill=True, alpha=0.35, label="trained items")
    axes.stairs(groups[1], places, color=COLOURS[1], linewidth=1.4, label=f"added items, {drift.added:,}")
    _legend(axes, "upper right")


def _plain(axes: Axes, which: str) -> None:
    """Numbers, not powers of ten, on logarithmic axes."""
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    tidy(axes)


def _legend(axes: Axes, place: str = "upper left") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.9, edgecolor="none", loc=place)
