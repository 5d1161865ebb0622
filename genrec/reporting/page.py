"""What every report is made of: Markdown tables, and figures beside the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save_figure(figure: Figure | None, folder: Path, name: str) -> str:
    """Save a figure as `folder`/`name`.svg; returns the Markdown that shows it, "" for none."""
    if figure is None:
        return ""
    # Text stays text, and nothing depends on the time: the same results give the same file.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return f"![{name.replace('-', ' ')}]({name}.svg)\n"


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]], left: Sequence[int] = (0,)) -> list[str]:
    """The lines of a table; `left` are the columns that are not numbers."""
    head = [f"| {' | '.join(titles)} |"]
    head.append(f"| {' | '.join('---' if at in left else '---:' for at in range(len(titles)))} |")
    return head + [f"| {' | '.join(map(str, row))} |" for row in rows]


def tidy(axes: Axes, grid: str = "y") -> None:
    """No frame at the top and the right, a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
