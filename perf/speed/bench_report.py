"""The page of `make bench`: tables and figures of whatever was measured.

python -m perf.speed.bench_report build/bench docs/performance
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from genrec.reporting.page import COLOURS, markdown_table, save_figure, tidy
from genrec.reporting.timing import median_ratio
from perf.speed import bench, catalog_size, overhead
from perf.speed.cells import GRID, NAMED

PAGE = "report.md"
OF_BOUND = 0.7  # the aim: share of the arithmetic bound
SYSTEMS = ("NEZHA", "beam search")
HEADLINE = ("25M-h20-L3-K50", "25M-h20-L4-K512", "110M-h20-L4-K512")
_PARTS = ("prefill", "head and beam", "verifier", "serving")


class CellResult:
    """A cell of `cells.json`; figures are medians over its runs, ratios are of the medians."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.name, self.bound, self.parameters, self.runs = raw["name"], raw["bound"], raw["parameters"], raw["runs"]

    def figure(self, system: str, kind: str, name: str) -> float:
        return median(run[name] for run in self.runs[system][kind])

    @property
    def latency_gain(self) -> float:
        nezha, baseline = (self.figure(system, "alone", "p50") for system in SYSTEMS)
        return baseline / nezha

    @property
    def throughput_gain(self) -> float:
        nezha, baseline = (self.figure(system, "saturated", "throughput") for system in SYSTEMS)
        return nezha / baseline


def write_report(folder: Path, out: Path) -> Path:
    """Write `report.md` and its figures to `out` from the results in `folder`; what is missing there is left out."""
    out.mkdir(parents=True, exist_ok=True)
    page = ["# Speed", "", "Made by `make bench`; the reading is in [performance.md](../performance.md)."]
    for name, section in ((bench.RESULTS, _cells), (overhead.RESULTS, _overhead), (catalog_size.RESULTS, _sizes)):
        path = folder / name
        if path.exists():
            page += ["", *section(json.loads(path.read_text()), out)]
    path = out / PAGE
    path.write_text("\n".join(page).rstrip() + "\n")
    return path


def _cells(raw: dict[str, Any], out: Path) -> Iterable[str]:
    # In the order of the grid: a cell that is measured again comes last in the file.
    place = {cell.name: number for number, cell in enumerate((*GRID, *NAMED))}
    cells = sorted(map(CellResult, raw["cells"]), key=lambda cell: place.get(cell.name, len(place)))
    save_figure(_headline_figure([cell for cell in cells if cell.name in HEADLINE]), out, "headline")  # the README's
    yield from ("## NEZHA against beam search", "", save_figure(_gain_figure(cells), out, "speed-up"))
    yield "Latency, one request at a time:"
    yield ""
    rows = [
        (
            cell.name,
            f"{cell.parameters['NEZHA'] / 1e6:.1f}",
            *(_percentiles(cell, system) for system in SYSTEMS),
            *_against(cell.latency_gain, cell.bound),
        )
        for cell in cells
    ]
    titles = ("cell", "M parameters", "NEZHA p50 / p95 / p99 ms", "beam search p50 / p95 / p99 ms")
    gains = ("speed-up", "bound", "share of the bound", f"{OF_BOUND:.0%}")
    yield from markdown_table((*titles, *gains), rows)
    yield from ("", f"Throughput, {bench.SATURATING} requests under way at all times:", "")
    rows = [
        (
            cell.name,
            *(f"{cell.figure(system, 'saturated', 'throughput'):.2f}" for system in SYSTEMS),
            *_against(cell.throughput_gain, cell.bound),
        )
        for cell in cells
    ]
    yield from markdown_table(("cell", "NEZHA requests/s", "beam search requests/s", *gains), rows)
    yield ""
    yield from _settings([cell["settings"] for cell in raw["cells"]])


def _percentiles(cell: CellResult, system: str) -> str:
    return " / ".join(f"{cell.figure(system, 'alone', name):.1f}" for name in ("p50", "p95", "p99"))


def _against(gain: float, bound: float) -> tuple[str, ...]:
    share = gain / bound
    return f"{gain:.2f}", f"{bound:.2f}", f"{share:.0%}", "met" if share >= OF_BOUND else "missed"


def _headline_figure(cells: Sequence[CellResult]) -> Figure | None:
    """Latency of both systems in a few cells, to be read without knowing their names; None without any."""
    if not cells:
        return None
    figure = Figure(figsize=(8.0, 0.5 + 0.75 * len(cells)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(cells))[::-1]
    for shift, system, label, colour in (
        (0.2, "NEZHA", "genrec-triton (NEZHA)", COLOURS[0]),
        (-0.2, "beam search", "beam search, same model and server", "0.65"),
    ):
        times = [cell.figure(system, "alone", "p50") for cell in cells]
        bars = axes.barh(at + shift, times, 0.38, color=colour, label=label)
        gains = [f" ({cell.latency_gain:.1f} times as fast)" if system == "NEZHA" else "" for cell in cells]
        axes.bar_label(bars, [f"{spent:,.0f} ms{gain}" for spent, gain in zip(times, gains, strict=True)], padding=4)
    sizes = [(cell.name.split("-")[0].removesuffix("M"), cell.name.split("-K")[-1]) for cell in cells]
    axes.set_yticks(at, [f"{size} M parameters,\n{beams} beams" for size, beams in sizes])
    axes.set_xlabel("milliseconds for one answer (p50), 2 CPU cores")
    axes.margins(x=0.14)
    axes.legend(loc="upper right", frameon=False)
    tidy(axes, "x")
    return figure


def _gain_figure(cells: Sequence[CellResult]) -> Figure:
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(cells))
    bounds = np.array([cell.bound for cell in cells])
    for shift, gains, colour, label in (
        (-0.2, [cell.latency_gain for cell in cells], COLOURS[0], "p50, one request at a time"),
        (0.2, [cell.throughput_gain for cell in cells], COLOURS[1], "throughput at saturation"),
    ):
        bars = axes.bar(at + shift, gains, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{gain:.1f}" for gain in gains], fontsize=8, color="white", label_type="center")
    axes.hlines(bounds, at - 0.42, at + 0.42, color="black", label="arithmetic bound")
    axes.hlines(OF_BOUND * bounds, at - 0.42, at + 0.42, color="black", linestyle=":", label=f"{OF_BOUND:.0%} of it")
    axes.axhline(1, color="0.45", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_xticks(at, [cell.name.replace("-", "\n", 1) for cell in cells], fontsize=8)
    axes.set_ylabel("NEZHA's speed-up over beam search")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    tidy(axes)
    return figure


def _overhead(raw: dict[str, Any], out: Path) -> Iterable[str]:
    yield from ("## What an answer costs beyond one prefill", "")
    yield save_figure(_parts_figure(raw["cells"]), out, "parts")
    rows = []
    for cell in raw["cells"]:
        p50 = _p50(cell)
        served = np.percentile(np.concatenate(cell["times"]["ensemble"]), [50, 95, 99])
        rates = {name: median(values) for name, values in cell["saturated"].items()}
        best = max((name for name in rates if name != "ensemble"), key=lambda name: rates[name])
        rows.append(
            (
                cell["name"],
                f"{cell['parameters'] / 1e6:.1f}",
                *(f"{p50[name]:.2f}" for name in ("prefill", "head and beam", "engine", "verifier")),
                " / ".join(f"{value:.1f}" for value in served),
                f"{median_ratio(*(map(median, cell['times'][name]) for name in ('ensemble', 'prefill'))):.2f}",
                f"{rates[best]:.1f}",
                f"{rates['ensemble']:.1f}",
                f"{median_ratio(cell['saturated']['ensemble'], cell['saturated'][best]):.0%}",
            )
        )
    titles = ("cell", "M parameters", "prefill p50 ms", "head and beam", "engine, both in one graph", "verifier")
    more = ("ensemble p50 / p95 / p99", "ensemble / prefill", "engine requests/s, best batch", "ensemble requests/s")
    yield from markdown_table((*titles, *more, "share"), rows)
    yield ""
    yield "Both ratios are medians of those of single turns or rounds: the machine is less even than its parts."
    yield ""
    yield from _settings([raw["settings"]])


def _p50(cell: dict[str, Any]) -> dict[str, float]:
    return {name: float(np.median(np.concatenate(turns))) for name, turns in cell["times"].items()}


def _parts_figure(cells: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    sizes = list(dict.fromkeys(cell["name"].split("-")[0] for cell in cells))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        chosen = [cell for cell in cells if cell["name"].split("-")[0] == size]
        names = [cell["name"].split("-")[-1] for cell in chosen]
        below = np.zeros(len(chosen))
        for part, colour in zip(_PARTS, COLOURS, strict=False):
            heights = np.array([_part(cell, part) for cell in chosen])
            axes.bar(names, heights, 0.6, below, color=colour, label=part)
            below += heights
        axes.set(title=size, ylabel="ms, p50" if size == sizes[0] else "")
        tidy(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(_PARTS), frameon=False, fontsize=8)
    return figure


def _part(cell: dict[str, Any], part: str) -> float:
    p50 = _p50(cell)
    if part == "serving":
        return max(0.0, p50["ensemble"] - p50["prefill"] - p50["head and beam"] - p50["verifier"])
    return p50[part]


def _sizes(raw: dict[str, Any], out: Path) -> Iterable[str]:
    yield from ("## Size of the catalogue", "")
    p50 = {items: median(run["p50"] for run in runs) for items, runs in raw["runs"].items()}
    first = next(iter(p50.values()))
    rows = [
        (
            f"{int(items):,}",
            *(f"{median(run[name] for run in runs):.2f}" for name in ("p50", "p95", "p99")),
            f"{p50[items] / first - 1:+.1%}",
            f"{max(run['server_peak_mb'] for run in runs):.0f}",
        )
        for items, runs in raw["runs"].items()
    ]
    yield from markdown_table(("items", "p50 ms", "p95 ms", "p99 ms", "p50 against the first", "server MB"), rows)
    yield ""
    yield from _settings([raw["settings"]])


def _settings(found: Sequence[dict[str, Any]]) -> Iterable[str]:
    machines = {f"{s['machine']['processor']}, {s['machine']['cores']} cores" for s in found}
    libraries = {", ".join(f"{name} {v}" for name, v in s["machine"]["libraries"].items()) for s in found}
    commits, dates = ({str(s[key]) for s in found} for key in ("commit", "date"))
    more = {f"{key} {value}" for s in found for key, value in s.items() if key not in ("commit", "date", "machine")}
    yield (
        f"{'; '.join(sorted(machines))}; {'; '.join(sorted(libraries))}; commit {', '.join(sorted(commits))}; "
        f"{min(dates)} to {max(dates)}; {', '.join(sorted(more))}."
    )


def main(
    folder: Annotated[Path, typer.Argument(help="Where the results are.")],
    out: Annotated[Path, typer.Argument(help="Folder of the page.")],
) -> None:
    """Write the page."""
    print(write_report(folder, out))


if __name__ == "__main__":
    typer.run(main)
