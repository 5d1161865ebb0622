"""The page of a comparison: Markdown with tables, and figures beside it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from genrec.evaluation.bootstrap import LEVEL, RESAMPLES
from genrec.evaluation.plots import difference_figure, metric_title, quality_figure, time_figure, training_figure
from genrec.evaluation.results import POOLED, RECORD, Difference, RankingCell, Results, Trained
from genrec.reporting.page import markdown_table, save_figure

PAGE = "report.md"
HISTORIES = {"allowed": False, "excluded": True}
_TITLES = {False: "History not excluded (as in the literature)", True: "History excluded (as served)"}
_COLUMNS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10", "hit@50")


def write_report(results: Results, folder: Path) -> Path:
    """Write `report.md` and its figures (SVG) into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = [f"# {' against '.join(results.names)}", "", _summary(results), ""]
    for history, excluded in HISTORIES.items():
        page += [f"## {_TITLES[excluded]}", ""]
        differences = [d for d in results.record.differences if d.history_excluded == excluded]
        if differences:
            page += [save_figure(difference_figure(results, excluded), folder, f"differences-history-{history}")]
            page += [*_difference_table(differences), ""]
        page += [save_figure(quality_figure(results, excluded), folder, f"quality-history-{history}")]
        page += [*_quality_table(results, excluded), ""]
    page += ["## Time", "", save_figure(time_figure(results), folder, "time"), *_time_table(results), ""]
    if training := save_figure(training_figure(results), folder, "training"):
        page += ["## Training", "", training]
    page += ["## What was measured, and how", "", *_method(results), "", *_model_table(results), "", *_runs(results)]
    path = folder / PAGE
    path.write_text("\n".join(page).rstrip() + "\n")
    return path


def _summary(results: Results) -> str:
    data = results.record.data
    everyone = "all" if data.users == data.test_users else "drawn at random"
    text = (
        f"Test split ({data.protocol}) of `{data.name}`: {data.users:,} of {data.test_users:,} "
        f"users ({everyone}), {data.items:,} items. The numbers are in `{RECORD}`."
    )
    if len({trained.semantic_ids for trained in results.record.models} - {None}) > 1:
        text += " The bundles do not share their semantic IDs, so differences come from these too."
    return text


def _difference_table(differences: Sequence[Difference]) -> Iterable[str]:
    rows = []
    for metric in dict.fromkeys(d.metric for d in differences):
        for d in (d for d in differences if d.metric == metric):
            interval = "undefined" if d.relative is None else f"{_percent(d.relative)} %"
            low_high = "" if d.low is None or d.high is None else f"{_percent(d.low)} to {_percent(d.high)} %"
            pair = f"{POOLED}, {_count(d.seeds[0], 'seed')} / {d.seeds[1]}" if d.pair == POOLED else d.pair
            rows.append(
                [
                    f"{d.model} / {d.baseline}",
                    metric_title(d.metric),
                    d.beam_width or "",
                    _on(d.masked),
                    pair,
                    f"{d.ours:.4f}",
                    f"{d.theirs:.4f}",
                    interval,
                    low_high,
                ]
            )
    titles = ["models", "metric", "beam width", "masks", "seeds", "first", "second", "difference", "95 % interval"]
    return markdown_table(titles, rows, left=(0, 1, 3, 4))


def _quality_table(results: Results, excluded: bool) -> Iterable[str]:
    rows: list[list[object]] = []
    for name, cells in _groups(results, excluded):
        rows.append(
            [
                name,
                len(cells),
                cells[0].beam_width or "",
                _on(cells[0].masked),
                *(_mean(cells, column) for column in _COLUMNS),
                _mean_of([cell.valid_drafts for cell in cells], lambda share: f"{100 * share:.1f} %"),
            ]
        )
    floors = [floor for floor in results.record.popularity if floor.history_excluded == excluded]
    others = [("most popular items", floor.metrics) for floor in floors]
    if not excluded:  # published figures do not exclude it
        others += [(f"{reference.name} (published)", reference.metrics) for reference in results.record.references]
    for name, metrics in others:
        values = [f"{metrics[column]:.4f}" if column in metrics else "" for column in _COLUMNS]
        rows.append([name, "", "", "", *values, ""])
    titles = ["model", "seeds", "beam width", "masks", *map(metric_title, _COLUMNS), "drafts that are items"]
    return markdown_table(titles, rows, left=(0, 3))


def _time_table(results: Results) -> Iterable[str]:
    rows = []
    for name, cells in _groups(results, True):
        times = ([getattr(cell, field) for cell in cells] for field in ("ms_per_user", "drafting_ms"))
        total, drafting = (_mean_of(each, "{:.2f}".format) for each in times)
        rows.append([name, cells[0].beam_width or "", _on(cells[0].masked), total, drafting])
    return markdown_table(["model", "beam width", "masks", "ms per user", "of it drafting"], rows, left=(0, 2))


def _method(results: Results) -> Iterable[str]:
    yield (
        "- **Ranking**: the code that serves drafts and verifies; where drafts run out, the most popular items follow. "
        "Half as many items are ranked as there are beams, 10 to 50 (a served bundle's limit), so Hit@50 is "
        "there from beam width 100 on."
    )
    if any(cell.beam_width is None for cell in results.record.cells):
        yield (
            "- **Models without a beam width**: they score every item. In the tables of differences they stand beside "
            "every beam width of the first model."
        )
    yield (
        "- **Hit@K**: share of users whose target is among the first K. **NDCG@K**: mean of 1 / log2(1 + rank), 0 "
        "beyond K. With several seeds: means over the seeds."
    )
    yield (
        f"- **Differences**: (first - second) / second of the means over the same users. Intervals: paired bootstrap "
        f"over users, {RESAMPLES:,} resamples, percentile {100 * LEVEL:.0f} %. Pooled: each user's metric is averaged "
        "over the seeds first; the interval covers the choice of users, and the pairs of seeds (thin marks in the "
        "figure) show what training adds."
    )
    batches = sorted({run.batch for run in results.record.runs})
    yield (
        f"- **Time**: wall time of drafting and verifying divided by users, in batches of "
        f"{', '.join(map(str, batches))} prompts of like length, history excluded."
    )


def _model_table(results: Results) -> Iterable[str]:
    rows = [
        [
            name,
            "" if t.seed is None else t.seed,
            t.decoder,
            "" if t.parameters is None else f"{t.parameters:,}",
            _epochs(t),
            t.bundle_version or "",
            t.weights[:12],
        ]
        for name in results.names
        for t in results.trained(name)
    ]
    titles = ["model", "seed", "decoder", "parameters", "epochs", "bundle", "weights"]
    return markdown_table(titles, rows, left=(0, 2, 5, 6))


def _epochs(trained: Trained) -> str:
    losses = (trained.curves or {}).get("losses") or []
    best = (trained.curves or {}).get("best_epoch")
    if not losses:
        return ""
    return f"{len(losses)}" if best is None else f"{best + 1} of {len(losses)}"


def _runs(results: Results) -> Iterable[str]:
    rows = []
    for number, run in enumerate(results.record.runs):
        cells = sum(cell.run == number for cell in results.record.cells)
        machine = run.machine
        libraries = ", ".join(f"{name} {release}" for name, release in machine.libraries.items())
        rows.append(
            [
                datetime.datetime.fromisoformat(run.created).isoformat(timespec="seconds"),
                run.commit or "",
                f"{run.engine}, {run.device}, {_count(run.threads, 'thread') if run.threads else 'all cores'}",
                f"{machine.processor}, {_count(machine.cores, 'core')}",
                f"Python {machine.python}, {libraries}",
                cells,
            ]
        )
    return markdown_table(
        ["run", "commit", "engine, device, threads", "machine", "versions", "rankings"], rows, left=(0, 1, 2, 3, 4)
    )


def _groups(results: Results, excluded: bool) -> Iterable[tuple[str, list[RankingCell]]]:
    """The seeds' cells of every model and setting, model by model."""
    for name in results.names:
        for setting in results.settings():
            cells = results.cells(name, setting)
            if cells and setting[2] == excluded:
                yield name, cells


def _mean(cells: Sequence[RankingCell], metric: str) -> str:
    if not all(metric in cell.metrics for cell in cells):
        return ""
    return f"{np.mean([cell.metrics[metric] for cell in cells]):.4f}"


def _mean_of(values: Sequence[float | None], shown: Callable[[float], str]) -> str:
    """The mean as `shown`, "" for models that have no such values."""
    known = [value for value in values if value is not None]
    return shown(sum(known) / len(known)) if known else ""


def _percent(share: float) -> str:
    return f"{100 * share:+.2f}"


def _on(masked: bool | None) -> str:
    return "" if masked is None else "on" if masked else "off"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
