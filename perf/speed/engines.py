"""Engines of one bundle through the whole ensemble: a server for each, asked in turn.

python -m perf.speed.engines build/shop-bundle build/engines --data build/shop

The bundle has to be a trained one: with random weights bf16 drafts other items, and the golden check refuses it.
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

from genrec.bundle import Bundle
from genrec.reporting.machine import provenance
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out
from perf.speed.overload import AT_ONCE, Client, ready_made

RESULTS = "engines.json"
console = Console(stderr=True, soft_wrap=True)


async def asked(url: str, requests: list[bytes], users: int, seconds: float) -> dict[str, Any]:
    """What users see who ask again at once."""
    client = Client(url, requests, 60_000.0)
    found = (await client.closed(seconds, users)).summary()
    await client.close()
    return {name: found[name] for name in ("p50", "p95", "p99", "goodput")}


def compared(
    bundle: Bundle,
    histories: list[np.ndarray],
    engines: list[str],
    out: Path,
    rounds: int,
    seconds: float,
    threads: int,
) -> dict[str, Any]:
    """Of each engine the median figures, alone and at saturation. histories: int32 rows of the catalogue."""
    requests = ready_made(bundle, histories, 60_000.0)
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
    bundle_path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to serve.")],
    out: Annotated[Path, typer.Argument(help="Folder of `engines.json` and the servers' logs.")],
    data: Annotated[Path, typer.Option(help="Dataset whose test users ask.")],
    engines: Annotated[str, typer.Option(help="The first is compared with the others.")] = "onnx,openvino",
    users: Annotated[int, typer.Option(min=1, help="Users drawn from the dataset.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Of all engines in turn.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of a run, and twice that at saturation.")] = 5.0,
    threads: Annotated[int, typer.Option(help="Of an engine; 0 for one per core.")] = 0,
) -> None:
    """Print and write what each engine takes, and how much faster than the first it is."""
    bundle, names = Bundle(bundle_path), engines.split(",")
    histories, _ = sample_users(split_leave_one_out(read_dataset(data).interactions).test, users)
    out.mkdir(parents=True, exist_ok=True)
    both = compared(bundle, histories, names, out, rounds, seconds, threads)
    table = Table("engine", "alone: p50 / p95 / p99 ms", "gain", f"requests/s, {AT_ONCE} users", "gain")
    first = both[names[0]]
    for name in names:
        alone, saturated = both[name]["alone"], both[name]["saturated"]
        gains = first["alone"]["p50"] / alone["p50"], saturated["goodput"] / first["saturated"]["goodput"]
        spent = " / ".join(f"{alone[at]:.1f}" for at in ("p50", "p95", "p99"))
        table.add_row(name, spent, f"{gains[0]:.2f}", f"{saturated['goodput']:.1f}", f"{gains[1]:.2f}")
    settings = provenance(
        bundle=bundle_path.name, rounds=rounds, seconds=seconds, threads=threads or "all", load=os.getloadavg()[0]
    )
    (out / RESULTS).write_text(json.dumps({"settings": settings, "engines": both}, indent=1) + "\n")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
