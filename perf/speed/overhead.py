"""What a recommendation costs beyond one prefill: head and beam, verifier, and serving, in turn, in one run.

python -m perf.speed.overhead build/bench
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.bundle import Bundle
from genrec.engines import open_engine
from genrec.reporting.machine import provenance
from genrec.reporting.timing import each_ms, in_turn
from genrec.verifier import Verifier
from genrec_client import Recommender
from perf.speed.analyzer import Load
from perf.speed.cells import Cell, cell_bundle, histories
from perf.speed.load import load_test
from perf.speed.parts import Parts

RESULTS = "overhead.json"
CELLS = tuple(Cell(size, 20, 4, beam) for size in ("3M", "25M", "110M") for beam in (128, 512))
TURN_S = 0.7  # of one call, at most
PAUSE_S = 0.1  # between two of them: ONNX Runtime's threads go on spinning for a while
BATCHES = (1, 2, 4, 8, 16)
console = Console(stderr=True, soft_wrap=True)


def measure(
    bundle: Bundle, asked: list[np.ndarray], turns: int, rounds: int, seconds: float, threads: int, raw: Path
) -> dict:
    """Milliseconds of each call, one request after the other, a list for each turn; and requests per second at
    saturation, a figure for each round. Calls take their turns quickly, so that a machine that slows down slows all.
    """
    ids = [[bundle.catalog.item_ids[row] for row in history] for history in asked]
    prompts = [bundle.layout.encode_history(history, bundle.catalog.sids) for history in asked]
    engine, parts = open_engine(bundle, threads=threads), Parts(bundle, threads)
    verifier = Verifier(bundle.catalog, bundle.index)
    states = [parts.prefill(prompt) for prompt in prompts]
    drafts = [engine.draft([prompt]) for prompt in prompts]
    top_k = np.array([bundle.manifest.limits.default_top_k])

    def drafting(batch: list[np.ndarray]) -> Callable[[int], object]:
        return lambda at: engine.draft(batch)

    with load_test(bundle, asked, raw, threads=threads) as test:
        with Recommender(test.server.grpc_url, timeout_s=60.0) as client:
            calls: dict[str, Callable[[int], Any]] = {
                "prefill": lambda at: parts.prefill(prompts[at]),
                "head and beam": lambda at: parts.head(states[at]),
                "engine": lambda at: engine.draft([prompts[at]]),
                "verifier": lambda at: verifier.verify(drafts[at].codes, drafts[at].scores, [asked[at]], top_k),
                "ensemble": lambda at: client.recommend(ids[at]),
            }

            def after_a_pause(call: Callable[[int], Any]) -> list[float]:
                time.sleep(PAUSE_S)
                return each_ms(call, len(asked), TURN_S)

            times = in_turn(calls, turns, after_a_pause)
        saturated: dict[str, list[float]] = {"ensemble": [], **{f"engine, batch {size}": [] for size in BATCHES}}
        alone = float(np.median(np.concatenate(times["engine"])))
        wanted = max(2 * BATCHES[-1], round(1e3 * seconds / alone))
        for number in range(rounds):
            saturated["ensemble"].append(test.analyzer(Load(wanted, BATCHES[-1]), number)["throughput"])
            for size in BATCHES:
                spent = each_ms(drafting(prompts[:size]), 2, seconds)
                saturated[f"engine, batch {size}"].append(1e3 * size / float(np.median(spent)))
    return {"times": times, "saturated": saturated}


def main(
    out: Annotated[Path, typer.Argument(help="Folder of bundles, raw results, and `overhead.json`.")],
    turns: Annotated[int, typer.Option(min=1, help="Of every call, one request at a time.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="At saturation.")] = 3,
    seconds: Annotated[float, typer.Option(help="Of one measurement at saturation, at most.")] = 3.0,
    threads: Annotated[int, typer.Option(help="Of the engine; 0 for one per core.")] = 0,
) -> None:
    """Measure backbones of three sizes at two beam widths."""
    found: dict[str, Any] = {
        "settings": provenance(threads=threads or "one per core", turns=turns, rounds=rounds),
        "cells": [],
    }
    for cell in CELLS:
        console.rule(cell.name)
        bundle = cell_bundle(cell, "NEZHA", out / "bundles")
        raw = out / "raw" / "overhead" / cell.name
        result = measure(bundle, histories(cell), turns, rounds, seconds, threads, raw)
        for name, spent in result["times"].items():
            p50, p95, p99 = np.percentile(np.concatenate(spent), [50, 95, 99])
            console.print(f"{name}: p50 {p50:.2f} p95 {p95:.2f} p99 {p99:.2f} ms of {sum(map(len, spent))}")
        console.print({name: round(float(np.median(rates)), 1) for name, rates in result["saturated"].items()})
        found["cells"].append({"name": cell.name, "parameters": bundle.manifest.training["parameters"], **result})
        (out / RESULTS).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
