"""The report of load tests: tables and figures, one result or several side by side.

python -m perf.speed.load_report OUT RESULT [RESULT ...]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from genrec.planning.queueing import MAX_UTILISATION, latency_quantiles
from genrec.reporting.page import COLOURS, markdown_table, save_figure, tidy

RESULTS, PAGE = "results.json", "report.md"
_PERCENTILES = ("p50", "p95", "p99")
_LINES = {"p50": "-", "p95": "--", "p99": ":"}


class LoadResult:
    """One `results.json`; runs of the same load are taken together by the median of their figures."""

    def __init__(self, path: Path) -> None:
        self.raw = json.loads((path / RESULTS).read_text())
        self.settings = self.raw["settings"]
        self.name = path.name
        self.instances = self.settings.get("instances", 1)
        self.closed = _medians(self.raw["closed"], "concurrency")
        self.open = _medians(self.raw["open"], "rate")
        self.locust = self.raw["locust"]


def _medians(runs: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    def of(run: dict[str, Any]) -> float:
        return float(run["load"][key])

    found = []
    for value, same in groupby(sorted(runs, key=of), of):
        group = list(same)
        numbers = [name for name, item in group[0].items() if isinstance(item, float)]
        steps = {
            step: {name: median(run["steps"][step][name] for run in group) for name in group[0]["steps"][step]}
            for step in group[0]["steps"]
        }
        found.append({"value": value, "steps": steps} | {name: median(run[name] for run in group) for name in numbers})
    return found


def write_report(out: Path, paths: Sequence[Path]) -> Path:
    """Write `report.md` and its figures to `out` from the results in `paths`; the first is compared with the others."""
    results = [LoadResult(path) for path in paths]
    out.mkdir(parents=True, exist_ok=True)
    page = ["# Load test", "", *_settings(results), "", "## Latency against throughput", ""]
    page += [save_figure(_latency_figure(results), out, "latency"), "Requests under way at all times:", ""]
    page += [*_closed_table(results), "", "Poisson arrivals:", "", *_open_table(results), ""]
    page += [
        "## Where the time goes",
        "",
        save_figure(_steps_figure(results), out, "steps"),
        "",
        *_steps_table(results),
    ]
    if any(result.locust for result in results):
        page += ["", "## Locust", "", save_figure(_locust_figure(results), out, "locust"), *_locust_table(results)]
    path = out / PAGE
    path.write_text("\n".join(page).rstrip() + "\n")
    return path


def _settings(results: Sequence[LoadResult]) -> Iterable[str]:
    keys = [key for key in results[0].settings if key != "machine"]
    rows = [(key, *(_short(result.settings.get(key, "")) for result in results)) for key in keys]
    machines = [f"{m['processor']}, {m['cores']} cores" for m in (result.settings["machine"] for result in results)]
    return markdown_table(("", *(result.name for result in results)), [*rows, ("machine", *machines)], left=(0,))


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _closed_table(results: Sequence[LoadResult]) -> Iterable[str]:
    more = ["p50 against the first"] if len(results) > 1 else []
    first = {run["value"]: run["p50"] for run in results[0].closed}
    rows = []
    for result in results:
        for run in result.closed:
            batch = run["steps"]["backbone"]["batch"]
            compared = result is not results[0] and run["value"] in first
            ratio = f"{run['p50'] / first[run['value']]:.2f}" if compared else ""
            rows.append(
                (
                    result.name,
                    f"{run['value']:.0f}",
                    *(f"{run[name]:.1f}" for name in _PERCENTILES),
                    f"{run['throughput']:.1f}",
                    f"{batch:.1f}",
                    f"{run['server_cores']:.2f}",
                    f"{run['client_cores']:.2f}",
                    f"{run['server_peak_mb']:.0f}",
                    *[ratio] * len(more),
                )
            )
    titles = ("", "concurrency", "p50 ms", "p95 ms", "p99 ms", "requests/s", "batch", "server cores", "client cores")
    return markdown_table((*titles, "server MB", *more), rows, left=(0,))


def _open_table(results: Sequence[LoadResult]) -> Iterable[str]:
    rows = []
    for result in results:
        saturated = max(closed["throughput"] for closed in result.closed)
        for run in result.open:
            predicted = _predicted_p99(run["value"], saturated, result.closed[0]["p50"], result.instances)
            against = ("", "") if predicted is None else (f"{predicted:.1f}", f"{run['p99'] / predicted:.2f}")
            rows.append(
                (
                    result.name,
                    f"{run['value']:.1f}",
                    f"{run['value'] / saturated:.0%}",
                    *(f"{run[name]:.1f}" for name in _PERCENTILES),
                    f"{run['steps']['backbone']['batch']:.2f}",
                    *against,
                )
            )
    titles = ("", "arrivals/s", "of saturation", "p50 ms", "p95 ms", "p99 ms", "batch", "p99 of M/D/c", "p99 / M/D/c")
    return markdown_table(titles, rows, left=(0,))


def _predicted_p99(rate: float, saturated: float, alone_ms: float, instances: int) -> float | None:
    """Of an M/D/c queue, ms: each of c engines serves a request in c / saturated; what one takes alone beyond is added.

    None where arrivals come as fast as they are served, or faster.
    """
    if rate > MAX_UTILISATION * saturated:
        return None
    service = 1e3 * instances / saturated
    return latency_quantiles(rate / 1e3, [service], instances, [0.99])[0] + max(0.0, alone_ms - service)


def _steps_table(results: Sequence[LoadResult]) -> Iterable[str]:
    rows = [
        (
            result.name,
            f"{run['value']:.0f}",
            step,
            *(f"{run['steps'][step][f'{name}_ms']:.2f}" for name in ("total", "queue", "infer")),
        )
        for result in results
        for run in (result.closed[0], result.closed[-1])
        for step in run["steps"]
    ]
    titles = ("", "concurrency", "step", "mean ms in the step", "waiting for the batcher", "in the model")
    return markdown_table(titles, rows, left=(0, 2))


def _locust_table(results: Sequence[LoadResult]) -> Iterable[str]:
    rows = [
        (
            result.name,
            *(run[name] for name in ("shape", "users", "requests", "failures", "retries")),
            *(f"{run[name]:.0f}" for name in _PERCENTILES),
            *(f"{run[name]:.2f}" for name in ("throughput", "server_cores", "client_cores")),
        )
        for result in results
        for run in result.locust
    ]
    titles = ("", "shape", "most users", "requests", "failed", "retries", "p50 ms", "p95 ms", "p99 ms", "requests/s")
    return markdown_table((*titles, "server cores", "client cores"), rows, left=(0, 1))


def _latency_figure(results: Sequence[LoadResult]) -> Figure:
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, kind, title in ((left, "closed", "requests under way at all times"), (right, "open", "Poisson arrivals")):
        for result, colour in zip(results, COLOURS, strict=False):
            runs = getattr(result, kind)
            for name in _PERCENTILES:
                label = f"{result.name}, {name}" if len(results) > 1 else name
                x, y = [run["throughput"] for run in runs], [run[name] for run in runs]
                axes.plot(x, y, _LINES[name], color=colour, marker="o", markersize=3.5, label=label)
            if kind == "closed":
                for run in runs:
                    place = (run["throughput"], run["p50"])
                    axes.annotate(f"{run['value']:.0f}", place, (3, -11), textcoords="offset points", fontsize=8)
        axes.set(xlabel="requests per second", title=title, xlim=(0, None), yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        tidy(axes)
    left.set_ylabel("latency in ms")
    left.legend(frameon=False, fontsize=8)
    return figure


def _steps_figure(results: Sequence[LoadResult]) -> Figure:
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        names = [f"{run['value']:.0f}" for run in result.closed]
        below = [0.0] * len(names)
        for step, colour in zip(result.closed[0]["steps"], COLOURS, strict=False):
            for key, light in (("queue", 0.4), ("rest", 1.0)):
                heights = [
                    run["steps"][step]["queue_ms"]
                    if key == "queue"
                    else run["steps"][step]["total_ms"] - run["steps"][step]["queue_ms"]
                    for run in result.closed
                ]
                label = f"{step}, waiting" if key == "queue" else step
                axes.bar(names, heights, 0.6, below, color=colour, alpha=light, label=label)
                below = [low + high for low, high in zip(below, heights, strict=True)]
        axes.plot(names, [run["mean"] for run in result.closed], "k_", markersize=14, label="seen by the client")
        axes.set(xlabel="concurrency", ylabel="mean ms per request", title=result.name)
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    return figure


def _locust_figure(results: Sequence[LoadResult]) -> Figure:
    shapes = list(dict.fromkeys(run["shape"] for result in results for run in result.locust))
    figure = Figure(figsize=(3.2 * len(shapes), 4.2), layout="constrained")
    grid = figure.subplots(2, len(shapes), squeeze=False, sharey="row", height_ratios=(2, 1))
    for column, shape in enumerate(shapes):
        for result, colour in zip(results, COLOURS, strict=False):
            for run in result.locust:
                if run["shape"] != shape:
                    continue
                rows = run["over_time"]
                for name in ("p50", "p99"):
                    label = f"{result.name}, {name}" if len(results) > 1 else name
                    grid[0][column].plot([row[name] for row in rows], _LINES[name], color=colour, label=label)
                grid[1][column].plot([row["rate"] for row in rows], color=colour)
        grid[0][column].set(title=shape)
        grid[1][column].set(xlabel="seconds")
        for axes in (grid[0][column], grid[1][column]):
            tidy(axes)
    for row in grid:  # once all columns are there: they share their scale
        row[0].set_ylim(bottom=0)
    grid[0][0].set_ylabel("latency in ms, last 10 s")
    grid[1][0].set_ylabel("requests per second")
    grid[0][0].legend(frameon=False, fontsize=8)
    return figure


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the report.")],
    results: Annotated[list[Path], typer.Argument(help="Folders that `python -m perf.speed.load` wrote.")],
) -> None:
    """Write one report of several results."""
    print(write_report(out, results))


if __name__ == "__main__":
    typer.run(main)
