"""NEZHA against beam search over the same backbone, both behind Triton, in turn, cell by cell.

python -m perf.speed.bench build/bench            # the eight named cells
python -m perf.speed.bench build/bench --full     # the whole grid, hours
python -m perf.speed.bench build/openvino --engine openvino    # both systems by another engine
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from genrec.cli.arguments import one_of
from genrec.engines import PRECISIONS
from genrec.reporting.kept import Fingerprint, flat, require_same
from genrec.reporting.machine import provenance
from genrec_builders.fingerprint import build_fingerprint
from perf.speed.analyzer import Load
from perf.speed.cells import DECODERS, GRID, NAMED, Cell, cell_bundle, cell_config, histories, synthetic
from perf.speed.load import LoadTest, load_test

RESULTS = "cells.json"
BENCH_FORMAT = "1"  # another one when the same cell and settings come to be measured in another way
MEASURED = ("onnx", "openvino")
SATURATING = 8  # requests under way at all times
LEAST, MOST = 5, 300  # requests of a run at concurrency 1
console = Console(stderr=True, soft_wrap=True)


def measure(
    cell: Cell,
    folder: Path,
    rounds: int,
    seconds: float,
    threads: int,
    engine: str = "onnx",
    precision: str = "auto",
) -> dict[str, Any]:
    """Both systems of a cell: every run's figures, in turn round by round."""
    bundles = {system: cell_bundle(cell, system, folder / "bundles") for system in DECODERS}
    tests: dict[str, LoadTest] = {}
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {system: {"alone": [], "saturated": []} for system in DECODERS}
    with ExitStack() as stack:
        for system, bundle in bundles.items():
            raw = folder / "raw" / cell.name / DECODERS[system]
            served = load_test(bundle, histories(cell), raw, engine, threads, precision=precision)
            tests[system] = stack.enter_context(served)
        expected = {system: test.analyzer(Load(LEAST, 1), -1)["p50"] / 1e3 for system, test in tests.items()}
        for number in range(rounds):
            for system, test in tests.items():
                wanted = min(MOST, max(LEAST, round(seconds / expected[system])))
                runs[system]["alone"].append(test.analyzer(Load(wanted, 1), number))
                load = Load(max(2 * SATURATING, wanted), SATURATING)
                runs[system]["saturated"].append(test.analyzer(load, number))
    parameters = {system: bundle.manifest.training["parameters"] for system, bundle in bundles.items()}
    return {"name": cell.name, "parameters": parameters, "tokens": cell.tokens, "bound": cell.bound, "runs": runs}


def cell_fingerprint(
    cell: Cell, rounds: int, seconds: float, threads: int, engine: str = "onnx", precision: str = "auto"
) -> dict[str, str]:
    """What a cell's result is of: the bundles of both systems, and how they are measured."""
    built = build_fingerprint(synthetic(cell.depth, cell.history), cell_config(cell, "NEZHA"))
    settings = {"decoder": [*DECODERS.values()], "rounds": rounds, "seconds": seconds, "threads": threads}
    if (engine, precision) != ("onnx", "auto"):  # results from before there was a choice stay what they are
        settings |= {"engine": engine, "precision": precision}
    return {**built, "bench format": BENCH_FORMAT, **flat(settings)}


def _require_same(path: Path, name: str, kept: Fingerprint | None, now: Fingerprint) -> None:
    if kept is None:
        console.print(f"{path}: it was not noted what {name} is of; it is used as it is")
    else:
        require_same(path, kept, now, f"it is of {name}: remove {path} to measure anew, or name another folder")


def main(
    out: Annotated[Path, typer.Argument(help="Folder of bundles, raw results, and `cells.json`.")],
    full: Annotated[bool, typer.Option(help="The whole grid instead of the named cells.")] = False,
    cells: Annotated[str, typer.Option(help="Only these, comma-separated; all by default.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Of each run, where a request is not slower.")] = 4.0,
    threads: Annotated[int, typer.Option(help="Of the engine; 0 for one per core.")] = 0,
    engine: Annotated[str, typer.Option(help="Of both systems: onnx or openvino.", callback=one_of(MEASURED))] = "onnx",
    precision: Annotated[
        str, typer.Option(help="Of both engines, as `genrec serve` takes it.", callback=one_of(PRECISIONS))
    ] = "auto",
) -> None:
    """Measure every cell; those that are in `cells.json` already are kept, if they were measured in the same way."""
    chosen = [cell for cell in (GRID if full else NAMED) if not cells or cell.name in cells.split(",")]
    path = out / RESULTS
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": []}
    done = {cell["name"]: cell.get("made_of") for cell in found["cells"]}
    for cell in chosen:
        made_of = cell_fingerprint(cell, rounds, seconds, threads, engine, precision)
        if cell.name in done:
            _require_same(path, cell.name, done[cell.name], made_of)
            continue
        console.rule(cell.name)
        result = {"made_of": made_of, **measure(cell, out, rounds, seconds, threads, engine, precision)}
        result["settings"] = provenance(threads=threads or "one per core", rounds=rounds, engine=engine)
        found["cells"].append(result)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
