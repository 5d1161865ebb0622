"""Engines of one bundle through the whole ensemble: two servers, asked in turn.

python -m perf.speed.engines build/engines --cells 25M-h20-L4-K128,110M-h20-L4-K128

Each has its server for the time of a cell. One is asked while the other has nothing to do.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.reporting.machine import provenance
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from perf.speed.cells import Cell, cell_bundle, histories
from perf.speed.overload import AT_ONCE, Client, ready_made

RESULTS = "engines.json"
console = Console(stderr=True, soft_wrap=True)


def cell_of(name: str) -> Cell:
    """The cell that is called so, as 25M-h20-L4-K128."""
    size, history, depth, beam = name.split("-")
    return Cell(size, int(history[1:]), int(depth[1:]), int(beam[1:]))


async def asked(url: str, requests: list[bytes], users: int, seconds: float) -> dict[str, Any]:
    """What users see who ask again at once."""
    client = Client(url, requests, 60_000.0)
    found = (await client.closed(seconds, users)).summary()
    await client.close()
    return {name: found[name] for name in ("p50", "p95", "p99", "goodput")}


def compared(cell: Cell, engines: list[str], out: Path, rounds: int, seconds: float, threads: int) -> dict[str, Any]:
    """Of each engine the median figures, alone and at saturation."""
    bundle = cell_bundle(cell, "NEZHA", out)
    requests = ready_made(bundle, histories(cell), 60_000.0)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"alone": [], "saturated": []} for name in engines}
    with ExitStack() as stack:
        urls = {}
        for name in engines:
            deployment = Deployment(engine=name, threads=threads, timeout_ms=60_000)
            server = serve_bundle(bundle.path, deployment, log_path=out / f"triton-{name}.log")
            urls[name] = stack.enter_context(server).grpc_url
            asyncio.run(asked(urls[name], requests, 1, 1.0))
        for number in range(rounds):
            for name in engines[number % 2 :] + engines[: number % 2]:
                runs[name]["alone"].append(asyncio.run(asked(urls[name], requests, 1, seconds)))
                runs[name]["saturated"].append(asyncio.run(asked(urls[name], requests, AT_ONCE, 2 * seconds)))
    return {
        name: {load: {at: float(np.median([run[at] for run in each])) for at in each[0]} for load, each in one.items()}
        for name, one in runs.items()
    }


def main(
    out: Annotated[Path, typer.Argument(help="Folder of bundles and `engines.json`.")],
    cells: Annotated[str, typer.Option(help="Comma-separated.")] = "3M-h20-L4-K128,25M-h20-L4-K128,110M-h20-L4-K128",
    engines: Annotated[str, typer.Option(help="The first is compared with the others.")] = "onnx,openvino",
    rounds: Annotated[int, typer.Option(min=1, help="Of all engines in turn.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Of a run, and twice that at saturation.")] = 5.0,
    threads: Annotated[int, typer.Option(help="Of an engine; 0 for one per core.")] = 0,
) -> None:
    """Print and write what each engine takes, and how much faster than the first it is."""
    names = engines.split(",")
    table = Table("cell", "engine", "alone: p50 / p95 / p99 ms", "gain", f"requests/s, {AT_ONCE} users", "gain")
    found: dict[str, Any] = {}
    for cell in map(cell_of, cells.split(",")):
        found[cell.name] = both = compared(cell, names, out, rounds, seconds, threads)
        for name in names:
            alone, saturated = both[name]["alone"], both[name]["saturated"]
            gains = (
                both[names[0]]["alone"]["p50"] / alone["p50"],
                saturated["goodput"] / both[names[0]]["saturated"]["goodput"],
            )
            spent = " / ".join(f"{alone[at]:.1f}" for at in ("p50", "p95", "p99"))
            table.add_row(cell.name, name, spent, f"{gains[0]:.2f}", f"{saturated['goodput']:.1f}", f"{gains[1]:.2f}")
        settings = provenance(rounds=rounds, seconds=seconds, threads=threads or "all", load=os.getloadavg()[0])
        (out / RESULTS).write_text(json.dumps({"settings": settings, "cells": found}, indent=1) + "\n")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
