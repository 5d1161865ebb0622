"""The page of `make bench-gpu`: latencies, limits, and the targets that were set for an H200.

python -m perf.gpu.report build/bench-gpu
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from genrec.planning.work import token_bound
from genrec.reporting.page import markdown_table

RESULTS, PAGE = "results.json", "report.md"
# Of an H200: Qwen3-1.7B's shape, three codes, beam 256, by tokens and batch.
TARGETS_MS = {(1000, 1): 9.0, (1000, 4): 28.0, (5000, 1): 36.0, (5000, 4): 135.0}
TARGET_CELL = {"shape": "1.7B", "beam": 256, "depth": 3}
HEAD_MS = 1.0  # head and beam of one prompt, in those cells
MATRIX_SHARE = 0.6  # of the measured bf16 rate, by a prefill of 5,000 tokens
# The same cells on an H100 as NVIDIA's recsys-examples publish them: their SID-GR inference, and SGLang beside it,
# where that is known.
PUBLISHED_MS: dict[tuple[int, int], tuple[float, float | None]] = {
    (1000, 1): (17.6, 33.5),
    (1000, 4): (47.7, 102.3),
    (1000, 8): (93.2, 199.0),
    (5000, 1): (42.3, 94.6),
    (5000, 4): (154.2, 349.9),
    (5000, 8): (308.0, None),
}


def p50(cell: dict[str, Any], call: str) -> float:
    """Median milliseconds of one of a cell's calls."""
    return float(np.median(cell["times"][call]))


def matrix_share(cell: dict[str, Any], rates: dict[str, float]) -> float:
    """Share of the measured bf16 matrix rate that the recorded prefill reaches."""
    return cell["limits"]["prefill_flops"] / p50(cell, "prefill, graph") / 1e6 / rates["bf16"]


def targets(cells: Sequence[dict[str, Any]], rates: dict[str, float]) -> list[tuple[str, str, str]]:
    """Every target that these cells can tell of: what was wanted, what was measured, "met" or "missed"."""
    rows = []
    for cell in cells:
        if any(cell[name] != value for name, value in TARGET_CELL.items()):
            continue
        where = f"{cell['tokens']} tokens, batch {cell['batch']}"
        wanted = TARGETS_MS.get((cell["tokens"], cell["batch"]))
        if wanted:
            rows.append(_target(f"an answer, {where}, ms", p50(cell, "engine, graph"), wanted))
        if cell["batch"] == 1:
            rows.append(_target(f"head and beam, {where}, ms", p50(cell, "head, graph"), HEAD_MS))
        if cell["tokens"] == 5000:
            rows.append(_target(f"prefill, {where}, share", matrix_share(cell, rates), MATRIX_SHARE, least=True))
    return rows


def _target(what: str, found: float, wanted: float, least: bool = False) -> tuple[str, str, str]:
    met = found >= wanted if least else found <= wanted
    return f"{what}, at {'least' if least else 'most'} {wanted:g}", f"{found:.2f}", "met" if met else "missed"


def write_report(folder: Path) -> Path:
    """Write `report.md` beside the results in `folder`."""
    raw = json.loads((folder / RESULTS).read_text())
    page = ["# PyTorch on a GPU", "", *_page(raw)]
    path = folder / PAGE
    path.write_text("\n".join(page).rstrip() + "\n")
    return path


def _page(raw: dict[str, Any]) -> Iterable[str]:
    if raw["cells"]:
        yield from _speed(raw)
    else:
        yield f"{raw['settings']['device']}. No cell has been measured."
    yield from ("", "## Checks", "")
    yield from markdown_table(("step", "outcome"), raw["steps"].items(), left=(0, 1))
    settings, machine = raw["settings"], raw["settings"]["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    yield from ("", f"{settings['date']}, commit {settings['commit']}, {machine['processor']}, {libraries}.")


def _speed(raw: dict[str, Any]) -> Iterable[str]:
    cells, rates, settings = raw["cells"], raw["rates"], raw["settings"]
    yield (
        f"{settings['device']}. Measured in this run: {rates['bf16'] / 1e3:.3g} TFLOP/s in bf16 and "
        f"{rates['float32'] / 1e3:.3g} in float32 (square matrix products), {rates['copy']:.0f} GB/s (a copy, read and "
        f"written). {settings['rounds']} rounds, all calls of a cell in turn, attention: {settings['attention']}."
    )
    yield from ("", "## Latency", "")
    rows = [
        (
            cell["name"],
            *(_percentiles(cell, name) for name in ("prefill, graph", "head, graph", "engine, graph")),
            _percentiles(cell, "beam search, graph"),
            f"{p50(cell, 'beam search, graph') / p50(cell, 'engine, graph'):.2f}",
            f"{token_bound(cell['depth'], cell['tokens'], cell['beam']):.2f}",
            "" if cell["peak_gib"] is None else f"{cell['peak_gib']:.1f}",
        )
        for cell in cells
    ]
    titles = ("cell", *(f"{name} p50 / p95 / p99 ms" for name in ("prefill", "head and beam", "answer", "beam search")))
    yield from markdown_table((*titles, "speed-up", "bound by tokens", "peak GiB"), rows)
    yield from (
        "",
        "All of it recorded as CUDA graphs, where the device has them. Other ways, p50:",
        "",
    )
    others = ("prefill, eager", "head, eager", "engine, eager", "beam search, eager", "prefill, compiled, graph")
    rows = [(c["name"], *(f"{p50(c, name):.2f}" if name in c["times"] else "" for name in others)) for c in cells]
    yield from markdown_table(("cell", *(f"{name}, ms" for name in others)), rows)
    yield from ("", "## Against the limits", "")
    rows = [
        (
            cell["name"],
            f"{cell['limits']['prefill_flops'] / p50(cell, 'prefill, graph') / 1e9:.1f}",
            f"{matrix_share(cell, rates):.0%}",
            *(f"{_reached(cell, name, limit):.0%}" for name, limit in _LIMITS.items()),
        )
        for cell in cells
    ]
    shares = (f"limit / {name.removesuffix(', graph')}" for name in _LIMITS)
    yield from markdown_table(("cell", "prefill TFLOP/s", "share of the bf16 rate", *shares), rows)
    yield from (
        "",
        "A limit is the time that the slower of arithmetic and memory would take, part by part, at the measured rates.",
    )
    yield from ("", "## Targets", "", "Of an H200, Qwen3-1.7B's shape, three codes, beam 256.", "")
    found = targets(cells, rates)
    if found:
        yield from markdown_table(("target", "measured", ""), found, left=(0, 2))
    else:
        yield "None of these cells has one."
    yield from ("", "Published of an H100 in the same cells (NVIDIA recsys-examples, SID-GR inference), ms:", "")
    wanted = [cell for cell in cells if all(cell[name] == value for name, value in TARGET_CELL.items())]
    ours = {(cell["tokens"], cell["batch"]): f"{p50(cell, 'engine, graph'):.1f}" for cell in wanted}
    published = [
        (
            f"{at[0]} tokens, batch {at[1]}",
            times[0],
            "" if times[1] is None else times[1],
            TARGETS_MS.get(at, ""),
            ours.get(at, ""),
        )
        for at, times in PUBLISHED_MS.items()
    ]
    yield from markdown_table(("cell", "NVIDIA", "SGLang", "target here", "this run"), published)


_LIMITS = {"prefill, graph": "prefill_ms", "head, graph": "head_ms", "beam search, graph": "beam_search_ms"}


def _reached(cell: dict[str, Any], call: str, limit: str) -> float:
    return cell["limits"][limit] / p50(cell, call)


def _percentiles(cell: dict[str, Any], call: str) -> str:
    return " / ".join(f"{value:.2f}" for value in np.percentile(cell["times"][call], [50, 95, 99]))


def main(folder: Annotated[Path, typer.Argument(help=f"With {RESULTS}.")]) -> None:
    """Write the page again."""
    print(write_report(folder))


if __name__ == "__main__":
    typer.run(main)
